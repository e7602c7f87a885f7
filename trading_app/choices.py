"""Choices of the money tables."""

from django.db import models


class BotMode(models.TextChoices):
    SIMULATED = "simulated", "Simulated exchange"
    REPLAY = "replay", "Replay of real candles"
    PAPER = "paper", "Paper: real data, no real orders"
    LIVE = "live", "Live"


class DesiredState(models.TextChoices):
    """What a person wants of the bot. Exits work in every state but STOP, where only the exchange's stops remain."""

    RUN = "run", "Run"
    PAUSE = "pause", "Pause: no entries, positions are managed"
    CLOSE_ONLY = "close_only", "Close only: no entries, positions are closed now"
    STOP = "stop", "Stop: no decisions, stops stay at the exchange"


class OrderState(models.TextChoices):
    INTENT = "intent", "Intent"
    SENDING = "sending", "Sending"
    ACKED = "acked", "At the exchange"
    PARTIALLY_FILLED = "partially_filled", "Partially filled"
    FILLED = "filled", "Filled"
    CANCELLED = "cancelled", "Cancelled"
    EXPIRED = "expired", "Expired"
    REJECTED = "rejected", "Rejected"
    UNKNOWN = "unknown", "Outcome unknown"
    NOT_PLACED = "not_placed", "Proven not placed"


OPEN_ORDER_STATES = frozenset(
    {OrderState.INTENT, OrderState.SENDING, OrderState.ACKED, OrderState.PARTIALLY_FILLED, OrderState.UNKNOWN}
)


class OrderPurpose(models.TextChoices):
    ENTRY = "entry", "Entry"
    EXIT = "exit", "Exit"
    STOP = "stop", "Protective stop"


TERMINAL_ORDER_STATES = frozenset(set(OrderState) - OPEN_ORDER_STATES)

IN_FLIGHT_ORDER_STATES = frozenset({OrderState.INTENT, OrderState.SENDING, OrderState.UNKNOWN})
"""The venue has not told yet whether it has the order."""

ORDER_TRANSITIONS: dict[OrderState, frozenset[OrderState]] = {
    OrderState.INTENT: frozenset({OrderState.SENDING, OrderState.NOT_PLACED}),
    OrderState.SENDING: frozenset(set(OrderState) - {OrderState.INTENT, OrderState.SENDING}),
    OrderState.UNKNOWN: frozenset(set(OrderState) - {OrderState.INTENT, OrderState.SENDING}),
    OrderState.ACKED: frozenset(
        {OrderState.PARTIALLY_FILLED, OrderState.FILLED, OrderState.CANCELLED, OrderState.EXPIRED, OrderState.REJECTED}
    ),
    OrderState.PARTIALLY_FILLED: frozenset({OrderState.FILLED, OrderState.CANCELLED, OrderState.EXPIRED}),
    # A fill is stronger than any earlier answer: a state that was reached by a time-out or a wrong reply yields (F12).
    OrderState.FILLED: frozenset(),
    OrderState.CANCELLED: frozenset({OrderState.FILLED}),
    OrderState.EXPIRED: frozenset({OrderState.FILLED}),
    OrderState.REJECTED: frozenset({OrderState.FILLED, OrderState.PARTIALLY_FILLED, OrderState.CANCELLED}),
    OrderState.NOT_PLACED: frozenset(
        {OrderState.ACKED, OrderState.PARTIALLY_FILLED, OrderState.FILLED, OrderState.CANCELLED}
    ),
}
"""The one table of what may follow what; `trading_app.orders` refuses everything else."""


class FillKind(models.TextChoices):
    TRADE = "trade", "Trade"
    FUNDING = "funding", "Funding payment"
    ADJUSTMENT = "adjustment", "Correction: the exchange's position won"


class RiskKind(models.TextChoices):
    KILL_SWITCH = "kill_switch", "Kill switch pulled"
    KILL_SWITCH_RESET = "kill_switch_reset", "Kill switch reset"
    DAILY_LOSS = "daily_loss", "Daily loss limit"
    DESIRED_STATE = "desired_state", "State asked for"
    STOP_MISSING = "stop_missing", "Protective stop was missing"
    FOREIGN = "foreign", "Order or position that is not ours"
    MODEL_REFUSED = "model_refused", "Model refused by the bot"
    DRIFT = "drift", "Position differed from the exchange's"
    VENUE_ERROR = "venue_error", "Exchange answered with errors"

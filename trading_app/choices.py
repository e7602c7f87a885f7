"""Choices of the money tables."""

from django.db import models


class BotMode(models.TextChoices):
    SIMULATED = "simulated", "Simulated exchange"
    REPLAY = "replay", "Replay of real candles"
    PAPER = "paper", "Paper: real data, no real orders"
    SANDBOX = "sandbox", "Sandbox: real orders on the exchange's test net"
    LIVE = "live", "Live"


REAL_MODES = frozenset({BotMode.SANDBOX, BotMode.LIVE})
"""Modes in which orders go to an exchange: with play money or not, what must be kept is the same."""


class DesiredState(models.TextChoices):
    """What a person wants of the bot. In STOP only what rests at the exchange closes; exits work in every other."""

    RUN = "run", "Run"
    PAUSE = "pause", "Pause: no entries, positions are managed"
    CLOSE_ONLY = "close_only", "Close only: no entries, positions are closed now"
    STOP = "stop", "Stop: no decisions, stops stay at the exchange"


class KillPolicy(models.TextChoices):
    """What becomes of open positions when the kill switch is pulled, by a drawdown or by a person."""

    KEEP = "keep", "Keep: each goes on to its stop, its target or its time barrier"
    CLOSE = "close", "Close: all are closed at once"


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
    MISSING = "missing", "Was at the exchange, which does not show it any more"


OPEN_ORDER_STATES = frozenset(
    {OrderState.INTENT, OrderState.SENDING, OrderState.ACKED, OrderState.PARTIALLY_FILLED, OrderState.UNKNOWN}
)


class OrderPurpose(models.TextChoices):
    ENTRY = "entry", "Entry"
    EXIT = "exit", "Exit"
    STOP = "stop", "Protective stop"
    TARGET = "target", "Resting order that takes the profit"


RESTING_PURPOSES = frozenset({OrderPurpose.STOP, OrderPurpose.TARGET})
"""Reduce-only orders that wait at the exchange while their position is open, and no longer."""

TERMINAL_ORDER_STATES = frozenset(set(OrderState) - OPEN_ORDER_STATES)

IN_FLIGHT_ORDER_STATES = frozenset({OrderState.INTENT, OrderState.SENDING, OrderState.UNKNOWN})
"""The venue has not told yet whether it has the order."""

_ENDED = frozenset({OrderState.FILLED, OrderState.CANCELLED, OrderState.EXPIRED})
_PLACED = _ENDED | {OrderState.ACKED, OrderState.PARTIALLY_FILLED}
"""What evidence of an order at the venue may say."""

ORDER_TRANSITIONS: dict[OrderState, frozenset[OrderState]] = {
    OrderState.INTENT: frozenset({OrderState.SENDING, OrderState.NOT_PLACED}),
    OrderState.SENDING: _PLACED | {OrderState.REJECTED, OrderState.UNKNOWN, OrderState.NOT_PLACED},
    OrderState.UNKNOWN: _PLACED | {OrderState.REJECTED, OrderState.NOT_PLACED},
    OrderState.ACKED: (_PLACED - {OrderState.ACKED}) | {OrderState.REJECTED, OrderState.MISSING},
    OrderState.PARTIALLY_FILLED: _ENDED | {OrderState.MISSING},
    # A fill is stronger than any earlier answer, and so is an order that is open: a state that was reached by a
    # time-out, a wrong reply or a history that forgets yields to what the venue shows (F12).
    OrderState.REJECTED: _PLACED | {OrderState.MISSING},
    OrderState.NOT_PLACED: _PLACED | {OrderState.REJECTED, OrderState.MISSING},
    OrderState.MISSING: _PLACED | {OrderState.REJECTED},
    # Two words for the same end make one state, whichever came first.
    OrderState.EXPIRED: frozenset({OrderState.FILLED, OrderState.CANCELLED}),
    OrderState.CANCELLED: frozenset({OrderState.FILLED}),
    OrderState.FILLED: frozenset(),
}
"""The one table of what may follow what; `trading_app.order_machine` says which event asks for which change."""


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

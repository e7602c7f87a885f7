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


class RiskKind(models.TextChoices):
    KILL_SWITCH = "kill_switch", "Kill switch pulled"
    KILL_SWITCH_RESET = "kill_switch_reset", "Kill switch reset"
    DAILY_LOSS = "daily_loss", "Daily loss limit"
    DESIRED_STATE = "desired_state", "State asked for"
    STOP_MISSING = "stop_missing", "Protective stop was missing"
    FOREIGN = "foreign", "Order or position that is not ours"
    MODEL_REFUSED = "model_refused", "Model refused by the bot"

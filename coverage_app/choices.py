"""Choices of the coverage tables."""

from django.db import models


class BlockReason(models.TextChoices):
    """Why a symbol is neither learnt nor traded."""

    SHORT_HISTORY = "SHORT_HISTORY", "History is too short"
    LOW_COVERAGE = "LOW_COVERAGE", "Too many candles are missing"
    STALE_DATA = "STALE_DATA", "Newest candle is too old"
    PRICE_BREAK = "PRICE_BREAK", "Price series is broken"
    DELISTED = "DELISTED", "No longer listed"
    NOT_IN_UNIVERSE = "NOT_IN_UNIVERSE", "Not in the universe"
    TRAINING_FAILED = "TRAINING_FAILED", "Training failed"
    MODEL_REJECTED = "MODEL_REJECTED", "Model was refused by a gate"
    EXCHANGE_ERROR = "EXCHANGE_ERROR", "Exchange answers with errors"
    ORDER_UNKNOWN = "ORDER_UNKNOWN", "An order's outcome is unknown"
    MANUAL = "MANUAL", "Blocked by a person"


COVERAGE_REASONS = frozenset(
    {
        BlockReason.SHORT_HISTORY,
        BlockReason.LOW_COVERAGE,
        BlockReason.STALE_DATA,
        BlockReason.PRICE_BREAK,
        BlockReason.DELISTED,
        BlockReason.NOT_IN_UNIVERSE,
        BlockReason.EXCHANGE_ERROR,
    }
)
"""Reasons that the evaluation opens and closes by itself; the others belong to training, the bot or a person."""

BACK_OFF_REASONS = frozenset({BlockReason.TRAINING_FAILED, BlockReason.MODEL_REJECTED})
"""Reasons that end when their `recheck_at` has come: the symbol may then be tried again."""

TRADING_REASONS = frozenset({BlockReason.ORDER_UNKNOWN})
"""Reasons that stop trading but not learning."""


class RefreshTrigger(models.TextChoices):
    SCHEDULED = "scheduled", "Scheduled"
    MANUAL = "manual", "By a person"
    STARTUP = "startup", "Start"

"""What the engine decided about one symbol at one bar."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of one decision; the decision's reason text says why."""

    ENTER = "ENTER"
    EXIT = "EXIT"
    HOLD = "HOLD"
    NO_SIGNAL = "NO_SIGNAL"
    REFUSED = "REFUSED"
    NO_DATA = "NO_DATA"

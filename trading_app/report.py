"""What one pass of the bot did, so that tests and the soak ask it instead of guessing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

LeaseState = Literal["held", "taken", "busy", "lost"]


@dataclass(slots=True)
class TickReport:
    """One pass. `idle` passes did nothing but say that they live; `following` ones look after something open."""

    lease: LeaseState = "held"
    waiting: str = ""
    reconciled: bool = False
    changes: int = 0
    fills: int = 0
    following: bool = False
    models_loaded: int = 0
    models_refused: int = 0
    replays: int = 0
    bar_at: datetime | None = None
    missed_bars: int = 0
    decisions: int = 0
    entries: int = 0
    exits: int = 0
    orders_sent: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return not (
            self.reconciled or self.following or self.fills or self.models_loaded or self.models_refused
            or self.bar_at is not None or self.orders_sent or self.errors
        )  # fmt: skip

    @property
    def reloaded(self) -> bool:
        return self.models_loaded > 0

    def __str__(self) -> str:
        if self.lease in ("busy", "lost"):
            return f"account is {self.lease}"
        parts = [f"{name}={getattr(self, name)}" for name in ("fills", "orders_sent", "models_loaded", "decisions")]
        bar = f"bar {self.bar_at:%Y-%m-%d %H:%M} " if self.bar_at is not None else ""
        return "idle" if self.idle else bar + " ".join(part for part in parts if not part.endswith("=0"))

"""What the kills showed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any

MOST_SENTENCES = 50
VIOLATIONS = ("lost", "doubled", "unprotected", "stale", "errors")
COUNTS = ("runs", "orders", "fills", "pauses", *VIOLATIONS)


@dataclass(slots=True)
class KillReport:
    """Counts are of violations; `hooks` says how many processes died where. Seconds are real ones."""

    settings: dict[str, Any] = field(default_factory=dict)
    runs: int = 0
    orders: int = 0
    fills: int = 0
    pauses: int = 0
    lost: int = 0
    doubled: int = 0
    unprotected: int = 0
    stale: int = 0
    errors: int = 0
    longest_naked_seconds: float = 0.0
    hooks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    reconciled: list[float] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(getattr(self, name) for name in VIOLATIONS)

    def say(self, kind: str, sentences: list[str]) -> None:
        """Count violations of a kind and keep the first sentences."""
        setattr(self, kind, getattr(self, kind) + len(sentences))
        room = MOST_SENTENCES - len(self.sentences)
        self.sentences.extend(f"{kind}: {sentence}" for sentence in sentences[:room])

    def add(self, other: dict[str, Any]) -> None:
        """Take over what another lane reported (`to_dict`)."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + other[name])
        self.longest_naked_seconds = max(self.longest_naked_seconds, other["longest_naked_seconds"])
        self.hooks.update(other["hooks"])
        self.faults.update(other["faults"])
        self.reconciled += other["reconciled"]
        self.sentences += other["sentences"]

    def to_dict(self, *, whole: bool = False) -> dict[str, Any]:
        """Return the report as JSON has it; `whole` keeps every time to reconciled, for `add`."""
        times = sorted(self.reconciled)
        row: dict[str, Any] = {
            name: getattr(self, name) for name in ("settings", *COUNTS, "longest_naked_seconds", "sentences")
        }
        row |= {"hooks": dict(self.hooks), "faults": dict(self.faults)}
        if whole:
            return row | {"reconciled": times}
        return row | {
            "seconds_to_reconciled": {
                "median": round(median(times), 2) if times else None,
                "worst": round(times[-1], 2) if times else None,
            }
        }

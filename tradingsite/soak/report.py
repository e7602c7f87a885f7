"""What a soak counted, per day and in total."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Counts:
    """Rows that came to be, and work that was done, in a span of simulated time."""

    evaluations: int = 0
    blocks: int = 0
    runs: int = 0
    causes: int = 0
    artifacts: int = 0
    activations: int = 0
    reloads: int = 0
    decisions: int = 0
    trades: int = 0

    def minus(self, earlier: Counts) -> Counts:
        return Counts(**{name: value - getattr(earlier, name) for name, value in asdict(self).items()})


@dataclass(slots=True)
class Day:
    """A simulated day. `queries_per_pass` is the mean over all passes.

    `cpu_seconds` is what workers and bot cost, `watching_seconds` what the soak's own questions cost, and
    `yardstick_seconds` what the same fixed work cost on this day, in the mean. `memory_mb` is the process's at its end,
    and `violations` are those that were found in it.
    """

    date: str
    counts: Counts
    queries_per_pass: float
    cpu_seconds: float
    watching_seconds: float = 0.0
    yardstick_seconds: float = 0.0
    memory_mb: float = 0.0
    violations: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "date": self.date,
            **asdict(self.counts),
            "queries_per_pass": round(self.queries_per_pass, 2),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "watching_seconds": round(self.watching_seconds, 3),
            "yardstick_seconds": round(self.yardstick_seconds, 6),
            "memory_mb": round(self.memory_mb, 1),
            "violations": len(self.violations),
        }


@dataclass(slots=True)
class SoakReport:
    """The result of a soak; `violations` are sentences, each with the invariant that broke."""

    settings: dict[str, Any]
    days: list[Day] = field(default_factory=list)
    totals: Counts = field(default_factory=Counts)
    chaos: dict[str, int] = field(default_factory=dict)
    queries_per_idle_pass: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violations

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "totals": asdict(self.totals),
            "chaos": dict(self.chaos),
            "queries_per_idle_pass": self.queries_per_idle_pass,
            "days": [day.to_dict() for day in self.days],
            "violations": self.violations,
        }

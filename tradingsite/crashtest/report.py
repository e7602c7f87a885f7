"""What a crash test did and saw."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class CrashReport:
    """`recovered` holds, by kind of strike, the seconds from it (a freeze: from its end) until that program worked;
    `slow` names what took longer than allowed.
    """

    settings: dict[str, Any]
    strikes: Counter[str] = field(default_factory=Counter)
    recovered: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    slow: list[str] = field(default_factory=list)
    orphans: int = 0
    zombies: int = 0
    lost: int = 0
    retried_trainings: int = 0
    trainings: int = 0
    decisions: int = 0
    fills: int = 0
    violations: list[str] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not (self.violations or self.slow or self.orphans or self.zombies or self.lost)

    def to_dict(self) -> dict[str, Any]:
        times = [second for seconds in self.recovered.values() for second in seconds]
        return {
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "load_average": {
                "median": round(statistics.median(self.load), 2) if self.load else 0.0,
                "most": round(max(self.load, default=0.0), 2),
            },
            "strikes": sum(self.strikes.values()),
            "kills": dict(sorted(self.strikes.items())),
            "recovered_seconds": {
                "all": _summary(times),
                **{kind: _summary(seconds) for kind, seconds in sorted(self.recovered.items())},
            },
            "slow": self.slow,
            "orphans": self.orphans,
            "zombies": self.zombies,
            "lost": self.lost,
            "trainings": self.trainings,
            "retried_trainings": self.retried_trainings,
            "decisions": self.decisions,
            "fills": self.fills,
            "violations": self.violations,
        }


def _summary(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {"median": round(statistics.median(seconds), 2), "worst": round(max(seconds), 2)}

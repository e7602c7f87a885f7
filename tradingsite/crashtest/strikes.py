"""What is done to an installation, to which of its processes, and with which weight it is drawn."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import numpy as np

KILL, STOP, TERM = "kill", "freeze", "term"
FREEZE_SECONDS = (1.0, 8.0)


@dataclass(frozen=True, slots=True)
class Strike:
    """`how` on `role` of `program`. `busy` says whether the worker must be at work when it is hit (None: whatever)."""

    program: str
    role: str
    how: str = KILL
    busy: bool | None = None

    @property
    def name(self) -> str:
        work = {True: " (busy)", False: " (idle)", None: ""}[self.busy]
        return f"{self.how} {self.program} {self.role}{work}"


def cluster_strikes(program: str) -> list[Strike]:
    """Every line of the kill table in locks.md, and freezing."""
    return [
        Strike(program, "worker", busy=False),
        Strike(program, "worker", busy=True),
        Strike(program, "monitor"),
        Strike(program, "guard"),
        Strike(program, "main"),
        Strike(program, "pusher"),
        Strike(program, "group", TERM),
        Strike(program, "worker", STOP),
        Strike(program, "guard", STOP),
    ]


WORKERS_ONLY = [*cluster_strikes("light"), *cluster_strikes("training")]
WHOLE = [
    *WORKERS_ONLY,
    *[Strike("training", "trainer")] * 6,
    Strike("training", "trainer", STOP),
    *[Strike("web", "main")] * 3,
    *[Strike("web", "worker")] * 3,
    Strike("web", "main", STOP),
    Strike("web", "group", TERM),
    *[Strike("bot", "main")] * 6,
    Strike("bot", "main", STOP),
    Strike("bot", "group", TERM),
]


class Plan:
    """Draws strikes: each kind once in random order, then again, so that few draws leave none out."""

    def __init__(self, strikes: list[Strike], *, seed: int) -> None:
        self._generator = np.random.default_rng([seed, 41])
        self._strikes = strikes
        self._left: list[Strike] = []

    def next(self) -> Strike:
        if not self._left:
            self._left = [self._strikes[index] for index in self._generator.permutation(len(self._strikes))]
        return self._left.pop()

    def pick(self, pids: list[int]) -> int:
        return int(self._generator.choice(pids))

    def seconds(self, low: float, high: float) -> float:
        return float(self._generator.uniform(low, high))


NUMBERS = {KILL: signal.SIGKILL, STOP: signal.SIGSTOP, "continue": signal.SIGCONT, TERM: signal.SIGTERM}

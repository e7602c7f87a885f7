"""The bot that this project replaces, as its users described it: the control of the judge of loops.

Every pass it evaluates what is blocked, reloads its model if anything waits for training, and queues the same symbols
again although they are training; a failed training leads straight to the next; while one runs, no bar is decided.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from tradingsite.soak.judge import LoopJudge

PASS = dt.timedelta(seconds=60)
TRAINING = dt.timedelta(minutes=20)
BAR = dt.timedelta(hours=1)


@dataclass
class OldBot:
    """`young` symbols are too short all the time, `failing` ones never get a model, `good` ones do."""

    judge: LoopJudge
    young: tuple[str, ...] = ("YOUNG",)
    failing: tuple[str, ...] = ("FAILING",)
    good: tuple[str, ...] = ("GOOD",)
    evaluations: int = 0
    runs: int = 0
    covered: set[str] = field(default_factory=set)
    _training: tuple[str, tuple[str, ...], dt.datetime] | None = None
    _generation: int = 0

    def live(self, *, start: dt.datetime, days: int) -> None:
        now = start
        while now < start + dt.timedelta(days=days):
            self._pass(now)
            now += PASS
        self.judge.bars_due(now - BAR)

    def _pass(self, now: dt.datetime) -> None:
        blocked = [*self.young, *(symbol for symbol in (*self.failing, *self.good) if symbol not in self.covered)]
        for symbol in blocked:
            self.evaluations += 1
            self.judge.evaluated(symbol, now)
        waiting = tuple(symbol for symbol in blocked if symbol not in self.young)
        if waiting:
            self._queue(waiting, now)
            self.judge.reloaded(self._generation, now)
        if now.minute == 0 and self._training is None and self.covered:
            self.judge.decided(now - BAR)
        self._finish(now)

    def _queue(self, symbols: tuple[str, ...], now: dt.datetime) -> None:
        first = self._training is None
        self.runs += 1
        self.judge.run_requested(str(self.runs), symbols, cause="new symbols" if self.runs == 1 else "")
        if first:
            self._training = (str(self.runs), symbols, now + TRAINING)

    def _finish(self, now: dt.datetime) -> None:
        if self._training is None or now < self._training[2]:
            return
        run, symbols, _ = self._training
        self._training = None
        self.judge.run_ended(run)
        self._generation += 1
        self.covered |= set(symbols) & set(self.good)

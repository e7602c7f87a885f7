"""The judge of loops: told what a system does, it says what was done without a cause. Pure: no rows, no clock.

The soak tells it what the real system did; a test tells it what the old bot did, and it must convict that one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(slots=True)
class LoopJudge:
    """Collects violations of the first promise. `interval` is the least time between evaluations of a symbol (I3)."""

    interval: dt.timedelta
    bar: dt.timedelta
    violations: list[str]
    causes: int = 0
    reloads: int = 0
    _evaluated: dict[str, dt.datetime] = field(default_factory=dict)
    _training: dict[str, str] = field(default_factory=dict)
    _generation: int = 0
    _ready_at: dt.datetime | None = None
    _first_bar: dt.datetime | None = None
    _bars: int = 0

    def evaluated(self, symbol: str, at: dt.datetime) -> None:
        before = self._evaluated.get(symbol)
        if before is not None and at - before < self.interval:
            self.violations.append(f"I3: {symbol} was evaluated at {before:%H:%M:%S} and at {at:%Y-%m-%d %H:%M:%S}")
        self._evaluated[symbol] = at

    def run_requested(self, run: str, symbols: Collection[str], *, cause: str) -> None:
        """Take note of a run. `cause` is what changed, as the caller verified it; empty: nothing did."""
        if cause:
            self.causes += 1
        else:
            self.violations.append(f"I2: run {run} was requested although nothing had changed")
        for symbol in symbols:
            if symbol in self._training:
                self.violations.append(
                    f"I1: {symbol} was queued in run {run} while it was in run {self._training[symbol]}"
                )
            self._training[symbol] = run

    def run_ended(self, run: str) -> None:
        self._training = {symbol: of for symbol, of in self._training.items() if of != run}

    def reloaded(self, generation: int, at: dt.datetime) -> None:
        self.reloads += 1
        if generation <= self._generation:
            self.violations.append(f"I9: a model was loaded at {at:%Y-%m-%d %H:%M} without a new generation")
        self._generation = max(self._generation, generation)
        self._ready_at = self._ready_at or at

    def decided(self, bar_at: dt.datetime) -> None:
        """Take note of a decided bar; call it from the first bar with a model on."""
        self._first_bar = self._first_bar or bar_at
        self._bars += 1

    def bars_due(self, last_bar: dt.datetime) -> None:
        """Say which bar should have been decided last; every one since the first must have been."""
        if self._first_bar is None:
            if self._ready_at is not None and last_bar >= self._ready_at:
                self.violations.append(f"none of the bars since {self._ready_at}, when a model was there, was decided")
            return
        if last_bar < self._first_bar:
            return
        expected = (last_bar - self._first_bar) // self.bar + 1
        if self._bars < expected:
            self.violations.append(f"only {self._bars} of {expected} bars since {self._first_bar} were decided")

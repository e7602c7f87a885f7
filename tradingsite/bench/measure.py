"""A figure, and how it is measured: CPU seconds of this process, the best of a few, as others share the machine.

What a database server or a child process does is not in it: compare such figures on one machine only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from django.db import connection
from django.test.utils import CaptureQueriesContext

SECONDS, WALL_SECONDS, QUERIES, MEGABYTES = "s CPU", "s wall", "queries", "MB"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
FEWEST_DAYS = 30
"""Below this a history says little about a whole one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the work is. `days` of hourly candles where a history is needed."""

    symbols: int
    days: int = 730

    @property
    def bars(self) -> int:
        return self.days * 24


class MemoryTooSmallError(Exception):
    """The shortest history that is worth measuring does not fit."""


def fitting_days(scale: Scale, *, bytes_per_candle: int, free_bytes: int) -> int:
    """Return for how many days `scale` can be measured with half of `free_bytes`: its own, if they fit.

    Raises MemoryTooSmallError where not even FEWEST_DAYS fit.
    """
    if not bytes_per_candle:
        return scale.days
    fewest = min(FEWEST_DAYS, scale.days)
    days = min(scale.days, free_bytes // 2 // (bytes_per_candle * scale.symbols * 24))
    if days < fewest:
        need = 2 * bytes_per_candle * scale.symbols * 24 * fewest
        raise MemoryTooSmallError(
            f"{scale.symbols:,} symbols need {need / 2**20:,.0f} MB of free memory for {fewest} days, and "
            f"{free_bytes / 2**20:,.0f} MB are free: measure fewer symbols"
        )
    return days


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement. `limit` was measured in the same run, and `versus` says what it is.

    `ratio` is value / limit: how many times the unavoidable work is done. Where the limit is another way to do the
    same (`rival`), it is limit / value: how many times faster we are. `goal` is in the unit, None: no goal is set.
    """

    name: str
    symbols: int
    value: float
    unit: str
    limit: float
    versus: str
    rival: bool = False
    goal: float | None = None
    days: int | None = None
    """Of the histories, where one was measured: fewer than asked for when memory holds no more."""

    @property
    def ratio(self) -> float:
        return self.limit / self.value if self.rival else self.value / self.limit

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.value <= self.goal

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def cpu_seconds(work: Callable[[], object], *, before: Callable[[], object] = lambda: None, best_of: int = 3) -> float:
    """Return the CPU seconds of `work` at its best; `before` each time comes first and does not count."""
    return _best(time.process_time, work, before, best_of)


def wall_seconds(work: Callable[[], object], *, best_of: int = 5) -> float:
    """Return how long one waits for `work` at its best: for work on several threads, on a machine that is quiet."""
    return _best(time.perf_counter, work, lambda: None, best_of)


def _best(clock: Callable[[], float], work: Callable[[], object], before: Callable[[], object], best_of: int) -> float:
    best = float("inf")
    for _ in range(best_of):
        before()
        began = clock()
        work()
        best = min(best, clock() - began)
    return best


def many_times(work: Callable[[], object], times: int) -> float:
    """Return the CPU seconds of one of many calls, for work that is too short for the clock."""

    def repeat() -> None:
        for _ in range(times):
            work()

    work()
    return cpu_seconds(repeat) / times


def peak_megabytes(work: Callable[[], object]) -> float | None:
    """Return how much resident memory `work` took at its peak, beyond what was held before; None: not on this system.

    Memory that earlier work gave back to the allocator, but the allocator not to the system, is used without being
    seen: measure first, and time afterwards.
    """
    if not _RESET.exists():
        return None
    _RESET.write_text(_RESET_PEAK)  # the kernel's own: the peak begins anew at what is resident now
    before = _kilobytes("VmRSS")
    work()
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return next(int(line[1]) for line in lines if line[0] == f"{name}:")


def queries(work: Callable[[], object]) -> int:
    """Return the statements of `work`, those that begin and end a transaction included."""
    with CaptureQueriesContext(connection) as captured:
        work()
    return len(captured)


def expect(is_so: bool, what: str) -> None:
    """Stop a benchmark whose work was not done. Raises RuntimeError: a number without the work would be a lie."""
    if not is_so:
        raise RuntimeError(f"the benchmark did not do its work: {what}")


Benchmark = Callable[[Scale], Iterator[Figure]]

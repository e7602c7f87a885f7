"""Which benchmarks there are. A module has SIZES (numbers of symbols), `run(scale)`, which yields figures, and
BYTES_PER_CANDLE, what it holds at its peak (0: no history)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import psutil

from ops_app import host
from tradingsite.bench.measure import Figure, Scale, fitting_days

NAMES = ("coverage", "store", "ingest", "loop", "features", "labels", "live", "backtest", "training", "serving")


def run(names: Iterable[str], *, symbols: Sequence[int] | None, days: int) -> Iterator[Figure]:
    """Run these benchmarks, each at `symbols` or at its own sizes, and give their figures as they come.

    A history is shortened to what half of the free memory holds. Raises MemoryTooSmallError where that is too short.
    """
    for name in names:
        module = importlib.import_module(f"tradingsite.bench.{name}")  # late: some import LightGBM
        for size in symbols or module.SIZES:
            free = min(psutil.virtual_memory().available, host.memory_mb() * host.MEGABYTE)
            scale = Scale(symbols=size, days=min(days, getattr(module, "MOST_DAYS", days)))
            held = module.BYTES_PER_CANDLE
            scale = replace(scale, days=fitting_days(scale, bytes_per_candle=held, free_bytes=free))
            for figure in module.run(scale):
                yield replace(figure, days=scale.days if held else None)

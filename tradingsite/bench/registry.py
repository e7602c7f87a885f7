"""Which benchmarks there are. A module has SIZES (numbers of symbols) and `run(scale)`, which yields figures."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence

from tradingsite.bench.measure import Figure, Scale

NAMES = ("coverage", "store", "ingest", "loop", "features", "labels", "live", "backtest", "training", "serving")


def run(names: Iterable[str], *, symbols: Sequence[int] | None, days: int) -> Iterator[Figure]:
    """Run these benchmarks, each at `symbols` or at its own sizes, and give their figures as they come."""
    for name in names:
        module = importlib.import_module(f"tradingsite.bench.{name}")  # late: some import LightGBM
        for size in symbols or module.SIZES:
            yield from module.run(Scale(symbols=size, days=days))

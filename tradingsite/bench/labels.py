"""Triple-barrier labels of every candle of the whole history (a training labels only those with a signal)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from quant.label_kernel import warm_cache
from quant.labels import LabelSpec, triple_barrier
from quant.panel import Panel
from tradingsite.bench import worlds
from tradingsite.bench.measure import SECONDS, WALL_SECONDS, Figure, Scale, cpu_seconds, expect, wall_seconds

SIZES = (50, 500)
BYTES_PER_CANDLE = 120  # candles, labels, and what is random
GOAL = 0.2
RIVAL_SYMBOLS = 10


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    panel, spec = worlds.panel(scale), LabelSpec()
    shape = (panel.n_times, panel.n_symbols)
    side = np.where(np.random.default_rng(1).random(shape) < 0.5, 1, -1).astype(np.int8)
    atr_pct = np.full(shape, 0.01)

    def label(threads: int = 1) -> None:
        labels = triple_barrier(panel, side, atr_pct, spec, threads=threads)
        expect(len(labels) == side[: -spec.horizon].size, f"{len(labels)} labels for {side.size} candles")

    def least() -> None:
        for prices in (panel.open, panel.high, panel.low, panel.close):
            prices.sum()
        np.ones(side.size), np.ones((3, side.size), dtype=np.int32), np.ones((3, side.size), dtype=np.int8)

    versus = "read the prices, write as many numbers"
    yield Figure(
        name="labels.triple_barrier", symbols=scale.symbols, unit=SECONDS, value=cpu_seconds(label),
        limit=cpu_seconds(least), versus=versus,
    )  # fmt: skip
    yield Figure(
        name="labels.triple_barrier.two_threads", symbols=scale.symbols, unit=WALL_SECONDS, goal=GOAL,
        value=wall_seconds(lambda: label(threads=2)), limit=wall_seconds(least), versus=f"{versus}, on one thread",
    )  # fmt: skip

    few = panel.select(panel.symbols[:RIVAL_SYMBOLS])
    mine, wide = np.ascontiguousarray(side[:, : few.n_symbols]), np.ascontiguousarray(atr_pct[:, : few.n_symbols])
    long = np.abs(mine)
    reached = _numpy(few, wide, spec)
    expect(
        bool(np.array_equal(reached, triple_barrier(few, long, wide, spec).t1_index.reshape(reached.shape))),
        "NumPy does not find the same exits",
    )
    yield Figure(
        name="labels.numpy", symbols=few.n_symbols, unit=SECONDS, rival=True,
        value=cpu_seconds(lambda: triple_barrier(few, long, wide, spec)),
        limit=cpu_seconds(lambda: _numpy(few, wide, spec)),
        versus="NumPy, bar after bar of the horizon: only where each long trade ends, without its costs",
    )  # fmt: skip


def _numpy(panel: Panel, atr_pct: NDArray[np.float64], spec: LabelSpec) -> NDArray[np.int64]:
    """The bar in which each long trade ends, int64 [T - horizon, S]."""
    last = panel.n_times - spec.horizon
    entry, width = panel.close[:last], panel.close[:last] * atr_pct[:last]
    target, stop = entry + spec.profit_take * width, entry - spec.stop_loss * width
    end = np.repeat(np.arange(last)[:, None] + spec.horizon, panel.n_symbols, axis=1)
    is_open = np.ones(end.shape, dtype=np.bool_)
    for ahead in range(1, spec.horizon + 1):
        rows = slice(ahead, ahead + last)
        touched = is_open & ((panel.low[rows] <= stop) | (panel.high[rows] > target))
        end[touched] = np.nonzero(touched)[0] + ahead
        is_open &= ~touched
    return end

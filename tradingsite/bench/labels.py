"""Triple-barrier labels of every candle of the whole history (a training labels only those with a signal)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quant.label_kernel import warm_cache
from quant.labels import LabelSpec, triple_barrier
from tradingsite.bench import worlds
from tradingsite.bench.measure import SECONDS, Figure, Scale, cpu_seconds, expect

SIZES = (50, 500)
GOAL = 0.2


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    panel, spec = worlds.panel(scale), LabelSpec()
    shape = (panel.n_times, panel.n_symbols)
    side = np.where(np.random.default_rng(1).random(shape) < 0.5, 1, -1).astype(np.int8)
    atr_pct = np.full(shape, 0.01)

    def label() -> None:
        labels = triple_barrier(panel, side, atr_pct, spec)
        expect(len(labels) == side[: -spec.horizon].size, f"{len(labels)} labels for {side.size} candles")

    def least() -> None:
        for prices in (panel.open, panel.high, panel.low, panel.close):
            prices.sum()
        np.zeros(side.size), np.zeros((3, side.size), dtype=np.int32), np.zeros((3, side.size), dtype=np.int8)

    yield Figure(
        name="labels.triple_barrier", symbols=scale.symbols, unit=SECONDS, goal=GOAL, value=cpu_seconds(label),
        limit=cpu_seconds(least), versus="read the prices, write as many numbers",
    )  # fmt: skip

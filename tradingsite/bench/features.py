"""The step kernel: replayed over the whole history as a training does, and stepped by one candle as the bot does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quant.features import FeatureState, replay, step, warm_cache
from quant.schema import FeatureSchema
from tradingsite.bench import worlds
from tradingsite.bench.measure import SECONDS, Figure, Scale, cpu_seconds, expect, many_times

SIZES = (50, 500)
ROWS = 256
GOAL_REPLAY, GOAL_STEP = 1.5, 0.001
NUMBERS = ("open", "high", "low", "close", "volume", "funding")


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    schema, panel = FeatureSchema(), worlds.panel(scale)
    out = np.empty((ROWS, scale.symbols, len(schema)), dtype=np.float32)

    def history() -> None:
        state = FeatureState.create(schema, scale.symbols, step_ms=panel.step_ms)
        for start in range(0, panel.n_times, ROWS):
            rows = panel.rows(start, min(start + ROWS, panel.n_times))
            replay(state, rows, out=out[: rows.n_times])
        expect(bool(np.isfinite(out[rows.n_times - 1]).any()), "no feature is finite at the end")

    def least() -> None:
        for start in range(0, panel.n_times, ROWS):
            rows = panel.rows(start, min(start + ROWS, panel.n_times))
            out[: rows.n_times] = sum(float(getattr(rows, name).sum()) for name in NUMBERS)

    yield Figure(
        name="features.replay", symbols=scale.symbols, unit=SECONDS, goal=GOAL_REPLAY,
        value=cpu_seconds(history), limit=cpu_seconds(least), versus="read the candles, write as many numbers",
    )  # fmt: skip

    state = FeatureState.create(schema, scale.symbols)
    replay(state, panel.rows(0, min(ROWS, panel.n_times)))
    row = panel.row(0)._asdict()
    values = [row[name] for name in NUMBERS]

    def live() -> None:
        row["open_time_ms"] = int(state.last_open_ms or 0) + panel.step_ms
        step(state, **row)

    def least_live() -> None:
        np.stack(values).sum()
        np.zeros((scale.symbols, len(schema)), dtype=np.float32)
        state.values.copy()

    yield Figure(
        name="features.step", symbols=scale.symbols, unit=SECONDS, goal=GOAL_STEP, value=many_times(live, 100),
        limit=many_times(least_live, 100), versus="read the candles and the state, write as many numbers",
    )  # fmt: skip

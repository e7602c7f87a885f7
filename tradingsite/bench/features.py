"""The step kernel: replayed over the whole history as a training does, and stepped by one candle as the bot does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from quant.features import FeatureState, replay, step, warm_cache
from quant.panel import Panel
from quant.schema import FeatureSchema
from tradingsite.bench import worlds
from tradingsite.bench.measure import (
    MEGABYTES,
    SECONDS,
    WALL_SECONDS,
    Figure,
    Scale,
    cpu_seconds,
    expect,
    many_times,
    peak_megabytes,
    wall_seconds,
)  # fmt: skip

SIZES = (50, 500)
BYTES_PER_CANDLE = 250  # candles and the features of all of them
ROWS = 256
GOAL_REPLAY, GOAL_STEP = 1.5, 0.001
RIVAL_SYMBOLS = 4
MEMORY_RATIO = 1.5
NUMBERS = ("open", "high", "low", "close", "volume", "funding")


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    schema, panel = FeatureSchema(), worlds.panel(scale)
    given = sum(getattr(panel, name).nbytes for name in NUMBERS) / 2**20
    made = panel.n_times * panel.n_symbols * len(schema) * 4 / 2**20
    peak = peak_megabytes(lambda: replay(FeatureState.create(schema, scale.symbols), panel))
    if peak is not None:
        yield Figure(
            name="features.memory", symbols=scale.symbols, unit=MEGABYTES, value=given + peak, limit=given + made,
            goal=MEMORY_RATIO * (given + made), versus="candles and features of the whole history",
        )  # fmt: skip
    out = np.empty((ROWS, scale.symbols, len(schema)), dtype=np.float32)

    def history(threads: int = 1) -> None:
        state = FeatureState.create(schema, scale.symbols, step_ms=panel.step_ms)
        for start in range(0, panel.n_times, ROWS):
            rows = panel.rows(start, min(start + ROWS, panel.n_times))
            replay(state, rows, out=out[: rows.n_times], threads=threads)
        expect(bool(np.isfinite(out[rows.n_times - 1]).any()), "no feature is finite at the end")

    def least() -> None:
        for start in range(0, panel.n_times, ROWS):
            rows = panel.rows(start, min(start + ROWS, panel.n_times))
            out[: rows.n_times] = sum(float(getattr(rows, name).sum()) for name in NUMBERS)

    versus = "read the candles, write as many numbers"
    yield Figure(
        name="features.replay", symbols=scale.symbols, unit=SECONDS, value=cpu_seconds(history),
        limit=cpu_seconds(least), versus=versus,
    )  # fmt: skip
    yield Figure(
        name="features.replay.two_threads", symbols=scale.symbols, unit=WALL_SECONDS, goal=GOAL_REPLAY,
        value=wall_seconds(lambda: history(threads=2)), limit=wall_seconds(least), versus=f"{versus}, on one thread",
    )  # fmt: skip

    few = panel.select(panel.symbols[:RIVAL_SYMBOLS])
    yield Figure(
        name="features.pandas", symbols=few.n_symbols, unit=SECONDS, rival=True,
        value=cpu_seconds(lambda: replay(FeatureState.create(schema, few.n_symbols), few)),
        limit=cpu_seconds(lambda: _pandas(few), best_of=1),
        versus="pandas, symbol by symbol: only the averages, windows and returns of the same features",
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
        state.copy()

    yield Figure(
        name="features.step", symbols=scale.symbols, unit=SECONDS, goal=GOAL_STEP, value=many_times(live, 100),
        limit=many_times(least_live, 100), versus="read the candles and the state, write as many numbers",
    )  # fmt: skip


def _pandas(panel: Panel) -> int:
    """What the features are made of, as pandas computes it: 26 columns a symbol, no ratio, no rank, no market."""
    made = 0
    for column in range(panel.n_symbols):
        close, high, low = (pd.Series(values[:, column]) for values in (panel.close, panel.high, panel.low))
        logs = pd.Series(np.log(panel.close[:, column]))
        turnover = pd.Series(np.log1p(panel.close[:, column] * panel.volume[:, column]))
        change = logs.diff()
        parts = [close.ewm(span=span).mean() for span in (9, 12, 26, 48, 168)]
        parts += [each.ewm(alpha=1 / 14).mean() for each in (change.clip(lower=0), change.clip(upper=0), high - low)]
        parts += [(change**2).ewm(span=span).mean() for span in (24, 48, 168)]
        parts += [turnover.ewm(span=span).std() for span in (24, 168)]
        parts += [logs.diff(n) for n in (4, 12, 24, 72, 168)]
        parts += [values.rolling(span).max() for values in (high, -low) for span in (24, 168)]
        parts += [values.rolling(168).apply(np.argmax, raw=True) for values in (high, -low)]
        parts += [close.rolling(20).mean(), close.rolling(20).std()]
        made += len(parts)
    return made

"""Small random markets for the tests of features and labels."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from quant.panel import Panel

STEP = 3_600_000


def random_panel(seed: int, n_times: int, n_symbols: int, *, missing: float = 0.0) -> Panel:
    """A random walk per symbol with a common factor, zero-volume candles, funding and missing candles."""
    random = np.random.default_rng(seed)
    shape = (n_times, n_symbols)
    factor = random.standard_normal((n_times, 1)) * 0.006
    close = 10.0 ** random.uniform(-3, 4, n_symbols) * np.exp(
        np.cumsum(factor + 0.01 * random.standard_normal(shape), 0)
    )
    open_ = np.vstack([close[:1], close[:-1]])
    high = np.maximum(open_, close) * (1 + 0.004 * np.abs(random.standard_normal(shape)))
    low = np.minimum(open_, close) / (1 + 0.004 * np.abs(random.standard_normal(shape)))
    volume = np.exp(random.standard_normal(shape) + 6) * (random.random(shape) > 0.02)
    funding = np.zeros(shape)
    funding[::8] = random.normal(1e-4, 1e-4, funding[::8].shape)
    panel = Panel(
        symbols=tuple(f"S{index}" for index in range(n_symbols)),
        step_ms=STEP,
        open_time=1_700_000_000_000 // STEP * STEP + STEP * np.arange(n_times, dtype=np.int64),
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=volume,
        funding=funding,
    )
    return without(panel, random.random(shape) < missing)


def without(panel: Panel, missing: NDArray[np.bool_]) -> Panel:
    """The same panel in which the candles of the mask are missing."""
    values = {name: getattr(panel, name).copy() for name in ("open", "high", "low", "close", "volume")}
    for column in values.values():
        column[missing] = np.nan
    return dataclasses.replace(panel, **values)


def mixed(before: Panel, after: Panel, row: int) -> Panel:
    """The rows up to and with ``row`` of one panel, then those of the other."""
    names = ("open", "high", "low", "close", "volume", "funding")
    return dataclasses.replace(
        before,
        **{name: np.vstack([getattr(before, name)[: row + 1], getattr(after, name)[row + 1 :]]) for name in names},
    )

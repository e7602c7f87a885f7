"""What is broken about the special symbols: missing candles, token swaps, late feeds.

Pure functions of (spec, time), like all of the simulated market.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exchanges.simulated.hashing import Floats, uniform
from exchanges.simulated.roster import (
    GENESIS_DAY,
    LATE_BY_MS,
    SWAP_FACTOR,
    SWAP_GAP_DAYS,
    SWAP_PERIOD_DAYS,
    Oddity,
    SymbolSpec,
)

_HOUR_LOST, _OUTAGE_CHANCE, _OUTAGE_DAYS = 0.05, 0.05, 2


def visible_until_ms(spec: SymbolSpec, now_ms: int) -> int:
    """Candles that close at or before this time are published: the end of the listing, or a late feed."""
    if spec.oddity is Oddity.LATE:
        now_ms -= LATE_BY_MS
    return now_ms if spec.delisted_ms is None else min(now_ms, spec.delisted_ms)


def missing_hours(spec: SymbolSpec, first_day: int, days: int) -> NDArray[np.bool_] | None:
    """[D, 24]: hours without any candle, or None if there are none."""
    day = np.arange(first_day, first_day + days, dtype=np.int64)
    if spec.oddity is Oddity.GAPPY:
        key = np.array([spec.key], dtype=np.uint64)
        hours = np.arange(first_day * 24, (first_day + days) * 24, dtype=np.int64).reshape(days, 24)
        lost = uniform(key ^ np.uint64(21), hours) < _HOUR_LOST
        block = (day - GENESIS_DAY) // _OUTAGE_DAYS
        return np.asarray(lost | (uniform(key ^ np.uint64(22), block) < _OUTAGE_CHANCE)[:, None])
    if spec.oddity is Oddity.SWAPPED:
        closed = (day - GENESIS_DAY) % SWAP_PERIOD_DAYS < SWAP_GAP_DAYS
        return np.repeat(closed[:, None], 24, axis=1)
    return None


def log_multiplier(spec: SymbolSpec, first_day: int, days: int) -> Floats | None:
    """[D]: what a token swap did to the log price: 1000 old tokens became one new, and back again at the next swap."""
    if spec.oddity is not Oddity.SWAPPED:
        return None
    swaps = (np.arange(first_day, first_day + days, dtype=np.int64) - GENESIS_DAY) // SWAP_PERIOD_DAYS
    return np.where(swaps % 2 == 1, np.log(SWAP_FACTOR), 0.0)


def first_open_ms(spec: SymbolSpec, step_ms: int) -> int:
    """Open time of the first whole candle after the listing."""
    return -(-spec.listed_ms // step_ms) * step_ms

"""The learnable part of the simulated market: hidden regimes of trend and chop.

Each symbol lives through episodes of five days. In a *trending* one its price drifts in one direction; in a *choppy*
one the drift turns every twelve hours, so that whoever follows the trend is late. Turnover is higher while a symbol
trends, which is what a meta-model can see. With `learnable=False` the regimes, and their effect on turnover, are the
same but no price drifts: the same market with nothing to be found, the null world of the gates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exchanges.simulated.hashing import Floats, Keys, hash64, stream_key, uniform

_HOURS = 24
_BARS_PER_HOUR = 12
_SEGMENT_HOURS = 12
_EPISODE_SEGMENTS = 10
_TRENDING_SHARE = 0.45
_TREND_PER_DAY = 1.6
"""Drift of a trending day, in standard deviations of the symbol's usual day."""
_CHOP_PER_DAY = 1.3
_TREND_ACTIVITY = 3.5
"""Turnover while trending, relative to chop."""


class HiddenDrift:
    """Regimes of S symbols. `daily_volatility` [S] scales the drift."""

    def __init__(self, *, seed: int, names: Sequence[str], daily_volatility: Floats, learnable: bool) -> None:
        self._key: Keys = np.array([stream_key(seed, "regime", name) for name in names], dtype=np.uint64)
        draw = hash64(self._key, np.zeros(len(names), dtype=np.int64))
        # Episodes of different symbols begin at different hours and days.
        self._hour_offset = (draw % np.uint64(_SEGMENT_HOURS)).astype(np.int64)
        self._segment_offset = ((draw >> np.uint64(8)) % np.uint64(_EPISODE_SEGMENTS)).astype(np.int64)
        scale = daily_volatility / _HOURS if learnable else np.zeros(len(names))
        self._trend_rate = _TREND_PER_DAY * scale
        self._chop_rate = _CHOP_PER_DAY * scale

    def _regimes(
        self, rows: NDArray[np.int64], first: int, count: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """[R, n] for half-day segments: is it trending, and the drift per hour."""
        segment = np.arange(first, first + count, dtype=np.int64) + self._segment_offset[rows][:, None]
        episode = segment // _EPISODE_SEGMENTS
        key = self._key[rows][:, None]
        trending = uniform(key ^ np.uint64(1), episode) < _TRENDING_SHARE
        sign = np.where(hash64(key ^ np.uint64(2), episode) & np.uint64(1), 1.0, -1.0)
        alternating = np.where(segment & 1, sign, -sign)
        rate = np.where(trending, sign * self._trend_rate[rows][:, None], alternating * self._chop_rate[rows][:, None])
        return trending, rate

    def day_sums(self, rows: NDArray[np.int64], first: int, count: int) -> Floats:
        """[R, D]: the drift of each day. Exactly the sum of its bars, up to rounding."""
        _, rate = self._regimes(rows, 2 * first, 2 * count + 1)
        late = self._hour_offset[rows][:, None]
        return np.asarray(
            rate[:, 0:-1:2] * (_SEGMENT_HOURS - late) + rate[:, 1::2] * _SEGMENT_HOURS + rate[:, 2::2] * late
        )

    def bars(self, rows: NDArray[np.int64], first: int, count: int) -> Floats:
        """[R, D, 288]: the drift of each 5-minute bar."""
        _, rate = self._regimes(rows, 2 * first, 2 * count + 1)
        hourly = np.take_along_axis(rate, self._segment_of_hour(rows, count), axis=1) / _BARS_PER_HOUR
        return np.repeat(hourly, _BARS_PER_HOUR, axis=1).reshape(len(rows), count, -1)

    def activity(self, rows: NDArray[np.int64], first: int, count: int) -> Floats:
        """[R, D, 24]: relative turnover of each hour."""
        trending, _ = self._regimes(rows, 2 * first, 2 * count + 1)
        level = np.where(trending, _TREND_ACTIVITY, 1.0)
        return np.take_along_axis(level, self._segment_of_hour(rows, count), axis=1).reshape(len(rows), count, _HOURS)

    def _segment_of_hour(self, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        return (np.arange(count * _HOURS) + self._hour_offset[rows][:, None]) // _SEGMENT_HOURS

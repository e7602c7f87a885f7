"""Prices of the simulated market: a stateless function of (seed, symbol, time).

The log price of a symbol is the sum of a market, a sector and an own diffusion, of jumps, and, in a learnable world,
of a hidden drift. Each diffusion draws the *sum of a day* first, with exactly the variance of that day's 5-minute
bars, and refines it to bars by a Brownian bridge. So the level at any day is a short cumulative sum, any window can
be computed alone, and a bar is independent of every other bar given the volatilities. Both properties matter: a
bridge whose variance does not match its bars, or a jump smeared over its day, can be predicted by a model that should
find nothing (reference/exchanges.md).

Shapes: S symbols, D days, 288 bars of 5 minutes a day.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exchanges.simulated.drift import HiddenDrift
from exchanges.simulated.hashing import (
    Floats,
    Keys,
    hash64,
    normal,
    normal_row,
    smooth_normal,
    stream_key,
    uniform,
    uniform_pair,
)
from exchanges.simulated.roster import GENESIS_DAY, SECTORS, SymbolSpec

BARS = 288
HOURS = 24
_BARS_PER_HOUR = BARS // HOURS
_CHUNK_DAYS = 32
_FACTOR_CHUNKS_KEPT = 200

_LOG_VOL_SCALES = ((90, 0.20), (21, 0.24), (5, 0.24), (1, 0.14))
"""(days, standard deviation) of the components of log volatility of a day."""
_HOUR_LOG_VOL = ((6, 0.30), (1, 0.18))
"""(hours, standard deviation) of log volatility within a day; normalised to leave the day's variance alone."""
_SEASON = 0.22 * np.cos(2 * np.pi * (np.arange(HOURS) - 14.5) / HOURS)
_MARKET_VOLATILITY, _SECTOR_VOLATILITY = 0.014, 0.011
_JUMP_CHANCE, _MARKET_JUMP_CHANCE = 0.03, 0.012
_JUMP_SIZE, _MARKET_JUMP_SIZE = 0.045, 0.03


def _keys(seed: int, stream: str, names: Sequence[object]) -> Keys:
    return np.array([stream_key(seed, stream, name) for name in names], dtype=np.uint64)


def _days(first: int, count: int) -> NDArray[np.int64]:
    return np.arange(first, first + count, dtype=np.int64)


class Diffusions:
    """A family of independent diffusions with stochastic volatility, and rare jumps of mean zero.

    `shared` are the keys of the volatility that all families have in common (half of the variance of log volatility).
    """

    def __init__(
        self, seed: int, stream: str, names: Sequence[object], base: Floats, *, jump_chance: float, jump_size: float
    ) -> None:
        self._base = base
        self._volatility = _keys(seed, f"{stream}/volatility", names)
        self._hourly = _keys(seed, f"{stream}/hourly", names)
        self._sum = _keys(seed, f"{stream}/day", names)
        self._bar = _keys(seed, f"{stream}/bar", names)
        self._jump = _keys(seed, f"{stream}/jump", names)
        self._shared = np.array([stream_key(seed, "volatility")], dtype=np.uint64)
        self._jump_chance = jump_chance
        self._jump_size = jump_size

    def day_volatility(self, rows: NDArray[np.int64], first: int, count: int) -> Floats:
        """[R, D]: standard deviation of the day's diffusion."""
        days = _days(first, count)
        log_vol = np.zeros((len(rows), count))
        for number, (scale, size) in enumerate(_LOG_VOL_SCALES):
            salt = np.uint64(number + 1)
            own = smooth_normal(self._volatility[rows][:, None] ^ salt, days, scale)
            shared = smooth_normal(self._shared[:, None] ^ salt, days, scale)
            log_vol += (size * np.sqrt(0.5)) * (own + shared)
        return np.asarray(self._base[rows][:, None] * np.exp(log_vol))

    def jumps(self, rows: NDArray[np.int64], first: int, count: int) -> tuple[Floats, NDArray[np.int64]]:
        """[R, D] size of the day's jump (mostly 0), and the bar it happens in."""
        days = _days(first, count)
        key = self._jump[rows][:, None]
        size: Floats = np.where(uniform(key, days) < self._jump_chance, self._jump_size, 0.0)
        hit = np.nonzero(size)
        size[hit] *= normal(self._jump[rows][hit[0]] ^ np.uint64(1), days[hit[1]])
        bar = (hash64(key ^ np.uint64(2), days) % np.uint64(BARS)).astype(np.int64)
        return size, bar

    def day_sums(self, rows: NDArray[np.int64], first: int, count: int) -> Floats:
        """[R, D]: the day's log return, jumps included."""
        draw = normal(self._sum[rows][:, None], _days(first, count))
        return self.day_volatility(rows, first, count) * draw + self.jumps(rows, first, count)[0]

    def bars(self, rows: NDArray[np.int64], first: int, count: int) -> tuple[Floats, Floats]:
        """[R, D, 288] log returns with jumps, and [R, D, 24] the diffusion's variance per bar of that hour."""
        days = _days(first, count)
        volatility = self.day_volatility(rows, first, count)
        hours = _days(first * HOURS, count * HOURS)
        log_vol = np.zeros((len(rows), count * HOURS))
        for number, (scale, size) in enumerate(_HOUR_LOG_VOL):
            salt = np.uint64(number + 1)
            log_vol += (size * np.sqrt(0.5)) * smooth_normal(self._hourly[rows][:, None] ^ salt, hours, scale)
            log_vol += (size * np.sqrt(0.5)) * smooth_normal(
                self._shared[:, None] ^ (salt << np.uint64(8)), hours, scale
            )
        share = np.exp(2.0 * (log_vol.reshape(len(rows), count, HOURS) + _SEASON))
        share /= _BARS_PER_HOUR * share.sum(axis=2, keepdims=True)
        variance = volatility[..., None] ** 2 * share
        spread = np.sqrt(variance)
        noise = normal_row(self._bar[rows][:, None], days * (BARS // 2), BARS)
        noise = noise.reshape(len(rows), count, HOURS, _BARS_PER_HOUR) * spread[..., None]
        # Brownian bridge: bend the free walk to the day's sum, in proportion to each bar's share of the variance.
        miss = volatility * normal(self._sum[rows][:, None], days) - noise.sum(axis=(2, 3))
        noise += (share * miss[..., None])[..., None]
        returns = noise.reshape(len(rows), count, BARS)
        jump, bar = self.jumps(rows, first, count)
        hit = np.nonzero(jump)
        returns[hit[0], hit[1], bar[hit]] += jump[hit]
        return returns, variance


@dataclass(frozen=True, slots=True)
class LogBars:
    """5-minute bars of R symbols over D days: log prices [R, D, 288]; `volume` in base units."""

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats


class World:
    """Prices of a fixed list of symbols. Thread-compatible: caches only what can be computed again."""

    def __init__(self, *, seed: int, specs: Sequence[SymbolSpec], learnable: bool) -> None:
        names = [spec.symbol for spec in specs]
        self._key = np.array([spec.key for spec in specs], dtype=np.uint64)
        self._market_beta = np.array([spec.market_beta for spec in specs])
        self._sector_beta = np.array([spec.sector_beta for spec in specs])
        self._sector = np.array([spec.sector for spec in specs], dtype=np.int64)
        self._listed_day = np.array([spec.listed_day for spec in specs], dtype=np.int64)
        self._log_price = np.array([spec.log_price for spec in specs])
        self._turnover = np.array([spec.daily_quote_volume for spec in specs])
        own_volatility = np.array([spec.own_volatility for spec in specs])
        self._usual_variance = (
            (self._market_beta * _MARKET_VOLATILITY) ** 2
            + (self._sector_beta * _SECTOR_VOLATILITY) ** 2
            + own_volatility**2
        )
        self._own = Diffusions(seed, "own", names, own_volatility, jump_chance=_JUMP_CHANCE, jump_size=_JUMP_SIZE)
        factors = ["market", *(f"sector{i}" for i in range(SECTORS))]
        base = np.array([_MARKET_VOLATILITY] + [_SECTOR_VOLATILITY] * SECTORS)
        self._factors = Diffusions(
            seed, "factor", factors, base, jump_chance=_MARKET_JUMP_CHANCE, jump_size=_MARKET_JUMP_SIZE
        )
        self._drift = HiddenDrift(
            seed=seed, names=names, daily_volatility=np.sqrt(self._usual_variance), learnable=learnable
        )
        self.size = len(specs)
        self._all = np.arange(len(specs), dtype=np.int64)
        self._factor_cache: OrderedDict[int, tuple[Floats, Floats]] = OrderedDict()
        self._level_chunks: list[Floats] = []

    # -------------------------------------------------------------------- levels
    def levels(self, rows: NDArray[np.int64], first: int, count: int) -> Floats:
        """[R, D + 1]: log price at the start of each day, and at the end of the last. Before the listing: its price."""
        offset = first - GENESIS_DAY
        if offset < 0:
            raise ValueError(f"day {first} is before the simulated world's first day {GENESIS_DAY} (2020-01-01)")
        size = 512
        while len(self._level_chunks) * size < offset + count + 1:
            self._level_chunks.append(self._level_chunk(len(self._level_chunks), size))
        low, high = offset // size, (offset + count) // size
        joined = np.concatenate([chunk[rows] for chunk in self._level_chunks[low : high + 1]], axis=1)
        return joined[:, offset - low * size : offset - low * size + count + 1]

    def _level_chunk(self, number: int, size: int) -> Floats:
        """[S, size] levels at the start of each day. Chunks are fixed, so that rounding never depends on the caller."""
        first = GENESIS_DAY + number * size
        start = self._log_price if number == 0 else self._level_chunks[-1][:, -1]
        # The first day's level of a later chunk needs the return of the day before it.
        returns = self._day_returns(first - 1, size)
        returns[_days(first - 1, size) < self._listed_day[:, None]] = 0.0
        if number == 0:
            returns[:, 0] = 0.0
        return start[:, None] + np.cumsum(returns, axis=1)

    def _day_returns(self, first: int, count: int) -> Floats:
        factors = self._factors.day_sums(np.arange(1 + SECTORS), first, count)
        return np.asarray(
            self._market_beta[:, None] * factors[0]
            + self._sector_beta[:, None] * factors[1 + self._sector]
            + self._own.day_sums(self._all, first, count)
            + self._drift.day_sums(self._all, first, count)
        )

    # ---------------------------------------------------------------------- bars
    def bars(self, rows: NDArray[np.int64], first: int, count: int) -> LogBars:
        """Bars of days [first, first + count). Days before a symbol's listing hold no meaning."""
        returns, variance = self._own.bars(rows, first, count)
        factor_returns, factor_variance = self._factor_bars(first, count)
        market, sector = self._market_beta[rows], self._sector_beta[rows]
        which = 1 + self._sector[rows]
        returns += market[:, None, None] * factor_returns[0]
        returns += sector[:, None, None] * factor_returns[which]
        variance = variance + (market**2)[:, None, None] * factor_variance[0]
        variance += (sector**2)[:, None, None] * factor_variance[which]
        returns += self._drift.bars(rows, first, count)

        level = self.levels(rows, first, count)
        close = np.cumsum(returns, axis=2)
        close += level[:, :-1, None]
        close[:, :, -1] = level[:, 1:]  # equal up to rounding: make it equal to the bit
        opened = np.empty_like(close)
        opened[:, :, 1:] = close[:, :, :-1]
        opened[:, :, 0] = level[:, :-1]
        high, low = self._extremes(rows, first, count, opened, close, variance)
        return LogBars(opened, high, low, close, self._volume(rows, first, count, variance, level))

    def _extremes(
        self, rows: NDArray[np.int64], first: int, count: int, opened: Floats, close: Floats, variance: Floats
    ) -> tuple[Floats, Floats]:
        """Maximum and minimum of the Brownian bridge inside each bar (each with its exact distribution)."""
        index = _days(first * BARS, count * BARS).reshape(count, BARS)
        u, v = uniform_pair(self._key[rows][:, None, None] ^ np.uint64(11), index)
        square = (close - opened) ** 2
        middle = opened + close
        twice = 2.0 * np.repeat(variance, _BARS_PER_HOUR, axis=2)
        high = 0.5 * (middle + np.sqrt(square - twice * np.log(u)))
        low = 0.5 * (middle - np.sqrt(square - twice * np.log(v)))
        # Rounding must not let a high end below its own open or close.
        return np.maximum(high, np.maximum(opened, close)), np.minimum(low, np.minimum(opened, close))

    def _volume(self, rows: NDArray[np.int64], first: int, count: int, variance: Floats, level: Floats) -> Floats:
        """Base volume: turnover grows with volatility, and with the regime of the hidden drift, seen or not."""
        index = _days(first * BARS, count * BARS).reshape(count, BARS)
        activity = np.sqrt(variance * BARS / self._usual_variance[rows][:, None, None])
        activity *= self._drift.activity(rows, first, count)
        quote = (self._turnover[rows] / BARS)[:, None, None] * activity
        base = quote * np.exp(-level[:, :-1, None])
        noise = 0.5 + uniform(self._key[rows][:, None, None] ^ np.uint64(12), index)
        noise = noise.reshape(len(rows), count, HOURS, _BARS_PER_HOUR)
        noise *= base[..., None]
        return noise.reshape(len(rows), count, BARS)

    def _factor_bars(self, first: int, count: int) -> tuple[Floats, Floats]:
        """Factor bars [1 + sectors, D, ...] from cached chunks: every symbol needs the same ones."""
        low, high = first // _CHUNK_DAYS, (first + count - 1) // _CHUNK_DAYS
        parts = [self._factor_chunk(number) for number in range(low, high + 1)]
        cut = slice(first - low * _CHUNK_DAYS, first - low * _CHUNK_DAYS + count)
        if len(parts) == 1:
            return parts[0][0][:, cut], parts[0][1][:, cut]
        return (
            np.concatenate([part[0] for part in parts], axis=1)[:, cut],
            np.concatenate([part[1] for part in parts], axis=1)[:, cut],
        )

    def _factor_chunk(self, number: int) -> tuple[Floats, Floats]:
        cached = self._factor_cache.get(number)
        if cached is None:
            cached = self._factors.bars(np.arange(1 + SECTORS), number * _CHUNK_DAYS, _CHUNK_DAYS)
            self._factor_cache[number] = cached
            if len(self._factor_cache) > _FACTOR_CHUNKS_KEPT:
                self._factor_cache.popitem(last=False)
        else:
            self._factor_cache.move_to_end(number)
        return cached

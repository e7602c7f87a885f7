"""`MarketData` of the simulated exchange."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exchanges.errors import ConfigurationError, UnknownSymbolError
from exchanges.port import Capabilities, FundingRate, Instrument, Ticker
from exchanges.simulated.hashing import Floats, smooth_normal, stream_key
from exchanges.simulated.oddities import first_open_ms, log_multiplier, missing_hours, visible_until_ms
from exchanges.simulated.roster import DAY_MS, GENESIS_DAY, HOUR_MS, Oddity, Roster, SymbolSpec
from exchanges.simulated.world import BARS, LogBars, World
from quant.candles import Candles
from quant.timeframes import TIMEFRAMES

BASE_MS = 300_000
FUNDING_MS = 8 * HOUR_MS
PAGE_LIMIT = 5_000
MAX_SYMBOLS = 4_900
_TIMEFRAMES = tuple(name for name, step in TIMEFRAMES.items() if step >= BASE_MS)
_DAYS_FROM_CACHE = 3  # longer windows are computed for their symbol alone
_DAY_BLOCKS_KEPT = 6
_TEMPORARIES_PER_WORLD = 16
_GAP_WINDOW_MS = 20 * DAY_MS


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a symbol's prices come from."""

    group: int
    row: int
    spec: SymbolSpec


@dataclass(frozen=True, slots=True)
class _Block:
    """One day of all symbols of a group. `turnover` [S, 289] is quote volume, summed up to the start of each bar."""

    bars: LogBars
    turnover: Floats

    @classmethod
    def of(cls, bars: LogBars) -> _Block:
        quote = bars.volume[:, 0] * np.exp(bars.close[:, 0])
        turnover = np.zeros((len(quote), BARS + 1))
        np.cumsum(quote, axis=1, out=turnover[:, 1:])
        return cls(bars, turnover)


class SimulatedMarket:
    """A synthetic perpetual market by seed: the same prices in every process, for any window, in any order.

    `symbols` healthy symbols, and with `specials` some that are gappy, swapped, late, thin, new or gone. `learnable`
    decides whether there is anything to be found in the prices. Not for use by several threads at once.
    """

    simulated = True

    def __init__(
        self,
        *,
        seed: int,
        now_ms: Callable[[], int],
        symbols: int = 40,
        specials: bool = True,
        learnable: bool = True,
        market: str = "simulated",
        listing_interval_days: int = 30,
    ) -> None:
        if not 1 <= symbols <= MAX_SYMBOLS:
            raise ConfigurationError(f"symbols={symbols} is out of range; choose 1 to {MAX_SYMBOLS} simulated symbols")
        if listing_interval_days < 1:
            raise ConfigurationError(f"listing_interval_days={listing_interval_days} must be at least 1")
        self.market = market
        self.page_limit = PAGE_LIMIT
        self.capabilities = Capabilities(
            bulk_candles=True,
            funding=True,
            timeframes=_TIMEFRAMES,
            page_limit=PAGE_LIMIT,
            ticker_is_last_close=True,
            history_start_ms=GENESIS_DAY * DAY_MS,
        )
        self._seed = seed
        self._learnable = learnable
        self._clock = now_ms
        self._roster = Roster(seed, symbols, specials, listing_interval_days)
        self._worlds: dict[int, World] = {}
        permanent = self._roster.permanent()
        self._permanent = {spec.symbol: _Place(-1, row, spec) for row, spec in enumerate(permanent)}
        self._worlds[-1] = World(seed=seed, specs=permanent, learnable=learnable)
        self._places_hour = -1
        self._places: dict[str, _Place] = {}
        self._instruments: list[Instrument] = []
        self._blocks: OrderedDict[tuple[int, int], _Block] = OrderedDict()
        self._tickers: tuple[int, dict[str, Ticker]] = (-1, {})
        self._funding_shared = np.array([[stream_key(seed, "funding")]], dtype=np.uint64)

    def now_ms(self) -> int:
        return self._clock()

    # ------------------------------------------------------------------- listing
    def instruments(self) -> list[Instrument]:
        self._listed(self.now_ms())
        return list(self._instruments)

    def _listed(self, now: int) -> dict[str, _Place]:
        """Everything listed until `now` (what was delisted long ago is gone), by symbol. Changes on the hour only."""
        hour = now // HOUR_MS
        if hour != self._places_hour:
            if now < (GENESIS_DAY + 1) * DAY_MS:
                raise ConfigurationError(f"the clock says {now} ms; the simulated market begins on 2020-01-01")
            places = {symbol: place for symbol, place in self._permanent.items() if place.spec.listed_ms <= now}
            for number, spec in self._roster.listings(now):
                group, row = divmod(number, _TEMPORARIES_PER_WORLD)
                places[spec.symbol] = _Place(group, row, spec)
            self._places, self._places_hour = places, hour
            self._instruments = [place.spec.instrument(now) for _, place in sorted(places.items())]
        return self._places

    def _find(self, symbol: str, now: int) -> _Place:
        try:
            return self._listed(now)[symbol]
        except KeyError:
            raise UnknownSymbolError(symbol, "not listed on the simulated exchange; see instruments()") from None

    def _world(self, group: int) -> World:
        if group not in self._worlds:
            first = group * _TEMPORARIES_PER_WORLD
            specs = [self._roster.temporary(number) for number in range(first, first + _TEMPORARIES_PER_WORLD)]
            self._worlds[group] = World(seed=self._seed, specs=specs, learnable=self._learnable)
        return self._worlds[group]

    # ------------------------------------------------------------------- candles
    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        step = _step(timeframe)
        now = self.now_ms()
        place = self._find(symbol, now)
        first = max(-(-since_ms // step) * step, first_open_ms(place.spec, step))
        end = visible_until_ms(place.spec, now) // step * step
        wanted = min(limit, self.page_limit)
        if first >= end or wanted < 1:
            return Candles.empty()
        if place.spec.oddity not in (Oddity.GAPPY, Oddity.SWAPPED):
            return self._window(place, step, first, min(end, first + wanted * step))
        parts = []
        found = 0
        while first < end and found < wanted:  # a page is full of candles, however long the gaps between them are
            until = min(end, first + max(wanted * step, _GAP_WINDOW_MS))
            part = self._window(place, step, first, until).take(slice(0, wanted - found))
            parts.append(part)
            found += len(part)
            first = until
        return Candles.concat(parts)

    def candles_many(self, symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        """All at once where a window is short: one array operation for all symbols instead of one per symbol."""
        step = _step(timeframe)
        now = self.now_ms()
        first = -(-since_ms // step) * step
        end = min(now // step * step, first + min(limit, self.page_limit) * step)
        listed = self._listed(now)
        found: dict[str, Candles] = {}
        plain: dict[int, list[_Place]] = {}
        for symbol in symbols:
            place = listed.get(symbol)
            if place is None:
                continue
            spec = place.spec
            is_short = (end - 1) // DAY_MS - first // DAY_MS < _DAYS_FROM_CACHE
            is_whole = first_open_ms(spec, step) <= first and visible_until_ms(spec, now) >= end
            if is_short and is_whole and spec.oddity in (Oddity.NONE, Oddity.THIN):
                plain.setdefault(place.group, []).append(place)
            else:
                candles = self.candles(symbol, timeframe, since_ms, limit)
                if len(candles):
                    found[symbol] = candles
        if first < end:
            for group, places in plain.items():
                found.update(self._windows(group, places, step, first, end))
        return found

    def _window(self, place: _Place, step: int, first: int, end: int) -> Candles:
        """Candles of one symbol with first <= open < end; both on the grid, inside the listing."""
        first_day, last_day = first // DAY_MS, (end - 1) // DAY_MS
        days = last_day - first_day + 1
        cut = slice((first - first_day * DAY_MS) // BASE_MS, (end - first_day * DAY_MS) // BASE_MS)
        bars = self._days(place, first_day, days)
        multiplier = log_multiplier(place.spec, first_day, days)
        shift = None if multiplier is None else np.repeat(multiplier, BARS)[cut].reshape(-1, step // BASE_MS)
        lost = missing_hours(place.spec, first_day, days)
        shaped = [column[cut].reshape(-1, step // BASE_MS) for column in bars]
        times = np.arange(first, end, step, dtype=np.int64)
        if shift is not None:
            shaped = [column + shift for column in shaped[:4]] + [shaped[4] * np.exp(-shift)]
        if lost is None:
            columns = _aggregate(shaped)
        else:
            present = ~np.repeat(lost.reshape(-1), BARS // 24)[cut].reshape(-1, step // BASE_MS)
            some = present.any(axis=1)
            times = times[some]
            columns = _aggregate_present([column[some] for column in shaped], present[some])
        return Candles(times, *_to_prices(columns, 10.0**place.spec.decimals))

    def _windows(
        self, group: int, places: list[_Place], step: int, first: int, end: int
    ) -> Iterator[tuple[str, Candles]]:
        rows = np.array([place.row for place in places])
        first_day, last_day = first // DAY_MS, (end - 1) // DAY_MS
        cut = slice((first - first_day * DAY_MS) // BASE_MS, (end - first_day * DAY_MS) // BASE_MS)
        blocks = [self._block(group, day).bars for day in range(first_day, last_day + 1)]
        shaped = []
        for name in ("open", "high", "low", "close", "volume"):
            joined = np.concatenate([getattr(block, name)[:, 0] for block in blocks], axis=1)
            shaped.append(joined[rows, cut].reshape(len(rows), -1, step // BASE_MS))
        scale = np.array([[10.0**place.spec.decimals] for place in places])
        columns = _to_prices(_aggregate(shaped), scale)
        times = np.arange(first, end, step, dtype=np.int64)
        for index, place in enumerate(places):
            yield place.spec.symbol, Candles(times, *[column[index] for column in columns])

    def _days(self, place: _Place, first_day: int, days: int) -> list[Floats]:
        """Open, high, low, close (logs) and volume of whole days, flat."""
        names = ("open", "high", "low", "close", "volume")
        if days > _DAYS_FROM_CACHE:
            bars = self._world(place.group).bars(np.array([place.row]), first_day, days)
            return [getattr(bars, name).reshape(-1) for name in names]
        blocks = [self._block(place.group, day).bars for day in range(first_day, first_day + days)]
        if days == 1:
            return [getattr(blocks[0], name)[place.row, 0] for name in names]
        return [np.concatenate([getattr(block, name)[place.row, 0] for block in blocks]) for name in names]

    def _block(self, group: int, day: int) -> _Block:
        """One day of all symbols of a group. Live use asks for each of them, every hour of the day."""
        key = (group, day)
        block = self._blocks.get(key)
        if block is None:
            world = self._world(group)
            block = self._blocks[key] = _Block.of(world.bars(np.arange(world.size), day, 1))
            while len(self._blocks) > _DAY_BLOCKS_KEPT * len(self._worlds):
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(key)
        return block

    # ------------------------------------------------------- tickers and funding
    def tickers(self) -> dict[str, Ticker]:
        now = self.now_ms()
        bar = now // BASE_MS
        if self._tickers[0] != bar:
            by_group: dict[tuple[int, int], list[_Place]] = {}
            for place in self._listed(now).values():
                until = visible_until_ms(place.spec, now) // BASE_MS * BASE_MS
                if place.spec.listed_at(now) and until > place.spec.listed_ms and not _is_halted(place.spec, until):
                    by_group.setdefault((place.group, until), []).append(place)
            found: dict[str, Ticker] = {}
            for (group, until), places in by_group.items():
                found.update(self._group_tickers(group, until, places))
            self._tickers = (bar, found)
        return dict(self._tickers[1])

    def _group_tickers(self, group: int, until: int, places: list[_Place]) -> Iterator[tuple[str, Ticker]]:
        day = (until - 1) // DAY_MS
        today, yesterday = self._block(group, day), self._block(group, max(day - 1, GENESIS_DAY))
        bars = (until - day * DAY_MS) // BASE_MS
        turnover = today.turnover[:, bars] + yesterday.turnover[:, -1] - yesterday.turnover[:, bars]
        last = np.exp(today.bars.close[:, 0, bars - 1])
        for place in places:
            spec = place.spec
            multiplier = log_multiplier(spec, day, 1)
            price = float(last[place.row]) * (1.0 if multiplier is None else float(np.exp(multiplier[0])))
            half = max(price * spec.half_spread, 0.5 * 10.0**-spec.decimals)
            yield (
                spec.symbol,
                Ticker(
                    symbol=spec.symbol,
                    bid=round(price - half, spec.decimals),
                    ask=round(price + half, spec.decimals),
                    last=round(price, spec.decimals),
                    quote_volume_24h=float(turnover[place.row]),
                    time_ms=until,
                ),
            )

    def funding(self, symbol: str, since_ms: int, limit: int) -> list[FundingRate]:
        now = self.now_ms()
        spec = self._find(symbol, now).spec
        first = -(-max(since_ms, spec.listed_ms) // FUNDING_MS)
        last = min(now if spec.delisted_ms is None else min(now, spec.delisted_ms), now) // FUNDING_MS
        last = min(last, first + min(limit, self.page_limit) - 1)
        if last < first:
            return []
        index = np.arange(first, last + 1, dtype=np.int64)
        own = smooth_normal(np.array([[spec.key]], dtype=np.uint64) ^ np.uint64(31), index, 12)[0]
        shared = smooth_normal(self._funding_shared, index, 30)[0]
        rates = np.round(np.clip(1e-4 + 1e-4 * (own + shared), -3e-3, 3e-3), 6)
        return [FundingRate(int(i) * FUNDING_MS, float(rate)) for i, rate in zip(index, rates, strict=True)]


def _step(timeframe: str) -> int:
    if timeframe not in _TIMEFRAMES:
        raise ConfigurationError(
            f"timeframe={timeframe!r} does not exist on the simulated exchange; choose one of {', '.join(_TIMEFRAMES)}"
        )
    return TIMEFRAMES[timeframe]


def _is_halted(spec: SymbolSpec, until: int) -> bool:
    """During a token swap there is no trading, and so no price."""
    if spec.oddity is not Oddity.SWAPPED:
        return False
    lost = missing_hours(spec, (until - 1) // DAY_MS, 1)
    return lost is not None and bool(lost.all())


def _aggregate(columns: list[Floats]) -> list[Floats]:
    """Columns [..., n, m] of logs -> [..., n] of logs; volume is summed."""
    opened, high, low, close, volume = columns
    return [opened[..., 0], high.max(axis=-1), low.min(axis=-1), close[..., -1], volume.sum(axis=-1)]


def _aggregate_present(columns: list[Floats], present: NDArray[np.bool_]) -> list[Floats]:
    """`_aggregate` over the bars that exist; each row has at least one."""
    opened, high, low, close, volume = columns
    row = np.arange(len(present))
    first = present.argmax(axis=1)
    last = present.shape[1] - 1 - present[:, ::-1].argmax(axis=1)
    return [
        opened[row, first],
        np.where(present, high, -np.inf).max(axis=1),
        np.where(present, low, np.inf).min(axis=1),
        close[row, last],
        np.where(present, volume, 0.0).sum(axis=1),
    ]


def _to_prices(columns: list[Floats], scale: float | Floats) -> list[Floats]:
    """Logs to prices on the tick grid of `1 / scale` (rounding is monotone, so OHLC order survives it)."""
    prices = [np.maximum(np.rint(np.exp(column) * scale), 1.0) / scale for column in columns[:4]]
    return [*prices, np.round(columns[4], 3)]

"""`MarketData` that plays real candles from an archive. Nothing after the clock is visible, whatever is asked for.

An archive holds no listings, ticks or quotes. They are derived from what was visible at the time: a symbol is listed
from its first candle, and delisted when it has had none for 30 days (28 days without a candle have happened to a
living symbol); grids follow the last price; a ticker is the last close with one basis point to each side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path

import numpy as np

from exchanges.archive import Archive, ArchiveSymbol
from exchanges.errors import ConfigurationError, MarketDataError, UnknownSymbolError
from exchanges.port import Capabilities, FundingRate, Instrument, Ticker, candles_one_by_one
from quant.candles import Candles
from quant.timeframes import TIMEFRAMES, floor_ms

PAGE_LIMIT = 5_000
DELISTED_AFTER_MS = 30 * 86_400_000
HALF_SPREAD = 1e-4
_DAY_MS = 86_400_000


class ReplayMarket:
    """The market `market` of the archive folder `archive`, as known at `now_ms()`."""

    simulated = False

    def __init__(self, *, archive: Path, market: str, now_ms: Callable[[], int]) -> None:
        self._archive = Archive(archive, market)
        self._clock = now_ms
        self.market = market
        self.page_limit = PAGE_LIMIT
        stored = self._archive.timeframes()
        steps = [TIMEFRAMES[name] for name in stored]
        self._finest_ms = steps[0]
        self.capabilities = Capabilities(
            bulk_candles=True,
            funding=self._archive.has_funding,
            timeframes=tuple(
                name for name, step in TIMEFRAMES.items() if name in stored or any(step % each == 0 for each in steps)
            ),
            page_limit=PAGE_LIMIT,
            ticker_is_last_close=True,
        )
        self._tickers: tuple[int, dict[str, Ticker]] = (-1, {})

    def now_ms(self) -> int:
        return self._clock()

    def bounds_ms(self) -> tuple[int, int]:
        """First open and last close of the whole archive: where a replay may start and must end. Reads every file."""
        opened, closed = [], []
        for symbol in self._archive.symbols:
            for timeframe in self._archive.timeframes(symbol):
                times = self._archive.candles(symbol, timeframe).open_time
                if len(times):
                    opened.append(int(times[0]))
                    closed.append(int(times[-1]) + TIMEFRAMES[timeframe])
        return min(opened), max(closed)

    # ------------------------------------------------------------------- listing
    def instruments(self) -> list[Instrument]:
        """A file that cannot be read leaves its symbol out here; asking for its candles says why."""
        now = self.now_ms()
        found = []
        for symbol in sorted(self._archive.symbols):
            try:
                instrument = self._instrument(self._archive.symbols[symbol], now)
            except MarketDataError:
                continue
            if instrument is not None:
                found.append(instrument)
        return found

    def _instrument(self, known: ArchiveSymbol, now: int) -> Instrument | None:
        first = self._first_open(known.symbol)
        latest = self._latest(known.symbol, now)
        if first is None or latest is None:
            return None
        candles, row, closed_ms = latest
        digits = int(np.floor(np.log10(candles.close[row])))
        is_gone = now - closed_ms > DELISTED_AFTER_MS
        lot = Decimal(10) ** -int(np.clip(digits + 1, -6, 5))
        return Instrument(
            symbol=known.symbol,
            base=known.base,
            quote=known.quote,
            settle=known.quote,
            market_type="spot" if known.is_spot else "swap",
            tick_size=Decimal(10) ** (digits - 5),
            lot_size=lot,
            min_quantity=lot,
            min_notional=Decimal(5),
            max_leverage=Decimal(1) if known.is_spot else Decimal(25),
            listed_ms=first,
            delisted_ms=closed_ms if is_gone else None,
            active=not is_gone,
        )

    def _first_open(self, symbol: str) -> int | None:
        stored = (self._archive.candles(symbol, name).open_time for name in self._archive.timeframes(symbol))
        return min((int(times[0]) for times in stored if len(times)), default=None)

    def _latest(self, symbol: str, now: int) -> tuple[Candles, int, int] | None:
        """(candles, row, close time) of the symbol's last closed candle in any timeframe, the finest on a tie."""
        best: tuple[Candles, int, int] | None = None
        for timeframe in self._archive.timeframes(symbol):
            candles = self._archive.candles(symbol, timeframe)
            step = TIMEFRAMES[timeframe]
            row = int(candles.open_time.searchsorted(now - step, side="right")) - 1
            if row >= 0 and (best is None or int(candles.open_time[row]) + step > best[2]):
                best = (candles, row, int(candles.open_time[row]) + step)
        return best

    # ------------------------------------------------------------------- candles
    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        if timeframe not in self.capabilities.timeframes:
            raise ConfigurationError(
                f"timeframe={timeframe!r} cannot be had from the archive of {self.market}; it holds "
                f"{', '.join(self._archive.timeframes())}"
            )
        if symbol not in self._archive.symbols:
            raise UnknownSymbolError(symbol, f"not in the archive of {self.market}; see instruments()")
        step = TIMEFRAMES[timeframe]
        wanted = max(min(limit, self.page_limit), 0)
        now = self.now_ms()
        stored = self._archive.timeframes(symbol)
        if timeframe in stored:
            return _page(self._archive.candles(symbol, timeframe), since_ms, now - step, wanted)
        finer = [name for name in stored if step % TIMEFRAMES[name] == 0 and TIMEFRAMES[name] < step]
        if not finer:
            raise MarketDataError(symbol, f"no {timeframe} candles in the archive, it has {', '.join(stored)}")
        source = self._archive.candles(symbol, finer[-1])
        first = -(-since_ms // step) * step
        end = min(floor_ms(now, step), first + _reach(source, first, step, wanted))
        return _aggregate(source.between(first, end), step).take(slice(0, wanted))

    def candles_many(self, symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        return candles_one_by_one(self, symbols, timeframe, since_ms, limit)

    # ------------------------------------------------------- tickers and funding
    def tickers(self) -> dict[str, Ticker]:
        now = self.now_ms()
        bar = now // self._finest_ms
        if self._tickers[0] != bar:
            found = {}
            for symbol in self._archive.symbols:
                try:
                    latest = self._latest(symbol, now)
                except MarketDataError:
                    continue  # as in `instruments`
                if latest is not None:
                    found[symbol] = _ticker(symbol, *latest)
            self._tickers = (bar, found)
        return {symbol: each for symbol, each in self._tickers[1].items() if now - each.time_ms <= DELISTED_AFTER_MS}

    def funding(self, symbol: str, since_ms: int, limit: int) -> list[FundingRate]:
        if symbol not in self._archive.symbols:
            raise UnknownSymbolError(symbol, f"not in the archive of {self.market}; see instruments()")
        times, rates = self._archive.funding(symbol)
        first = int(times.searchsorted(since_ms))
        last = min(int(times.searchsorted(self.now_ms(), side="right")), first + max(min(limit, self.page_limit), 0))
        return [FundingRate(int(times[row]), float(rates[row])) for row in range(first, last)]


def _page(candles: Candles, since_ms: int, last_open_ms: int, limit: int) -> Candles:
    first = int(candles.open_time.searchsorted(since_ms))
    last = min(int(candles.open_time.searchsorted(last_open_ms, side="right")), first + limit)
    return candles.take(slice(first, max(last, first)))


def _reach(source: Candles, first_ms: int, step: int, limit: int) -> int:
    """How far after `first_ms` the source must be read for `limit` candles of `step`, however wide its gaps are."""
    row = int(source.open_time.searchsorted(first_ms))
    buckets = np.unique(source.open_time[row:] // step)
    if len(buckets) <= limit:
        return int(np.iinfo(np.int64).max // 4)
    return int(buckets[limit]) * step - first_ms


def _aggregate(candles: Candles, step: int) -> Candles:
    """Candles of `step` from finer ones; where some are missing, from those that exist."""
    if not len(candles):
        return candles
    bucket = candles.open_time // step
    start = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
    end = np.concatenate([start[1:], [len(candles)]]) - 1
    return Candles(
        bucket[start] * step,
        candles.open[start],
        np.maximum.reduceat(candles.high, start),
        np.minimum.reduceat(candles.low, start),
        candles.close[end],
        np.add.reduceat(candles.volume, start),
    )


def _ticker(symbol: str, candles: Candles, row: int, closed_ms: int) -> Ticker:
    last = float(candles.close[row])
    first = int(candles.open_time.searchsorted(closed_ms - _DAY_MS))
    turnover = float(np.dot(candles.volume[first : row + 1], candles.close[first : row + 1]))
    return Ticker(
        symbol=symbol,
        bid=last * (1 - HALF_SPREAD),
        ask=last * (1 + HALF_SPREAD),
        last=last,
        quote_volume_24h=turnover,
        time_ms=closed_ms,
    )

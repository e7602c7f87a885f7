"""`MarketData` that plays real candles from an archive. Nothing after the clock is visible, whatever is asked for.

An archive holds no listings, ticks or quotes. They are derived from what was visible at the time: a symbol is listed
from its first candle, and delisted when it has had none for 30 days (28 days without a candle have happened to a
living symbol); grids come from its first price and never change, as an amount that fits today's lots must fit
tomorrow's; a ticker is the last close with one basis point to each side.
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
_FINER_LOTS, _FINER_TICKS = 3, 7
"""Digits below that of the first price: fine enough for a price that rises or falls a thousandfold."""
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
        """First close and last close of the readable candles: where a replay may start and must end.

        Raises ConfigurationError if no file can be read.
        """
        first_close, last_close = [], []
        for symbol in self._archive.symbols:
            for timeframe in self._archive.timeframes(symbol):
                try:
                    span = self._archive.span(symbol, timeframe)
                except MarketDataError:
                    continue  # `troubles` names it
                if span is not None:
                    first_close.append(span[0] + TIMEFRAMES[timeframe])
                    last_close.append(span[1] + TIMEFRAMES[timeframe])
        if not first_close:
            raise ConfigurationError(
                f"no file of the archive's market {self.market} can be read; first: {next(iter(self.troubles()), '')}"
            )
        return min(first_close), max(last_close)

    def troubles(self) -> list[str]:
        """What is wrong with files of the archive, as far as it shows without reading them."""
        found = []
        for symbol in sorted(self._archive.symbols):
            for timeframe in self._archive.timeframes(symbol):
                try:
                    self._archive.span(symbol, timeframe)
                except MarketDataError as error:
                    found.append(str(error))
        return found

    # ------------------------------------------------------------------- listing
    def instruments(self) -> list[Instrument]:
        """A symbol whose file cannot be read is listed with its trouble: it is neither delisted nor forgotten."""
        now = self.now_ms()
        found = []
        for symbol in sorted(self._archive.symbols):
            known = self._archive.symbols[symbol]
            try:
                instrument = self._instrument(known, now)
            except MarketDataError as error:
                instrument = _unreadable(known, error.detail)
            if instrument is not None:
                found.append(instrument)
        return found

    def _instrument(self, known: ArchiveSymbol, now: int) -> Instrument | None:
        first = self._first_open(known.symbol)
        latest = self._latest(known.symbol, now)
        if first is None or latest is None:
            return None
        opened_ms, price = first
        closed_ms = latest[2]
        if not (np.isfinite(price) and price > 0):
            raise MarketDataError(
                known.symbol, f"its first candle opens at {price}; it must be above zero: mend or remove its file"
            )
        digits = int(np.floor(np.log10(price)))
        is_gone = now - closed_ms > DELISTED_AFTER_MS
        lot = Decimal(10) ** -int(np.clip(digits + _FINER_LOTS, -6, 8))
        return Instrument(
            symbol=known.symbol,
            base=known.base,
            quote=known.quote,
            settle=known.quote,
            market_type="spot" if known.is_spot else "swap",
            tick_size=Decimal(10) ** (digits - _FINER_TICKS),
            lot_size=lot,
            min_quantity=lot,
            min_notional=Decimal(5),
            max_leverage=Decimal(1) if known.is_spot else Decimal(25),
            listed_ms=opened_ms,
            delisted_ms=closed_ms if is_gone else None,
            active=not is_gone,
        )

    def _first_open(self, symbol: str) -> tuple[int, float] | None:
        """(time, price) at which the first candle of any timeframe opens, of the finest on a tie."""
        stored = (self._archive.candles(symbol, name) for name in self._archive.timeframes(symbol))
        firsts = [(int(candles.open_time[0]), float(candles.open[0])) for candles in stored if len(candles)]
        return min(firsts, key=lambda first: first[0], default=None)

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
                    continue  # `instruments` says why
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


def _unreadable(known: ArchiveSymbol, why: str) -> Instrument:
    """It may be listed or not: nobody can tell. So it has no dates, and rules that no order passes unnoticed."""
    one = Decimal(1)
    return Instrument(
        symbol=known.symbol,
        base=known.base,
        quote=known.quote,
        settle=known.quote,
        market_type="spot" if known.is_spot else "swap",
        tick_size=one,
        lot_size=one,
        min_quantity=one,
        min_notional=one,
        max_leverage=one,
        listed_ms=None,
        delisted_ms=None,
        active=True,
        trouble=why,
    )


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

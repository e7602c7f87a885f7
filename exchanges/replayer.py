"""Lets an account's resting orders and funding catch up with the market, candle by candle.

An order counts from its own candle on. Where tickers are the close of the last candle (simulation, replay), whatever
the running candle does is still to come, so the candle in which an order was placed is matched too; with live data
part of it is past, so matching begins with the next one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from exchanges.book import Book
from exchanges.errors import ConfigurationError, ExchangeError, MarketDataError
from exchanges.fill_model import resting_price
from exchanges.ledger import Cursor
from exchanges.port import FundingRate, Instrument, MarketData, VenueOrder
from quant.candles import Candles
from quant.fills import MAX_VOLUME_SHARE
from quant.timeframes import floor_ms, timeframe_ms

_TIMEFRAMES = ("5m", "15m", "30m", "1h", "4h", "1d")
"""Finest first; 1m would cost a live exchange five times the requests."""
_INSTRUMENTS_FRESH_MS = 300_000
_PROBE_CANDLES = 3
_PROBE_EVERY_MS = 3_600_000
_PROBE_WINDOW_MS = 30 * 86_400_000


class Replayer:
    """Matches `book` against the candles of `data`. Each candle of a symbol is looked at once."""

    def __init__(self, data: MarketData, book: Book) -> None:
        self._data = data
        self._book = book
        self._timeframes: dict[str, tuple[int, str | None]] = {}
        self._looked: dict[str, int] = {}
        self._closes: dict[str, Decimal] = {}
        self._instruments: dict[str, Instrument] = {}
        self._instruments_at = -_INSTRUMENTS_FRESH_MS

    def instrument(self, symbol: str) -> Instrument | None:
        """Rules of a symbol, at most five minutes old; None if the exchange does not list it."""
        now = self._data.now_ms()
        if now // _INSTRUMENTS_FRESH_MS != self._instruments_at // _INSTRUMENTS_FRESH_MS:
            self._instruments = {instrument.symbol: instrument for instrument in self._data.instruments()}
            self._instruments_at = now
        return self._instruments.get(symbol)

    def timeframe_of(self, symbol: str) -> str | None:
        """The finest timeframe that has candles of the symbol, or None."""
        hour = self._data.now_ms() // _PROBE_EVERY_MS
        probed = self._timeframes.get(symbol)
        if probed is None or probed[0] != hour:
            known = None if probed is None else probed[1]
            probed = self._timeframes[symbol] = (hour, self._finest(symbol) or known)
        return probed[1]

    def _finest(self, symbol: str) -> str | None:
        since = self._data.now_ms() - _PROBE_WINDOW_MS
        cursor = self._book.cursors.get(symbol)
        if cursor is not None:  # what an account waits for may have ended long ago
            since = min(since, cursor.matched_until_ms - _PROBE_WINDOW_MS)
        for timeframe in _TIMEFRAMES:
            if timeframe not in self._data.capabilities.timeframes:
                continue
            try:
                if len(self._data.candles(symbol, timeframe, since, _PROBE_CANDLES)):
                    return timeframe
            except (MarketDataError, ConfigurationError):
                continue  # an archive may hold the finer timeframe for some symbols only
        return None

    def last_close(self, symbol: str) -> Decimal | None:
        """Close of the last candle that was matched, for a symbol that has no ticker now."""
        cursor = self._book.cursors.get(symbol)
        timeframe = self.timeframe_of(symbol)
        if symbol not in self._closes and cursor is not None and timeframe is not None:
            try:
                since = cursor.matched_until_ms - timeframe_ms(timeframe)
                candles = self._data.candles(symbol, timeframe, since, 1)
            except MarketDataError:
                return None
            if len(candles):
                self._closes[symbol] = Decimal(repr(float(candles.close[0])))
        return self._closes.get(symbol)

    def start(self, symbol: str, now: int) -> None:
        """Before the first order or position of a symbol: nothing earlier concerns it."""
        timeframe = self.timeframe_of(symbol)
        if symbol not in self._book.tracked() and timeframe is not None:
            self._book.set_cursor(symbol, Cursor(floor_ms(now, timeframe_ms(timeframe)), now))
            self._looked.pop(symbol, None)

    def catch_up(self) -> None:
        """Match everything that has closed. A symbol that cannot be read waits for its next candle; others go on."""
        now = self._data.now_ms()
        due = [symbol for symbol in sorted(self._book.tracked()) if self._is_due(symbol, now)]
        if not due:
            return
        pages = self._pages(due)
        funding = {symbol: self._funding(symbol) for symbol in pages}
        with self._book.transaction():
            for symbol, candles in pages.items():
                self._match(symbol, candles, funding[symbol])
            for symbol in due:
                self._end_listing(symbol, now)
        for symbol in due:
            if len(pages.get(symbol, ())) < self._data.page_limit:
                self._looked[symbol] = now
        if any(len(candles) >= self._data.page_limit for candles in pages.values()):
            self.catch_up()  # more pages: the bot was down for long

    def _is_due(self, symbol: str, now: int) -> bool:
        timeframe = self.timeframe_of(symbol)
        cursor = self._book.cursors.get(symbol)
        if timeframe is None or cursor is None:
            return False
        step = timeframe_ms(timeframe)
        has_closed = cursor.matched_until_ms + step <= now
        return has_closed and self._looked.get(symbol, -step) // step != now // step

    def _pages(self, symbols: Iterable[str]) -> dict[str, Candles]:
        """One page of candles for each symbol, from its cursor on; symbols in step share a call."""
        together: dict[tuple[str, int], list[str]] = {}
        for symbol in symbols:
            timeframe = self.timeframe_of(symbol)
            if timeframe is not None:
                together.setdefault((timeframe, self._book.cursors[symbol].matched_until_ms), []).append(symbol)
        pages: dict[str, Candles] = {}
        for (timeframe, since), group in together.items():
            pages.update(self._data.candles_many(group, timeframe, since, self._data.page_limit))
        return pages

    def _funding(self, symbol: str) -> list[FundingRate]:
        if symbol not in self._book.positions or not self._data.capabilities.funding:
            return []
        try:
            return self._data.funding(symbol, self._book.cursors[symbol].funded_until_ms + 1, self._data.page_limit)
        except ExchangeError:
            return []  # not paid yet: `funded_until_ms` stays, the next candle asks again

    def _match(self, symbol: str, candles: Candles, rates: list[FundingRate]) -> None:
        instrument = self.instrument(symbol)
        timeframe = self.timeframe_of(symbol)
        if instrument is None or timeframe is None or not len(candles):
            return
        step = timeframe_ms(timeframe)
        cursor = self._book.cursors[symbol]
        funded = cursor.funded_until_ms
        waiting = list(rates)
        for row in range(len(candles)):
            opened_ms = int(candles.open_time[row])
            while waiting and waiting[0].time_ms < opened_ms + step:
                rate = waiting.pop(0)
                if symbol in self._book.positions and rate.time_ms > funded:
                    mark = Decimal(repr(float(candles.open[row])))
                    self._book.fund(symbol, Decimal(repr(rate.rate)), mark, rate.time_ms)
                funded = max(funded, rate.time_ms)
            for order in self._resting(symbol, opened_ms, step):
                self._try_fill(order, instrument, candles, row, opened_ms + step - 1)  # in the candle, not the next one
        self._closes[symbol] = Decimal(repr(float(candles.close[-1])))
        self._book.set_cursor(symbol, Cursor(int(candles.open_time[-1]) + step, funded))

    def _resting(self, symbol: str, opened_ms: int, step: int) -> list[VenueOrder]:
        """The symbol's open orders that a candle concerns; stops first, as a candle that hits both hurts most so."""
        slack = step - 1 if self._data.capabilities.ticker_is_last_close else 0
        concerned = [
            order
            for order in self._book.open_orders.values()
            if order.symbol == symbol and opened_ms + slack >= order.time_ms
        ]
        return sorted(concerned, key=lambda order: order.kind != "stop_market")

    def _try_fill(self, order: VenueOrder, instrument: Instrument, candles: Candles, row: int, time_ms: int) -> None:
        price = resting_price(
            instrument, order, float(candles.open[row]), float(candles.high[row]), float(candles.low[row])
        )
        if price is None:
            return
        is_stop = order.kind == "stop_market"
        quantity = order.quantity - order.filled
        if not is_stop:
            share = Decimal(repr(MAX_VOLUME_SHARE * float(candles.volume[row])))
            quantity = min(quantity, instrument.quantize_quantity(share))
            if quantity == 0:
                return
        if order.reduce_only:
            held = self._book.holding(order.symbol).quantity
            reducible = max(held if order.side == "sell" else -held, Decimal(0))
            quantity = min(quantity, reducible)
            if quantity == 0:
                self._book.update_order(replace(order, status="expired"))
                return
        order = self._book.fill(order, quantity, price, time_ms, maker=not is_stop)
        spent = is_stop or (order.reduce_only and self._book.holding(order.symbol).quantity == 0)
        if order.status == "open" and spent:
            self._book.update_order(replace(order, status="cancelled"))

    def _end_listing(self, symbol: str, now: int) -> None:
        """At the end of a listing the venue expires orders and settles positions at the last price."""
        instrument = self.instrument(symbol)
        if instrument is None or instrument.delisted_ms is None or instrument.delisted_ms > now:
            return
        for order in list(self._book.open_orders.values()):
            if order.symbol == symbol:
                self._book.update_order(replace(order, status="expired"))
        if symbol in self._book.positions:
            price = self.last_close(symbol)
            self._book.settle(symbol, self._book.holding(symbol).entry_price if price is None else price, now)

"""`MatchingVenue`: an account matched against public data. Simulated, replayed and paper trading are this one engine.

Market orders fill at once at the ticker (`exchanges.fill_model`). Resting orders are matched by going through every
candle that has closed since the last look, so a stop also fires while no bot is running. A client order id is unique
for ever: placing it again is `Rejected("DUPLICATE")` and the caller looks the order up, as on Bybit. Reads never
change the books, they only let the market catch up with the clock; reading twice gives the same answer.

Not modelled: liquidation (equity may go below zero), and cancelling what reduces once nothing is left to reduce (such
an order expires when it fires, as on most venues).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from exchanges.book import Book
from exchanges.errors import ExchangeError, MarketDataError
from exchanges.fill_model import Liquidity, measure_liquidity, taker_price, taker_quantity
from exchanges.order_rules import AccountFacts, check_account, check_form, check_instrument
from exchanges.port import (
    DUPLICATE,
    Ack,
    Balance,
    Instrument,
    MarketData,
    OrderRequest,
    PlaceOutcome,
    Rejected,
    Ticker,
    Unknown,
    VenueFill,
    VenueOrder,
    VenuePosition,
)
from exchanges.replayer import Replayer
from quant.fills import VOLATILITY_BARS
from quant.timeframes import timeframe_ms

DEFAULT_LEVERAGE = Decimal(10)
_HALTED_AFTER_MS = 86_400_000
_ZERO = Decimal(0)


class MatchingVenue:
    """One account over `data`, kept in `ledger_path`. Several processes may open the same file; none sees a stale book.

    `receive_window_ms`: refuse a request whose `time_ms` is older, as live venues do (None: accept any age).
    """

    attaches_stops = False

    def __init__(
        self,
        *,
        data: MarketData,
        ledger_path: Path | str = ":memory:",
        account: str = "main",
        initial_balance: Decimal = Decimal(10_000),
        currency: str = "USDT",
        receive_window_ms: int | None = None,
    ) -> None:
        self.data = data
        self._currency = currency
        self._receive_window_ms = receive_window_ms
        self._book = Book(ledger_path, account=account, currency=currency, initial_balance=initial_balance)
        self._replayer = Replayer(data, self._book)

    def close(self) -> None:
        self._book.close()

    # --------------------------------------------------------------------- reads
    def balance(self) -> Balance:
        with self._synchronised():
            tickers = self._tickers()
            equity = self._equity(tickers)
            return Balance(self._currency, equity, equity - self._margin(tickers))

    def positions(self) -> list[VenuePosition]:
        with self._synchronised():
            tickers = self._tickers()
            stops = {
                order.symbol: order.trigger_price
                for order in self._book.open_orders.values()
                if order.kind == "stop_market" and order.reduce_only
            }
            return [
                VenuePosition(
                    symbol=symbol,
                    quantity=holding.quantity,
                    entry_price=holding.entry_price,
                    mark_price=self._mark(symbol, tickers),
                    stop_price=stops.get(symbol),
                )
                for symbol, holding in sorted(self._book.positions.items())
            ]

    def open_orders(self, symbol: str | None = None) -> list[VenueOrder]:
        with self._synchronised():
            return [order for order in self._book.open_orders.values() if symbol is None or order.symbol == symbol]

    def order_by_client_id(self, symbol: str, client_order_id: str) -> VenueOrder | None:
        with self._synchronised():
            order = self._book.find(client_order_id)
            return order if order is not None and order.symbol == symbol else None

    def fills_since(self, time_ms: int) -> list[VenueFill]:
        with self._synchronised():
            return self._book.fills_since(time_ms)

    # -------------------------------------------------------------------- writes
    def place(self, request: OrderRequest) -> PlaceOutcome:
        try:
            return self._place(request)
        except ExchangeError as error:  # market data that is needed for a fill did not come
            return _not_booked(error)

    def place_stop(self, request: OrderRequest) -> PlaceOutcome:
        if request.kind != "stop_market" or not request.reduce_only:
            return Rejected("BAD_KIND", "a protective stop is of kind stop_market and reduce_only")
        return self.place(request)

    def _place(self, request: OrderRequest) -> PlaceOutcome:
        refusal = check_form(request)
        if refusal is not None:
            return refusal
        now = self.data.now_ms()
        instrument = self._replayer.instrument(request.symbol)
        if instrument is None:
            return Rejected("UNKNOWN_SYMBOL", f"{request.symbol} is not listed; see instruments()")
        liquidity = self._liquidity(request.symbol, now)
        with self._synchronised(), self._book.transaction():
            # Only behind the ledger's lock: a process that is frozen before it must not pass when it wakes (B4).
            age, window = self.data.now_ms() - request.time_ms, self._receive_window_ms
            if window is not None and age > window:
                return Rejected("STALE_REQUEST", f"the request is {age} ms old, the window is {window} ms")
            if self._book.find(request.client_order_id) is not None:
                return Rejected(DUPLICATE, f"client order id {request.client_order_id} exists: look it up")
            ticker = self._tickers().get(request.symbol)
            if not instrument.active or ticker is None or now - ticker.time_ms > _HALTED_AFTER_MS:
                return Rejected("NOT_TRADING", f"{request.symbol} does not trade now: no order is accepted")
            mark = _price(ticker.last)
            refusal = check_instrument(request, instrument, mark) or check_account(
                request, self._facts(request, instrument, mark)
            )
            if refusal is not None:
                return refusal
            self._replayer.start(request.symbol, now)
            order = self._book.add_order(request, now)
            if request.kind != "stop_market":
                order = self._take(order, instrument, ticker, liquidity, now)
            return Ack(order)

    def cancel(self, symbol: str, client_order_id: str) -> PlaceOutcome:
        try:
            return self._cancel(symbol, client_order_id)
        except ExchangeError as error:
            return _not_booked(error)

    def _cancel(self, symbol: str, client_order_id: str) -> PlaceOutcome:
        with self._synchronised(), self._book.transaction():
            order = self._book.find(client_order_id)
            if order is None or order.symbol != symbol:
                return Rejected("ORDER_NOT_FOUND", f"no order {client_order_id} of {symbol} exists")
            if order.status == "open":
                order = replace(order, status="cancelled")
                self._book.update_order(order)
            return Ack(order)

    def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        """Margin per notional for new orders of a symbol. Raises ValueError outside 1 and the instrument's maximum."""
        instrument = self._replayer.instrument(symbol)
        most = DEFAULT_LEVERAGE if instrument is None else instrument.max_leverage
        if not 1 <= leverage <= most:
            raise ValueError(f"leverage={leverage} of {symbol} must be between 1 and {most}")
        if self._book.leverages.get(symbol) == leverage:
            return
        with self._synchronised(), self._book.transaction():
            self._book.set_leverage(symbol, leverage)

    # ------------------------------------------------------------------ internal
    @contextmanager
    def _synchronised(self) -> Iterator[None]:
        """The books of now: what other processes wrote is read, every closed candle is matched."""
        self._book.refresh()
        self._replayer.catch_up()
        yield

    def _take(
        self, order: VenueOrder, instrument: Instrument, ticker: Ticker, liquidity: Liquidity, now: int
    ) -> VenueOrder:
        """Fill what the market gives now. A market order's rest is cancelled, a limit order's rest stays open."""
        wanted = order.quantity
        if order.reduce_only:
            wanted = min(wanted, abs(self._book.holding(order.symbol).quantity))
        quantity = taker_quantity(instrument, wanted, liquidity)
        price = None if quantity <= 0 else taker_price(instrument, ticker, order.side, quantity, liquidity)
        if order.kind == "limit" and order.price is not None and price is not None:
            best = _price(ticker.ask if order.side == "buy" else ticker.bid)
            crosses = best <= order.price if order.side == "buy" else best >= order.price
            if not crosses:
                return order
            price = min(price, order.price) if order.side == "buy" else max(price, order.price)
        if price is not None:
            order = self._book.fill(order, quantity, price, now, maker=False)
        if order.kind == "market" and order.status == "open":
            order = replace(order, status="cancelled")
            self._book.update_order(order)
        return order

    def _facts(self, request: OrderRequest, instrument: Instrument, mark: Decimal) -> AccountFacts:
        tickers = self._tickers()
        return AccountFacts(
            holding=self._book.holding(request.symbol),
            available=self._equity(tickers) - self._margin(tickers),
            leverage=self._leverage(request.symbol),
            mark=mark,
            is_spot=instrument.market_type == "spot",
        )

    def _liquidity(self, symbol: str, now: int) -> Liquidity:
        """What the last closed candles say. An unreadable symbol has no liquidity: its orders fill nothing."""
        timeframe = self._replayer.timeframe_of(symbol)
        if timeframe is None:
            return Liquidity(volume=0.0, sigma=0.0)
        step = timeframe_ms(timeframe)
        try:
            candles = self.data.candles(symbol, timeframe, now - (VOLATILITY_BARS + 1) * step, VOLATILITY_BARS + 1)
        except MarketDataError:
            return Liquidity(volume=0.0, sigma=0.0)
        return measure_liquidity(candles, step)

    def _tickers(self) -> dict[str, Ticker]:
        return self.data.tickers()

    def _mark(self, symbol: str, tickers: dict[str, Ticker]) -> Decimal:
        ticker = tickers.get(symbol)
        if ticker is not None:
            return _price(ticker.last)
        last = self._replayer.last_close(symbol)
        return self._book.holding(symbol).entry_price if last is None else last

    def _equity(self, tickers: dict[str, Ticker]) -> Decimal:
        """Cash is what all trades and fees left; what is held counts at the mark. Nothing else is money."""
        held = (holding.quantity * self._mark(symbol, tickers) for symbol, holding in self._book.positions.items())
        return self._book.cash + sum(held, _ZERO)

    def _margin(self, tickers: dict[str, Ticker]) -> Decimal:
        used = (
            abs(holding.quantity) * self._mark(symbol, tickers) / self._leverage(symbol)
            for symbol, holding in self._book.positions.items()
        )
        return sum(used, _ZERO)

    def _leverage(self, symbol: str) -> Decimal:
        chosen = self._book.leverages.get(symbol, DEFAULT_LEVERAGE)
        instrument = self._replayer.instrument(symbol)
        return chosen if instrument is None else min(chosen, instrument.max_leverage)


def _not_booked(error: ExchangeError) -> Unknown:
    """The port's answer to trouble with market data: the books were rolled back, a look-up will find nothing new."""
    return Unknown(f"nothing was booked, market data failed: {type(error).__name__}: {error}")


def _price(value: float) -> Decimal:
    return Decimal(repr(value))

"""`CcxtVenue`: a real account through ccxt. Bybit's unified account, linear perpetuals, one-way positions.

An order is sent once, with the client order id of its row, signed with the time at which its sender still had the right
to send it: a process that wakes after a freeze is refused by the venue's receive window (B4). After every look-up the
client order id is compared, because look-ups lie (reference/exchanges.md). Reads raise; a read that came without its
list is no empty answer (F17).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from exchanges import ccxt_account
from exchanges.ccxt_client import CLOCK_ALERT_MS, TRADE_PARALLEL, TRADE_TIMEOUT_MS, CcxtLink, answer_errors, run
from exchanges.ccxt_data import CcxtMarketData, budget
from exchanges.ccxt_gate import Gate, GateClosedError
from exchanges.ccxt_outcomes import is_finished, place_outcome, shown
from exchanges.ccxt_rules import CLOCK_SKEW, GONE, GRID, SIZE, VenueRules
from exchanges.errors import ConfigurationError, ExchangeError, ExchangeUnavailableError
from exchanges.keys import Keys
from exchanges.order_rules import check_form, check_instrument
from exchanges.port import (
    Ack,
    Balance,
    Instrument,
    OrderRequest,
    PlaceOutcome,
    Rejected,
    Throttled,
    Unknown,
    VenueFill,
    VenueOrder,
    VenuePosition,
)

SETTLE_PAUSES = (0.05, 0.15, 0.4)
"""Real seconds between looks at a market order that was just accepted: Bybit matches after it has answered."""
Notify = Callable[[str, str], None]


class CcxtVenue:
    """One account of one exchange. `data` shares its markets, its clock and its ban with the account's own client.

    `receive_window_ms` (our clock) is how old an order may be when the venue gets it. `notify(key, text)` is called in
    the caller's thread for what a person must know. `margin_mode`: "cross", "isolated", or "" to leave it: see
    `set_leverage`.
    """

    def __init__(
        self,
        *,
        data: CcxtMarketData,
        rules: VenueRules,
        keys: Keys,
        now_ms: Callable[[], int],
        currency: str = "USDT",
        options: Mapping[str, object] | None = None,
        receive_window_ms: int | None = None,
        margin_mode: str = "",
        notify: Notify | None = None,
    ) -> None:
        if not rules.proven:
            raise ConfigurationError(
                f"{rules.ccxt_id} cannot be traded live: only {', '.join(ccxt_account.PROVEN)} was proven against a "
                "loopback exchange. Use EXCHANGE=paper for it."
            )
        self.data = data
        self.rules = rules
        self._clock = now_ms
        self._currency = currency
        self._window_ms = receive_window_ms
        if margin_mode and margin_mode not in ccxt_account.MARGIN_MODES:
            modes = ", ".join(ccxt_account.MARGIN_MODES)
            raise ConfigurationError(f"MARGIN_MODE={margin_mode!r}: choose one of {modes}")
        self._margin_mode = margin_mode
        self.notify = notify
        self.link = CcxtLink(
            exchange_id=rules.ccxt_id,
            is_spot=False,
            clock=data.link.clock,
            gate=Gate(
                f"{rules.ccxt_id} account", ban=data.ban, bucket=budget(rules.ccxt_id, options or {}, trading=True)
            ),
            options=options,
            keys=keys,
            timeout_ms=TRADE_TIMEOUT_MS,
            parallel=TRADE_PARALLEL,
        )
        # Else ccxt asks for them before the first order, signed with the order's time. `verify` makes sure of it.
        self.link.client.options |= {
            "enableUnifiedMargin": False, "enableUnifiedAccount": True, "unifiedMarginStatus": 6,
        }  # fmt: skip
        if receive_window_ms is not None:
            self.link.client.options["recvWindow"] = receive_window_ms
        self._verified = False
        self._leverages: dict[str, Decimal] = {}

    @property
    def attaches_stops(self) -> bool:
        return self.rules.attaches_stops

    # --------------------------------------------------------------------- reads
    def verify(self) -> None:
        """Look at the key and the account once. Raises ConfigurationError for what must not be traded with.

        That is: a key that may withdraw or may not trade, an account that is no unified one, hedge mode.
        """
        if self._verified:
            return
        self._share_markets()
        with self._told(), self.link.translated(None):
            if self.data.link.clock.stale:
                run(self.data.link.measure_clock())
            ccxt_account.check_key(run(ccxt_account.read_key(self.link)))
        self._verified = True

    def balance(self) -> Balance:
        return self._read(lambda: ccxt_account.read_balance(self.link, self._currency))

    def positions(self) -> list[VenuePosition]:
        """Open positions. The stop is the one attached to the position, else its open reduce-only stop order."""
        positions: list[VenuePosition] = self._read(lambda: ccxt_account.read_positions(self.link))
        if all(position.stop_price is not None for position in positions):
            return positions
        stops = {
            order.symbol: order.trigger_price
            for order in self.open_orders()
            if order.kind == "stop_market" and order.reduce_only
        }
        return [ccxt_account.with_stop(position, stops.get(position.symbol)) for position in positions]

    def open_orders(self, symbol: str | None = None) -> list[VenueOrder]:
        """Open orders, without the stops that belong to a position: those are its `stop_price`."""
        if symbol is not None and self._instrument(symbol) is None:
            return []
        return self._read(lambda: ccxt_account.read_open_orders(self.link, symbol))

    def order_by_client_id(self, symbol: str, client_order_id: str) -> VenueOrder | None:
        if self._instrument(symbol) is None:
            return None
        return self._read(lambda: ccxt_account.find_order(self.link, symbol, client_order_id))

    def fills_since(self, time_ms: int) -> list[VenueFill]:
        """Trades and funding payments, read in windows and pages as the venue gives them; each of them once."""
        # A time of ours becomes the exchange's if we are ahead. It may be the exchange's already (the newest fill's):
        # while we are behind, that would skip what is new, and reading from too early changes nothing.
        since = time_ms - max(0, self.link.clock.offset_ms)
        return self._read(lambda: ccxt_account.read_fills(self.link, since))

    # -------------------------------------------------------------------- writes
    def place(self, request: OrderRequest) -> PlaceOutcome:
        refusal = check_form(request)
        if refusal is not None:
            return refusal
        sent_ms = request.time_ms or self._clock()
        try:
            self.verify()
            # The exchange's time, taken before anything more is asked: measured behind a freeze, it would be too new.
            stamp_ms = sent_ms - self.link.clock.offset_ms
            instrument = self._instrument(request.symbol)
            if instrument is None:
                return Rejected("UNKNOWN_SYMBOL", f"{request.symbol} is not listed; see instruments()")
            refusal = check_instrument(request, instrument, self._mark(request))
            if refusal is not None:
                return refusal
            self._share_markets()
        except GateClosedError as closed:
            return Throttled(closed.retry_at_ms)
        except ConfigurationError as error:
            return Rejected("ACCOUNT_REFUSED", str(error))
        except ExchangeError:  # what must be known before a send could not be read: nothing was sent
            return Throttled(self._clock() + ccxt_account.NOT_SENT_PAUSE_MS)
        with self._told():
            try:
                outcome = run(self._place(request, instrument, sent_ms, stamp_ms))
            except ExchangeUnavailableError as error:  # no end of it was seen
                return Unknown(shown(error))
        if isinstance(outcome, Rejected) and outcome.code in (GRID, SIZE, "UNKNOWN_SYMBOL"):
            self.data.forget_markets()
        return outcome

    def place_stop(self, request: OrderRequest) -> PlaceOutcome:
        if request.kind != "stop_market" or not request.reduce_only:
            return Rejected("BAD_KIND", "a protective stop is of kind stop_market and reduce_only")
        return self.place(request)

    async def _place(self, request: OrderRequest, instrument: Instrument, sent_ms: int, stamp_ms: int) -> PlaceOutcome:
        """Send an order of `sent_ms` (our clock), signed with `stamp_ms` (the exchange's), and read what became of it.

        A refused time proves that there is no order. It is signed once more if our clock was ahead (F07). If it was
        behind, this host may have been paused, clock and all, and the account be another's by now: a later stamp would
        open the receive-window fence (I15, F37). Whoever sends must ask anew whether it may.
        """
        outcome = await self._send(request, instrument, sent_ms, stamp_ms)
        if isinstance(outcome, Rejected) and outcome.code == CLOCK_SKEW:
            try:
                await self.link.measure_clock()
            except answer_errors() as error:
                return Rejected(CLOCK_SKEW, f"{outcome.reason}; the clock could not be measured: {shown(error)}")
            measured_ms = sent_ms - self.link.clock.offset_ms
            if measured_ms - stamp_ms > CLOCK_ALERT_MS:
                return Rejected(
                    "STALE_REQUEST",
                    f"our clock was {measured_ms - stamp_ms} ms behind the exchange's, as after a pause",
                )
            outcome = await self._send(request, instrument, sent_ms, min(stamp_ms, measured_ms))
            if isinstance(outcome, Rejected) and outcome.code == CLOCK_SKEW:
                self.link.notices["clock"] = f"the exchange refuses our time twice in a row: {outcome.reason}"
        if not isinstance(outcome, Ack):
            return outcome
        return Ack(await self._settled(request, outcome.order))

    async def _send(self, request: OrderRequest, instrument: Instrument, sent_ms: int, stamp_ms: int) -> PlaceOutcome:
        age = self._clock() - sent_ms
        if self._window_ms is not None and age > self._window_ms:
            return Rejected("STALE_REQUEST", f"the request is {age} ms old, the window is {self._window_ms} ms")
        kind = "limit" if request.kind == "limit" else "market"
        price = None if request.price is None else f"{request.price:f}"
        params = order_parameters(request, instrument, self.rules)
        answer: BaseException | Mapping[str, Any]
        try:
            answer = await self.link.request(
                lambda client: client.create_order(
                    request.symbol, kind, request.side, f"{request.quantity:f}", price, params
                ),
                urgent=request.reduce_only,
                signed_at_ms=stamp_ms,
                retries=0,
            )
        except GateClosedError as closed:
            return Throttled(closed.retry_at_ms)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the order may be at the venue
            answer = error
        return place_outcome(
            answer,
            request,
            self.rules,
            now_ms=self._clock(),
            retry_at_ms=self.link.retry_at_ms(),
            status=self.link.status(),
        )

    async def _settled(self, request: OrderRequest, accepted: VenueOrder) -> VenueOrder:
        """Read the state of an accepted order: the answer to its placing holds ids only.

        If it cannot be read, the order stands as accepted; fills and reconciliation tell the rest.
        """
        order = accepted
        for pause in (0.0, *(SETTLE_PAUSES if request.kind == "market" else ())):
            await asyncio.sleep(pause)
            try:
                found = await ccxt_account.find_order(self.link, request.symbol, request.client_order_id)
            except answer_errors() as error:
                self.link.client.logger.warning("an accepted order could not be read: %s", shown(error))
                return order
            order = found or order
            if order.status != "open":
                break
        return order

    def cancel(self, symbol: str, client_order_id: str) -> PlaceOutcome:
        try:
            self.verify()
            if self._instrument(symbol) is None:
                return Rejected(GONE, f"no order {client_order_id} of {symbol} exists")
            with self._told():
                return run(self._cancel(symbol, client_order_id))
        except GateClosedError as closed:
            return Throttled(closed.retry_at_ms)
        except ExchangeError as error:
            return Unknown(shown(error))

    async def _cancel(self, symbol: str, client_order_id: str) -> PlaceOutcome:
        refusal: BaseException | None = None
        try:
            await self.link.request(
                lambda client: client.cancel_order(None, symbol, {self.rules.client_id_parameter: client_order_id}),
                urgent=True,
            )
        except GateClosedError:
            raise
        except answer_errors() as error:
            refusal = error
            if not is_finished(error, self.rules):
                request = OrderRequest(client_order_id, symbol, "sell", Decimal(1), reduce_only=True)
                outcome = place_outcome(
                    error,
                    request,
                    self.rules,
                    now_ms=self._clock(),
                    retry_at_ms=self.link.retry_at_ms(),
                    status=self.link.status(),
                )
                return outcome if isinstance(outcome, Throttled | Unknown) else Unknown(shown(error))
        for pause in (0.0, *SETTLE_PAUSES):
            await asyncio.sleep(pause)
            try:
                found = await ccxt_account.find_order(self.link, symbol, client_order_id)
            except answer_errors() as error:
                return Unknown(f"after a cancel the order could not be read: {shown(error)}")
            if found is None and refusal is not None:
                return Rejected(GONE, f"no order {client_order_id} of {symbol} exists")
            if found is not None and found.status != "open":
                return Ack(found)
        return Unknown("a cancel was accepted and the order still looks open")

    def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        """Make the account ready for entries in a symbol: its margin mode, and the symbol's leverage.

        Each is read, and set where it is another one; the same again costs nothing. Only entries need it, so nothing
        else waits for it: a venue that refuses the mode must not keep a stop from being sent. Raises ExchangeError,
        and ValueError outside 1 and the symbol's maximum.
        """
        instrument = self._instrument(symbol)
        most = Decimal(1) if instrument is None else instrument.max_leverage
        if not 1 <= leverage <= most:
            raise ValueError(f"leverage={leverage} of {symbol} must be between 1 and {most}")
        if self._leverages.get(symbol) == leverage:
            return
        if self._margin_mode:
            self._read(lambda: ccxt_account.ensure_margin_mode(self.link, self._margin_mode))
            self._margin_mode = ""
        self._read(lambda: ccxt_account.ensure_leverage(self.link, symbol, leverage))
        self._leverages[symbol] = leverage

    # ------------------------------------------------------------------ internal
    def _read(self, work: Callable[[], Any]) -> Any:
        self.verify()
        self._share_markets()
        with self._told(), self.link.translated(None):
            return run(work())

    def _told(self) -> _Told:
        return _Told(self)

    def _share_markets(self) -> None:
        """Use the markets of the data's client (0.04 ms), also after it has loaded them anew."""
        self.data.instrument("")
        theirs = self.data.link.client
        if self.link.client.markets is not theirs.markets:
            self.link.client.set_markets_from_exchange(theirs)

    def _instrument(self, symbol: str) -> Instrument | None:
        return self.data.instrument(symbol)

    def _mark(self, request: OrderRequest) -> Decimal | None:
        """The price, for an entry's least notional. An exit waits for no ticker: the venue checks it."""
        if request.reduce_only:
            return None
        try:
            ticker = self.data.tickers().get(request.symbol)
        except ExchangeError:
            return None
        return None if ticker is None else Decimal(repr(ticker.last))


class _Told:
    """On leaving, tell a person what the clients have noticed: in the caller's thread, which may own a database."""

    def __init__(self, venue: CcxtVenue) -> None:
        self._venue = venue

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for link in (self._venue.data.link, self._venue.link):
            while link.notices:
                key, text = link.notices.popitem()
                if self._venue.notify is not None:
                    self._venue.notify(key, text)


def order_parameters(request: OrderRequest, instrument: Instrument, rules: VenueRules) -> dict[str, Any]:
    """Return what goes into `create_order` beside symbol, side and size. Numbers are texts: nothing is rounded."""
    params: dict[str, Any] = {"clientOrderId": request.client_order_id}
    if request.reduce_only:
        params["reduceOnly"] = True
    if request.kind == "stop_market" and request.trigger_price is not None:
        params["triggerPrice"] = f"{request.trigger_price:f}"
        params["triggerDirection"] = "descending" if request.side == "sell" else "ascending"
    if request.attached_stop is not None and rules.attaches_stops and not request.reduce_only:
        params["stopLoss"] = {"triggerPrice": f"{instrument.quantize_price(request.attached_stop):f}"}
    return params

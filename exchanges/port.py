"""The exchange port: what the rest of the program may know about an exchange.

Two protocols. `MarketData` reads what everybody may see, `Venue` is one account. All implementations pass one contract
suite (`tests/exchanges/test_contract_*.py`). Times are milliseconds since 1970 UTC and are the *exchange's* times; a
candle is named by its open time. Symbols are ccxt's unified codes. Money and quantities of an account are `Decimal`,
series are float64.

`MarketData` raises `exchanges.errors.ExchangeError` and its subclasses. `Venue.place` and `Venue.cancel` never raise
for what a venue answers: an order is too important to be reported by the absence of a return value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol, runtime_checkable

from exchanges.errors import MarketDataError
from quant.candles import Candles

OrderSide = Literal["buy", "sell"]
OrderKind = Literal["market", "limit", "stop_market"]
OrderStatus = Literal["open", "filled", "cancelled", "rejected", "expired"]
FillKind = Literal["trade", "funding"]
FillCause = Literal["", "liquidation", "adl", "delivery", "moved"]
"""Why a venue traded for us without an order of anybody; "adl": auto-deleveraging; "moved": to another account."""

MAX_CLIENT_ORDER_ID = 18
"""Longest client order id, alphanumeric, that every supported venue accepts (reference/exchanges.md)."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """Rules of one tradable symbol. Quantities in base units, prices and notionals in quote units.

    Rounding needs a `tick_size` and a `lot_size`: look at `flaw` first.
    """

    symbol: str
    base: str
    quote: str
    settle: str
    market_type: Literal["swap", "spot"]
    tick_size: Decimal
    lot_size: Decimal
    min_quantity: Decimal
    min_notional: Decimal
    max_leverage: Decimal
    listed_ms: int | None
    delisted_ms: int | None
    active: bool
    trouble: str = ""
    """Why nothing more can be had of it now, although it exists; empty: all is well."""

    @property
    def flaw(self) -> str:
        """Return the first rule that no order can be made by, as `name=value`; empty: there is none.

        A venue's answer may lack a rule, or say 0 or nonsense: the implementations make NaN of what is no number.
        """
        for name in ("tick_size", "lot_size", "min_quantity", "min_notional", "max_leverage"):
            value = getattr(self, name)
            if not isinstance(value, Decimal) or not value.is_finite() or value < 0:
                return f"{name}={value!s}"
            if value == 0 and not name.startswith("min_"):
                return f"{name}=0"
        return ""

    def quantize_quantity(self, quantity: Decimal) -> Decimal:
        """Round towards zero to the lot size: never trade more than was asked for."""
        return (quantity // self.lot_size) * self.lot_size if quantity >= 0 else -self.quantize_quantity(-quantity)

    def quantize_price(self, price: Decimal) -> Decimal:
        """Round half up to the tick size, but never to zero."""
        ticks = (price / self.tick_size + Decimal("0.5")) // 1
        return max(ticks, Decimal(1)) * self.tick_size


@dataclass(frozen=True, slots=True)
class Ticker:
    """Best prices and the last 24 hours' turnover in quote units."""

    symbol: str
    bid: float
    ask: float
    last: float
    quote_volume_24h: float
    time_ms: int


@dataclass(frozen=True, slots=True)
class FundingRate:
    """A funding payment: longs pay `rate` of the notional to shorts at `time_ms` (negative: receive)."""

    time_ms: int
    rate: float


@dataclass(frozen=True, slots=True)
class Balance:
    """Margin account in one currency. `equity` = cash + unrealised profit; `available` backs new orders."""

    currency: str
    equity: Decimal
    available: Decimal


@dataclass(frozen=True, slots=True)
class VenuePosition:
    """A position as the venue sees it. `quantity` is signed; `stop_price` is its open reduce-only stop, if any."""

    symbol: str
    quantity: Decimal
    entry_price: Decimal
    mark_price: Decimal
    stop_price: Decimal | None = None


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """An order to send. `time_ms` is the sender's market time (for the receive-window fence of live venues).

    `attached_stop` is a trigger price: a venue that can (`Venue.attaches_stops`) guards the position with a stop there
    from the entry's first fill on, until it is flat. The others ignore it; a stop order of our own follows anyway.
    """

    client_order_id: str
    symbol: str
    side: OrderSide
    quantity: Decimal
    kind: OrderKind = "market"
    price: Decimal | None = None
    trigger_price: Decimal | None = None
    reduce_only: bool = False
    attached_stop: Decimal | None = None
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class VenueOrder:
    """An order as the venue sees it. Decide by `filled`, not by `status`: a cancelled order may hold fills."""

    client_order_id: str
    venue_order_id: str
    symbol: str
    side: OrderSide
    kind: OrderKind
    quantity: Decimal
    filled: Decimal
    average_price: Decimal | None
    status: OrderStatus
    price: Decimal | None
    trigger_price: Decimal | None
    reduce_only: bool
    time_ms: int


@dataclass(frozen=True, slots=True)
class VenueFill:
    """One execution, unique per account and `trade_id`.

    `fee` is what was paid (negative: received). `kind="funding"` marks a funding payment: `quantity` is the position it
    was paid on, `price` the mark, `fee` the payment; it changes cash, never the position, and has an empty
    `client_order_id`. So has a fill of the stop that a venue keeps for a position (`attached_stop`): `attached` tells;
    and one that the venue itself made: `cause` tells.
    """

    trade_id: str
    client_order_id: str
    venue_order_id: str
    symbol: str
    side: OrderSide
    quantity: Decimal
    price: Decimal
    fee: Decimal
    time_ms: int
    kind: FillKind = "trade"
    attached: bool = False
    cause: FillCause = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """The venue has the order; `order` is its present state (it may be filled, or cancelled by the venue)."""

    order: VenueOrder


@dataclass(frozen=True, slots=True)
class Rejected:
    """The venue surely has no new order because of this call. `code` is stable, `reason` is for people."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """Refused before matching because of a rate limit. Look the order up before any resend."""

    retry_at_ms: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can say whether the order exists. Look it up by its client order id; never resend blindly."""

    detail: str


PlaceOutcome = Ack | Rejected | Throttled | Unknown

DUPLICATE = "DUPLICATE"
"""Code of a `Rejected` whose client order id exists already: look the order up and adopt it (fault card F08)."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an implementation can do beyond the port's minimum."""

    bulk_candles: bool
    """`candles_many` costs about as much as one call, not one call per symbol."""
    funding: bool
    timeframes: tuple[str, ...]
    page_limit: int
    """Most candles one `candles` call returns."""
    ticker_is_last_close: bool = False
    """Tickers show the close of the last closed candle: whatever happens in the running candle is still to come."""
    history_start_ms: int | None = None


@runtime_checkable
class MarketData(Protocol):
    """Public data of one market of one exchange, as known at `now_ms()`. Nothing later is ever visible."""

    @property
    def market(self) -> str: ...

    @property
    def simulated(self) -> bool:
        """True if prices are invented: whoever shows a number from here must say so."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def page_limit(self) -> int: ...

    def now_ms(self) -> int:
        """The exchange's clock."""
        ...

    def instruments(self) -> list[Instrument]:
        """All symbols ever listed until now, sorted by symbol; `active` tells which can be traded."""
        ...

    def tickers(self) -> dict[str, Ticker]:
        """Tickers of the active instruments, in one call."""
        ...

    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        """Closed candles with open time >= `since_ms`, ascending, at most min(limit, page_limit) of them."""
        ...

    def candles_many(self, symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        """`candles` for many symbols. A symbol that fails or has none is left out; see `candles_one_by_one`."""
        ...

    def funding(self, symbol: str, since_ms: int, limit: int) -> list[FundingRate]:
        """Funding payments due in [since_ms, now], ascending."""
        ...


@runtime_checkable
class Venue(Protocol):
    """One account. Reads raise `ExchangeError`; a failed read is never an empty answer (fault card F17)."""

    @property
    def attaches_stops(self) -> bool:
        """Whether an entry's `attached_stop` guards its position from the first fill on."""
        ...

    def balance(self) -> Balance: ...

    def positions(self) -> list[VenuePosition]:
        """Open positions (quantity != 0), sorted by symbol."""
        ...

    def open_orders(self, symbol: str | None = None) -> list[VenueOrder]: ...

    def order_by_client_id(self, symbol: str, client_order_id: str) -> VenueOrder | None:
        """The order in whatever state, or None if the venue has never seen this id for this symbol."""
        ...

    def fills_since(self, time_ms: int) -> list[VenueFill]:
        """Fills with time >= `time_ms`, in order of execution. Reading twice changes nothing."""
        ...

    def place(self, request: OrderRequest) -> PlaceOutcome: ...

    def place_stop(self, request: OrderRequest) -> PlaceOutcome:
        """Place a protective stop: `request` must be of kind `stop_market` and `reduce_only`."""
        ...

    def cancel(self, symbol: str, client_order_id: str) -> PlaceOutcome:
        """Cancel what is left of an order. Ack(order) also if it was finished already: decide by `filled`."""
        ...

    def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        """Make the account ready for entries in a symbol; the same again costs nothing.

        Raises ExchangeError, and ValueError outside 1 and the instrument's maximum.
        """
        ...


def candles_one_by_one(
    data: MarketData, symbols: Iterable[str], timeframe: str, since_ms: int, limit: int
) -> dict[str, Candles]:
    """`candles_many` for an exchange without a bulk call. One symbol's trouble does not stop the others (I20)."""
    found: dict[str, Candles] = {}
    for symbol in symbols:
        try:
            candles = data.candles(symbol, timeframe, since_ms, limit)
        except MarketDataError:
            continue  # absence is the report: the caller sees which symbols it got
        if len(candles):
            found[symbol] = candles
    return found

"""The contract of `Venue`, run over the matching engine on every market that it serves, and over a real account."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from exchanges.port import DUPLICATE, Ack, Instrument, OrderRequest, Rejected, Venue, VenueFill, VenueOrder
from quant.timeframes import DAY_MS, HOUR_MS
from tests.exchanges.conftest import Accounts


class Trader:
    """A venue with one healthy symbol, and short ways to say what a test does."""

    def __init__(self, accounts: Accounts, account: str = "main", *, balance: int = 10_000) -> None:
        self.accounts = accounts
        self.subject = accounts.subject
        self.venue = accounts.open(account, balance=balance)
        self.symbol = self.subject.symbol
        self.since = self.subject.clock.now
        self.count = 0

    @property
    def instrument(self) -> Instrument:
        return next(each for each in self.subject.data.instruments() if each.symbol == self.symbol)

    @property
    def last(self) -> Decimal:
        return Decimal(repr(self.subject.data.tickers()[self.symbol].last))

    def size(self, notional: int = 200) -> Decimal:
        return self.instrument.quantize_quantity(Decimal(notional) / self.last)

    def price(self, factor: str) -> Decimal:
        return self.instrument.quantize_price(self.last * Decimal(factor))

    def request(self, side: str, quantity: Decimal | None = None, **more: object) -> OrderRequest:
        self.count += 1
        defaults: dict[str, object] = {"client_order_id": f"test{self.count}", "time_ms": self.subject.clock.now}
        arguments = defaults | more
        return OrderRequest(symbol=self.symbol, side=side, quantity=quantity or self.size(), **arguments)  # type: ignore[arg-type]

    def order(self, side: str, quantity: Decimal | None = None, **more: object) -> VenueOrder:
        outcome = self.venue.place(self.request(side, quantity, **more))
        assert isinstance(outcome, Ack), outcome
        return outcome.order

    def wait(self, hours: int) -> None:
        self.subject.clock.now += hours * HOUR_MS

    def wait_until_empty(self, read: Callable[[], object], days: int = 25) -> None:
        for _ in range(24 * days // self.accounts.step_hours):
            self.wait(self.accounts.step_hours)
            if not read():
                return

    def fills(self) -> list[VenueFill]:
        return self.venue.fills_since(self.since)


@pytest.fixture
def trader(accounts: Accounts) -> Trader:
    return Trader(accounts)


def test_it_implements_the_port(trader: Trader) -> None:
    assert isinstance(trader.venue, Venue)


def test_a_new_account_has_its_balance_and_nothing_else(trader: Trader) -> None:
    balance = trader.venue.balance()
    assert (balance.currency, balance.equity, balance.available) == ("USDT", Decimal(10_000), Decimal(10_000))
    assert trader.venue.positions() == []
    assert trader.venue.open_orders() == []
    assert trader.fills() == []


@pytest.mark.parametrize("side, sign", [("buy", 1), ("sell", -1)])
def test_a_market_order_fills_at_once_at_a_worse_price_than_the_last(trader: Trader, side: str, sign: int) -> None:
    order = trader.order(side)
    assert (order.status, order.filled) == ("filled", order.quantity)
    assert order.average_price is not None
    assert sign * (order.average_price - trader.last) > 0
    assert abs(order.average_price / trader.last - 1) < Decimal("0.01")
    [position] = trader.venue.positions()
    assert (position.quantity, position.entry_price) == (sign * order.quantity, order.average_price)
    fills = trader.fills()
    assert {fill.client_order_id for fill in fills} == {"test1"}
    assert sum(fill.quantity for fill in fills) == order.filled
    paid = Decimal(0)
    for fill in fills:
        assert fill.fee == pytest.approx(fill.quantity * fill.price * Decimal("0.00055"), abs=Decimal("1e-7"))
        paid += sign * fill.quantity * (fill.price - trader.last) + fill.fee
    assert trader.venue.balance().equity == 10_000 - paid


def test_a_client_order_id_is_accepted_once(trader: Trader) -> None:
    trader.order("buy", client_order_id="once")
    again = trader.venue.place(trader.request("buy", client_order_id="once"))
    assert isinstance(again, Rejected)
    assert again.code == DUPLICATE
    assert sum(fill.quantity for fill in trader.fills()) == trader.size()


def test_an_order_is_found_by_its_client_id_in_every_state(trader: Trader) -> None:
    trader.order("buy", client_order_id="filled1")
    trader.order("buy", client_order_id="resting1", kind="limit", price=trader.price("0.8"))
    trader.venue.cancel(trader.symbol, "resting1")
    for name, status in (("filled1", "filled"), ("resting1", "cancelled")):
        order = trader.venue.order_by_client_id(trader.symbol, name)
        assert order is not None
        assert (order.client_order_id, order.status) == (name, status)
    assert trader.venue.order_by_client_id(trader.symbol, "neverplaced") is None
    assert trader.venue.order_by_client_id("OTHER/USDT:USDT", "filled1") is None


def test_cancelling_twice_or_after_the_fill_acknowledges_what_is(trader: Trader) -> None:
    trader.order("buy", client_order_id="done")
    trader.order("sell", client_order_id="resting", kind="limit", price=trader.price("1.3"))
    for name, status in (("done", "filled"), ("resting", "cancelled"), ("resting", "cancelled")):
        outcome = trader.venue.cancel(trader.symbol, name)
        assert isinstance(outcome, Ack)
        assert outcome.order.status == status
    missing = trader.venue.cancel(trader.symbol, "nothing")
    assert isinstance(missing, Rejected)
    assert missing.code == "ORDER_NOT_FOUND"
    assert trader.venue.open_orders() == []


def test_a_protective_stop_closes_the_position_when_the_price_gets_there(trader: Trader) -> None:
    entry = trader.order("buy")
    outcome = trader.venue.place_stop(
        trader.request("sell", entry.filled, kind="stop_market", trigger_price=trader.price("0.995"), reduce_only=True)
    )
    assert isinstance(outcome, Ack)
    assert trader.venue.positions()[0].stop_price == outcome.order.trigger_price
    trader.wait_until_empty(trader.venue.positions)
    stops = [fill for fill in trader.fills() if fill.client_order_id == "test2"]
    assert sum(fill.quantity for fill in stops) == entry.filled
    assert outcome.order.trigger_price is not None
    for stop in stops:
        assert stop.price <= outcome.order.trigger_price
        assert stop.time_ms <= trader.subject.clock.now
    assert trader.venue.positions() == []
    order = trader.venue.order_by_client_id(trader.symbol, "test2")
    assert order is not None
    assert order.status == "filled"


def test_a_stop_that_is_crossed_already_is_refused(trader: Trader) -> None:
    trader.order("buy")
    outcome = trader.venue.place_stop(
        trader.request("sell", kind="stop_market", trigger_price=trader.price("1.01"), reduce_only=True)
    )
    assert isinstance(outcome, Rejected)
    assert outcome.code == "TRIGGER_CROSSED"


def test_a_resting_limit_order_fills_at_its_price_once_traded_through(trader: Trader) -> None:
    limit = trader.price("0.99")
    trader.order("buy", client_order_id="rest", kind="limit", price=limit)
    assert [order.client_order_id for order in trader.venue.open_orders(trader.symbol)] == ["rest"]
    trader.wait_until_empty(trader.venue.open_orders)
    fills = [fill for fill in trader.fills() if fill.kind == "trade"]
    assert {fill.price for fill in fills} == {limit}
    assert sum(fill.fee for fill in fills) == pytest.approx(
        sum(fill.quantity for fill in fills) * limit * Decimal("0.0002"), abs=Decimal("1e-6")
    )


def test_reduce_only_never_opens_or_turns_a_position(trader: Trader) -> None:
    refused = trader.venue.place(trader.request("sell", reduce_only=True))
    assert isinstance(refused, Rejected)
    assert refused.code == "REDUCE_ONLY"
    entry = trader.order("buy")
    trader.order("sell", entry.quantity * 3, reduce_only=True)
    assert trader.venue.positions() == []


def test_an_order_beyond_the_liquidity_is_filled_in_part_and_its_rest_cancelled(trader: Trader) -> None:
    trader = Trader(trader.accounts, "rich", balance=10**13)
    order = trader.order("buy", trader.size(10**11))
    assert order.status == "cancelled"
    assert 0 < order.filled < order.quantity
    assert trader.venue.positions()[0].quantity == order.filled


@pytest.mark.parametrize(
    "change, code",
    [
        ({"client_order_id": "with-dash"}, "BAD_CLIENT_ORDER_ID"),
        ({"client_order_id": "a" * 19}, "BAD_CLIENT_ORDER_ID"),
        ({"side": "hold"}, "BAD_SIDE"),
        ({"kind": "iceberg"}, "BAD_KIND"),
        ({"quantity": Decimal(-1)}, "BAD_QUANTITY"),
        ({"quantity": Decimal("NaN")}, "BAD_QUANTITY"),
        ({"quantity": Decimal("10.00000000001")}, "LOT_SIZE"),
        ({"kind": "limit"}, "BAD_PRICE"),
        ({"kind": "limit", "price": Decimal("1.00000000000001")}, "TICK_SIZE"),
        ({"kind": "stop_market"}, "BAD_PRICE"),
        ({"symbol": "NOSUCH/USDT:USDT"}, "UNKNOWN_SYMBOL"),
    ],
)
def test_a_bad_order_is_rejected_with_a_code_and_leaves_nothing(
    trader: Trader, change: dict[str, object], code: str
) -> None:
    base = trader.request("buy")
    values = {name: getattr(base, name) for name in base.__slots__} | change
    outcome = trader.venue.place(OrderRequest(**values))
    assert isinstance(outcome, Rejected)
    assert outcome.code == code
    assert trader.venue.order_by_client_id(base.symbol, str(values["client_order_id"])) is None
    assert trader.venue.balance().equity == 10_000


def test_orders_below_the_minimum_or_above_the_margin_are_rejected(trader: Trader) -> None:
    small = trader.venue.place(trader.request("buy", trader.size(2) or trader.instrument.lot_size))
    large = trader.venue.place(trader.request("buy", trader.size(200_000)))
    assert isinstance(small, Rejected)
    assert small.code == "MIN_NOTIONAL"
    assert isinstance(large, Rejected)
    assert large.code == "INSUFFICIENT_FUNDS"


def test_leverage_sets_the_margin_and_has_bounds(trader: Trader) -> None:
    trader.venue.set_leverage(trader.symbol, Decimal(1))
    trader.order("buy", trader.size(1_000))
    balance = trader.venue.balance()
    assert balance.equity - balance.available == pytest.approx(Decimal(1_000), rel=Decimal("0.02"))
    with pytest.raises(ValueError, match="leverage=1000"):
        trader.venue.set_leverage(trader.symbol, Decimal(1_000))


def test_funding_is_paid_on_what_is_held_and_only_then(trader: Trader) -> None:
    trader.wait(24)
    trader.order("buy")
    opened = trader.subject.clock.now
    trader.wait(48)
    held = [fill for fill in trader.fills() if fill.kind == "funding"]
    due = trader.subject.data.funding(trader.symbol, opened + 1, 100)
    assert [fill.time_ms for fill in held] == [rate.time_ms for rate in due]
    for fill, rate in zip(held, due, strict=True):
        payment = fill.quantity * fill.price * Decimal(repr(rate.rate))
        assert fill.fee == pytest.approx(payment, abs=Decimal("1e-7"))  # a real venue rounds
    trader.order("sell", trader.venue.positions()[0].quantity)
    count = len(held)
    trader.wait(48)
    assert len([fill for fill in trader.fills() if fill.kind == "funding"]) == count


def test_reading_twice_changes_nothing(trader: Trader) -> None:
    trader.order("buy")
    trader.venue.place_stop(
        trader.request("sell", kind="stop_market", trigger_price=trader.price("0.97"), reduce_only=True)
    )
    trader.wait(72)

    def state() -> tuple[object, ...]:
        venue = trader.venue
        return (venue.balance(), venue.positions(), venue.open_orders(), trader.fills())

    assert state() == state()


def test_catching_up_in_one_step_or_in_many_gives_the_same_books(accounts: Accounts) -> None:
    clock = accounts.subject.clock
    start = clock.now
    books = []
    for hours in (accounts.step_hours, 31, 24 * 20):
        clock.now = start
        trader = Trader(accounts, f"every{hours}")
        trader.order("buy")
        trader.venue.place_stop(
            trader.request("sell", kind="stop_market", trigger_price=trader.price("0.96"), reduce_only=True)
        )
        trader.order("sell", trader.size(50), kind="limit", price=trader.price("1.04"))
        while clock.now < start + 20 * DAY_MS:
            clock.now = min(clock.now + hours * HOUR_MS, start + 20 * DAY_MS)
            trader.venue.open_orders()
        books.append((trader.venue.balance(), trader.fills(), trader.venue.open_orders()))
    assert books[0] == books[1] == books[2]


def test_a_killed_bot_finds_its_orders_again(accounts: Accounts) -> None:
    """F02: nothing of an account lives in the process that trades it."""
    first = Trader(accounts)
    first.order("buy", client_order_id="entry")
    first.order("buy", client_order_id="resting", kind="limit", price=first.price("0.5"))
    # No close(): the process is gone.
    second = Trader(accounts)
    assert second.venue.positions() == first.venue.positions()
    assert second.venue.open_orders() == first.venue.open_orders()
    assert second.venue.balance() == first.venue.balance()
    assert isinstance(second.venue.place(second.request("buy", client_order_id="entry")), Rejected)


def test_two_processes_on_one_account_see_each_others_orders(accounts: Accounts) -> None:
    one, two = (Trader(accounts) for _ in range(2))
    one.order("buy", client_order_id="fromone")
    assert two.venue.positions() == one.venue.positions()
    two.order("sell", client_order_id="fromtwo", quantity=one.venue.positions()[0].quantity)
    assert one.venue.positions() == []
    fills = one.fills()
    assert [fill.client_order_id for fill in fills] == sorted(fill.client_order_id for fill in fills)
    assert {fill.client_order_id for fill in fills} == {"fromone", "fromtwo"}
    assert len({fill.trade_id for fill in fills}) == len(fills)

"""The books of a matched account: they balance after anything, and odd markets do not break them."""

from __future__ import annotations

import sqlite3
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from exchanges.errors import ExchangeUnavailableError, LedgerError
from exchanges.fill_model import Holding, Liquidity, measure_liquidity, resting_price, taker_price, taker_quantity
from exchanges.matching import MatchingVenue
from exchanges.port import Ack, OrderRequest, Rejected, Ticker, Unknown, VenueOrder
from exchanges.replay import ReplayMarket
from exchanges.simulated import SimulatedMarket
from quant.candles import Candles
from quant.timeframes import DAY_MS, HOUR_MS
from tests.exchanges.conftest import START_MS, Clock, write_candles

INITIAL = Decimal(10_000)


class BooksBalance(RuleBasedStateMachine):
    """Any orders, cancels and waiting, on several symbols, odd ones included."""

    @initialize()
    def open_account(self) -> None:
        self.clock = Clock(START_MS + 3 * HOUR_MS)
        self.data = SimulatedMarket(seed=11, symbols=2, now_ms=self.clock)
        self.venue = MatchingVenue(data=self.data, initial_balance=INITIAL)
        self.instruments = {each.symbol: each for each in self.data.instruments()}
        self.placed: list[tuple[str, str]] = []

    @rule(
        which=st.integers(0, 20),
        side=st.sampled_from(["buy", "sell"]),
        kind=st.sampled_from(["market", "market", "limit", "stop_market"]),
        notional=st.integers(1, 4_000),
        away=st.integers(-300, 300),
        reduce_only=st.booleans(),
    )
    def place(self, which: int, side: str, kind: str, notional: int, away: int, reduce_only: bool) -> None:
        symbol = sorted(self.instruments)[which % len(self.instruments)]
        ticker = self.data.tickers().get(symbol)
        if ticker is None:
            return
        instrument = self.instruments[symbol]
        last = Decimal(repr(ticker.last))
        level = instrument.quantize_price(last * (1 + Decimal(away) / 10_000))
        name = f"order{len(self.placed)}"
        outcome = self.venue.place(
            OrderRequest(
                client_order_id=name,
                symbol=symbol,
                side=side,  # type: ignore[arg-type]  # hypothesis knows strings only
                quantity=instrument.quantize_quantity(Decimal(notional) / last),
                kind=kind,  # type: ignore[arg-type]
                price=level if kind == "limit" else None,
                trigger_price=level if kind == "stop_market" else None,
                reduce_only=reduce_only,
            )
        )
        assert isinstance(outcome, Ack | Rejected)
        assert (self.venue.order_by_client_id(symbol, name) is not None) == isinstance(outcome, Ack)
        if isinstance(outcome, Ack):
            self.placed.append((symbol, name))

    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        if self.placed:
            symbol, name = self.placed[which % len(self.placed)]
            assert isinstance(self.venue.cancel(symbol, name), Ack)

    @rule(minutes=st.integers(1, 3_000))
    def wait(self, minutes: int) -> None:
        self.clock.now += minutes * 60_000

    @invariant()
    def equity_is_cash_and_positions_at_the_mark(self) -> None:
        fills = self.venue.fills_since(0)
        cash = INITIAL
        held: dict[str, Decimal] = {}
        for fill in fills:
            if fill.kind == "trade":
                signed = fill.quantity if fill.side == "buy" else -fill.quantity
                held[fill.symbol] = held.get(fill.symbol, Decimal(0)) + signed
                cash -= signed * fill.price
            cash -= fill.fee
        positions = {each.symbol: each for each in self.venue.positions()}
        assert {symbol: each.quantity for symbol, each in positions.items()} == {s: q for s, q in held.items() if q}
        marked = sum((each.quantity * each.mark_price for each in positions.values()), Decimal(0))
        assert self.venue.balance().equity == cash + marked

    @invariant()
    def fills_are_unique_and_orders_hold_their_sum(self) -> None:
        fills = self.venue.fills_since(0)
        assert len({fill.trade_id for fill in fills}) == len(fills)
        sums: dict[str, Decimal] = {}
        for fill in fills:
            sums[fill.client_order_id] = sums.get(fill.client_order_id, Decimal(0)) + fill.quantity
        for symbol, name in self.placed:
            order = self.venue.order_by_client_id(symbol, name)
            assert order is not None
            assert order.filled == sums.get(name, Decimal(0)) <= order.quantity
            assert (order.status == "filled") == (order.filled == order.quantity)


TestBooksBalance = BooksBalance.TestCase
TestBooksBalance.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


# --- The fill model ---


def resting(**changes: object) -> VenueOrder:
    values: dict[str, object] = {
        "client_order_id": "a", "venue_order_id": "O1", "symbol": "X", "side": "sell", "kind": "stop_market",
        "quantity": Decimal(1), "filled": Decimal(0), "average_price": None, "status": "open", "price": None,
        "trigger_price": None, "reduce_only": True, "time_ms": 0,
    }  # fmt: skip
    return VenueOrder(**(values | changes))  # type: ignore[arg-type]  # values of the right types by construction


@pytest.mark.parametrize(
    "side, trigger, bar, expected",
    [
        ("sell", "99", (100.0, 101.0, 98.0), "99"),  # touched: the trigger
        ("sell", "99", (97.0, 98.0, 96.0), "97"),  # gapped below: the open
        ("sell", "99", (100.0, 101.0, 99.5), None),
        ("buy", "101", (100.0, 102.0, 99.0), "101"),
        ("buy", "101", (103.0, 104.0, 102.0), "103"),
        ("buy", "101", (100.0, 100.5, 99.0), None),
    ],
)
def test_a_stop_fills_at_the_worse_of_trigger_and_open(
    simulated: SimulatedMarket, side: str, trigger: str, bar: tuple[float, float, float], expected: str | None
) -> None:
    order = resting(side=side, trigger_price=Decimal(trigger))
    price = resting_price(simulated.instruments()[0], order, *bar)
    assert price == (None if expected is None else Decimal(expected))


@pytest.mark.parametrize("side, low, high, fills", [("buy", 99.0, 101.0, False), ("buy", 98.9, 101.0, True)])
def test_a_limit_order_that_is_only_touched_does_not_fill(
    simulated: SimulatedMarket, side: str, low: float, high: float, fills: bool
) -> None:
    order = resting(side=side, kind="limit", price=Decimal(99), reduce_only=False)
    price = resting_price(simulated.instruments()[0], order, 100.0, high, low)
    assert price == (Decimal(99) if fills else None)


def test_a_taker_pays_the_spread_and_the_square_root_impact(simulated: SimulatedMarket) -> None:
    instrument = simulated.instruments()[0]
    ticker = Ticker(symbol=instrument.symbol, bid=99.0, ask=101.0, last=100.0, quote_volume_24h=1.0, time_ms=0)
    liquidity = Liquidity(volume=10_000.0, sigma=0.01)
    price = taker_price(instrument, ticker, "buy", Decimal(100), liquidity)
    assert float(price) == pytest.approx(100 * (1 + 0.01 + 0.7 * 0.01 * 0.1), abs=2e-6)
    assert taker_price(instrument, ticker, "sell", Decimal(100), liquidity) < 99
    assert taker_quantity(instrument, Decimal(5_000), liquidity) == 1_000
    assert taker_quantity(instrument, Decimal(5_000), Liquidity(0.0, 0.0)) == 0


def test_liquidity_is_that_of_the_last_hour_whatever_the_bars_are(simulated: SimulatedMarket, clock: Clock) -> None:
    symbol = simulated.instruments()[0].symbol
    fine = measure_liquidity(simulated.candles(symbol, "5m", clock.now - 2 * HOUR_MS, 24), HOUR_MS // 12)
    coarse = measure_liquidity(simulated.candles(symbol, "1h", clock.now - DAY_MS, 24), HOUR_MS)
    assert fine.volume == pytest.approx(coarse.volume, rel=1e-4)
    assert 0.3 < fine.sigma / coarse.sigma < 3


def test_a_holding_averages_in_reduces_and_turns() -> None:
    long = Holding().after("buy", Decimal(2), Decimal(100)).after("buy", Decimal(2), Decimal(110))
    assert (long.quantity, long.entry_price) == (4, 105)
    assert long.after("sell", Decimal(1), Decimal(300)) == Holding(Decimal(3), Decimal(105))
    assert long.after("sell", Decimal(4), Decimal(300)) == Holding()
    assert long.after("sell", Decimal(6), Decimal(90)) == Holding(Decimal(-2), Decimal(90))


# --- Odd markets ---


def flat_candles(hours: int, prices: list[float] | None = None) -> Candles:
    close = np.full(hours, 100.0) if prices is None else np.array(prices)
    opened = np.concatenate([[close[0]], close[:-1]])
    high, low = np.maximum(opened, close) * 1.001, np.minimum(opened, close) * 0.999
    times = START_MS - 48 * HOUR_MS + np.arange(hours, dtype=np.int64) * HOUR_MS
    return Candles(times, opened, high, low, close, np.full(hours, 1e6))


def replayed(tmp_path: Path, clock: Clock, candles: Candles) -> MatchingVenue:
    write_candles(tmp_path / "odd_um" / "1h" / "ODDUSDT.parquet", candles)
    return MatchingVenue(data=ReplayMarket(archive=tmp_path, market="odd_um", now_ms=clock))


def buy(venue: MatchingVenue, name: str = "entry", **changes: object) -> object:
    values: dict[str, object] = {
        "client_order_id": name,
        "symbol": "ODD/USDT:USDT",
        "side": "buy",
        "quantity": Decimal(5),
    }
    return venue.place(OrderRequest(**(values | changes)))  # type: ignore[arg-type]  # as above


def test_an_order_is_matched_against_the_candle_that_it_was_placed_in(tmp_path: Path, clock: Clock) -> None:
    """The ticker is the last close, so everything in the running candle comes after the order."""
    venue = replayed(tmp_path, clock, flat_candles(50, [100.0] * 48 + [80.0, 80.0]))
    clock.now = START_MS + 60_000
    buy(venue)
    venue.place_stop(
        OrderRequest("stop", "ODD/USDT:USDT", "sell", Decimal(5), "stop_market", None, Decimal(90), reduce_only=True)
    )
    clock.now = START_MS + HOUR_MS
    assert venue.positions() == []
    [stopped] = venue.fills_since(START_MS + 2 * 60_000)
    assert (stopped.price, stopped.time_ms) == (90, START_MS + HOUR_MS - 1), "in its candle, not in the next one"


def bracket(venue: MatchingVenue, *, stop: str, target: str) -> None:
    """Rest a stop and a target of the whole position (5 units) of `buy`."""
    for name, kind, price, trigger in (
        ("stop", "stop_market", None, Decimal(stop)),
        ("target", "limit", Decimal(target), None),
    ):
        request = OrderRequest(name, "ODD/USDT:USDT", "sell", Decimal(5), kind, price, trigger, reduce_only=True)  # type: ignore[arg-type]  # as above
        assert isinstance(venue.place(request), Ack)


def status_of(venue: MatchingVenue, name: str) -> str:
    order = venue.order_by_client_id("ODD/USDT:USDT", name)
    assert order is not None
    return order.status


def test_a_resting_target_gets_its_share_of_each_candle_until_the_position_is_closed(
    tmp_path: Path, clock: Clock
) -> None:
    candles = flat_candles(54, [100.0] * 48 + [110.0] * 6)
    candles.volume[48:] = 20.0  # a tenth of it can be had
    venue = replayed(tmp_path, clock, candles)
    clock.now = START_MS + 60_000
    buy(venue)
    bracket(venue, stop="90", target="105")
    for hour, held in ((1, 3), (2, 1)):
        clock.now = START_MS + hour * HOUR_MS
        [position] = venue.positions()
        assert (position.quantity, status_of(venue, "target")) == (held, "open")
    clock.now = START_MS + 3 * HOUR_MS
    assert (venue.positions(), status_of(venue, "target")) == ([], "filled")
    fills = venue.fills_since(START_MS + HOUR_MS)
    assert {fill.price for fill in fills} == {Decimal(105)}
    assert fills[0].fee == 2 * 105 * Decimal("0.0002"), "who rests pays the maker's fee"


def test_of_a_stop_and_a_target_that_one_candle_reaches_the_stop_is_filled_and_nothing_is_opened(
    tmp_path: Path, clock: Clock
) -> None:
    candles = flat_candles(54)
    candles.high[48], candles.low[48] = 120.0, 80.0
    venue = replayed(tmp_path, clock, candles)
    clock.now = START_MS + 60_000
    buy(venue)
    bracket(venue, stop="90", target="105")
    clock.now = START_MS + 5 * HOUR_MS
    assert (venue.positions(), venue.open_orders()) == ([], [])
    assert (status_of(venue, "stop"), status_of(venue, "target")) == ("filled", "expired")
    [closing] = venue.fills_since(START_MS + HOUR_MS - 1)
    assert (closing.client_order_id, closing.price) == ("stop", Decimal(90))


def test_a_stop_that_fires_after_the_target_closed_the_position_opens_nothing(tmp_path: Path, clock: Clock) -> None:
    venue = replayed(tmp_path, clock, flat_candles(56, [100.0] * 48 + [110.0] * 4 + [80.0] * 4))
    clock.now = START_MS + 60_000
    buy(venue)
    bracket(venue, stop="90", target="105")
    clock.now = START_MS + 7 * HOUR_MS
    assert (venue.positions(), venue.open_orders()) == ([], [])
    assert (status_of(venue, "target"), status_of(venue, "stop")) == ("filled", "expired")


def test_a_delisted_position_is_settled_at_the_last_price_and_its_orders_expire(tmp_path: Path, clock: Clock) -> None:
    venue = replayed(tmp_path, clock, flat_candles(60))
    clock.now = START_MS + HOUR_MS
    buy(venue)
    buy(venue, "resting", kind="limit", price=Decimal(50))
    clock.now = START_MS + 40 * DAY_MS
    assert venue.positions() == []
    order = venue.order_by_client_id("ODD/USDT:USDT", "resting")
    assert order is not None
    assert order.status == "expired"
    settlement = venue.fills_since(START_MS + 2 * HOUR_MS)[-1]
    assert (settlement.client_order_id, settlement.side, settlement.price, settlement.fee) == ("", "sell", 100, 0)
    refused = buy(venue, "late")
    assert isinstance(refused, Rejected)
    assert refused.code == "NOT_TRADING"


def test_a_bot_that_restarts_after_the_delisting_finds_the_position_settled(tmp_path: Path, clock: Clock) -> None:
    replayed(tmp_path, clock, flat_candles(60)).close()
    data = ReplayMarket(archive=tmp_path, market="odd_um", now_ms=clock)
    clock.now = START_MS + HOUR_MS
    buy(MatchingVenue(data=data, ledger_path=tmp_path / "book.sqlite3"))
    clock.now = START_MS + 60 * DAY_MS
    venue = MatchingVenue(data=data, ledger_path=tmp_path / "book.sqlite3")
    assert venue.positions() == []
    assert venue.fills_since(0)[-1].price == 100


def test_a_halted_symbol_accepts_no_order_and_keeps_its_mark(tmp_path: Path, clock: Clock) -> None:
    venue = replayed(tmp_path, clock, flat_candles(50))
    clock.now = START_MS
    buy(venue)
    clock.now = START_MS + 5 * DAY_MS
    refused = buy(venue, "halted")
    assert isinstance(refused, Rejected)
    assert refused.code == "NOT_TRADING"
    [position] = venue.positions()
    assert position.mark_price == 100


def test_a_spot_account_cannot_sell_what_it_does_not_hold(tmp_path: Path, clock: Clock) -> None:
    write_candles(tmp_path / "odd_spot" / "1h" / "ODDUSDT.parquet", flat_candles(60))
    venue = MatchingVenue(data=ReplayMarket(archive=tmp_path, market="odd_spot", now_ms=clock))
    clock.now = START_MS
    refused = buy(venue, symbol="ODD/USDT", side="sell")
    assert isinstance(refused, Rejected)
    assert refused.code == "INSUFFICIENT_FUNDS"
    assert isinstance(buy(venue, symbol="ODD/USDT"), Ack)


def test_a_request_older_than_the_receive_window_is_refused(simulated: SimulatedMarket, clock: Clock) -> None:
    """F37: a bot that wakes from a pause cannot send what it had decided before."""
    venue = MatchingVenue(data=simulated, receive_window_ms=5_000)
    symbol = simulated.instruments()[0].symbol
    old = venue.place(OrderRequest("old", symbol, "buy", Decimal(100), time_ms=clock.now - 5_001))
    assert isinstance(old, Rejected)
    assert old.code == "STALE_REQUEST"


@pytest.mark.parametrize("method", ["instruments", "candles", "candles_many", "tickers"])
def test_market_data_that_is_down_makes_an_order_unknown_and_books_nothing(
    simulated: SimulatedMarket, clock: Clock, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The port's promise: `place` and `cancel` never raise for what the other side answers, or does not answer."""
    venue = MatchingVenue(data=simulated)
    symbol = simulated.instruments()[0].symbol
    assert isinstance(venue.place(OrderRequest("held", symbol, "buy", Decimal(100))), Ack)
    before = venue.fills_since(0)
    clock.now += DAY_MS  # nothing is remembered: instruments, timeframes and candles are asked for again

    def down(*args: object) -> None:
        raise ExchangeUnavailableError("maintenance until 04:00")

    monkeypatch.setattr(simulated, method, down)
    outcome = venue.place(OrderRequest("entry", symbol, "buy", Decimal(100)))
    assert isinstance(outcome, Unknown)
    assert "nothing was booked" in outcome.detail
    assert "maintenance until 04:00" in outcome.detail
    if method != "tickers":  # cancelling needs no ticker
        assert isinstance(venue.cancel(symbol, "held"), Unknown)
    monkeypatch.undo()
    assert venue.order_by_client_id(symbol, "entry") is None
    assert [fill for fill in venue.fills_since(0) if fill.kind == "trade"] == before
    assert isinstance(venue.place(OrderRequest("entry", symbol, "buy", Decimal(100))), Ack)


# --- The ledger's file ---


def test_a_ledger_of_another_account_is_refused(simulated: SimulatedMarket, tmp_path: Path) -> None:
    MatchingVenue(data=simulated, ledger_path=tmp_path / "book.sqlite3", account="main").close()
    with pytest.raises(LedgerError, match=r"belongs to account 'main'.*one ledger file per account"):
        MatchingVenue(data=simulated, ledger_path=tmp_path / "book.sqlite3", account="other")


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(simulated: SimulatedMarket, tmp_path: Path) -> None:
    path = tmp_path / "book.sqlite3"
    path.write_text("not a database, but somebody's notes " * 30)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"book\.sqlite3 cannot be opened"):
        MatchingVenue(data=simulated, ledger_path=path)
    assert path.read_bytes() == before


def test_an_error_inside_a_change_leaves_books_and_memory_as_they_were(
    simulated: SimulatedMarket, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = MatchingVenue(data=simulated, ledger_path=tmp_path / "book.sqlite3")
    symbol = simulated.instruments()[0].symbol

    def disk_full(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("exchanges.ledger.Ledger.add_fill", disk_full)
    with pytest.raises(sqlite3.OperationalError):
        venue.place(OrderRequest("entry", symbol, "buy", Decimal(100)))
    monkeypatch.undo()
    assert venue.balance().equity == INITIAL
    assert (venue.positions(), venue.open_orders(), venue.fills_since(0)) == ([], [], [])
    assert isinstance(venue.place(OrderRequest("entry", symbol, "buy", Decimal(100))), Ack)

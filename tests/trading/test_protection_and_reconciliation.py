"""Stops (I18), reconciliation (I17), and what is not ours."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from exchanges.errors import ExchangeError, ExchangeUnavailableError
from exchanges.port import OrderRequest, VenueFill, VenueOrder
from ops_app.models import Alert
from tests.trading import venues
from tests.trading.conftest import HOUR, World
from trading_app.bot import BotRunner
from trading_app.choices import OrderPurpose, OrderState
from trading_app.client_ids import account_prefix
from trading_app.models import Bot, Decision, Fill, Order, Position, RiskEvent
from trading_app.positions import apply_fills
from trading_app.protection import LIVE, close_position, protect
from trading_app.venue import Account

pytestmark = pytest.mark.django_db


def enter(world: World) -> tuple[BotRunner, Position]:
    runner = world.runner()
    if not runner.tick().entries:
        world.until_entry(runner)
    position = Position.objects.open().order_by("id").first() or Position.objects.order_by("id").first()
    assert position is not None
    return runner, position


def place(world: World, symbol: str, side: str, quantity: str, *, client_id: str = "x1", **changes: Any) -> None:
    """Something that is not the bot trades on its account."""
    outcome = world.matching.place(
        OrderRequest(client_id, symbol, side, Decimal(quantity), time_ms=world.data.now_ms(), **changes)  # type: ignore[arg-type]
    )
    assert type(outcome).__name__ == "Ack", outcome


def kinds_at_the_exchange(world: World, position: Position) -> list[str]:
    return sorted(order.kind for order in world.matching.open_orders(position.symbol.code))


def minutes(world: World, runner: BotRunner, count: int) -> None:
    for _ in range(count):
        world.sim.advance(dt.timedelta(minutes=1))
        runner.tick()


# --- I17


def test_f10_i17_a_second_reconciliation_changes_nothing(world: World) -> None:
    runner, _ = enter(world)
    world.pass_bars(runner, 3)
    session = runner._session
    assert session is not None
    session.reconciler.run()
    before = list(Order.objects.values()), list(Position.objects.values()), list(Fill.objects.values())
    again = session.reconciler.run()
    assert again.changes == 0
    assert before == (list(Order.objects.values()), list(Position.objects.values()), list(Fill.objects.values()))


@pytest.mark.parametrize("seed", range(4))
def test_f09_f10_i17_fills_applied_in_any_order_and_any_number_make_the_same_rows(world: World, seed: int) -> None:
    runner, _ = enter(world)
    world.pass_bars(runner, 8)
    session = runner._session
    assert session is not None
    newest = {each.symbol_id: each for each in Position.objects.order_by("id")}  # a late fill nets with the newest one
    position = max(newest.values(), key=lambda each: each.fills.count())
    expected, trades = row_of(position), set(position.fills.values_list("trade_id", flat=True))
    ledger = [fill for fill in world.matching.fills_since(0) if fill.trade_id in trades]
    assert len(ledger) >= 2
    shuffler = random.Random(seed)
    noisy = [*ledger, *shuffler.choices(ledger, k=3)]
    shuffler.shuffle(noisy)
    position.fills.all().delete()
    Position.objects.filter(pk=position.pk).update(quantity=0, entry_price=0, realised_pnl=0, fees=0, closed_at=None)
    for each in noisy:
        apply_fills(session.desk, [each])
    assert row_of(position) == expected


def row_of(position: Position) -> dict[str, Any]:
    fields = ("quantity", "entry_price", "realised_pnl", "fees", "closed_at")
    return Position.objects.values(*fields).get(pk=position.pk)


# --- I18


def test_i18_every_open_position_has_a_live_stop_of_its_size_after_every_pass(world: World) -> None:
    runner, _ = enter(world)
    for _ in range(40):
        world.pass_bars(runner, 1)
        there = {order.client_order_id: order for order in world.matching.open_orders()}
        for position in Position.objects.open():
            for purpose in (OrderPurpose.STOP, OrderPurpose.TARGET):
                resting = Order.objects.filter(position=position, purpose=purpose, state__in=LIVE)
                seen = [there[order.client_order_id or ""] for order in resting]
                assert [order.quantity - order.filled for order in seen] == [abs(position.quantity)]
        assert len(there) == 2 * Position.objects.open().count(), "neither stop nor target outlives its position"


def test_f18_a_position_whose_stops_are_refused_is_closed_by_market_at_once(world: World) -> None:
    world.venue.stop_faults = [venues.rejected] * 2
    runner, _ = enter(world)
    exit_order = Order.objects.get(purpose=OrderPurpose.EXIT)
    position = exit_order.position
    assert position is not None
    assert exit_order.reduce_only
    assert exit_order.reason.startswith("STOP_MISSING")
    if position.closed_at is None:  # the market gave a part only: the rest follows
        minutes(world, runner, 90)
        position.refresh_from_db()
    assert position.closed_at is not None
    assert RiskEvent.objects.filter(kind="stop_missing").count() == 1
    assert Alert.objects.filter(key=f"stop_missing:{position.pk}").exists()


def test_a_stop_whose_answer_was_lost_is_found_and_not_doubled(world: World) -> None:
    world.venue.stop_faults = [venues.lost_answer]
    runner, position = enter(world)
    minutes(world, runner, 2)
    position.refresh_from_db()
    stops = Order.objects.filter(position=position, purpose=OrderPurpose.STOP)
    assert [stop.state for stop in stops] == [OrderState.ACKED]
    assert kinds_at_the_exchange(world, position) == ["limit", "stop_market"]


def test_a_stop_that_somebody_cancelled_is_placed_again(world: World) -> None:
    runner, position = enter(world)
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP)
    world.matching.cancel(position.symbol.code, stop.client_order_id or "")
    minutes(world, runner, 6)
    stop.refresh_from_db()
    assert stop.state == OrderState.CANCELLED
    assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).count() == 1


def test_f19_a_stop_that_filled_while_the_bot_was_down_closes_the_position_at_its_start(world: World) -> None:
    runner, position = enter(world)
    target = Order.objects.get(position=position, purpose=OrderPurpose.TARGET)
    world.matching.cancel(position.symbol.code, target.client_order_id or "")  # it would be the first to be reached
    runner.release()
    for _ in range(200):
        world.sim.advance(HOUR)
        held = [each for each in world.matching.positions() if each.symbol == position.symbol.code]
        if not held:
            break
    else:
        pytest.fail("the stop was never touched in this simulated history")
    world.keep_fresh()
    world.runner().tick()
    position.refresh_from_db()
    assert position.closed_at is not None
    assert position.close_reason.startswith("STOP")
    assert not Order.objects.open().filter(position=position).exists()


# --- not ours


def test_f15_a_position_of_somebody_else_is_reported_protected_and_never_traded(world: World) -> None:
    runner = world.runner()
    world.bot.desired_state = "pause"
    Bot.objects.update(desired_state="pause")
    runner.tick()
    symbol = world.codes[0]
    price = world.data.tickers()[symbol].last
    instrument = next(each for each in world.data.instruments() if each.symbol == symbol)
    quantity = instrument.quantize_quantity(Decimal(str(round(200 / price, 6))))
    place(world, symbol, "buy", str(quantity))
    minutes(world, runner, 12)
    position = Position.objects.get(foreign=True)
    assert (position.symbol.code, position.quantity) == (symbol, quantity)
    assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()
    assert RiskEvent.objects.filter(kind="foreign").exists()
    Bot.objects.update(desired_state="run")
    world.pass_bars(runner, 5)
    Bot.objects.update(desired_state="close_only")
    world.pass_bars(runner, 2)
    assert not Order.objects.filter(symbol__code=symbol).exclude(purpose=OrderPurpose.STOP).exists()
    assert Decision.objects.filter(symbol__code=symbol).exclude(outcome__in=("ENTER", "EXIT")).exists()
    assert not Decision.objects.filter(symbol__code=symbol, outcome__in=("ENTER", "EXIT")).exists()


def test_f15_i18_a_position_of_somebody_else_that_turned_round_gets_a_stop_on_its_new_losing_side(world: World) -> None:
    Bot.objects.update(desired_state="pause")
    runner = world.runner()
    runner.tick()
    symbol = world.codes[0]
    price = Decimal(repr(world.data.tickers()[symbol].last))
    instrument = next(each for each in world.data.instruments() if each.symbol == symbol)
    quantity = instrument.quantize_quantity(200 / price)
    place(world, symbol, "buy", str(quantity))
    minutes(world, runner, 12)
    place(world, symbol, "sell", str(2 * quantity), client_id="x2")
    minutes(world, runner, 12)
    position = Position.objects.open().get(foreign=True)
    assert (position.side, position.quantity) == (-1, -quantity)
    (stop,) = [order for order in world.matching.open_orders(symbol) if order.kind == "stop_market"]
    assert stop.side == "buy"
    assert stop.trigger_price is not None
    assert stop.trigger_price > price


def test_i20_an_order_that_cannot_be_read_keeps_no_other_symbol_from_its_stop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, position = enter(world)
    Bot.objects.update(desired_state="pause")
    runner.tick()
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED)
    read = world.venue.order_by_client_id

    def refused(symbol: str, client_id: str) -> VenueOrder | None:
        if client_id == stop.client_order_id:
            raise ExchangeError(f"10001: {symbol} is not supported")
        return read(symbol, client_id)

    monkeypatch.setattr(world.venue, "order_by_client_id", refused)
    world.matching.cancel(position.symbol.code, stop.client_order_id or "")
    other = next(code for code in world.codes if not Position.objects.open().filter(symbol__code=code).exists())
    instrument = next(each for each in world.data.instruments() if each.symbol == other)
    quantity = instrument.quantize_quantity(200 / Decimal(repr(world.data.tickers()[other].last)))
    place(world, other, "buy", str(quantity))
    minutes(world, runner, 12)
    adopted = Position.objects.open().get(symbol__code=other)
    assert Order.objects.filter(position=adopted, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()
    stop.refresh_from_db()
    assert stop.state == OrderState.ACKED, "a read that failed proves nothing"


@pytest.mark.parametrize("broken", ["its rules are 0", "whatever else is wrong"])
def test_i20_a_symbol_that_makes_no_sense_keeps_no_other_position_from_its_stop(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    runner, _ = enter(world)
    for _ in range(48):
        if Position.objects.open().count() > 1:
            break
        world.pass_bars(runner, 1)
    session = runner._session
    assert session is not None
    first, other = Position.objects.open().order_by("id")[:2]
    rules = session.account.instruments
    rules[first.symbol.code] = replace(rules[first.symbol.code], tick_size=Decimal(0), lot_size=Decimal(0))
    if broken != "its rules are 0":
        found = Account.rules_of

        def rules_of(account: Account, code: str) -> object:
            return 1 // (code != first.symbol.code) and found(account, code)

        monkeypatch.setattr(Account, "rules_of", rules_of)
    for order in world.matching.open_orders(other.symbol.code):
        world.matching.cancel(other.symbol.code, order.client_order_id)
    Order.objects.filter(position=other, purpose=OrderPurpose.STOP).update(state=OrderState.CANCELLED)
    left = protect(session.desk).unprotected
    assert "stop_market" in kinds_at_the_exchange(world, other)
    assert "stop_market" in kinds_at_the_exchange(world, first)
    alerted = Alert.objects.filter(key=f"not_protected:{first.pk}", resolved_at=None).exists()
    assert (left, alerted) == ((0, False) if broken == "its rules are 0" else (1, True))


def test_i20_without_public_data_the_account_is_reconciled_and_its_positions_are_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = enter(world)

    def away(_: BotRunner) -> None:
        raise ExchangeUnavailableError("market data")

    monkeypatch.setattr(BotRunner, "_instruments", away)
    Bot.objects.update(desired_state="close_only")
    minutes(world, runner, 6)
    assert not Position.objects.open().exists()
    assert not Alert.objects.filter(key__startswith="exchange:", resolved_at=None).exists()


def test_i16_an_order_that_ended_here_by_a_lie_and_is_open_there_does_not_rest_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, position = enter(world)
    Bot.objects.update(desired_state="pause")
    minutes(world, runner, 6)
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED)
    read_all, read_one = world.venue.open_orders, world.venue.order_by_client_id

    def others(symbol: str | None = None) -> list[VenueOrder]:
        return [order for order in read_all(symbol) if order.client_order_id != stop.client_order_id]

    def ended(symbol: str, client_id: str) -> VenueOrder | None:
        found = read_one(symbol, client_id)
        return replace(found, status="cancelled") if found and client_id == stop.client_order_id else found

    with monkeypatch.context() as patch:
        patch.setattr(world.venue, "open_orders", others)
        patch.setattr(world.venue, "order_by_client_id", ended)
        minutes(world, runner, 6)
    stop.refresh_from_db()
    assert stop.state == OrderState.CANCELLED
    assert kinds_at_the_exchange(world, position).count("stop_market") == 2
    minutes(world, runner, 6)
    (left,) = [order for order in world.matching.open_orders(position.symbol.code) if order.kind == "stop_market"]
    assert left.client_order_id != stop.client_order_id


def test_f27_a_lot_that_grew_leaves_one_stop_and_no_storm_of_them(world: World) -> None:
    runner, position = enter(world)
    session = runner._session
    assert session is not None
    code, rules = position.symbol.code, session.account.instruments
    lots = abs(position.quantity) // rules[code].lot_size
    rules[code] = replace(rules[code], lot_size=rules[code].lot_size * (lots // 2 + 1))
    assert protect(session.desk).stops_placed == 1, "over what can be traded"
    assert protect(session.desk).changes == 0
    (stop,) = [order for order in world.matching.open_orders(code) if order.kind == "stop_market"]
    assert stop.quantity == rules[code].lot_size


def test_f16_a_position_that_vanished_is_closed_with_a_reason_and_leaves_no_stop(world: World) -> None:
    runner, position = enter(world)
    side = "sell" if position.quantity > 0 else "buy"
    place(world, position.symbol.code, side, f"{abs(position.quantity):f}", reduce_only=True)
    minutes(world, runner, 12)
    position.refresh_from_db()
    if position.closed_at is None:
        minutes(world, runner, 60)
        position.refresh_from_db()
    assert position.closed_at is not None
    assert position.close_reason.startswith(("EXTERNAL", "VANISHED", "STOP"))
    assert not Order.objects.open().filter(position=position).exists()


def test_f19_the_stop_that_came_with_an_entry_closes_its_position_as_a_stop_and_not_as_a_stranger(
    world: World, monkeypatch: Any
) -> None:
    """The venue keeps that stop without an id of ours, beside our own stop order: it may be the one that fires."""
    runner, position = enter(world)
    side = "sell" if position.quantity > 0 else "buy"
    place(world, position.symbol.code, side, f"{abs(position.quantity):f}", client_id="attached1", reduce_only=True)
    read = world.matching.fills_since

    def fills_since(time_ms: int) -> list[VenueFill]:
        return [
            replace(fill, client_order_id="", attached=True) if fill.client_order_id == "attached1" else fill
            for fill in read(time_ms)
        ]

    monkeypatch.setattr(world.matching, "fills_since", fills_since)
    minutes(world, runner, 12)
    position.refresh_from_db()
    assert position.closed_at is not None
    assert position.close_reason.startswith("STOP:")
    assert "attached=true" in position.close_reason
    assert not RiskEvent.objects.filter(kind="foreign").exists()
    assert not Order.objects.open().filter(position=position).exists()


def test_f17_a_failed_read_of_positions_is_never_taken_for_flat(world: World, monkeypatch: Any) -> None:
    runner, position = enter(world)
    world.venue.down = True
    minutes(world, runner, 30)
    position.refresh_from_db()
    assert position.closed_at is None
    assert position.quantity != 0


@pytest.mark.parametrize("name", ["the same bot in another database", "a bot of another name with the same keys"])
def test_f36_an_order_of_another_bot_on_our_account_stops_entries(world: World, name: str) -> None:
    world.activate(probability_zero(world))
    runner = world.runner()
    runner.tick()
    symbol = world.codes[0]
    price = Decimal(str(world.data.tickers()[symbol].last))
    instrument = next(each for each in world.data.instruments() if each.symbol == symbol)
    prefix = account_prefix(world.bot if name.startswith("the same") else Bot(account="simulated:other"))
    strange = prefix + "zzz" + "0001" + "0000001"
    limit = instrument.quantize_price(price * Decimal("0.8"))
    quantity = instrument.quantize_quantity(Decimal(100) / limit)
    place(world, symbol, "buy", str(quantity), client_id=strange, kind="limit", price=limit)
    minutes(world, runner, 6)
    world.pass_bars(runner, 1)
    assert Bot.objects.get().entries_blocked.startswith("TWO_BOTS")
    assert {order.client_order_id for order in world.matching.open_orders()} == {strange}, "it is left alone"


def probability_zero(world: World) -> Any:
    from tests.trading.conftest import StandIn

    return StandIn(world.codes, world.codes, probability=0.0)


# --- What closes between two reads


def test_a_stop_that_fills_between_the_fills_and_the_orders_is_no_missing_stop(world: World) -> None:
    """A reconciliation reads fills, then orders: what is filled in between is read, not taken for unprotected."""
    runner, position = enter(world)
    session = runner._session
    assert session is not None
    minutes(world, runner, 6)
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED)
    filled_now = world.matching.fills_since(0)
    place(
        world, session.account.code_of(position.symbol_id), "sell" if position.quantity > 0 else "buy",
        str(abs(position.quantity)), client_id="abroad", reduce_only=True,
    )  # fmt: skip
    closing = [fill for fill in world.matching.fills_since(0) if fill not in filled_now]
    picture = world.matching.order_by_client_id(closing[0].symbol, "abroad")
    assert picture is not None
    world.venue.closed_while_reading(stop.client_order_id or "", picture, closing)
    sent = session.desk.sent
    session.reconciler.run()
    position.refresh_from_db()
    assert position.quantity == 0
    assert session.desk.sent == sent
    assert not RiskEvent.objects.filter(kind="stop_missing").exists()
    assert not Alert.objects.filter(key__startswith="stop_missing").exists()


def test_exits_that_a_suspended_symbol_refuses_are_tried_ever_more_rarely_and_for_ever(world: World) -> None:
    runner, position = enter(world)
    world.venue.faults = [venues.rejected] * 1000
    session = runner._session
    assert session is not None
    assert close_position(session.desk, position, "TEST: why=suspended") is not None
    for _ in range(48 * 12):
        world.sim.advance(dt.timedelta(minutes=5))
        protect(session.desk)
    tries = Order.objects.filter(position=position, purpose=OrderPurpose.EXIT)
    assert tries.filter(created_at__lte=position.opened_at + dt.timedelta(hours=1)).count() >= 12
    assert tries.filter(created_at__gt=world.sim.now - dt.timedelta(days=1)).count() == 24
    world.venue.faults = []
    world.sim.advance(dt.timedelta(hours=1, minutes=1))
    protect(session.desk)
    session.reconciler.sync_fills()
    position.refresh_from_db()
    assert position.quantity == 0

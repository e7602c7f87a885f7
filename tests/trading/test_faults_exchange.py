"""What an exchange may do to an order and to an account, at the level of the bot (fault cards F05 to F39, R8)."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from coverage_app.choices import BlockReason
from coverage_app.models import Block
from exchanges.errors import ExchangeUnavailableError
from exchanges.port import OrderRequest, PlaceOutcome, Rejected, Venue
from ops_app.models import Alert
from tests.trading import venues
from tests.trading.conftest import HOUR, World
from trading_app import refusals, services
from trading_app.bot import BotRunner
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Bot, Fill, Order, Position, RiskEvent
from trading_app.orders import NewOrder, OrderDesk
from trading_app.trouble import Trouble

pytestmark = pytest.mark.django_db
MINUTE = dt.timedelta(minutes=1)
Maintenance = tuple[list[dt.datetime], Callable[[], None]]


def desk_of(runner: BotRunner) -> OrderDesk:
    assert runner._session is not None
    return runner._session.desk


def enter(world: World) -> tuple[BotRunner, Order]:
    runner = world.runner()
    if not runner.tick().entries:
        world.until_entry(runner)
    order = Order.objects.filter(purpose=OrderPurpose.ENTRY).order_by("id").first()
    assert order is not None
    return runner, order


def seconds(world: World, runner: BotRunner, count: int) -> None:
    for _ in range(count // 10):
        world.sim.advance(dt.timedelta(seconds=10))
        runner.tick()


def refuse(code: str) -> venues.Fault:
    return lambda venue, request: Rejected(code, "no")


def idle(world: World) -> BotRunner:
    """A bot that decided its first bar without an entry; nothing more is decided until an hour has passed."""
    Bot.objects.update(desired_state="pause")
    runner = world.runner()
    runner.tick()
    return runner


def entries(world: World, desk: OrderDesk, count: int = 1, *, first: int = 0) -> list[Order]:
    last = world.data.tickers()
    rules = {each.symbol: each for each in world.data.instruments()}
    new = [
        NewOrder(
            symbol=code,
            purpose=OrderPurpose.ENTRY,
            side="buy",
            quantity=Decimal(1000),
            reason="TEST: by=test",
            stop_price=rules[code].quantize_price(Decimal(str(last[code].last)) * Decimal("0.9")),
        )
        for code in world.codes[first : first + count]
    ]
    with transaction.atomic():
        orders = desk.write(new)
    desk.send_all(orders)
    return orders


# --- refusals


@pytest.mark.parametrize("code", ["CLOCK_SKEW", "KEY_REFUSED"])
def test_f07_f39_a_refusal_about_the_account_stops_its_entries_at_once_and_alerts_once(world: World, code: str) -> None:
    desk = desk_of(idle(world))
    world.venue.faults = [refuse(code)] * 5
    orders = entries(world, desk, 3)
    assert [order.state for order in orders] == ["rejected", "not_placed", "not_placed"]
    assert len(world.venue.placed) == 1, "the entries behind it in the bar are not sent"
    assert orders[1].reason.startswith(f"NOT_SENT: refused={code}")
    alert = Alert.objects.get(key__startswith="account_refused")
    assert (alert.severity, alert.resolved_at) == ("critical", None)
    world.sim.advance(HOUR)
    found = refusals.refusals(world.bot, world.sim.now - MINUTE)
    assert (found.account or "").startswith(f"ORDERS_REFUSED: code={code}")
    assert refusals.refusals(world.bot, world.sim.now + MINUTE).account is None, "one try an hour, no hammering"
    world.venue.faults = []
    entries(world, desk, 1)
    alert.refresh_from_db()
    assert alert.resolved_at is not None
    assert refusals.refusals(world.bot, world.sim.now).account is None


def test_f39_no_entry_is_sent_while_the_account_is_refused_also_after_a_restart(world: World) -> None:
    runner = world.runner()
    Bot.objects.update(desired_state="run")
    world.venue.faults = [refuse("KEY_REFUSED")] * 100
    world.until_entry(runner)
    sent = len(world.venue.placed)
    assert sent == 1
    runner.release()
    again = world.runner()
    for _ in range(5):
        world.sim.advance(10 * MINUTE)
        world.keep_fresh()
        again.tick()
    assert len(world.venue.placed) == sent
    world.pass_bars(again, 24)
    assert len(world.venue.placed) <= sent + 24, "a bar in which it may be tried tries it once"
    assert Alert.objects.filter(key__startswith="account_refused").count() == 1


def test_f05_a_second_refusal_keeps_the_symbol_out_ever_longer_and_three_equal_ones_all(world: World) -> None:
    desk = desk_of(idle(world))
    code = world.codes[0]
    world.venue.faults = [refuse("INVALID_ORDER"), refuse("INSUFFICIENT_FUNDS"), refuse("INVALID_ORDER")]
    entries(world, desk)
    assert not refusals.refusals(world.bot, world.sim.now).symbols
    entries(world, desk)
    found = refusals.refusals(world.bot, world.sim.now)
    assert found.symbols[code].startswith("ORDERS_REFUSED: code=INSUFFICIENT_FUNDS, times=2")
    assert found.account is None
    world.sim.advance(HOUR)
    assert not refusals.refusals(world.bot, world.sim.now).symbols
    entries(world, desk)
    world.sim.advance(HOUR)
    assert set(refusals.refusals(world.bot, world.sim.now).symbols) == {code}
    world.venue.faults = [refuse("INSUFFICIENT_FUNDS")] * 3
    entries(world, desk, 3, first=1)
    assert (refusals.refusals(world.bot, world.sim.now).account or "").startswith("ORDERS_REFUSED: code=INSUFFICIENT")


# --- what was filled


def test_f13_the_exchange_wins_when_it_filled_too_much_and_the_stop_has_its_size(world: World) -> None:
    def twice(venue: Venue, request: OrderRequest) -> PlaceOutcome:
        return venue.place(replace(request, quantity=2 * request.quantity))

    world.venue.faults = [twice]
    _, order = enter(world)
    there = {each.symbol: each.quantity for each in world.matching.positions()}
    position = Position.objects.open().get(symbol=order.symbol)
    assert order.filled > order.quantity
    assert position.quantity == there[position.symbol.code]
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED)
    assert stop.quantity == abs(position.quantity)
    assert Alert.objects.filter(key=f"overfill:{order.client_order_id}").count() == 1
    assert RiskEvent.objects.get(evidence__startswith="OVERFILL").kind == "drift"


def test_f14_fills_that_are_published_late_are_found_and_their_position_is_nobody_elses(world: World) -> None:
    def unpublished(venue: Venue, request: OrderRequest) -> PlaceOutcome:
        before = {fill.trade_id for fill in world.matching.fills_since(0)}
        outcome = venue.place(request)
        world.venue.late_fills |= {fill.trade_id for fill in world.matching.fills_since(0)} - before
        return outcome

    world.venue.faults = [unpublished]
    runner, order = enter(world)
    seconds(world, runner, 120)
    assert world.venue.late_fills
    assert not Fill.objects.filter(order=order).exists()
    assert not Position.objects.filter(symbol=order.symbol).exists(), "the difference is our own order's"
    world.venue.late_fills = set()
    seconds(world, runner, 60)
    order.refresh_from_db()
    position = Position.objects.open().get(symbol=order.symbol)
    assert (position.foreign, abs(position.quantity)) == (False, order.filled)
    assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()


def test_f18_a_stop_that_the_exchange_shows_nowhere_is_missing_and_another_one_is_placed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, order = enter(world)
    position = Position.objects.open().get(symbol=order.symbol)
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED)
    symbol, client_id = position.symbol.code, stop.client_order_id or ""
    world.matching.cancel(symbol, client_id)
    world.venue.blind_to = {client_id}  # its history has forgotten what was cancelled long ago
    session = runner._session
    assert session is not None
    for look in range(3):
        assert Order.objects.get(pk=stop.pk).state == OrderState.ACKED, f"{look} looks prove nothing"
        session.reconciler.run()
    stop.refresh_from_db()
    assert (stop.state, stop.reason.startswith("GONE: looks=3")) == (OrderState.MISSING, True)
    standing = Order.objects.get(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED)
    assert world.matching.order_by_client_id(symbol, standing.client_order_id or "") is not None
    assert session.reconciler.run().changes == 0


def test_r8_an_entry_that_is_not_found_two_minutes_after_a_restart_is_no_deleted_trade(world: World) -> None:
    def accepted_and_hidden(venue: Venue, request: OrderRequest) -> PlaceOutcome:
        before = {fill.trade_id for fill in world.matching.fills_since(0)}
        outcome = venues.lost_answer(venue, request)
        world.venue.blind_to.add(request.client_order_id)
        world.venue.late_fills |= {fill.trade_id for fill in world.matching.fills_since(0)} - before
        return outcome

    world.venue.faults = [accepted_and_hidden]
    runner, order = enter(world)
    runner.release()
    world.sim.advance(2 * MINUTE)
    again = world.runner()
    again.tick()
    order.refresh_from_db()
    assert order.state == OrderState.UNKNOWN, "one look after the restart proves nothing"
    block = Block.objects.get(symbol=order.symbol, reason=BlockReason.ORDER_UNKNOWN, closed_at=None)
    assert str(order) in block.evidence
    seconds(world, again, 60)
    order.refresh_from_db()
    assert (order.state, order.reason.startswith("NOT_PLACED: lookups=")) == (OrderState.NOT_PLACED, True)
    world.venue.late_fills = set()
    seconds(world, again, 330)
    order.refresh_from_db()
    position = Position.objects.open().get(symbol=order.symbol)
    assert abs(position.quantity) == order.filled > 0, "the row was there to take the fill over"
    assert not position.foreign


def test_r10_answers_that_are_lost_again_and_again_leave_one_order_a_symbol(world: World) -> None:
    world.venue.faults = [venues.lost_answer] * 100
    runner, _ = enter(world)
    world.venue.down = False
    world.pass_bars(runner, 6)
    accepted = {fill.client_order_id for fill in world.matching.fills_since(0) if fill.client_order_id}
    rows = set(Order.objects.filter(filled__gt=0).values_list("client_order_id", flat=True))
    assert accepted <= rows | set(Order.objects.values_list("client_order_id", flat=True))
    open_entries = Order.objects.filter(purpose=OrderPurpose.ENTRY, position__closed_at=None, position__isnull=False)
    assert open_entries.values("symbol").distinct().count() == open_entries.count()
    there = {each.symbol: each.quantity for each in world.matching.positions()}
    assert {each.symbol.code: each.quantity for each in Position.objects.open()} == there


# --- silence


@pytest.fixture
def maintenance(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[dt.datetime], Callable[[], None]]]:
    """The account's interface answers "maintenance, ask again in a minute"; the times at which it was asked."""
    asked: list[dt.datetime] = []

    def closed() -> None:
        asked.append(world.sim.now)
        raise ExchangeUnavailableError("maintenance", retry_after_ms=60_000)

    with monkeypatch.context() as patch:
        yield asked, lambda: patch.setattr(world.venue, "_check", closed)


def test_f26_in_maintenance_nothing_is_sent_and_little_asked_and_everything_is_read_when_it_is_over(
    world: World,
    maintenance: tuple[list[dt.datetime], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    person: Any,
) -> None:
    runner, _ = enter(world)
    asked, begins = maintenance
    open_before = Position.objects.open().count()
    assert open_before
    healthy = world.venue._check
    begins()
    world.sim.advance(5 * MINUTE)
    runner.tick()
    sent = len(world.venue.placed)
    services.set_desired_state(bot=world.bot, state="close_only", user=person)
    for _ in range(200):
        world.sim.advance(dt.timedelta(seconds=20))
        world.keep_fresh()
        runner.tick()
    assert len(world.venue.placed) == sent, "neither entries nor exits"
    assert len(asked) <= 70, "an hour and more: one probe a minute"
    assert Bot.objects.get().entries_blocked, "the bars are decided"
    assert Alert.objects.filter(key__startswith="exchange:", resolved_at=None).exists()
    monkeypatch.setattr(world.venue, "_check", healthy)
    world.sim.advance(MINUTE)
    report = runner.tick()
    assert report.reconciled
    seconds(world, runner, 60)
    assert not Position.objects.open().exists(), "what was asked for meanwhile is done now"
    assert not Alert.objects.filter(key__startswith="exchange:", resolved_at=None).exists()


def test_f21_probes_of_a_venue_that_does_not_come_back_grow_rare_and_do_not_come_together(world: World) -> None:
    def probes(name: str) -> list[float]:
        trouble, at = Trouble(name), []
        began = world.sim.now
        while world.sim.now < began + HOUR:
            if trouble.due:
                at.append((world.sim.now - began).total_seconds())
                trouble.failed(ExchangeUnavailableError("reset"))
            world.sim.advance(dt.timedelta(milliseconds=100))
        return at

    first, second = probes("exchange:a"), probes("exchange:b")
    assert 60 <= len(first) <= 70
    assert first[1] - first[0] < 2, "the first probe comes soon"
    assert max(later - earlier for earlier, later in itertools.pairwise(first)) <= 61
    assert first[:6] != second[:6], "each has a jitter of its own"


# --- people


def test_f38_i19_entries_behind_the_one_during_which_the_kill_switch_was_pulled_are_not_sent(world: World) -> None:
    desk = desk_of(idle(world))

    def slow(venue: Venue, request: OrderRequest) -> PlaceOutcome:
        assert services.pull_kill_switch(bot=Bot.objects.get(), reason="MANUAL: by=anna")
        return venue.place(request)

    world.venue.faults = [slow]
    orders = entries(world, desk, 3)
    assert [order.state for order in orders[1:]] == ["not_placed", "not_placed"]
    assert len(world.venue.placed) == 1
    assert orders[1].reason.startswith("NOT_SENT: kill_switch=true")


def test_f38_the_kill_switch_cancels_what_waits_to_open_and_protects_what_was_filled(world: World, person: Any) -> None:
    def waits(venue: Venue, request: OrderRequest) -> PlaceOutcome:
        price = Decimal(str(world.data.tickers()[request.symbol].last))
        tick = next(each for each in world.data.instruments() if each.symbol == request.symbol)
        far = tick.quantize_price(price * (Decimal("0.5") if request.side == "buy" else 2))
        return venue.place(replace(request, kind="limit", price=far))

    runner = idle(world)
    Bot.objects.update(desired_state="run")
    runner.tick()
    world.venue.faults = [waits, venues.lost_answer]
    waiting, unknown = entries(world, desk_of(runner), 2)
    assert (waiting.state, unknown.state) == (OrderState.ACKED, OrderState.UNKNOWN)
    assert services.pull_kill_switch(bot=world.bot, reason="MANUAL: by=anna", user=person)
    runner.tick()
    seconds(world, runner, 30)
    waiting.refresh_from_db()
    unknown.refresh_from_db()
    assert waiting.state == OrderState.CANCELLED
    assert not [order for order in world.matching.open_orders() if order.client_order_id == waiting.client_order_id]
    assert unknown.filled > 0
    position = Position.objects.open().get(symbol=unknown.symbol)
    assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()
    runner.release()
    again = world.runner()
    world.pass_bars(again, 3)
    assert Order.objects.filter(purpose=OrderPurpose.ENTRY).count() == 2
    assert Bot.objects.get().kill_switch_at is not None

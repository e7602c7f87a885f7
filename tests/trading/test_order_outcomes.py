"""What the venue may answer to an order, and what may become of it (I16): the row is first, evidence decides."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from coverage_app.choices import BlockReason
from coverage_app.models import Block
from ops_app.models import Alert
from tests.trading import venues
from tests.trading.conftest import World
from trading_app import takeover
from trading_app.bot import BotRunner
from trading_app.choices import ORDER_TRANSITIONS, OrderPurpose, OrderState
from trading_app.exceptions import OrderStateError
from trading_app.models import Fill, Order, Position
from trading_app.orders import SETTLE, move, settle

pytestmark = pytest.mark.django_db


def first_entry() -> Order:
    order = Order.objects.filter(purpose=OrderPurpose.ENTRY).order_by("id").first()
    assert order is not None
    return order


def enter(world: World) -> BotRunner:
    runner = world.runner()
    if not runner.tick().entries:
        world.until_entry(runner)
    return runner


def pass_minutes(world: World, runner: BotRunner, minutes: float) -> None:
    for _ in range(int(minutes * 6)):
        world.sim.advance(dt.timedelta(seconds=10))
        runner.tick()


def test_i16_the_intent_is_committed_before_anything_is_sent(world: World) -> None:
    seen: list[str] = []

    def look(venue: object, request: object) -> object:
        row = Order.objects.get(client_order_id=request.client_order_id)  # type: ignore[attr-defined]
        seen.append(row.state)
        return venues.lost_request(venue, request)  # type: ignore[arg-type]

    world.venue.faults = [look]  # type: ignore[list-item]
    enter(world)
    assert seen == [OrderState.SENDING]


def test_f03_r10_an_order_whose_answer_was_lost_is_looked_up_adopted_and_protected_and_never_sent_again(
    world: World,
) -> None:
    world.venue.faults = [venues.lost_answer]
    runner = enter(world)
    order = first_entry()
    assert order.state in (OrderState.UNKNOWN, OrderState.FILLED, OrderState.PARTIALLY_FILLED)
    pass_minutes(world, runner, 1)
    order.refresh_from_db()
    assert order.state in (OrderState.FILLED, OrderState.CANCELLED)
    assert order.filled > 0
    assert order.position is not None
    assert Order.objects.filter(position=order.position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()
    ids = venues.client_ids(world.venue.placed)
    assert len(ids) == len(set(ids))
    assert not Block.objects.filter(reason=BlockReason.ORDER_UNKNOWN, closed_at__isnull=True).exists()


def test_f01_an_order_that_never_arrived_is_not_placed_after_the_settle_time_and_not_before(world: World) -> None:
    world.venue.faults = [venues.lost_request]
    runner = enter(world)
    order = first_entry()
    assert order.state == OrderState.UNKNOWN
    block = Block.objects.get(reason=BlockReason.ORDER_UNKNOWN, symbol=order.symbol)
    assert block.closed_at is None
    assert str(order) in block.evidence
    assert Alert.objects.filter(key=f"order_unknown:{order.client_order_id}", resolved_at__isnull=True).exists()
    world.sim.advance(dt.timedelta(seconds=10))
    runner.tick()
    order.refresh_from_db()
    assert order.state == OrderState.UNKNOWN, "ten seconds prove nothing"
    pass_minutes(world, runner, 2)
    order.refresh_from_db()
    block.refresh_from_db()
    assert order.state == OrderState.NOT_PLACED
    assert block.closed_at is not None
    assert not Alert.objects.filter(key=f"order_unknown:{order.client_order_id}", resolved_at__isnull=True).exists()
    assert not Position.objects.filter(symbol=order.symbol, closed_at__isnull=True).exists()


def test_f01_an_answer_that_took_too_long_proves_no_absence_later_than_it_was_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The venue looked before the order arrived; its answer came when the order had settled."""
    world.venue.faults = [venues.lost_request]
    runner = enter(world)
    order = first_entry()
    world.sim.advance(dt.timedelta(seconds=20))

    def slow(*_: str) -> None:
        world.sim.advance(dt.timedelta(seconds=40))

    session = runner._session
    assert session is not None
    Order.objects.filter(pk=order.pk).update(lookups=5)
    order.refresh_from_db()
    monkeypatch.setattr(world.venue, "order_by_client_id", slow)
    assert not session.desk.look_up(order)
    order.refresh_from_db()
    assert order.state == OrderState.UNKNOWN


def test_f01_a_fast_market_clock_gives_an_order_no_less_real_time_to_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle() == SETTLE
    monkeypatch.setattr("ops_app.clock.speed", lambda: 3600.0)
    assert settle() == takeover.fence() * 3600


def test_f04_no_entry_into_a_symbol_whose_order_is_unknown(world: World) -> None:
    world.venue.faults = [venues.lost_request]
    runner = enter(world)
    order = first_entry()
    world.venue.blind_to = {order.client_order_id or ""}
    world.venue.down = True
    world.pass_bars(runner, 3)
    order.refresh_from_db()
    assert order.state == OrderState.UNKNOWN, "a venue that does not answer proves nothing"
    assert Order.objects.filter(purpose=OrderPurpose.ENTRY, symbol=order.symbol).count() == 1


def test_f05_a_definite_refusal_ends_the_order_with_its_code_and_is_not_tried_again_in_a_storm(world: World) -> None:
    world.venue.faults = [venues.rejected]
    runner = enter(world)
    order = first_entry()
    assert order.state == OrderState.REJECTED
    assert order.reason.startswith("REJECTED: code=INSUFFICIENT_FUNDS")
    sent = len(world.venue.placed)
    pass_minutes(world, runner, 5)
    assert len(world.venue.placed) == sent


def test_f06_a_throttled_order_is_looked_up_before_anything_else_is_sent(world: World) -> None:
    world.venue.faults = [venues.throttled]
    runner = enter(world)
    order = first_entry()
    assert (order.state, order.reason.startswith("THROTTLED")) == (OrderState.UNKNOWN, True)
    assert not Block.objects.filter(reason=BlockReason.ORDER_UNKNOWN).exists(), "a rate limit is no mystery"
    pass_minutes(world, runner, 2)
    order.refresh_from_db()
    assert order.state == OrderState.NOT_PLACED


def test_f08_a_duplicate_id_means_that_the_order_exists_and_it_is_adopted(world: World) -> None:
    world.venue.faults = [venues.duplicate]
    enter(world)
    order = first_entry()
    assert order.state in (OrderState.FILLED, OrderState.CANCELLED)
    assert order.filled > 0


def test_an_answer_about_another_order_is_no_evidence(world: World) -> None:
    world.venue.faults = [venues.wrong_order]
    runner = enter(world)
    order = first_entry()
    pass_minutes(world, runner, 1)
    order.refresh_from_db()
    assert order.state in (OrderState.FILLED, OrderState.CANCELLED)
    assert order.client_order_id in venues.client_ids(world.venue.placed)


def test_f12_a_fill_after_the_order_was_given_up_is_accepted_and_its_position_protected(world: World) -> None:
    def late(venue: object, request: object) -> object:
        outcome = venues.lost_answer(venue, request)  # type: ignore[arg-type]
        world.venue.blind_to.add(request.client_order_id)  # type: ignore[attr-defined]
        world.venue.late_fills |= {fill.trade_id for fill in world.matching.fills_since(0)}
        return outcome

    world.venue.faults = [late]  # type: ignore[list-item]
    runner = enter(world)
    order = first_entry()
    pass_minutes(world, runner, 2)
    order.refresh_from_db()
    assert order.state == OrderState.NOT_PLACED, "neither order nor fill was to be seen"
    world.venue.late_fills.clear()
    pass_minutes(world, runner, 6)
    order.refresh_from_db()
    assert order.state in (OrderState.FILLED, OrderState.CANCELLED)
    position = Position.objects.get(symbol=order.symbol, closed_at__isnull=True)
    assert abs(position.quantity) == order.filled
    assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()


def test_every_transition_outside_the_table_is_an_error(world: World) -> None:
    enter(world)
    order = first_entry()
    for before in OrderState:
        for after in set(OrderState) - ORDER_TRANSITIONS[before] - {before}:
            Order.objects.filter(pk=order.pk).update(state=before)
            order.state = before
            with pytest.raises(OrderStateError, match="ORDER_TRANSITIONS"):
                move(order, after)


def test_a_change_by_another_process_is_noticed(world: World) -> None:
    enter(world)
    order = first_entry()
    Order.objects.filter(pk=order.pk).update(state=OrderState.UNKNOWN)
    order.state = OrderState.SENDING
    with pytest.raises(OrderStateError, match="another process"):
        move(order, OrderState.REJECTED)


def test_the_position_is_what_the_fills_say_also_with_fees(world: World) -> None:
    runner = enter(world)
    world.pass_bars(runner, 4)
    for position in Position.objects.filter(foreign=False):
        fills = Fill.objects.filter(position=position)
        signed = sum(
            (fill.quantity if fill.side == "buy" else -fill.quantity for fill in fills.exclude(kind="funding")),
            Decimal(0),
        )
        assert position.quantity == signed
        assert position.fees == sum((fill.fee for fill in fills), Decimal(0))

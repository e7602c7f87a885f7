"""The order that takes the profit rests at the exchange beside the stop, and is never more than a help."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from exchanges.port import Unknown
from ops_app.choices import Severity
from ops_app.models import Alert
from tests.trading import venues
from tests.trading.conftest import HOUR, World
from tests.trading.test_protection_and_reconciliation import enter, kinds_at_the_exchange, minutes, place
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Bot, Order, Position, RiskEvent
from trading_app.protection import MAX_TARGET_ATTEMPTS, close_position, protect

pytestmark = pytest.mark.django_db


def targets(position: Position, *states: OrderState) -> list[Order]:
    rows = Order.objects.filter(position=position, purpose=OrderPurpose.TARGET).order_by("id")
    return list(rows.filter(state__in=states) if states else rows)


def until_closed(world: World, position: Position, **limits: Any) -> Position:
    for _ in range(limits.get("bars", 30)):
        world.sim.advance(HOUR)
        world.keep_fresh()
        runner = limits.get("runner")
        if runner is not None:
            runner.tick()
        elif not any(each.symbol == position.symbol.code for each in world.matching.positions()):
            break
        position.refresh_from_db()
        if position.closed_at is not None:
            break
    return position


def test_a_target_rests_reduce_only_at_the_positions_target_under_an_id_of_ours(world: World) -> None:
    _, position = enter(world)
    (target,) = targets(position, OrderState.ACKED)
    there = world.matching.order_by_client_id(position.symbol.code, target.client_order_id or "")
    assert there is not None
    assert (there.kind, there.reduce_only, there.price) == ("limit", True, position.target_price)
    assert (there.quantity, there.side) == (abs(position.quantity), "sell" if position.side > 0 else "buy")
    [seen] = [each for each in world.matching.positions() if each.symbol == position.symbol.code]
    assert seen.stop_price == position.stop_price, "the venue's stop is the stop, and not the target"


def test_a_target_that_fills_while_the_bot_is_down_closes_the_position_at_its_start_and_leaves_no_stop(
    world: World,
) -> None:
    runner, position = enter(world)
    resting = {order.client_order_id for order in world.matching.open_orders(position.symbol.code)}
    assert len(resting) == 2
    runner.release()
    until_closed(world, position)
    world.runner().tick()
    position.refresh_from_db()
    assert position.closed_at is not None
    assert position.close_reason == f"TARGET: price={position.target_price.normalize():f}"  # type: ignore[union-attr]
    assert position.realised_pnl > 0
    assert not Order.objects.open().filter(position=position).exists()
    assert not resting & {order.client_order_id for order in world.matching.open_orders()}


def test_a_refused_target_is_no_emergency_is_given_up_and_the_close_takes_the_profit(world: World) -> None:
    world.venue.target_faults = [venues.rejected] * 100
    runner, position = enter(world)
    for _ in range(11):
        world.sim.advance(dt.timedelta(minutes=5))
        runner.tick()
    assert [each.state for each in targets(position)] == [OrderState.REJECTED] * MAX_TARGET_ATTEMPTS
    alert = Alert.objects.get(key=f"target_missing:{position.pk}")
    assert alert.severity == Severity.INFO
    assert kinds_at_the_exchange(world, position) == ["stop_market"]
    assert not RiskEvent.objects.exists()
    until_closed(world, position, runner=runner)
    assert position.close_reason.startswith("TARGET: close="), "the engine's own exit"
    assert len(targets(position)) == MAX_TARGET_ATTEMPTS


@pytest.mark.parametrize("fault, known", [(venues.lost_answer, "acked"), (venues.lost_request, "not_placed")])
def test_a_target_of_unknown_outcome_is_looked_up_never_sent_again_and_keeps_no_stop_away(
    world: World, fault: venues.Fault, known: str
) -> None:
    world.venue.target_faults = [fault]
    runner, position = enter(world)
    assert [each.state for each in targets(position)] == [OrderState.UNKNOWN]
    assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()
    minutes(world, runner, 12)
    first, *later = targets(position)
    assert first.state == known
    assert [each.state for each in later] == ([] if known == "acked" else [OrderState.ACKED])
    assert kinds_at_the_exchange(world, position) == ["limit", "stop_market"]
    sent = [request.client_order_id for request in world.venue.placed]
    assert len(set(sent)) == len(sent)


def test_stop_and_target_follow_the_size_of_the_position(world: World) -> None:
    runner, position = enter(world)
    half = position.quantity / 2
    instrument = next(each for each in world.data.instruments() if each.symbol == position.symbol.code)
    side = "sell" if position.quantity > 0 else "buy"
    place(world, position.symbol.code, side, str(instrument.quantize_quantity(abs(half))), reduce_only=True)
    minutes(world, runner, 6)
    position.refresh_from_db()
    assert position.quantity != 0
    for order in world.matching.open_orders(position.symbol.code):
        assert order.quantity - order.filled == abs(position.quantity)
    assert kinds_at_the_exchange(world, position) == ["limit", "stop_market"]
    assert [each.state for each in targets(position)] == [OrderState.CANCELLED, OrderState.ACKED]


def test_no_second_target_stands_while_the_cancel_of_the_first_is_not_confirmed(world: World, monkeypatch: Any) -> None:
    runner, position = enter(world)
    session = runner._session
    assert session is not None
    Position.objects.filter(pk=position.pk).update(quantity=position.quantity * Decimal("0.5"))
    with monkeypatch.context() as patched:
        patched.setattr(world.venue, "cancel", lambda *args: Unknown("timed out"))
        protect(session.desk)
    assert len(targets(position)) == 1
    protect(session.desk)
    assert [each.state for each in targets(position)] == [OrderState.CANCELLED, OrderState.ACKED]


def test_an_exit_under_way_comes_first_and_no_target_is_placed_beside_it(world: World) -> None:
    runner, position = enter(world)
    session = runner._session
    assert session is not None
    (target,) = targets(position)
    world.venue.faults = [venues.lost_request]
    assert close_position(session.desk, position, "TEST: why=exit") is not None
    world.matching.cancel(position.symbol.code, target.client_order_id or "")
    target_id = target.client_order_id or ""
    seen = world.matching.order_by_client_id(position.symbol.code, target_id)
    assert seen is not None
    session.desk.apply_evidence(target, seen)
    protect(session.desk)
    assert len(targets(position)) == 1


@pytest.mark.parametrize("asked", ["close_only", "kill_switch"])
def test_what_people_ask_for_leaves_no_target_behind(world: World, asked: str) -> None:
    runner, position = enter(world)
    if asked == "close_only":
        Bot.objects.update(desired_state="close_only")
    else:
        Bot.objects.update(kill_switch_at=world.sim.now, kill_switch_reason="TEST")
    minutes(world, runner, 2)
    if asked == "kill_switch":
        assert kinds_at_the_exchange(world, position) == ["limit", "stop_market"], "it stops entries, never exits"
    until_closed(world, position, runner=runner)
    assert position.closed_at is not None
    assert kinds_at_the_exchange(world, position) == []


def test_a_bot_that_starts_anew_keeps_the_target_that_rests(world: World) -> None:
    runner, position = enter(world)
    (target,) = targets(position)
    runner.release()
    world.sim.advance(dt.timedelta(minutes=2))
    again = world.runner()
    again.tick()
    minutes(world, again, 6)
    assert [each.client_order_id for each in targets(position)] == [target.client_order_id]


def test_a_target_that_somebody_cancelled_is_placed_again(world: World) -> None:
    runner, position = enter(world)
    (target,) = targets(position)
    world.matching.cancel(position.symbol.code, target.client_order_id or "")
    minutes(world, runner, 6)
    assert [each.state for each in targets(position)] == [OrderState.CANCELLED, OrderState.ACKED]


def test_a_position_that_turned_round_keeps_no_target_that_would_close_it_at_once(world: World) -> None:
    runner, position = enter(world)
    session = runner._session
    assert session is not None
    (target,) = targets(position)
    session.desk.cancel(target)
    Position.objects.filter(pk=position.pk).update(quantity=-position.quantity)
    protect(session.desk)
    assert len(targets(position)) == 1

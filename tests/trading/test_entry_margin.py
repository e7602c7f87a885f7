"""Margin mode and leverage are set before an entry, and only an entry waits for them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from exchanges.errors import ExchangeUnavailableError
from ops_app.models import Alert
from tests.trading.conftest import World
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Bot, Order, Position

pytestmark = pytest.mark.django_db


def test_the_leverage_is_the_whole_number_above_the_bots_limit_and_is_set_before_the_first_entry(world: World) -> None:
    runner = world.runner()
    world.until_entry(runner)
    codes = {order.symbol.code for order in Order.objects.filter(purpose=OrderPurpose.ENTRY)}
    assert world.bot.max_leverage == 2.0
    assert world.venue.leverages == dict.fromkeys(codes, Decimal(3))


def test_a_limit_that_a_person_changes_changes_the_leverage_before_the_next_entry(world: World) -> None:
    runner = world.runner()
    world.until_entry(runner)
    first = set(world.venue.leverages)
    Bot.objects.update(max_leverage=1.5)
    world.until_entry(runner, most=200)
    newest = Order.objects.filter(purpose=OrderPurpose.ENTRY).latest("id")
    assert world.venue.leverages[newest.symbol.code] == Decimal(2)
    assert first


def test_a_leverage_that_cannot_be_set_refuses_the_entry_with_its_reason_and_sends_nothing(world: World) -> None:
    world.venue.leverage_error = ExchangeUnavailableError("bybit refuses this key (33004)")
    runner = world.runner()
    world.until_entry(runner)
    orders = Order.objects.filter(purpose=OrderPurpose.ENTRY)
    assert orders
    for order in orders:
        assert order.state == OrderState.NOT_PLACED
        assert order.reason.startswith(f"LEVERAGE_NOT_SET: symbol={order.symbol.code}, wanted=3, error=Exchange")
    assert world.venue.placed == []
    assert Alert.objects.filter(key__startswith="leverage:main:", resolved_at=None).count() == len(orders)
    world.venue.leverage_error = None
    world.until_entry(runner, most=200)
    sent = {order.symbol.code for order in orders.filter(state=OrderState.FILLED)}
    assert sent
    assert not Alert.objects.filter(key__in=[f"leverage:main:{code}" for code in sent], resolved_at=None).exists()


def test_i20_exits_and_stops_are_sent_while_no_leverage_can_be_set(world: World) -> None:
    runner = world.runner()
    world.until_entry(runner)
    position = Position.objects.open().get()
    world.venue.leverage_error = ExchangeUnavailableError("no answer")
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP)
    world.venue.inner.cancel(position.symbol.code, stop.client_order_id or "")
    Bot.objects.update(desired_state="close_only")
    runner.release()  # the next process has not set any leverage
    world.pass_bars(world.runner(), 2)
    position.refresh_from_db()
    assert position.closed_at is not None
    exits = Order.objects.filter(position=position, purpose=OrderPurpose.EXIT)
    assert [order.state for order in exits] == [OrderState.FILLED]

"""Another bot on our account, from another database, is known by its fills and positions too (F36)."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from exchanges.port import Ack, OrderRequest
from ops_app.models import Alert
from quant.timeframes import to_ms
from tests.trading.conftest import HOUR, World
from trading_app.bot import BotRunner
from trading_app.client_ids import account_prefix, own_prefix
from trading_app.models import Bot, Order

pytestmark = pytest.mark.django_db


def other_id(world: World, number: int = 1) -> str:
    return f"{account_prefix(world.bot)}zzz0001{number:07d}"


def trade(world: World, side: str, client_id: str, *, reduce_only: bool = False) -> str:
    symbol = world.codes[0]
    instrument = next(each for each in world.data.instruments() if each.symbol == symbol)
    last = Decimal(str(world.data.tickers()[symbol].last))
    request = OrderRequest(
        client_id, symbol, side, instrument.quantize_quantity(Decimal(200) / last),  # type: ignore[arg-type]
        reduce_only=reduce_only, time_ms=to_ms(world.sim.now),
    )  # fmt: skip
    outcome = world.matching.place(request)
    assert isinstance(outcome, Ack), outcome
    assert outcome.order.filled > 0
    return symbol


def round_trip(world: World, *, prefix: str = "") -> None:
    """The other one opens and closes: nothing of it is left but its fills."""
    ids = [f"{prefix}0001{number:07d}" if prefix else other_id(world, number) for number in (991, 992)]
    trade(world, "buy", ids[0])
    trade(world, "sell", ids[1], reduce_only=True)


def blocked_after(world: World, runner: BotRunner, bars: int = 1) -> str:
    world.pass_bars(runner, bars)
    return Bot.objects.get().entries_blocked


def test_f36_i15_at_the_start_the_fills_of_another_bot_keep_this_one_from_opening_anything_for_a_day(
    world: World,
) -> None:
    round_trip(world)
    world.sim.advance(HOUR * 8)  # longer ago than fills are read again
    last = world.sim.now - HOUR * 8
    Bot.objects.update(created_at=world.sim.now)
    runner = world.runner()
    blocked = blocked_after(world, runner)
    assert blocked.startswith(f"TWO_BOTS: fill={other_id(world, 992)}, symbol={world.codes[0]}, until=")
    alert = Alert.objects.get(key="two_bots:main")
    assert "another bot trades account" in alert.text
    world.pass_bars(runner, 12)
    assert not Order.objects.exists()
    world.sim.now = last + dt.timedelta(days=1)
    assert blocked_after(world, runner) == ""
    alert.refresh_from_db()
    assert alert.resolved_at is not None


def test_f36_while_running_a_fill_of_another_bot_stops_entries_at_the_next_bar(world: World) -> None:
    runner = world.runner()
    assert blocked_after(world, runner) == ""
    round_trip(world)
    assert blocked_after(world, runner).startswith("TWO_BOTS: fill=")


def test_f36_a_position_that_another_bot_opened_days_ago_is_its_own_until_it_is_closed(world: World) -> None:
    symbol = trade(world, "buy", other_id(world))
    world.sim.advance(dt.timedelta(days=3))
    Bot.objects.update(created_at=world.sim.now)
    runner = world.runner()
    assert blocked_after(world, runner) == f"TWO_BOTS: position={symbol}, opened_by={other_id(world)}"
    position = world.matching.positions()[0]
    request = OrderRequest(
        "byhand", symbol, "sell", position.quantity, reduce_only=True, time_ms=to_ms(world.sim.now)
    )  # fmt: skip
    assert isinstance(world.matching.place(request), Ack)
    assert blocked_after(world, runner, 2) == ""


def test_f36_our_own_fills_from_before_a_backup_was_restored_are_no_other_bots(world: World) -> None:
    round_trip(world, prefix=own_prefix(world.bot))
    world.sim.advance(HOUR)
    assert blocked_after(world, world.runner()) == ""


def test_f36_fills_under_our_own_prefix_that_we_did_not_send_are_of_a_copy_of_this_database(world: World) -> None:
    runner = world.runner()
    assert blocked_after(world, runner) == ""
    round_trip(world, prefix=own_prefix(world.bot))
    assert blocked_after(world, runner).startswith("TWO_BOTS: fill=")

"""What happens between two steps of the bot: a kill, a failing database, a person who intervenes, a frozen process."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ValidationError
from django.db import OperationalError

from coverage_app import services as coverage
from coverage_app.choices import BlockReason
from coverage_app.models import Block
from exchanges.matching import MatchingVenue
from exchanges.port import Ack, OrderRequest, Rejected
from ops_app import clock
from ops_app.models import Alert, MarketClock
from quant.candles import Candles
from quant.timeframes import from_ms, to_ms
from tests.factories import EPOCH, MARKET
from tests.trading import venues
from tests.trading.conftest import World
from trading_app import services
from trading_app.bar import BarTrader
from trading_app.bot import BotRunner
from trading_app.choices import OrderPurpose, OrderState
from trading_app.deciding import Outgoing
from trading_app.models import Bot, Decision, Order, Position
from trading_app.orders import OrderDesk
from trading_app.venue import RECEIVE_WINDOW, open_venue

pytestmark = pytest.mark.django_db


class Killed(BaseException):
    """Stands for kill -9: nothing in the code catches it."""


def tick_for_minutes(world: World, runner: BotRunner) -> None:
    for _ in range(30):
        world.sim.advance(dt.timedelta(seconds=10))
        runner.tick()


def enter(world: World, runner: BotRunner) -> None:
    if not runner.tick().entries:
        world.until_entry(runner)


@pytest.mark.parametrize("fault", [venues.lost_answer, venues.lost_request])
def test_a_kill_between_the_evidence_and_the_end_of_its_block_leaves_no_block_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: venues.Fault
) -> None:
    def die(**_: Any) -> int:
        raise Killed

    world.venue.faults = [fault]
    runner = world.runner()
    with monkeypatch.context() as patch:
        patch.setattr(world.venue, "fills_since", lambda _: [])  # fills have a transaction of their own
        if not runner.tick().entries:
            world.until_entry(runner)
        block = Block.objects.get(reason=BlockReason.ORDER_UNKNOWN)
        assert block.closed_at is None
        patch.setattr(coverage, "close_blocks", die)
        with pytest.raises(Killed):
            tick_for_minutes(world, runner)
    runner.release()
    again = world.runner()
    for _ in range(30):
        world.sim.advance(dt.timedelta(seconds=10))
        again.tick()
    assert not Order.objects.filter(state=OrderState.UNKNOWN).exists()
    block.refresh_from_db()
    assert block.closed_at is not None


def test_f29_i18_a_position_whose_order_could_not_be_written_is_protected_by_the_next_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OperationalError("the disk is full")

    runner = world.runner()
    with monkeypatch.context() as patch:
        patch.setattr(OrderDesk, "apply_outcome", fail)
        with pytest.raises(OperationalError):
            enter(world, runner)
    assert world.matching.positions(), "the exchange has the position, the tables do not know it"
    for _ in range(2):
        world.sim.advance(dt.timedelta(seconds=5))
        runner.tick()
    positions = list(Position.objects.open())
    assert positions
    for position in positions:
        assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()


@pytest.mark.parametrize("ask", ["kill", "pause"])
def test_i19_what_a_person_asks_for_while_a_bar_is_computed_holds_for_that_bar(
    world: World, monkeypatch: pytest.MonkeyPatch, person: Any, ask: str
) -> None:
    runner = world.runner()
    write = BarTrader._write
    asked: list[dt.datetime] = []

    def interrupted(trader: BarTrader, desk: OrderDesk, ready: list[Outgoing], open_ms: int, *rest: Any) -> Any:
        if not asked and any(each.order is not None and not each.order.reduce_only for each in ready):
            asked.append(from_ms(open_ms))  # computing a bar may hold a replay of half a minute: time for a person
            bot = Bot.objects.get()
            if ask == "kill":
                assert services.pull_kill_switch(bot=bot, reason="MANUAL: by=anna", user=person)
            else:
                assert services.set_desired_state(bot=bot, state="pause", user=person)
        return write(trader, desk, ready, open_ms, *rest)

    monkeypatch.setattr(BarTrader, "_write", interrupted)
    runner.tick()
    for _ in range(48):
        if asked:
            break
        world.pass_bars(runner, 1)
    (bar_at,) = asked
    world.sim.advance(dt.timedelta(seconds=10))
    runner.tick()
    assert not Order.objects.exists()
    rows = Decision.objects.filter(bar_at=bar_at)
    assert rows.count() == len(world.codes), "the bar is decided by the pass that knew what was asked for"
    assert not rows.filter(outcome="enter").exists()


def test_f37_i15_b4_the_bots_own_venue_refuses_what_a_frozen_process_sends_after_waking(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was buried as NOT_PLACED by the next owner must not be accepted later: that would double an order."""
    venue = open_venue(world.bot, world.data)
    assert isinstance(venue, MatchingVenue)
    symbol = world.codes[0]
    candles = world.data.candles

    def order(name: str) -> OrderRequest:
        return OrderRequest(name, symbol, "buy", Decimal(100), time_ms=clock.market_now_ms())

    assert isinstance(venue.place(order("awake")), Ack)

    def freeze(*arguments: Any) -> Candles:
        world.sim.advance(RECEIVE_WINDOW + dt.timedelta(seconds=1))
        return candles(*arguments)

    monkeypatch.setattr(world.data, "candles", freeze)
    outcome = venue.place(order("frozen"))
    assert isinstance(outcome, Rejected), "it was frozen behind every check of its own"
    assert outcome.code == "STALE_REQUEST"
    assert venue.order_by_client_id(symbol, "frozen") is None


def test_b4_the_receive_window_is_real_time_also_on_a_fast_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    row = MarketClock(market=MARKET, source="test", market_start=EPOCH, real_start=EPOCH, speed=60.0)
    monkeypatch.setattr(clock, "speed", lambda: row.speed)
    venue = open_venue(world.bot, world.data)
    symbol, now_ms = world.codes[0], to_ms(world.sim.now)
    window_ms = round(RECEIVE_WINDOW.total_seconds() * 1000 * row.speed)
    assert isinstance(venue.place(OrderRequest("new", symbol, "buy", Decimal(100), time_ms=now_ms - window_ms)), Ack)
    late = venue.place(OrderRequest("late", symbol, "buy", Decimal(100), time_ms=now_ms - window_ms - 1))
    assert isinstance(late, Rejected)


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_leverage", 0.0), ("max_correlated", 0.0), ("max_position", -0.1), ("max_positions", 0),
        ("daily_loss_limit", 1.0), ("max_drawdown", 0.0), ("volatility_target", 0.0),
    ],
)  # fmt: skip
def test_a_limit_that_limits_nothing_is_refused_where_a_person_types_it(world: World, name: str, value: float) -> None:
    """The engine raises for it at every pass: the bot, and with it every exit, would stop for a typing error."""
    bot = Bot.objects.get()
    bot.full_clean()
    setattr(bot, name, value)
    with pytest.raises(ValidationError) as caught:
        bot.full_clean()
    assert list(caught.value.message_dict) == [name]
    assert str(value) in caught.value.message_dict[name][0]


def test_b4_the_shortest_lease_that_may_be_set_outlives_the_receive_window(world: World) -> None:
    """A lease is renewed when a third has passed: two thirds must be longer than an order may be on its way."""
    from tradingsite.options import OPTIONS

    (option,) = (each for each in OPTIONS if each.name == "BOT_LEASE_SECONDS")
    for seconds in range(1, 60):
        try:
            option.parse(str(seconds))
        except ValueError:
            continue
        assert seconds * 2 / 3 > RECEIVE_WINDOW.total_seconds()
        break
    assert django_settings.BOT_LEASE_SECONDS > 7.5


def test_a_clock_that_ran_ahead_and_came_back_is_said_once_and_over_when_the_bars_close(world: World) -> None:
    runner = world.runner()
    runner.tick()
    decided = Bot.objects.get().last_bar_at
    assert decided is not None
    ahead = decided + dt.timedelta(days=1)
    Bot.objects.update(last_bar_at=ahead)
    world.sim.advance(dt.timedelta(minutes=1))
    assert runner.tick().waiting.startswith("CLOCK_BEHIND: decided=")
    world.sim.advance(dt.timedelta(minutes=1))
    runner.tick()
    alert = Alert.objects.get(key__startswith="clock:")
    assert alert.severity == "critical"
    assert f"{ahead:%Y-%m-%d %H:%M}" in alert.text
    assert alert.resolved_at is None
    Bot.objects.update(last_bar_at=decided)
    world.sim.advance(dt.timedelta(minutes=1))
    runner.tick()
    assert Alert.objects.get(pk=alert.pk).resolved_at is not None

"""Limits (I19), what never stops an exit (I20), and what people ask for (I21)."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from coverage_app.choices import BlockReason
from exchanges.errors import ExchangeUnavailableError
from exchanges.port import Balance
from exchanges.simulated import SimulatedMarket
from ops_app import clock
from ops_app.models import Event
from tests.factories import EPOCH, BlockFactory, UserFactory
from tests.trading.conftest import HOUR, World
from trading_app import equity, services
from trading_app.bot import BotRunner
from trading_app.exceptions import TradingError
from trading_app.models import Bot, Decision, Order, Position, RiskEvent
from trading_app.selectors import Promise

pytestmark = pytest.mark.django_db


def enter(world: World) -> tuple[BotRunner, Position]:
    runner = world.runner()
    if not runner.tick().entries:
        world.until_entry(runner)
    position = Position.objects.open().first()
    assert position is not None
    return runner, position


def worth(amount: float) -> Balance:
    return Balance("USDT", Decimal(str(amount)), Decimal(str(amount)))


# --- I19


def test_f38_i19_the_kill_switch_is_latched_survives_a_restart_and_only_a_person_by_name_resets_it(
    world: World, monkeypatch: Any, person: Any
) -> None:
    runner = world.runner()
    monkeypatch.setattr(world.venue, "balance", lambda: worth(10_000))
    runner.tick()
    monkeypatch.setattr(world.venue, "balance", lambda: worth(7_900))
    world.pass_bars(runner, 2)
    bot = Bot.objects.get()
    assert bot.kill_switch_at is not None
    assert bot.kill_switch_reason.startswith("DRAWDOWN: drawdown=0.21")
    monkeypatch.setattr(world.venue, "balance", lambda: worth(12_000))
    runner.release()
    again = world.runner()
    again.tick()
    entries = Order.objects.filter(purpose="entry").count()
    world.pass_bars(again, 24)
    assert Order.objects.filter(purpose="entry").count() == entries
    assert Bot.objects.get().entries_blocked.startswith("KILL_SWITCH")
    with pytest.raises(TradingError, match="log in and reset it"):
        services.reset_kill_switch(bot=bot, user=None)  # type: ignore[arg-type]
    assert services.reset_kill_switch(bot=bot, user=person)
    assert not services.reset_kill_switch(bot=bot, user=person), "twice changes nothing"
    event = RiskEvent.objects.get(kind="kill_switch_reset")
    assert event.user == person
    assert Event.objects.filter(kind="kill_switch_reset", user=person).exists()
    assert Bot.history.filter(history_user=person).exists()
    world.pass_bars(again, 1)
    assert Bot.objects.get().kill_switch_at is None, "the same old drawdown does not pull it again"


def test_the_daily_loss_stops_entries_until_the_next_utc_day(world: World, monkeypatch: Any) -> None:
    runner = world.runner()
    monkeypatch.setattr(world.venue, "balance", lambda: worth(10_000))
    runner.tick()
    monkeypatch.setattr(world.venue, "balance", lambda: worth(9_400))
    world.pass_bars(runner, 2)
    blocked = Decision.objects.filter(reason_code="DAILY_LOSS")
    assert Bot.objects.get().entries_blocked.startswith("DAILY_LOSS")
    world.pass_bars(runner, 19)
    assert not Order.objects.filter(purpose="entry", created_at__gt=EPOCH + HOUR).exists()
    world.pass_bars(runner, 5)
    assert not Bot.objects.get().daily_loss_hit
    assert Bot.objects.get().entries_blocked == ""
    assert RiskEvent.objects.filter(kind="daily_loss").count() == 1
    assert blocked.exists()


def test_a_limit_at_zero_is_an_error_and_not_no_limit(world: World) -> None:
    world.bot.max_drawdown = 0.0
    with pytest.raises(ValueError, match=r"max_drawdown_fraction is 0\.0; a risk limit must be positive"):
        equity.limits_of(world.bot)


@pytest.mark.parametrize(
    "wins, trades, share", [(60, 100, 1.0), (55, 100, 1.0), (50, 100, 0.5), (40, 100, 0.0), (0, 10, 1.0)]
)
def test_sizes_shrink_when_live_precision_falls_short_of_the_promise(wins: int, trades: int, share: float) -> None:
    promise = Promise(
        artifact_id=1, version=1, promised_precision=0.6, promised_net_return=None, trades=trades, wins=wins,
        net_pnl=Decimal(0),
    )  # fmt: skip
    assert equity.performance_guard(promise) == share
    assert equity.performance_guard(None) == 1.0


# --- I20


@pytest.mark.parametrize("state", ["pause", "close_only"])
def test_i20_exits_go_on_when_people_stop_entries(world: World, state: str, person: Any) -> None:
    runner, _ = enter(world)
    services.set_desired_state(bot=world.bot, state=state, user=person)
    if state == "close_only":
        runner.tick()
        now = Order.objects.filter(purpose="exit", reason__startswith="CLOSE_ONLY")
        assert now.exists(), "not only at the next bar"
    world.pass_bars(runner, 40)
    assert not Position.objects.open().exists()
    assert not world.matching.positions()
    assert Order.objects.filter(purpose="entry", created_at__gt=world.sim.now - 39 * HOUR).count() == 0


def test_i20_exits_go_on_with_the_kill_switch_pulled_and_the_model_gone(world: World) -> None:
    runner, position = enter(world)
    services.pull_kill_switch(bot=world.bot, reason="MANUAL: by=test")
    runner.release()
    from training_app.models import ActiveModel

    ActiveModel.objects.all().delete()
    again = world.runner()
    again.tick()
    world.pass_bars(again, 30)
    position.refresh_from_db()
    assert position.closed_at is not None
    assert not Position.objects.open().exists()


@pytest.mark.parametrize("policy", ["keep", "close"])
def test_what_the_kill_switch_does_to_positions_is_a_limit_of_the_bot(world: World, person: Any, policy: str) -> None:
    Bot.objects.update(on_kill_switch=policy)
    runner, position = enter(world)
    services.pull_kill_switch(bot=Bot.objects.get(), reason="MANUAL: test", user=person)
    world.sim.advance(dt.timedelta(minutes=1))  # the next pass, in the middle of a bar
    runner.tick()
    exits = Order.objects.filter(purpose="exit", reason__startswith="KILL_SWITCH: since=")
    position.refresh_from_db()
    assert exits.exists() == (policy == "close")
    assert (position.closed_at is not None) == (policy == "close")
    if policy == "close":
        assert not Position.objects.open().exists()
        assert not world.matching.positions()
    count = Order.objects.filter(purpose="entry").count()
    world.pass_bars(runner, 3)
    assert Order.objects.filter(purpose="entry").count() == count


def test_a_stopped_bot_closes_nothing_when_its_kill_switch_is_pulled(world: World, person: Any) -> None:
    Bot.objects.update(on_kill_switch="close")
    runner, position = enter(world)
    services.set_desired_state(bot=Bot.objects.get(), state="stop", user=person)
    services.pull_kill_switch(bot=Bot.objects.get(), reason="MANUAL: test", user=person)
    world.sim.advance(dt.timedelta(minutes=1))
    runner.tick()
    assert not Order.objects.filter(purpose="exit", position=position).exists()


def test_f22_i20_without_market_data_entries_stop_time_barriers_close_and_the_loop_goes_on(
    world: World, monkeypatch: Any
) -> None:
    # The account answers; only the bot's own market data is gone.
    data = SimulatedMarket(seed=7, now_ms=clock.market_now_ms, symbols=len(world.codes), specials=False)
    runner = world.runner(data=data)
    if not runner.tick().entries:
        world.until_entry(runner)
    position = Position.objects.open().first()
    assert position is not None

    def down(*_: Any) -> Any:
        raise ExchangeUnavailableError("maintenance")

    with monkeypatch.context() as patched:
        patched.setattr(data, "candles_many", down)
        early = world.pass_bars(runner, 1)[0]
        assert early.waiting == "CANDLES", "a short outage is waited for"
        for _ in range(30):
            world.sim.advance(dt.timedelta(minutes=6))
            world.keep_fresh()
            runner.tick()
            world.sim.advance(dt.timedelta(minutes=54))
        position.refresh_from_db()
        assert position.closed_at is not None
        assert not Order.objects.filter(purpose="entry", created_at__gt=EPOCH + 4 * HOUR).exists()
    reports = world.pass_bars(runner, 2)
    assert reports[-1].replays + reports[0].replays >= 1, "parity is restored after the gap"


def test_f21_i20_an_error_of_the_account_stops_entries_and_not_the_loop(world: World, monkeypatch: Any) -> None:
    runner = world.runner()
    runner.tick()
    entries = Order.objects.filter(purpose="entry").count()
    world.venue.down = True
    reports = world.pass_bars(runner, 12)
    assert all(report.bar_at is not None for report in reports), "bars are decided all the same"
    assert Order.objects.filter(purpose="entry").count() == entries
    assert Bot.objects.get().entries_blocked.startswith("VENUE_ERROR")
    world.venue.down = False
    world.sim.advance(dt.timedelta(minutes=2))
    runner.tick()
    world.pass_bars(runner, 1)
    assert Bot.objects.get().entries_blocked == ""


def test_i20_a_block_of_one_symbol_stops_that_symbol_only(world: World) -> None:
    code = world.codes[0]
    BlockFactory(symbol=world.symbols[code], reason=BlockReason.TRAINING_FAILED, evidence="TRAINING_FAILED: run=7")
    runner = world.runner()
    runner.tick()
    world.pass_bars(runner, 20)
    of_blocked = Decision.objects.filter(symbol__code=code)
    assert set(of_blocked.values_list("reason_code", flat=True)) == {"BLOCKED"}
    assert "TRAINING_FAILED" in of_blocked[0].reason
    assert Decision.objects.exclude(symbol__code=code).filter(outcome="ENTER").exists()


def test_f27_a_delisted_symbol_is_closed_and_the_others_go_on(world: World, monkeypatch: Any) -> None:
    import dataclasses

    runner, position = enter(world)
    gone = position.symbol.code
    listed = [
        dataclasses.replace(each, active=each.symbol != gone) if each.symbol == gone else each
        for each in world.data.instruments()
    ]
    session = runner._session
    assert session is not None
    session.account.instruments = {each.symbol: each for each in listed}
    session.reconcile_at = world.sim.now + 10 * HOUR
    world.pass_bars(runner, 1)
    exit_order = Order.objects.filter(position=position, purpose="exit").first()
    assert exit_order is not None
    assert "DELISTED" in exit_order.reason


# --- people


def test_a_state_that_does_not_exist_names_the_choices(world: World, person: Any) -> None:
    with pytest.raises(TradingError, match="'runn' does not exist: choose one of run, pause, close_only, stop"):
        services.set_desired_state(bot=world.bot, state="runn", user=person)


def test_starting_with_the_kill_switch_pulled_says_what_to_do_first(world: World, person: Any) -> None:
    services.set_desired_state(bot=world.bot, state="pause", user=person)
    services.pull_kill_switch(bot=world.bot, reason="MANUAL: why=test", user=person)
    with pytest.raises(TradingError, match="reset it first"):
        services.set_desired_state(bot=world.bot, state="run", user=person)


def test_what_people_ask_is_recorded_once_with_who(world: World, person: Any) -> None:
    assert services.set_desired_state(bot=world.bot, state="pause", user=person)
    assert not services.set_desired_state(bot=world.bot, state="pause", user=UserFactory())
    events = RiskEvent.objects.filter(kind="desired_state")
    assert [(event.user, event.evidence) for event in events] == [(person, "DESIRED_STATE: was=run, now=pause")]


def test_a_stopped_bot_decides_nothing_and_keeps_its_stops(world: World, person: Any) -> None:
    runner, position = enter(world)
    services.set_desired_state(bot=world.bot, state="stop", user=person)
    decided = Decision.objects.count()
    world.sim.advance(HOUR)
    runner.tick()
    assert Decision.objects.count() == decided
    position.refresh_from_db()
    if position.closed_at is None:
        assert Order.objects.open().filter(position=position, purpose="stop").exists()


def test_the_set_up_makes_the_bot_once_with_the_limits_of_the_settings(db: None, settings: Any) -> None:
    from trading_app.setup_steps import create_bot

    settings.RISK_MAX_POSITIONS = 3
    assert create_bot() == f"bot {settings.BOT_NAME} on account simulated:{settings.BOT_NAME}"
    settings.RISK_MAX_POSITIONS = 9
    assert create_bot() == ""
    assert Bot.objects.get().max_positions == 3, "the row is the truth once it exists"
    settings.EXCHANGE_MARKET = "other"
    with pytest.raises(TradingError, match="trades simulated"):
        services.ensure_bot()

"""One answer that lies about the account's worth latches nothing; a real loss is caught a pass later."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from exchanges.port import Balance
from ops_app.clock import SimulatedClock
from tests.factories import BotFactory
from tests.trading.conftest import World
from trading_app.equity import EquityWatch
from trading_app.models import Bot, EquityPoint, RiskEvent

pytestmark = pytest.mark.django_db


class Watched:
    """A bot's watch, and what it is told in one pass after the other."""

    def __init__(self, sim: SimulatedClock) -> None:
        self.sim = sim
        self.watch = EquityWatch(BotFactory(name="main"))

    def hear(self, *amounts: float, seconds: int = 5) -> list[bool]:
        """Take in one reading per pass, `seconds` apart; returns which were believed."""
        believed = []
        for amount in amounts:
            self.sim.advance(dt.timedelta(seconds=seconds))
            believed.append(self.watch.look(amount, self.sim.now))
        return believed


@pytest.fixture
def watched(sim: SimulatedClock) -> Watched:
    made = Watched(sim)
    assert made.hear(10_000, 10_000) == [True, True]
    return made


def latched() -> dict[str, Any]:
    bot = Bot.objects.get()
    return {"kill": bot.kill_switch_at is not None, "day": bot.daily_loss_hit, "peak": bot.peak_equity}


NOTHING = {"kill": False, "day": False, "peak": 10_000.0}


@pytest.mark.parametrize("lie", [0, 5_000, 9_300, 20_000, -1])
def test_i19_an_equity_that_is_said_once_latches_nothing(watched: Watched, lie: float) -> None:
    assert watched.hear(lie) == [False]
    assert watched.watch.doubt is not None
    assert watched.watch.doubt.startswith("EQUITY_DOUBTED: read=")
    assert watched.watch.known == 10_000
    assert watched.hear(10_000, 10_000, 9_990) == [True, True, True]
    assert watched.watch.doubt is None
    assert watched.hear(lie) == [False], "a lie of long ago confirms no new one"
    assert latched() == NOTHING
    assert not RiskEvent.objects.exists()


@pytest.mark.parametrize("worth", [[7_900, 7_900], [0, 0], [7_900, 5_000, 3_000], [9_000, 0, 7_000]])
def test_f38_i19_a_real_drawdown_pulls_the_kill_switch_within_three_readings(
    watched: Watched, worth: list[float]
) -> None:
    *doubted, last = watched.hear(*worth)
    assert (any(doubted), last) == (False, True)
    assert latched()["kill"]
    assert Bot.objects.get().kill_switch_reason.startswith("DRAWDOWN")


def test_a_real_daily_loss_below_a_jump_stops_entries_at_the_second_reading(watched: Watched) -> None:
    watched.hear(9_400)
    assert latched() == NOTHING
    watched.hear(9_400)
    assert latched() == NOTHING | {"day": True}


def test_the_same_answer_in_the_same_moment_confirms_nothing(watched: Watched) -> None:
    """A reconciliation and a bar ask within one pass: a stale answer would be believed."""
    assert watched.hear(0) + watched.hear(0, 0, 0, 0, seconds=0) == [False] * 5
    watched.hear(10_000)
    assert latched() == NOTHING


def test_a_deposit_counts_from_the_second_reading_on(watched: Watched) -> None:
    assert watched.hear(20_000, 20_000) == [False, True]
    assert latched() == NOTHING | {"peak": 20_000.0}


def test_after_a_restart_the_newest_equity_of_the_curve_is_what_a_reading_is_compared_with(watched: Watched) -> None:
    EquityPoint.objects.create(bot=watched.watch.bot, at=watched.sim.now, equity=10_000.0, cash=0.0)
    watched.watch = EquityWatch(Bot.objects.get())
    assert watched.hear(5_000, 10_000) == [False, True]
    assert latched() == NOTHING


def test_a_first_answer_of_all_that_lied_leaves_no_peak_behind(sim: SimulatedClock) -> None:
    watched = Watched(sim)
    assert watched.hear(20_000, 10_000, 10_000, 10_000) == [True, False, True, True]
    assert latched() == NOTHING
    assert Bot.objects.get().day_start_equity == 10_000


def test_an_account_without_money_pulls_no_kill_switch(sim: SimulatedClock) -> None:
    watched = Watched(sim)
    assert watched.hear(0, 0, 0, 0) == [False] * 4
    assert latched() == NOTHING | {"peak": None}
    assert watched.hear(10_000, 10_000) == [True, True]
    assert latched() == NOTHING


def test_while_it_is_doubted_a_bar_opens_nothing_and_one_pass_later_it_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    amount = 10_000
    monkeypatch.setattr(world.venue, "balance", lambda: Balance("USDT", Decimal(amount), Decimal(amount)))
    runner = world.runner()
    runner.tick()
    amount = 0
    world.pass_bars(runner, 1)
    assert Bot.objects.get().entries_blocked.startswith("EQUITY_DOUBTED: read=0")
    amount = 10_000
    world.sim.advance(dt.timedelta(seconds=5))
    assert runner.tick().reconciled, "it is asked again soon, not in five minutes"
    world.pass_bars(runner, 1)
    assert Bot.objects.get().entries_blocked == ""
    assert latched() == NOTHING
    assert set(EquityPoint.objects.values_list("equity", flat=True)) == {10_000.0}

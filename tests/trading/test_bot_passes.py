"""Passes of the bot on a simulated market: what a pass does, and above all what it does not do."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from coverage_app.services.universe import held_codes
from ops_app import clock, leases
from ops_app.models import Event
from quant.timeframes import to_ms
from tests.factories import EPOCH
from tests.trading import venues
from tests.trading.conftest import HOUR, MINUTE, StandIn, World
from trading_app.bot import pass_interval
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Bot, Decision, EquityPoint, Order, Position

pytestmark = pytest.mark.django_db

WALK = re.compile(
    r"SCAN trading_app_(order|position|fill|decision|equitypoint)\b"
    r"|USING (COVERING )?INDEX (?!one_open_position|trading_app_bot)\w+ \(bot_id=\?\)"
)
"""How SQLite says that it reads what is over: a table from end to end, or all that a bot ever had in one."""


def test_f24_a_bar_is_decided_once_for_every_symbol_with_a_reason(world: World) -> None:
    runner = world.runner()
    first, second = runner.tick(), runner.tick()
    assert first.bar_at == EPOCH - HOUR
    assert first.decisions == len(world.codes)
    assert second.bar_at is None
    rows = Decision.objects.all()
    assert sorted(row.symbol.code for row in rows) == sorted(world.codes)
    assert all(row.reason and row.reason_code for row in rows)
    assert EquityPoint.objects.get().equity == pytest.approx(10_000)


def test_an_entry_is_filled_protected_and_exits(world: World) -> None:
    runner = world.runner()
    world.until_entry(runner)
    entry = Order.objects.filter(purpose=OrderPurpose.ENTRY).first()
    assert entry is not None
    assert entry.decision is not None
    assert entry.decision.outcome == "ENTER"
    assert entry.state in (OrderState.FILLED, OrderState.CANCELLED)
    position = entry.position
    assert position is not None
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED)
    assert (stop.quantity, stop.side) == (abs(position.quantity), "sell" if position.side > 0 else "buy")
    for _ in range(60):
        world.pass_bars(runner, 1)
        position.refresh_from_db()
        if position.closed_at is not None:
            break
    assert position.closed_at is not None, "a position outlives its time barrier"
    assert position.quantity == 0
    assert position.close_reason
    assert not Order.objects.open().filter(position=position).exists()
    venue_positions = {each.symbol for each in world.matching.positions()}
    assert {row.symbol.code for row in Position.objects.open()} == venue_positions


def test_a_pass_that_waits_to_close_a_position_is_not_idle(make_world: Any) -> None:
    """It asks for fills and looks at the stops each time: 8 queries that no idle pass may cost."""
    world: World = make_world()
    world.activate()
    runner = world.runner()
    if not runner.tick().entries:
        world.until_entry(runner)
    world.venue.faults = [venues.rejected] * 50
    Bot.objects.update(desired_state="close_only")
    reports = []
    for _ in range(10):
        world.sim.advance(dt.timedelta(minutes=1))
        with CaptureQueriesContext(connection) as queries:
            report = runner.tick()
        reports.append(report)
        assert len(queries) <= 3 or not report.idle
    assert any(report.following and not report.orders_sent for report in reports)


@pytest.mark.parametrize("n_symbols", [40, 500])
def test_i9_an_idle_pass_is_three_queries_and_loads_nothing_for_any_number_of_symbols(
    n_symbols: int, make_world: Any
) -> None:
    from tests.factories import SymbolFactory

    world: World = make_world()
    SymbolFactory.create_batch(n_symbols - len(world.codes))
    world.activate(StandIn(world.codes, world.codes, probability=0.0))
    runner = world.runner()
    assert runner.tick().models_loaded == 1
    for seconds in (1, 6):  # without and with a heartbeat
        world.sim.advance(dt.timedelta(seconds=seconds))
        with CaptureQueriesContext(connection) as queries:
            report = runner.tick()
        assert report.idle
        assert len(queries) <= 3, [query["sql"] for query in queries]
    assert len(world.load.loads) == 1


def test_i9_a_model_is_loaded_only_when_its_generation_changes(world: World) -> None:
    runner = world.runner()
    runner.tick()
    world.pass_bars(runner, 5)
    assert len(world.load.loads) == 1
    new = world.activate()
    report = runner.tick()
    assert (report.models_loaded, report.replays) == (1, 0), "the same panel needs no replay"
    world.pass_bars(runner, 2)
    assert len(world.load.loads) == 2
    bot = Bot.objects.get()
    assert (bot.loaded_generation, bot.reloads) == (new.generation, 2)


def test_a_bot_that_was_down_decides_the_newest_bar_only_and_records_the_others(world: World) -> None:
    killed = world.runner(lease_ttl=dt.timedelta(seconds=20))
    killed.tick()
    world.sim.advance(10 * HOUR)
    world.keep_fresh()
    runner = world.runner()
    assert runner.tick().waiting == "RECEIVE_WINDOW", "a new owner waits until nothing of the old one can be accepted"
    world.sim.advance(dt.timedelta(seconds=7))
    report = runner.tick()
    assert report.missed_bars == 9
    assert Decision.objects.values("bar_at").distinct().count() == 2
    assert Event.objects.filter(kind="bars_missed").count() == 1
    assert Bot.objects.get().missed_bars == 9


def test_b6_client_order_ids_are_short_alphanumeric_unique_and_carry_account_token_and_row(world: World) -> None:
    runner = world.runner()
    world.until_entry(runner)
    ids = [request.client_order_id for request in world.venue.placed]
    assert len(set(ids)) == len(ids)
    assert all(len(each) <= 18 and each.isalnum() for each in ids)
    rows = {order.client_order_id: order for order in Order.objects.all()}
    assert all(int(each[-7:], 36) == rows[each].pk for each in ids)
    assert all(int(each[6:10], 36) == rows[each].fencing_token for each in ids)


def test_a_size_below_the_minimum_is_refused_before_it_is_sent(world: World, monkeypatch: Any) -> None:
    huge = [dataclasses.replace(each, min_notional=Decimal(10**9)) for each in world.data.instruments()]
    monkeypatch.setattr(world.data, "instruments", lambda: huge)
    runner = world.runner()
    runner.tick()
    world.pass_bars(runner, 24)
    refused = Decision.objects.filter(reason_code="TOO_SMALL").first()
    assert refused is not None
    assert refused.outcome == "REFUSED"
    assert "min_notional" in refused.reason
    assert not world.venue.placed


def test_f22_the_bar_waits_for_a_late_candle_and_then_decides_without_it(world: World, monkeypatch: Any) -> None:
    runner = world.runner()
    runner.tick()
    missing = world.codes[0]
    real = world.data.candles_many

    def without_one(symbols: Any, *args: Any) -> Any:
        return real([symbol for symbol in symbols if symbol != missing], *args)

    world.sim.now = EPOCH + HOUR + dt.timedelta(seconds=5)
    world.keep_fresh()
    monkeypatch.setattr(world.data, "candles_many", without_one)
    early = runner.tick()
    assert early.bar_at is None
    assert early.waiting.startswith("CANDLES")
    world.sim.advance(MINUTE)
    late = runner.tick()
    assert late.bar_at == EPOCH
    outcome = Decision.objects.get(bar_at=EPOCH, symbol__code=missing)
    assert (outcome.outcome, outcome.reason_code) == ("NO_DATA", "NO_CANDLE")
    others = Decision.objects.filter(bar_at=EPOCH).exclude(symbol__code=missing)
    assert others.count() == len(world.codes) - 1
    assert not others.filter(outcome="NO_DATA").exists()


def test_f23_a_late_candle_changes_no_decision_and_brings_the_features_back_to_parity(
    world: World, monkeypatch: Any
) -> None:
    runner = world.runner()
    runner.tick()
    missing = world.codes[0]
    real = world.data.candles_many
    with monkeypatch.context() as patched:
        patched.setattr(
            world.data,
            "candles_many",
            lambda symbols, *args: real([each for each in symbols if each != missing], *args),
        )
        world.pass_bars(runner, 1)
    before = list(Decision.objects.filter(bar_at=EPOCH).values_list("symbol", "outcome", "reason", "probability"))
    (report,) = world.pass_bars(runner, 1)
    assert report.replays == 1
    assert before == list(
        Decision.objects.filter(bar_at=EPOCH).values_list("symbol", "outcome", "reason", "probability")
    )
    feed = runner.trader.feed
    assert feed is not None
    assert feed.stale == ""
    assert world.pass_bars(runner, 1)[0].replays == 0
    assert to_ms(EPOCH) < (feed.last_open_ms or 0)


def test_a_bar_whose_decisions_could_not_be_written_is_decided_at_the_next_pass(world: World, monkeypatch: Any) -> None:
    runner = world.runner()
    runner.tick()
    decided = Decision.objects.count()

    def lost(lease: Any) -> None:
        raise leases.LeaseLost("paused for too long")

    with monkeypatch.context() as patched:
        patched.setattr("trading_app.bar.leases.keep", lost)
        (cut_off,) = world.pass_bars(runner, 1)
    assert (cut_off.lease, cut_off.orders_sent) == ("lost", 0)
    assert Decision.objects.count() == decided
    report = runner.tick()
    assert (report.lease, report.bar_at) == ("taken", EPOCH)
    assert Decision.objects.count() == decided + len(world.codes)
    assert not Decision.objects.filter(bar_at=EPOCH, outcome="NO_DATA").exists()


@pytest.mark.parametrize("speed, seconds", [(1, 60.0), (60, 1.0), (900, 1.0), (3600, 0.25), (100_000, 0.1)])
def test_passes_are_so_frequent_that_no_bar_closes_between_two_of_them(
    settings: Any, monkeypatch: pytest.MonkeyPatch, speed: float, seconds: float
) -> None:
    settings.TIMEFRAME, settings.BOT_INTERVAL = "1h", 0.0
    monkeypatch.setattr(clock, "speed", lambda: speed)
    assert pass_interval() == pytest.approx(seconds)


def test_a_bar_and_the_look_at_the_universe_walk_through_nothing_that_is_over(world: World) -> None:
    """Orders, fills and decisions stay for months: who reads them all costs more every day."""
    runner = world.runner()
    world.until_entry(runner)
    with CaptureQueriesContext(connection) as queries:
        world.pass_bars(runner, 3)
        held_codes("simulated")
    asked = {each["sql"] for each in queries.captured_queries if each["sql"].startswith(("SELECT", "UPDATE", "DELETE"))}
    assert any("trading_app_order" in sql for sql in asked)
    walks = dict[str, str]()
    with connection.cursor() as cursor:
        for sql in asked if connection.vendor == "sqlite" else ():  # PostgreSQL plans by what the tables hold
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
            plan = "; ".join(row[3] for row in cursor.fetchall())
            if WALK.search(plan):
                walks[sql] = plan
    assert walks == {}

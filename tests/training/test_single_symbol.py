"""A run per symbol: planned with a constant number of statements, trained by several workers, found by one query."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from coverage_app.models import Symbol
from ops_app.clock import SimulatedClock
from ops_app.models import Event
from ops_app.queue import Message
from tests.factories import MARKET, SymbolFactory, TrainingRunFactory
from tests.training.conftest import finish, make_result
from training_app import selectors, services
from training_app.choices import RunTrigger
from training_app.models import ActiveModel, RunSymbol, TrainingRun, TrainingScope
from training_app.services.requests import RINGS_AT_ONCE, Wish, request_runs

pytestmark = pytest.mark.django_db

MANY = 200


@pytest.fixture(autouse=True)
def _mode(settings: Any) -> None:
    settings.TRAINING_MODE = "single_symbol"


def listed(count: int) -> list[Symbol]:
    """Make `count` ready symbols."""
    some = SymbolFactory.build()
    fields = {field.attname: getattr(some, field.attname) for field in Symbol._meta.concrete_fields}
    codes = [f"S{number:04d}/USDT:USDT" for number in range(count)]
    Symbol.objects.bulk_create([Symbol(**{**fields, "id": None, "code": code}) for code in codes])
    return list(Symbol.objects.order_by("pk"))


def statements(work: Any) -> tuple[int, Any]:
    with CaptureQueriesContext(connection) as captured:
        result = work()
    return len(captured), result


def train(run_id: int, worker: str, *, passed: bool = True) -> bool:
    claim = services.claim(run_id, worker)
    if claim is None:
        return False
    codes = TrainingRun.objects.get(pk=run_id).run_symbols.values_list("symbol__code", flat=True)
    finish(claim, make_result(list(codes), market_wide=False, passed=passed))
    return True


def test_200_scopes_are_planned_with_as_many_statements_as_20(sim: SimulatedClock, sent: list[Message]) -> None:
    listed(20)
    few, runs = statements(services.plan)
    assert len(runs) == 20
    RunSymbol.objects.all().delete()
    TrainingRun.objects.all().delete()
    TrainingScope.objects.all().delete()
    Symbol.objects.all().delete()
    sent.clear()
    listed(MANY)
    many, runs = statements(services.plan)
    assert len(runs) == MANY
    assert many <= few + 8, "only Django's own bulk_create of scopes goes in steps"
    assert {run.trigger for run in runs} == {RunTrigger.NO_MODEL}
    assert {run.run_no for run in runs} == {1}
    assert TrainingScope.objects.filter(run_seq=1).count() == RunSymbol.objects.filter(open=True).count() == MANY
    assert Event.objects.filter(kind="run_requested").count() == MANY + 20
    assert all(run.needs_memory_mb > 0 for run in runs)
    assert [message.args[0] for message in sent] == [run.pk for run in runs[:RINGS_AT_ONCE]]


def test_200_idle_scopes_cost_what_3_cost_a_minute(sim: SimulatedClock, sent: list[Message]) -> None:
    listed(MANY)
    services.plan()
    counts = []
    for _ in range(3):
        sim.advance(dt.timedelta(minutes=1))
        count, runs = statements(services.plan)
        assert runs == []
        counts.append(count)
    assert max(counts[1:]) <= 7
    assert statements(services.plan_waiting) == (1, 0)


def test_runs_that_nobody_was_rung_for_are_rung_by_the_sweeper_or_found_by_a_worker_that_ends_another(
    sim: SimulatedClock, sent: list[Message]
) -> None:
    listed(RINGS_AT_ONCE + 3)
    runs = services.plan()
    for run in runs[:RINGS_AT_ONCE]:
        assert train(run.pk, "worker")
    assert services.next_claimable() == runs[RINGS_AT_ONCE].pk
    sent.clear()
    assert services.sweep()["rung"] == 3
    assert [message.args[0] for message in sent] == [run.pk for run in runs[RINGS_AT_ONCE:]]


def test_three_workers_share_the_runs_and_the_bot_finds_what_changed_by_one_generation(
    sim: SimulatedClock, sent: list[Message]
) -> None:
    symbols = listed(12)
    services.plan()
    done = dict.fromkeys(("a", "b", "c"), 0)
    seen = 0
    rejected = symbols[5].code
    while (run_id := services.next_claimable()) is not None:
        worker = min(done, key=lambda name: done[name])
        code = TrainingRun.objects.get(pk=run_id).run_symbols.get().symbol.code
        assert train(run_id, worker, passed=code != rejected)
        assert not train(run_id, "late"), "whoever comes late finds nothing"
        done[worker] += 1
        changed = selectors.changed_since(seen)
        assert [slot.symbols for slot in changed] == ([] if code == rejected else [(code,)])
        seen = max([seen, *(slot.generation for slot in changed)])
    assert set(done.values()) == {4}
    assert ActiveModel.objects.count() == 11
    assert {slot.symbols[0] for slot in selectors.changed_since(0)} == {each.code for each in symbols} - {rejected}
    count, changed = statements(lambda: selectors.changed_since(seen))
    assert (count, changed) == (1, [])
    assert services.plan() == []


def test_i1_i5_hold_for_each_scope_of_a_batch(sim: SimulatedClock, sent: list[Message]) -> None:
    symbols = listed(6)
    elsewhere = TrainingRunFactory(scope__key="other", scope__market=MARKET)
    RunSymbol.objects.create(run=elsewhere, symbol=symbols[0])
    scopes = [services.ensure_scope(market=MARKET, symbol=symbol) for symbol in symbols]
    services.request_run(scope=scopes[1], trigger="manual", cause="MANUAL: user=ada", symbols=[symbols[1].pk])
    wishes = [
        Wish(scope=scope, trigger="no_model", cause="NO_MODEL: made_by=test", symbols=[symbol.pk])
        for scope, symbol in zip(scopes, symbols, strict=True)
    ]
    runs = request_runs(wishes)
    assert [run.scope_id for run in runs] == [scope.pk for scope in scopes[2:]]
    assert request_runs(wishes) == []
    for scope in scopes:
        scope.refresh_from_db()
    assert [scope.run_seq for scope in scopes] == [0, 1, 1, 1, 1, 1]
    for run in runs:
        assert train(run.pk, "worker")
    assert services.plan() == []
    sim.advance(dt.timedelta(hours=5))
    Symbol.objects.update(last_candle_at=sim.now)
    assert services.plan() == []

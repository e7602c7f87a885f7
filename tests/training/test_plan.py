"""What trains when, and that nothing loops (I4, I5, I12, R3)."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from coverage_app import services as coverage
from coverage_app.models import Block, Symbol
from ops_app.clock import SimulatedClock
from ops_app.queue import Message
from tests.factories import BlockFactory, SymbolFactory, UserFactory
from tests.training.conftest import finish, ids, make_result, train_model
from training_app import execution, services
from training_app.choices import RunState, RunTrigger
from training_app.exceptions import RunRefused
from training_app.models import ModelArtifact, TrainingRun, TrainingScope

pytestmark = pytest.mark.django_db

MINUTE, HOUR, DAY = dt.timedelta(minutes=1), dt.timedelta(hours=1), dt.timedelta(days=1)


def minutes(sim: SimulatedClock, count: int, *, step: dt.timedelta = MINUTE) -> list[TrainingRun]:
    """Plan once a minute, as the job does; return all runs that were requested."""
    runs = []
    for _ in range(count):
        runs += services.plan()
        sim.advance(step)
    return runs


def publish(run: TrainingRun, **changes: Any) -> ModelArtifact:
    claim = services.claim(run.pk, "worker")
    assert claim is not None
    codes = list(run.run_symbols.order_by("symbol__code").values_list("symbol__code", flat=True))
    return finish(claim, make_result(codes, **changes))


def test_nothing_ready_means_no_scope_and_no_run(sim: SimulatedClock, sent: list[Message], db: None) -> None:
    SymbolFactory(in_universe=False)
    BlockFactory(symbol=SymbolFactory(), reason="SHORT_HISTORY")
    assert minutes(sim, 3) == []
    assert not TrainingScope.objects.exists()


def test_the_first_model_is_asked_for_once_when_no_more_symbols_come(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    assert minutes(sim, 5) == []
    late = SymbolFactory()
    assert minutes(sim, 9) == []  # the newcomer is waited for
    runs = minutes(sim, 60)
    assert [run.trigger for run in runs] == [RunTrigger.NO_MODEL]
    assert set(runs[0].run_symbols.values_list("symbol", flat=True)) == {*ids(symbols), late.pk}


def test_a_plan_that_waited_is_made_as_soon_as_its_time_has_come_without_a_slot(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    assert services.plan_waiting() == 0, "nobody has looked yet, so nothing waits"
    assert services.plan() == []
    waits_until = TrainingScope.objects.get().not_before
    assert waits_until is not None
    sim.advance(waits_until - sim.now - dt.timedelta(seconds=1))
    assert services.plan_waiting() == 0
    sim.advance(dt.timedelta(seconds=1))
    assert services.plan_waiting() == 1
    assert services.plan_waiting() == 0, "the run is open: there is nothing to wait for"


def test_symbols_that_keep_coming_cannot_put_a_run_off_for_ever(
    sim: SimulatedClock, sent: list[Message], db: None
) -> None:
    runs: list[TrainingRun] = []
    for _ in range(45):
        SymbolFactory()
        runs += minutes(sim, 1)
    assert len(runs) == 1


def test_i5_new_symbols_wait_for_the_next_run_of_the_scope(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    (first,) = minutes(sim, 11)
    publish(first)
    SymbolFactory()
    assert minutes(sim, 20 * 5, step=3 * MINUTE) == []
    SymbolFactory()
    (second,) = minutes(sim, 20 * 2, step=3 * MINUTE)
    assert second.trigger == RunTrigger.NEW_SYMBOLS
    assert second.run_symbols.count() == 5
    started = TrainingRun.objects.get(pk=first.pk).started_at
    assert second.created_at - started >= 6 * HOUR


def test_a_model_is_retrained_at_its_age_and_not_before(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    model = train_model(scope, symbols)
    sim.advance(7 * DAY - HOUR)
    assert minutes(sim, 59) == []
    runs = minutes(sim, 10)
    assert [run.trigger for run in runs] == [RunTrigger.SCHEDULED]
    assert runs[0].created_at - model.created_at >= 7 * DAY


def test_i4_a_scope_whose_model_is_refused_again_and_again_trains_ever_more_rarely(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    """Thirty days of a market in which nothing can be learnt: a handful of runs, not one a minute."""
    runs: list[TrainingRun] = []
    for _ in range(30 * 8):
        coverage.evaluate_due()  # closes the blocks whose back-off is over
        for run in services.plan():
            publish(run, passed=False)
            runs.append(run)
        sim.advance(3 * HOUR)
        Symbol.objects.update(last_candle_at=sim.now - HOUR)
    gaps = [later.created_at - earlier.created_at for earlier, later in itertools.pairwise(runs)]
    assert 4 <= len(runs) <= 9
    assert gaps == sorted(gaps)
    assert {run.trigger for run in runs} == {RunTrigger.NO_MODEL}


def test_r3b_one_symbol_that_fails_does_not_hold_up_the_others(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    settings.TRAINING_MODE = "single_symbol"
    runs = {run.scope.symbol: run for run in minutes(sim, 1)}
    assert set(runs) == set(symbols)
    bad, *good = symbols
    claim = services.claim(runs[bad].pk, "worker")
    assert claim is not None
    services.fail(claim, "ValueError: broken", final=True)
    for symbol in good:
        publish(runs[symbol], market_wide=False)
    again = []
    for _ in range(24 * 3):
        coverage.evaluate_due()
        again += services.plan()
        sim.advance(20 * MINUTE)
        Symbol.objects.update(last_candle_at=sim.now - HOUR)
    assert [run.scope.symbol for run in again] == [bad]  # again after its back-off, long before 24 h
    assert again[0].created_at - runs[bad].created_at < 7 * HOUR


def test_r3a_a_symbol_with_thirty_candles_is_refused_with_a_reason_and_not_tried_in_a_loop(
    sim: SimulatedClock, sent: list[Message], stored_market: Any, small_training: None
) -> None:
    stored_market(n_symbols=1, days=2)
    runs = minutes(sim, 11)
    assert len(runs) == 1
    done = execution.execute(runs[0].pk, "worker")
    assert done is not None
    assert done.state == RunState.FAILED
    run = TrainingRun.objects.get()
    assert run.attempt == 1  # another attempt on the same candles would say the same
    assert run.error.startswith("TOO_FEW_SAMPLES")
    block = Block.objects.open().get()
    assert "TOO_FEW_SAMPLES" in block.evidence
    assert block.recheck_at >= sim.now + 6 * HOUR - MINUTE
    assert minutes(sim, 5 * 20, step=3 * MINUTE) == []


def test_r3c_a_symbol_with_too_little_history_is_left_out_with_a_reason(
    scope: TrainingScope, sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    """200 candles where 90 days are asked for: coverage blocks it, with the time at which it will be long enough."""
    settings.HISTORY_MIN_DAYS = 90
    short = SymbolFactory(
        history_start=sim.now - 200 * HOUR, history_days=8.3, candle_count=200, expected_count=200,
        last_evaluated_at=None, next_evaluation_at=None,
    )  # fmt: skip
    coverage.evaluate_due()
    block = Block.objects.open().get(symbol=short)
    assert block.reason == "SHORT_HISTORY"
    assert "enough_at" in block.evidence
    assert minutes(sim, 30) == []
    with pytest.raises(RunRefused, match="NOTHING_TO_TRAIN"):
        services.train_now()


def test_a_person_gets_a_run_at_once_that_waits_as_long_as_it_must(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    train_model(scope, symbols)
    user = UserFactory(username="ada")
    sim.advance(HOUR)
    (run,) = services.train_now(user=user)
    assert run.not_before == sim.now + 5 * HOUR
    assert (run.trigger, run.requested_by) == (RunTrigger.MANUAL, user)
    assert "user=ada" in run.cause
    assert services.train_now(user=user) == [run]


def test_a_person_who_asks_when_nothing_is_ready_is_told_why(
    scope: TrainingScope, sim: SimulatedClock, sent: list[Message]
) -> None:
    with pytest.raises(RunRefused, match="NOTHING_TO_TRAIN"):
        services.train_now(user=UserFactory())


def test_a_person_may_train_some_symbols_of_single_symbol_mode(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    settings.TRAINING_MODE = "single_symbol"
    runs = services.train_now(symbols=[symbols[1].pk])
    assert [run.scope.symbol for run in runs] == [symbols[1]]


def test_a_run_that_waits_for_settings_that_changed_is_called_off_not_trained(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    (run,) = minutes(sim, 11)
    settings.TRAINING_MODE = "single_symbol"
    assert services.plan() == []  # its symbols are in an open run (I1)
    done = execution.execute(run.pk, "worker")
    assert done is not None
    assert done.state == RunState.CANCELLED
    coverage.evaluate_due()
    assert len(services.plan()) == 3


@pytest.mark.parametrize("mode, queries", [("multi_symbol", 7), ("single_symbol", 7)])
def test_an_idle_plan_reads_a_constant_number_of_times_and_writes_nothing(
    mode: str, queries: int, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    settings.TRAINING_MODE = mode
    for run in minutes(sim, 11):
        publish(run, market_wide=mode == "multi_symbol")
    services.plan()
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as captured:
            assert services.plan() == []
        assert {query["sql"].split()[0] for query in captured} == {"SELECT"}
        counts.append(len(captured))
        for index in range(20):
            symbol = SymbolFactory()
            BlockFactory(symbol=symbol, reason="SHORT_HISTORY", recheck_at=sim.now + DAY + index * HOUR)
    assert counts[0] == counts[1] <= queries


def test_the_scope_says_why_it_does_not_train(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    services.plan()
    scope.refresh_from_db()
    assert scope.decision.startswith("DEBOUNCE: cause=NO_MODEL")
    assert scope.not_before == sim.now + 10 * MINUTE
    (run,) = minutes(sim, 11)
    publish(run)
    services.plan()
    scope.refresh_from_db()
    assert scope.decision.startswith("NOT_YET_SCHEDULED")

"""The state of every symbol, derived by a constant number of reads, with a reason (DESIGN, section 5; I11)."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from coverage_app.choices import BlockReason
from coverage_app.models import Symbol
from ops_app.clock import SimulatedClock
from ops_app.queue import Message
from tests.factories import EPOCH, HOUR, MARKET, BlockFactory, SymbolFactory
from tests.training.conftest import request, train_model
from training_app import selectors, services
from training_app.models import ModelArtifact, TrainingScope
from training_app.selectors import State, SymbolState

pytestmark = pytest.mark.django_db


def state_of(symbol: Symbol) -> SymbolState:
    (state,) = selectors.symbol_states(ids=[symbol.pk])
    return state


def test_a_covered_fresh_unblocked_symbol_is_tradable_and_says_by_which_model(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    artifact = train_model(scope, symbols)
    state = state_of(symbols[0])
    assert (state.state, state.tradable, state.training) == (State.TRADABLE, True, False)
    assert (state.artifact_id, state.artifact_version, state.reason) == (artifact.pk, artifact.version, "")


def test_a_tradable_symbol_in_an_open_run_stays_tradable_and_shows_both(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    train_model(scope, symbols)
    run = request(scope, symbols)
    claim = services.claim(run.pk, "worker")
    assert claim is not None
    services.heartbeat(claim, 0.4, "fold 2 of 3")
    state = state_of(symbols[0])
    assert (state.state, state.tradable, state.training) == (State.TRADABLE, True, True)
    assert (state.run_id, state.run_progress, state.run_stage) == (run.pk, 0.4, "fold 2 of 3")


def test_a_symbol_in_a_run_without_a_model_is_training(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    state = state_of(symbols[0])
    assert (state.state, state.reason) == (State.TRAINING, "IN_RUN")
    assert f"run={run.pk}" in state.evidence


def test_a_symbol_that_is_blocked_while_it_is_in_a_run_is_blocked_and_names_the_run(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    BlockFactory(symbol=symbols[0], reason="MANUAL", evidence="MANUAL: why=odd", permanent=True, recheck_at=None)
    state = state_of(symbols[0])
    assert (state.state, state.reason, state.permanent) == (State.BLOCKED, "MANUAL", True)
    assert (state.training, state.run_id) == (True, run.pk)
    assert state_of(symbols[1]).state == State.TRAINING


def test_what_a_run_does_is_said_in_words(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    assert selectors.standing(run, now=sim.now) == "waits for a worker"
    assert selectors.standing(run, now=run.not_before - HOUR).startswith("waits until 2025-06-01 00:00 (market time)")
    claim = services.claim(run.pk, "worker")
    assert claim is not None
    services.heartbeat(claim, 0.4, "fold 2 of 3")
    run.refresh_from_db()
    assert selectors.standing(run, now=sim.now) == "is running: fold 2 of 3, 40%"


def test_a_ready_symbol_without_a_model_is_trainable_and_says_what_it_waits_for(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    services.plan()
    state = state_of(symbols[0])
    assert (state.state, state.reason) == (State.TRAINABLE, "DEBOUNCE")
    assert state.recheck_at == sim.now + dt.timedelta(minutes=10)


@pytest.mark.parametrize("reason", BlockReason.values)
def test_every_open_block_stops_trading_and_is_the_reason(
    reason: str, scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    train_model(scope, symbols)
    block = BlockFactory(symbol=symbols[0], reason=reason, evidence=f"{reason}: why=test")
    state = state_of(symbols[0])
    assert (state.state, state.tradable, state.covered) == (State.BLOCKED, False, True)
    assert (state.reason, state.evidence, state.recheck_at) == (reason, f"{reason}: why=test", block.recheck_at)
    assert state_of(symbols[1]).tradable


def test_a_permanent_block_is_named_before_all_others(symbols: list[Symbol], sim: SimulatedClock) -> None:
    BlockFactory(symbol=symbols[0], reason="SHORT_HISTORY")
    BlockFactory(symbol=symbols[0], reason="MANUAL", permanent=True, recheck_at=None)
    state = state_of(symbols[0])
    assert (state.reason, state.permanent, state.recheck_at) == ("MANUAL", True, None)
    assert [block.reason for block in state.blocks] == ["MANUAL", "SHORT_HISTORY"]


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"last_evaluated_at": None}, "NOT_EVALUATED"),
        ({"in_universe": False, "universe_reason": "volume too small"}, "NOT_IN_UNIVERSE"),
        ({"last_candle_at": EPOCH - 5 * HOUR}, "STALE_DATA"),
        ({"last_candle_at": None}, "STALE_DATA"),
    ],
)
def test_what_the_next_evaluation_would_find_stops_trading_at_once(
    changes: dict[str, Any],
    reason: str,
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
) -> None:
    train_model(scope, symbols)
    Symbol.objects.filter(pk=symbols[0].pk).update(**changes)
    state = state_of(symbols[0])
    assert (state.state, state.reason) == (State.BLOCKED, reason)


@pytest.mark.parametrize(
    "broken",
    [{"integrity_error": "cut off"}, {"retired_at": EPOCH}, {"schema_hash": "x"}, {"signal": "x"}, {"label_hash": "x"}],
)
def test_i11_a_model_that_may_not_serve_covers_nothing(
    broken: dict[str, Any], scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    artifact = train_model(scope, symbols)
    ModelArtifact.objects.filter(pk=artifact.pk).update(**broken)
    assert not any(state.covered or state.tradable for state in selectors.symbol_states())


def test_a_model_of_another_mode_covers_nothing(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    train_model(scope, symbols)
    settings.TRAINING_MODE = "single_symbol"
    assert selectors.active_models() == []
    assert not any(state.covered for state in selectors.symbol_states())


def test_states_of_many_symbols_cost_as_many_reads_as_those_of_three(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    train_model(scope, symbols)
    request(scope, symbols)
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as captured:
            states = selectors.symbol_states(MARKET)
        counts.append(len(captured))
        for _ in range(50):
            BlockFactory(symbol=SymbolFactory())
    assert counts == [6, 6]
    assert [state.code for state in states] == sorted(state.code for state in states)
    assert selectors.state_counts(states) == {"TRADABLE": 3, "TRAINING": 0, "TRAINABLE": 0, "BLOCKED": 50}


def test_every_state_that_is_not_tradable_has_a_reason(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    SymbolFactory(fresh=True)
    BlockFactory(symbol=symbols[0])
    request(scope, symbols[1:2])
    for state in selectors.symbol_states():
        assert state.reason
        assert state.evidence.startswith(state.reason)

"""The search for hyper-parameters inside a run: rows under the token, what is counted and shown, what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from coverage_app.models import Symbol
from ops_app import doctor
from ops_app.clock import SimulatedClock
from ops_app.doctor import Level
from ops_app.queue import Message
from quant.compatibility import RefusalCode
from quant.pipeline import Look
from quant.tuning import SEARCH_SPACE, Trial
from quant.tuning import TrialState as TrialOutcome
from tests.factories import UserFactory
from tests.training.conftest import request, train_model
from tradingsite import setup_steps
from tradingsite.options import load_options
from tradingsite.permissions import VIEWER
from training_app import artifacts, checks, doctor_checks, execution, registry, services
from training_app import retention as training_retention
from training_app.choices import RunState, TrialState
from training_app.exceptions import RunLost
from training_app.models import ModelArtifact, TrainingRun, TrainingScope, TuningTrial

pytestmark = pytest.mark.django_db

StoreMarket = Callable[..., list[Symbol]]
TRIALS = 3


def trial(number: int, **changes: Any) -> Trial:
    fields = {"params": {"num_leaves": 7}, "state": TrialOutcome.COMPLETE, "value": 0.01, "sharpe": 0.1, "seconds": 2.5}
    return Trial(number=number, **(fields | changes))


def claim(run: TrainingRun, owner: str = "worker") -> services.Claim:
    claimed = services.claim(run.pk, owner)
    assert claimed is not None
    return claimed


def written() -> list[tuple[int, int]]:
    return list(TuningTrial.objects.order_by("attempt", "number").values_list("attempt", "number"))


@pytest.fixture
def asked(
    sim: SimulatedClock,
    sent: list[Message],
    scope: TrainingScope,
    stored_market: StoreMarket,
    small_training: None,
    settings: Any,
) -> TrainingRun:
    """A run of real candles whose training searches."""
    settings.TRAIN_TUNING_TRIALS = TRIALS
    return request(scope, stored_market(n_symbols=6))


def execute(run: TrainingRun) -> ModelArtifact:
    done = execution.execute(run.pk, "test-worker")
    assert done is not None
    assert done.state in (RunState.SUCCEEDED, RunState.REJECTED), done.text
    return ModelArtifact.objects.get(run=run)


# --- earlier models that looked at the window ---


def test_a_model_that_took_no_trade_is_a_look_at_its_window_and_has_no_ratio(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    train_model(scope, symbols, passed=False)
    ModelArtifact.objects.update(metrics={"windows": {"test_start_ms": 1, "test_end_ms": 2}, "test": {"sharpe": None}})
    assert execution._looks(TrainingRun.objects.get()) == [Look(test_start_ms=1, test_end_ms=2, sharpe=None)]


# --- a training that searches ---


def test_every_trial_is_a_row_is_counted_by_the_gate_and_what_was_chosen_is_in_the_artifact(
    asked: TrainingRun, sim: SimulatedClock, sent: list[Message]
) -> None:
    artifact = execute(asked)
    rows = list(TuningTrial.objects.filter(run=asked).order_by("number"))
    assert [row.number for row in rows] == list(range(TRIALS))
    assert {(row.fencing_token, row.attempt, row.state) for row in rows} == {(artifact.fencing_token, 1, "complete")}
    assert all(set(row.params) == set(SEARCH_SPACE) and row.value is not None for row in rows)

    tuning = artifact.metrics["tuning"]
    assert tuning["trials"] == len(rows)
    assert artifact.metrics["looks"] == 1
    assert artifact.score == tuning["value"] == max(row.value for row in rows if row.value is not None)
    assert 0 <= tuning["overfitting"] <= 1
    (gate,) = (gate for gate in artifact.gates if gate["name"] == "deflated_sharpe")
    assert f"{TRIALS} tuning trials" in gate["text"] or "no Sharpe ratio" in gate["text"]

    spec = artifacts.load(artifact).facts["spec"]
    assert {name: spec[name] for name in SEARCH_SPACE} == tuning["params"] == rows[tuning["best"]].params
    assert "trial 1 of 3" in TrainingRun.objects.get(pk=asked.pk).log


def test_what_was_chosen_is_no_recipe_so_the_artifact_fits_whatever_the_setting_says(
    asked: TrainingRun, sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    artifact = execute(asked)
    for setting in (0, 500):
        settings.TRAIN_TUNING_TRIALS = setting
        against = {refusal.code for refusal in registry.refusals_of(artifact)}
        assert against <= {RefusalCode.GATES_FAILED}


def test_the_same_data_settings_and_seed_give_the_same_artifact_hash(
    asked: TrainingRun, scope: TrainingScope, sim: SimulatedClock, sent: list[Message]
) -> None:
    first = execute(asked)
    again = execute(request(scope, list(Symbol.objects.order_by("code"))))
    assert first.run != again.run
    assert first.sha256 == again.sha256
    shown = [
        list(run.tuning_trials.order_by("number").values_list("params", "value")) for run in (first.run, again.run)
    ]
    assert shown[0] == shown[1]


def test_without_trials_nothing_is_searched(
    asked: TrainingRun, sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    settings.TRAIN_TUNING_TRIALS = 0
    artifact = execute(asked)
    assert not TuningTrial.objects.exists()
    assert artifact.metrics["tuning"] is None
    assert "tuned" not in artifacts.load(artifact).facts


def test_the_search_is_bounded_by_a_share_of_the_time_out(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    settings.TRAIN_TUNING_TRIALS, settings.TRAIN_TIMEOUT_MINUTES = 5, 10.0
    tuner: Any = execution._tuner(claim(request(scope, symbols)))
    assert (tuner.keywords["n_trials"], tuner.keywords["seconds"]) == (5, 240.0)


# --- the fence ---


def test_i6_a_zombie_writes_no_trial(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    run = request(scope, symbols)
    killed = claim(run)
    services.record_trial(killed, trial(0))
    sim.advance(2 * execution.policies.lease_time())
    successor = claim(run, "successor")
    with pytest.raises(RunLost, match="its trial is refused"):
        services.record_trial(killed, trial(1))
    services.record_trial(successor, trial(0))
    assert written() == [(1, 0), (2, 0)]
    services.cancel(run=run, why="by the test", recheck_at=sim.now)
    with pytest.raises(RunLost):
        services.record_trial(successor, trial(1))
    assert written() == [(1, 0), (2, 0)]


def test_i6_a_training_that_lost_its_run_in_the_search_stops_and_the_next_attempt_counts_its_own_trials(
    asked: TrainingRun, sim: SimulatedClock, sent: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after kill -9: the lease runs out and another process has the run, here while the first still works."""
    successors: list[services.Claim] = []
    record = services.record_trial

    def record_and_freeze(held: services.Claim, ended: Trial) -> TuningTrial:
        row = record(held, ended)
        if not successors:
            sim.advance(2 * execution.policies.lease_time())
            successors.append(claim(asked, "successor"))
        return row

    with monkeypatch.context() as patched:
        patched.setattr(services, "record_trial", record_and_freeze)
        with pytest.raises(RunLost):
            execution.execute(asked.pk, "killed")
    assert written() == [(1, 0)], "written while its token was the current one; nothing after it"
    services.release(successors[0])

    artifact = execute(asked)
    assert [number for attempt, number in written() if attempt == 3] == list(range(TRIALS))
    assert artifact.metrics["tuning"]["trials"] == TRIALS == artifact.run.tuning_trials.filter(
        fencing_token=artifact.fencing_token
    ).count()  # fmt: skip


def test_the_database_refuses_a_trial_twice_and_one_that_is_complete_without_a_value(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    held = claim(request(scope, symbols))
    services.record_trial(held, trial(0))
    services.record_trial(held, trial(1, state=TrialOutcome.OUT_OF_TIME, value=None, sharpe=None))
    for wrong in (trial(0), trial(2, value=None)):
        with pytest.raises(IntegrityError), transaction.atomic():
            services.record_trial(held, wrong)
    assert written() == [(1, 0), (1, 1)]


def test_every_state_of_a_trial_has_a_name_in_the_table() -> None:
    assert {state.value for state in TrialState} == {outcome.value for outcome in TrialOutcome}


# --- faces ---


def test_a_run_shows_its_trials_and_a_model_what_was_chosen(
    asked: TrainingRun, sim: SimulatedClock, sent: list[Message], client: Client
) -> None:
    artifact = execute(asked)
    setup_steps.create_groups()
    viewer = UserFactory(is_staff=True)
    viewer.groups.add(Group.objects.get(name=VIEWER))
    client.force_login(viewer)
    page = client.get(reverse("admin:training_app_trainingrun_change", args=[asked.pk])).content.decode()
    assert "min_leaf_samples" in page
    row = TuningTrial.objects.earliest("number")
    for path in (
        reverse("admin:training_app_tuningtrial_changelist"),
        reverse("admin:training_app_tuningtrial_change", args=[row.pk]),
    ):
        assert client.get(path).status_code == 200
    page = client.get(reverse("admin:training_app_modelartifact_change", args=[artifact.pk])).content.decode()
    assert f"trial {artifact.metrics['tuning']['best']} of {TRIALS}" in page
    assert f"probability of overfitting {artifact.metrics['tuning']['overfitting']:.2f}" in page

    shown = client.get(f"/api/v1/runs/{asked.pk}/").json()["tuning_trials"]
    assert [each["number"] for each in shown] == list(range(TRIALS))
    assert set(shown[0]) == {"number", "attempt", "fencing_token", "state", "params", "value", "sharpe", "seconds"}


def test_a_model_without_a_search_and_one_whose_search_ran_out_of_time_say_so() -> None:
    from training_app.admin import _tuning

    assert _tuning(None).startswith("none: the usual parameters")
    cut = {"trials": 0, "params": None, "asked": 9, "best": None, "value": None, "default": None, "overfitting": None}
    assert _tuning(cut) == "none of 9 trials ended in time: the usual parameters"


def test_i21_trials_go_with_their_run_and_not_before(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    runs = []
    for _ in range(2):  # the newest run of a scope stays
        run = request(scope, symbols)
        services.record_trial(claim(run), trial(0))
        services.cancel(run=run, why="by the test", recheck_at=sim.now)
        runs.append(run)
    training_retention.prune_training(sim.now, limit=10)
    assert TuningTrial.objects.count() == 2
    sim.advance(execution.policies.lease_time())
    training_retention.prune_training(sim.now, limit=10)
    assert [row.run for row in TuningTrial.objects.all()] == [runs[1]] == list(TrainingRun.objects.all())


# --- the extra ---


def test_a_missing_optuna_is_named_by_the_check_the_doctor_and_the_run(
    asked: TrainingRun, sim: SimulatedClock, sent: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.check_tuning(None) == []
    assert doctor_checks.tuning_is_possible().level is Level.OK
    monkeypatch.setitem(sys.modules, "optuna", None)
    (error,) = checks.check_tuning(None)
    assert (error.id, error.is_serious()) == ("training.E002", True)
    assert "requirements-tuning.txt" in str(error.hint)
    finding = doctor_checks.tuning_is_possible()
    assert finding.level is Level.PROBLEM
    assert "requirements-tuning.txt" in finding.fix
    done = execution.execute(asked.pk, "test-worker")
    assert done is not None
    assert done.state == RunState.QUEUED, "another host may have it, and another attempt is left"
    assert "install requirements-tuning.txt" in TrainingRun.objects.get(pk=asked.pk).error


def test_without_trials_no_optuna_is_needed(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.TRAIN_TUNING_TRIALS = 0
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert checks.check_tuning(None) == []
    assert "off" in doctor_checks.tuning_is_possible().text
    assert "tuning" in {name for name, _ in doctor.examine(migrated=False)}


def test_a_search_over_a_cluster_whose_trees_differ_is_refused() -> None:
    environment = {"TRAIN_TUNING_TRIALS": "20", "TRAIN_DASK_SCHEDULER": "tcp://host:8786"}
    with pytest.raises(ImproperlyConfigured, match="must be 0 with TRAIN_DASK_SCHEDULER"):
        load_options(environment=environment)

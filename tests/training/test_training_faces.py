"""Commands, admin, doctor and metrics of training: what they say and do."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from coverage_app.models import Symbol
from ops_app import doctor, metrics
from ops_app.clock import SimulatedClock
from ops_app.doctor import Level
from ops_app.queue import Message
from tests.factories import UserFactory
from tests.training.conftest import request, train_model
from training_app import artifacts, doctor_checks, services, tasks
from training_app.choices import RunState
from training_app.models import Activation, ActiveModel, ModelArtifact, TrainingRun, TrainingScope

pytestmark = pytest.mark.django_db


def run_command(name: str, *arguments: str) -> str:
    out = io.StringIO()
    call_command(name, *arguments, stdout=out, stderr=out)
    return out.getvalue()


@pytest.fixture
def two(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> tuple[ModelArtifact, ModelArtifact]:
    return train_model(scope, symbols), train_model(scope, symbols, seed=2)


# --- commands ---


def test_models_lists_who_serves_and_what_is_against_each(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope
) -> None:
    rows = json.loads(run_command("models", "--json"))
    assert [(row["id"], row["active"]) for row in rows] == [(two[1].pk, True), (two[0].pk, False)]
    ModelArtifact.objects.filter(pk=two[0].pk).update(signal="momentum")
    assert "SIGNAL" in json.loads(run_command("models", "--json"))[1]["refusals"][0]["code"]
    assert "nothing" in run_command("models")


def test_models_says_what_to_do_when_there_is_none(db: None) -> None:
    assert "`train` asks for one" in run_command("models")


def test_models_activates_at_once_and_rolls_back(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope
) -> None:
    assert "generation" in run_command("models", "--activate", str(two[0].pk))
    assert ActiveModel.objects.get().artifact == two[0]
    answer = json.loads(run_command("models", "--rollback", scope.key, "--json"))
    assert (answer["state"], answer["artifact"]) == ("applied", two[1].pk)
    with pytest.raises(CommandError, match="does not exist"):
        run_command("models", "--activate", "999")
    with pytest.raises(CommandError, match="no active model"):
        run_command("models", "--rollback", "nowhere")


def test_models_refuses_a_broken_model_with_an_exit_code(two: tuple[ModelArtifact, ModelArtifact]) -> None:
    (artifacts.path_of(two[0]) / "model.txt").unlink()
    with pytest.raises(CommandError, match="was not activated"):
        run_command("models", "--activate", str(two[0].pk))
    assert ActiveModel.objects.get().artifact == two[1]


def test_train_asks_for_a_run_and_says_so(symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]) -> None:
    (row,) = json.loads(run_command("train", "--json"))
    assert row["state"] == RunState.QUEUED
    assert [message.dotted for message in sent] == ["training_app.tasks.train"]


def test_train_refuses_with_the_reason_when_nothing_is_ready(
    sim: SimulatedClock, sent: list[Message], db: None
) -> None:
    with pytest.raises(CommandError, match="nothing can be trained"):
        run_command("train")


def test_train_names_symbols_that_do_not_exist_and_the_mode_that_takes_symbols(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    with pytest.raises(CommandError, match="single_symbol"):
        run_command("train", "--symbols", symbols[0].code)
    settings.TRAINING_MODE = "single_symbol"
    with pytest.raises(CommandError, match="unknown symbols: XXX"):
        run_command("train", "--symbols", "XXX")
    (row,) = json.loads(run_command("train", "--json", "--symbols", symbols[0].code))
    assert row["scope"].endswith(symbols[0].code)


def test_train_waits_until_a_worker_has_ended_the_run(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_worker_fails_it(_: float) -> None:
        claim = services.claim(TrainingRun.objects.get().pk, "worker")
        assert claim is not None
        services.fail(claim, "ValueError: broken", final=True)

    monkeypatch.setattr("ops_app.clock.sleep", a_worker_fails_it)
    with pytest.raises(SystemExit) as ended:
        run_command("train", "--wait", "--json")
    assert ended.value.code == 1


def test_train_run_says_that_there_is_nothing_to_claim(sim: SimulatedClock, db: None) -> None:
    assert "nothing to claim" in run_command("train_run", "12345")


# --- the training task ---


def test_the_task_starts_a_child_that_is_polite_and_dies_first(
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[list[str], dict[str, Any]]] = []

    class Child:
        def wait(self, timeout: float | None = None) -> int:
            return 0

        def poll(self) -> int:
            return 0

    def spawn(command: list[str], **options: Any) -> Child:
        started.append((command, options))
        return Child()

    monkeypatch.setattr(tasks.process, "spawn", spawn)
    run = request(scope, symbols)
    assert "ended with 0" in tasks.train(run.pk)
    ((command, options),) = started
    assert command[-3:] == ["train_run", str(run.pk), "--drain"]
    assert (options["nice"], options["oom_score_adj"]) == (10, 800)
    assert options["environment"]["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_training_without_an_end_is_killed(
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> None:
    import subprocess
    import sys

    children = []

    def spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return children[0]

    monkeypatch.setattr(tasks.process, "spawn", spawn)
    run = request(scope, symbols)
    settings.TRAIN_TIMEOUT_MINUTES = 0.005
    assert "was killed after" in tasks.train(run.pk)
    assert children[0].returncode == -9


# --- admin ---


@pytest.fixture
def people(client: Client) -> Client:
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    return client


PAGES = [
    "trainingscope", "trainingrun", "runsymbol", "modelartifact", "artifactsymbol", "generationcounter", "activemodel",
    "activation",
]  # fmt: skip


@pytest.mark.parametrize("table", PAGES)
def test_every_admin_page_shows_its_rows_read_only(
    table: str, two: tuple[ModelArtifact, ModelArtifact], people: Client
) -> None:
    listed = people.get(reverse(f"admin:training_app_{table}_changelist"))
    assert listed.status_code == 200
    model = listed.context["cl"].model
    row = model.objects.order_by("pk").last()
    assert row is not None
    shown = people.get(reverse(f"admin:training_app_{table}_change", args=[row.pk]))
    assert shown.status_code == 200
    assert people.post(reverse(f"admin:training_app_{table}_change", args=[row.pk]), {}).status_code == 403
    assert people.get(reverse(f"admin:training_app_{table}_add")).status_code == 403
    assert people.get(reverse(f"admin:training_app_{table}_delete", args=[row.pk])).status_code == 403


def act(client: Client, table: str, action: str, pk: int) -> str:
    answer = client.post(
        reverse(f"admin:training_app_{table}_changelist"), {"action": action, "_selected_action": [pk]}, follow=True
    )
    return " ".join(str(message) for message in answer.context["messages"])


def test_admin_actions_call_the_services_and_say_what_they_did(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, people: Client
) -> None:
    assert "a worker verifies and activates it" in act(people, "modelartifact", "activate", two[0].pk)
    assert "is being applied" in act(people, "modelartifact", "activate", two[0].pk)
    tasks.apply_activation(Activation.objects.latest("pk").pk)
    active = ActiveModel.objects.get()
    assert active.artifact == two[0]
    assert "goes back to" in act(people, "activemodel", "roll_back", active.pk)
    assert "run 3 is queued" in act(people, "trainingscope", "train", scope.pk)
    run = TrainingRun.objects.latest("pk")
    assert "was cancelled" in act(people, "trainingrun", "cancel", run.pk)
    assert "nothing to cancel" in act(people, "trainingrun", "cancel", run.pk)


def test_a_viewer_of_the_admin_has_no_actions(two: tuple[ModelArtifact, ModelArtifact], client: Client) -> None:
    from django.contrib.auth.models import Permission

    viewer = UserFactory(is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(viewer)
    act(client, "modelartifact", "activate", two[0].pk)
    assert not Activation.objects.filter(state="requested").exists()


# --- doctor and metrics ---


def levels(found: Any) -> list[Level]:
    return [each.level for each in (found if isinstance(found, list) else [found])]


def test_the_doctor_tells_a_missing_a_broken_and_a_good_model_apart(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    assert levels(doctor_checks.active_models()) == [Level.WARNING]
    artifact = train_model(scope, symbols)
    assert levels(doctor_checks.active_models()) == [Level.OK]
    (artifacts.path_of(artifact) / "model.txt").write_text("")
    assert levels(doctor_checks.active_models()) == [Level.PROBLEM]
    ModelArtifact.objects.update(integrity_error="cut off")
    (finding,) = doctor_checks.active_models()
    assert "INTEGRITY" in finding.text


def test_the_doctor_sees_runs_that_nobody_takes(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    assert levels(doctor_checks.training_runs()) == [Level.OK]
    sim.advance(2 * doctor_checks.WAITS_TOO_LONG)
    assert levels(doctor_checks.training_runs()) == [Level.PROBLEM]
    services.claim(run.pk, "worker")
    sim.advance(2 * doctor_checks.WAITS_TOO_LONG)
    assert levels(doctor_checks.training_runs()) == [Level.WARNING]


def test_the_doctors_other_checks_answer(db: None) -> None:
    assert levels(doctor_checks.lightgbm_loads()) == [Level.OK]
    assert levels(doctor_checks.artifact_folder())
    assert {"lightgbm", "active models", "training runs", "artifact folder"} <= {
        name for name, _ in doctor.examine(migrated=True)
    }


def test_metrics_count_symbols_runs_and_models(two: tuple[ModelArtifact, ModelArtifact]) -> None:
    text = metrics.text().decode()
    assert 'tradingbot_symbols{state="TRADABLE"} 3.0' in text
    assert 'tradingbot_training_runs{state="succeeded"} 2.0' in text
    assert 'tradingbot_model_usable{slot="multi_symbol:simulated:1h"} 1.0' in text
    assert "tradingbot_metrics_sources_failed 0.0" in text


# --- jobs ---


def test_the_jobs_say_what_they_did(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    settings.TRAIN_DEBOUNCE_MINUTES = 0.0
    assert tasks.plan_job() == f"requested run 1 of {scope.key}"
    assert tasks.plan_job() == ""
    assert tasks.verify_job() == ""
    assert tasks.tidy_job() == ""

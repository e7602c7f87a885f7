"""Which model serves: verified, one compare-and-set, one generation counter, a way back (I10, I12, F31, F33)."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from coverage_app.models import Symbol
from ops_app.clock import SimulatedClock
from ops_app.models import Alert, Event
from ops_app.queue import Message
from quant.label_spec import LabelSpec
from tests.factories import SymbolFactory, UserFactory
from tests.training.conftest import train_model
from training_app import activation, artifacts, housekeeping, selectors, services
from training_app.choices import ActivationKind, ActivationState
from training_app.exceptions import ActivationRefused, ArtifactError
from training_app.models import Activation, ActiveModel, GenerationCounter, ModelArtifact, TrainingScope

pytestmark = pytest.mark.django_db


def serving(scope: TrainingScope) -> ModelArtifact:
    return ActiveModel.objects.get(slot=scope.key).artifact


def deliver(sent: list[Message]) -> None:
    """Do what a worker does with the messages so far."""
    for message in list(sent):
        if message.dotted == "training_app.tasks.apply_activation":
            activation.apply_activation(int(message.args[0]))
    sent.clear()


def damage(artifact: ModelArtifact, *, keep: float, name: str = "model.txt") -> None:
    path = artifacts.path_of(artifact) / name
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * keep)])


@pytest.fixture
def two(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> tuple[ModelArtifact, ModelArtifact]:
    """Two good models; the second one serves."""
    first = train_model(scope, symbols)
    sim.advance(dt.timedelta(days=7))
    return first, train_model(scope, symbols, seed=2)


def test_i10_each_promotion_draws_a_larger_generation_and_leaves_a_history(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope
) -> None:
    rows = list(Activation.objects.order_by("id"))
    assert [row.state for row in rows] == [ActivationState.APPLIED] * 2
    assert [row.previous_artifact for row in rows] == [None, two[0]]
    generations = [row.generation for row in rows]
    assert generations == sorted(set(generations))
    assert ActiveModel.objects.get().generation == generations[1] == GenerationCounter.objects.get().value


def test_i10_a_request_of_a_person_is_applied_by_a_worker_not_by_the_page(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sent: list[Message]
) -> None:
    user = UserFactory()
    requested = activation.request_activation(artifact=two[0], user=user, reason="compare")
    assert serving(scope) == two[1]
    deliver(sent)
    requested.refresh_from_db()
    assert (requested.state, requested.requested_by) == (ActivationState.APPLIED, user)
    assert serving(scope) == two[0]
    assert Event.objects.filter(kind="model_activated", user=user).count() == 1


def test_i10_a_rejected_model_never_serves(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    rejected = train_model(scope, symbols, passed=False)
    assert not ActiveModel.objects.exists()
    with pytest.raises(ActivationRefused, match="GATES_FAILED"):
        activation.request_activation(artifact=rejected)


@pytest.mark.parametrize("sixteenths", range(16))
def test_f31_a_model_cut_off_anywhere_never_serves(
    sixteenths: int, two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sent: list[Message]
) -> None:
    for name in ("model.txt", "model.json"):
        ModelArtifact.objects.update(integrity_error="")
        original = (artifacts.path_of(two[0]) / name).read_bytes()
        requested = activation.request_activation(artifact=two[0])
        damage(two[0], keep=sixteenths / 16, name=name)
        deliver(sent)
        requested.refresh_from_db()
        assert requested.state == ActivationState.REFUSED
        assert "bytes" in requested.reason
        assert serving(scope) == two[1]
        (artifacts.path_of(two[0]) / name).write_bytes(original)


def test_f31_a_model_with_one_changed_byte_never_serves(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sent: list[Message]
) -> None:
    requested = activation.request_activation(artifact=two[0])
    path = artifacts.path_of(two[0]) / "model.txt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    deliver(sent)
    requested.refresh_from_db()
    assert requested.state == ActivationState.REFUSED
    assert "sha256" in requested.reason
    assert ModelArtifact.objects.get(pk=two[0].pk).integrity_error
    assert Alert.objects.filter(key=f"artifact:{scope.key}", resolved_at=None).count() == 1


def test_f31_files_that_were_replaced_together_with_their_hash_fail_the_check_against_the_row(
    two: tuple[ModelArtifact, ModelArtifact],
) -> None:
    """Somebody swaps in another valid model, and mends size and hash in the row: schema and panel still disagree."""
    first = two[0]
    ModelArtifact.objects.filter(pk=first.pk).update(panel_symbols=["ZZZ/USDT:USDT"])
    first.refresh_from_db()
    with pytest.raises(ArtifactError, match="panel_symbols"):
        artifacts.verify(first)


def test_f31_a_model_whose_probe_predicts_differently_never_serves(
    two: tuple[ModelArtifact, ModelArtifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quant.model import MetaModel

    original = MetaModel.predict
    monkeypatch.setattr(MetaModel, "predict", lambda *args, **options: original(*args, **options) + 1e-6)
    with pytest.raises(ArtifactError, match="probe prediction is off"):
        artifacts.verify(two[0])


def test_a_directory_that_leaves_the_artifacts_folder_is_refused(
    two: tuple[ModelArtifact, ModelArtifact], tmp_path: Path
) -> None:
    two[0].directory = "../../etc"
    with pytest.raises(ArtifactError, match="leaves"):
        artifacts.verify(two[0])


def test_f33_of_two_activations_made_against_the_same_model_one_is_refused(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, symbols: list[Symbol], sent: list[Message]
) -> None:
    third = train_model(scope, symbols, seed=3)
    requested = activation.request_activation(artifact=two[0])
    with pytest.raises(ActivationRefused, match="is being applied"):
        activation.request_activation(artifact=two[1])
    # A row that changed the slot meanwhile, as by a process that read before the request was made:
    ActiveModel.objects.update(artifact=two[1])
    deliver(sent)
    requested.refresh_from_db()
    assert requested.state == ActivationState.REFUSED
    assert "got another model" in requested.reason
    assert serving(scope) == two[1] != third


def test_f33_a_promotion_overtakes_a_request_that_was_made_against_the_older_model(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, symbols: list[Symbol], sent: list[Message]
) -> None:
    requested = activation.request_activation(artifact=two[0])
    third = train_model(scope, symbols, seed=3)
    deliver(sent)
    requested.refresh_from_db()
    assert requested.state == ActivationState.REFUSED
    assert requested.reason.startswith("SUPERSEDED")
    assert serving(scope) == third


def test_applying_twice_does_nothing_the_second_time(
    two: tuple[ModelArtifact, ModelArtifact], sent: list[Message]
) -> None:
    requested = activation.request_activation(artifact=two[0])
    assert activation.apply_activation(requested.pk) is not None
    generation = GenerationCounter.objects.get().value
    assert activation.apply_activation(requested.pk) is None
    assert activation.apply_activation(999_999) is None
    assert GenerationCounter.objects.get().value == generation


def test_i7_an_activation_whose_message_was_lost_is_rung_again(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sim: SimulatedClock, sent: list[Message]
) -> None:
    activation.request_activation(artifact=two[0])
    sent.clear()
    assert services.sweep()["activations"] == 0
    sim.advance(dt.timedelta(seconds=61))
    assert services.sweep()["activations"] == 1
    deliver(sent)
    assert serving(scope) == two[0]


def test_a_roll_back_returns_to_the_model_before_and_retires_the_other(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sim: SimulatedClock, sent: list[Message]
) -> None:
    user = UserFactory()
    requested = activation.roll_back(slot=scope.key, user=user, reason="loses money")
    deliver(sent)
    requested.refresh_from_db()
    assert (requested.state, requested.kind) == (ActivationState.APPLIED, ActivationKind.ROLLBACK)
    assert serving(scope) == two[0]
    retired = ModelArtifact.objects.get(pk=two[1].pk)
    assert retired.retired_at == sim.now
    assert retired.retired_reason.startswith("ROLLED_BACK")
    services.plan()
    deliver(sent)
    assert serving(scope) == two[0]  # no later pass promotes the retired one


def test_a_roll_back_is_not_undone_by_a_training_that_makes_the_same_model_again(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sim: SimulatedClock, sent: list[Message]
) -> None:
    """The older model is past its age at once, and a training on nearly the same candles makes the same model again."""
    sim.advance(dt.timedelta(hours=5))
    SymbolFactory(code="NEW/USDT:USDT")  # nor may a symbol that only the refused model would cover bring it back
    activation.roll_back(slot=scope.key, reason="loses money")
    deliver(sent)
    week = dt.timedelta(days=7)
    for _ in range(7 * 24):
        assert services.plan() == []
        sim.advance(dt.timedelta(hours=1))
    chosen_at = ActiveModel.objects.get(slot=scope.key).activated_at
    assert sim.now == chosen_at + week
    assert serving(scope) == two[0]
    scope.refresh_from_db()
    assert scope.decision.startswith("CHOSEN_BY_A_PERSON")
    (run,) = services.plan()
    assert run.created_at == sim.now


@pytest.mark.parametrize("trigger, state", [("scheduled", "cancelled"), ("manual", "queued")])
def test_a_roll_back_ends_the_training_that_is_under_way_but_not_one_that_a_person_asked_for(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, symbols: list[Symbol], sent: list[Message],
    trigger: str, state: str,
) -> None:  # fmt: skip
    """Its result would take the place of the model that a person has just put there."""
    ids = [symbol.pk for symbol in symbols]
    run = services.request_run(scope=scope, symbols=ids, trigger=trigger, cause="SCHEDULED: test")
    activation.roll_back(slot=scope.key, user=UserFactory(username="anna"), reason="loses money")
    deliver(sent)
    assert serving(scope) == two[0]
    run.refresh_from_db()
    assert run.state == state
    if state == "cancelled":
        assert str(two[0]) in run.error
        assert "user=anna" in run.error
        assert not run.run_symbols.filter(verdict="").exists()


def test_a_fall_back_from_a_broken_model_is_no_persons_choice_and_trains_when_the_model_is_old(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sim: SimulatedClock, sent: list[Message]
) -> None:
    activation.report_broken(artifact=two[1], error="gone")
    services.plan()
    deliver(sent)
    assert serving(scope) == two[0]
    sim.advance(dt.timedelta(hours=7))
    assert [run.trigger for run in services.plan()] == ["scheduled"]


def test_a_roll_back_passes_over_models_that_are_broken_or_do_not_fit(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, symbols: list[Symbol], sent: list[Message]
) -> None:
    train_model(scope, symbols, seed=3)
    ModelArtifact.objects.filter(pk=two[1].pk).update(schema_hash="another")
    assert activation.roll_back(slot=scope.key).artifact == two[0]


def test_a_roll_back_without_an_earlier_model_is_refused_with_the_reason(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    with pytest.raises(ActivationRefused, match="no active model"):
        activation.roll_back(slot=scope.key)
    train_model(scope, symbols)
    with pytest.raises(ActivationRefused, match="no other model ever served"):
        activation.roll_back(slot=scope.key)


def test_a_person_may_bring_a_retired_model_back(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sent: list[Message]
) -> None:
    activation.roll_back(slot=scope.key)
    deliver(sent)
    activation.request_activation(artifact=ModelArtifact.objects.get(pk=two[1].pk), user=UserFactory())
    deliver(sent)
    assert serving(scope) == two[1]
    assert ModelArtifact.objects.get(pk=two[1].pk).retired_at is None


def test_i12_a_refusal_names_every_reason(two: tuple[ModelArtifact, ModelArtifact], settings: Any) -> None:
    settings.PRIMARY_SIGNAL, settings.SYMBOL_ENCODING = "momentum", "one_hot"
    with pytest.raises(ActivationRefused) as refused:
        activation.request_activation(artifact=two[0])
    assert "SIGNAL: has=trend, needs=momentum" in str(refused.value)
    assert "SYMBOL_ENCODING: has=index, needs=one_hot" in str(refused.value)


def test_r1_a_missing_model_file_leads_to_the_last_good_model_once_with_a_reason_and_no_loop(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sim: SimulatedClock, sent: list[Message]
) -> None:
    (artifacts.path_of(two[1]) / "model.txt").unlink()
    assert housekeeping.verify_active_files() == [two[1].directory]
    assert housekeeping.verify_active_files() == []  # reported once
    assert not any(state.tradable for state in selectors.symbol_states())
    assert services.plan() == []  # the registry has a good one: no training
    assert services.plan() == []
    deliver(sent)
    assert serving(scope) == two[0]
    fallback = Activation.objects.get(artifact=two[0], kind=ActivationKind.PROMOTION, previous_artifact=two[1])
    assert fallback.reason.startswith(f"REGISTRY_FALLBACK: artifact={two[0].pk}")
    assert Activation.objects.count() == 3
    assert [services.plan() for _ in range(5)] == [[]] * 5
    assert Activation.objects.count() == 3


def test_r1_without_any_good_model_there_is_one_run_a_reason_and_a_next_time(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    only = train_model(scope, symbols)
    damage(only, keep=0.5)
    housekeeping.verify_active_files()
    sim.advance(dt.timedelta(hours=7))
    runs = [run for _ in range(120) for run in _plan_and_wait(sim)]
    assert len(runs) == 1
    assert runs[0].cause.startswith("NO_MODEL")
    scope.refresh_from_db()
    assert scope.decision.startswith("OPEN_RUN")
    states = selectors.symbol_states()
    assert {state.state for state in states} == {selectors.State.TRAINING}


def _plan_and_wait(sim: SimulatedClock) -> list[Any]:
    runs = services.plan()
    sim.advance(dt.timedelta(seconds=60))
    return runs


def test_r2_a_truncated_model_description_is_refused_and_the_last_good_one_serves(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope, sent: list[Message]
) -> None:
    damage(two[1], keep=0.5, name="model.json")
    with pytest.raises(ArtifactError, match="cut off"):
        artifacts.load(two[1])
    assert activation.report_broken(artifact=two[1], error="cut off")
    services.plan()
    deliver(sent)
    assert serving(scope) == two[0]


def test_r6_a_damaged_manifest_does_not_stop_anything(
    two: tuple[ModelArtifact, ModelArtifact],
) -> None:
    """The manifest is for people: no program reads it, so that it cannot stop one."""
    (artifacts.path_of(two[1]) / "manifest.json").write_bytes(b"{")
    artifacts.verify(two[1])


def test_r6_a_broken_file_found_again_and_again_is_one_alert_and_one_event(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope
) -> None:
    found = [activation.report_broken(artifact=two[1], error="unreadable") for _ in range(10)]
    assert found == [True] + [False] * 9
    assert Alert.objects.filter(key=f"artifact:{scope.key}").count() == 1
    assert Event.objects.filter(kind="artifact_broken").count() == 1


def test_r11_changed_features_lead_to_one_run_and_the_old_model_covers_nothing(
    two: tuple[ModelArtifact, ModelArtifact],
    scope: TrainingScope,
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "training_app.registry.feature_schema", lambda: type("Schema", (), {"hash": "changed", "names": ("a",)})
    )
    sim.advance(dt.timedelta(hours=7))
    runs = [run for _ in range(60) for run in _plan_and_wait(sim)]
    assert [run.cause.partition(":")[0] for run in runs] == ["NO_MODEL"]
    assert not any(state.covered for state in selectors.symbol_states())
    view = selectors.registry_view()
    assert all("FEATURE_SCHEMA" in {each.code for each in entry.refusals} for entry in view)
    # I10: the slot still names its artifact; it is the requirement that refuses it.
    (slot,) = selectors.active_models()
    assert not slot.usable
    assert serving(scope) == two[1]


def test_i12_models_that_learnt_by_older_rules_of_a_trade_lead_to_one_run_and_cover_nothing(
    two: tuple[ModelArtifact, ModelArtifact], sim: SimulatedClock, sent: list[Message]
) -> None:
    stored = LabelSpec().to_dict()
    del stored["version"]
    ModelArtifact.objects.update(label_hash=LabelSpec.from_dict(stored).hash)
    sim.advance(dt.timedelta(hours=7))
    runs = [run for _ in range(60) for run in _plan_and_wait(sim)]
    assert [run.cause.partition(":")[0] for run in runs] == ["NO_MODEL"]
    assert not any(state.covered for state in selectors.symbol_states())
    refusals = [{each.code for each in entry.refusals} for entry in selectors.registry_view()]
    assert refusals == [{"LABEL_SPEC"}] * 2, "that is all there is against them"


def test_i9_the_bot_finds_what_changed_by_one_query(
    two: tuple[ModelArtifact, ModelArtifact], scope: TrainingScope
) -> None:
    newest = ActiveModel.objects.get().generation
    with CaptureQueriesContext(connection) as captured:
        assert selectors.changed_since(newest) == []
    assert len(captured) == 1
    (slot,) = selectors.changed_since(newest - 1)
    assert (slot.slot, slot.artifact, slot.generation) == (scope.key, two[1], newest)
    assert slot.usable

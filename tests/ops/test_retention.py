"""Retention: what explains nothing within the time goes, in small transactions; everything else stays (I21)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model

from coverage_app.models import UniverseRefresh
from ops_app import alerts, clock, jobs, journal, leases, plugins, retention
from ops_app.clock import SimulatedClock
from ops_app.models import Alert, Event, JobRun
from tests.factories import (
    DAY,
    EPOCH,
    HOUR,
    ActiveModelFactory,
    ArtifactFactory,
    BotFactory,
    DecisionFactory,
    EquityPointFactory,
    OrderFactory,
    PositionFactory,
    RunSymbolFactory,
    SymbolFactory,
    TrainingRunFactory,
    UniverseRefreshFactory,
)
from trading_app.models import Decision, EquityPoint
from training_app import housekeeping
from training_app import retention as training_retention
from training_app.choices import ActivationKind, ActivationState, RunState
from training_app.models import Activation, ArtifactSymbol, ModelArtifact, RunSymbol, TrainingRun

pytestmark = pytest.mark.django_db

OLD, RECENT = EPOCH - 400 * DAY, EPOCH - 100 * DAY


@pytest.fixture(autouse=True)
def sim(settings: Any, tmp_path: Path) -> Iterator[SimulatedClock]:
    settings.RETENTION_DAYS, settings.ARTIFACTS_DIR, settings.STORAGE_BUCKET = 365, tmp_path, None
    plugins.load("retention")
    with clock.simulated(EPOCH) as simulated:
        yield simulated


def model(created_at: dt.datetime, **fields: Any) -> ModelArtifact:
    """A model with its files, whose run ended when it was made."""
    run = TrainingRunFactory(succeeded=True, created_at=created_at, started_at=created_at, finished_at=created_at)
    artifact = ArtifactFactory(run=run, created_at=created_at, symbols=[SymbolFactory()], **fields)
    RunSymbolFactory(run=run, open=False, verdict="covered")
    journal.record("trained", "text", subject=f"run:{run.pk}")
    folder = files(artifact)
    folder.mkdir(parents=True)
    (folder / "model.txt").write_text("trees")
    return artifact


def files(artifact: ModelArtifact) -> Path:
    from django.conf import settings

    return Path(settings.ARTIFACTS_DIR) / artifact.directory


_generations = iter(range(1, 10_000))


def served(artifact: ModelArtifact, at: dt.datetime, *, after: ModelArtifact | None = None) -> Activation:
    return Activation.objects.create(
        slot=artifact.scope.key, artifact=artifact, previous_artifact=after, kind=ActivationKind.PROMOTION,
        state=ActivationState.APPLIED, generation=next(_generations), requested_at=at, decided_at=at,
    )  # fmt: skip


def left() -> set[int]:
    retention.prune()
    return set(ModelArtifact.objects.values_list("pk", flat=True))


# --- models and runs ---


def test_i21_a_model_that_explains_nothing_since_goes_with_its_run_its_events_and_its_files() -> None:
    never_served = model(OLD, gates_passed=False)
    long_ago = model(OLD + DAY)
    served(long_ago, OLD + DAY)
    chain = [model(OLD + number * DAY) for number in range(2, 6)]
    for before, after in zip([long_ago, *chain], chain, strict=False):
        served(after, after.created_at, after=before)
    ActiveModelFactory(artifact=chain[-1])
    stays = {artifact.pk for artifact in chain[1:]}  # the active one and two to roll back to
    assert left() == stays
    assert not files(never_served).exists()
    assert not files(long_ago).exists()
    assert all(files(artifact).exists() for artifact in chain[1:])
    assert TrainingRun.objects.count() == ArtifactSymbol.objects.count() == RunSymbol.objects.count() == 3
    assert Activation.objects.count() == 3
    assert not Event.objects.filter(subject=f"run:{never_served.run_id}").exists()
    assert Event.objects.filter(subject=f"run:{chain[1].run_id}").exists()
    assert "3 models, 3 training runs" in Event.objects.get(kind="retention").text


def test_a_refused_model_stays_while_the_gates_count_it_as_a_look_at_their_window(settings: Any) -> None:
    """With a short retention the trials would be forgotten, and a window could be tried until luck passes."""
    settings.RETENTION_DAYS, settings.HISTORY_TARGET_DAYS = 30, 730  # a test window of 146 days
    model(EPOCH - 200 * DAY, gates_passed=False)
    counted = model(EPOCH - 140 * DAY, gates_passed=False)
    newest = model(EPOCH - 40 * DAY, gates_passed=False)
    assert left() == {counted.pk, newest.pk}
    settings.HISTORY_TARGET_DAYS = 365
    assert left() == {newest.pk}, "it can be in no test window any more"


def decided(artifact: ModelArtifact) -> None:
    DecisionFactory(artifact=artifact, bar_at=RECENT)


def traded_long_ago(artifact: ModelArtifact) -> None:
    OrderFactory(decision=DecisionFactory(artifact=artifact, bar_at=OLD))


def holds_a_position(artifact: ModelArtifact) -> None:
    PositionFactory(entry_decision=DecisionFactory(artifact=artifact, bar_at=OLD))


def served_until_recently(artifact: ModelArtifact) -> None:
    served(model(RECENT), RECENT, after=artifact)


def was_refused_recently(artifact: ModelArtifact) -> None:
    activation = served(artifact, RECENT)
    Activation.objects.filter(pk=activation.pk).update(state=ActivationState.REFUSED, generation=None)


def is_asked_for(artifact: ModelArtifact) -> None:
    activation = served(artifact, OLD)
    Activation.objects.filter(pk=activation.pk).update(
        state=ActivationState.REQUESTED, generation=None, decided_at=None
    )


def is_active(artifact: ModelArtifact) -> None:
    ActiveModelFactory(artifact=artifact)


@pytest.mark.parametrize(
    "explain",
    [
        decided, traded_long_ago, holds_a_position, served_until_recently, was_refused_recently, is_asked_for,
        is_active,
    ],
)  # fmt: skip
def test_i21_a_model_that_is_named_within_the_time_stays_with_its_files(
    explain: Callable[[ModelArtifact], None],
) -> None:
    named = model(OLD)
    explain(named)
    newest = model(RECENT)
    assert {named.pk, newest.pk} <= left()
    assert files(named).exists()


def test_i21_the_newest_model_of_a_scope_stays_however_old() -> None:
    first, newest = model(OLD), model(OLD + DAY)
    assert left() == {newest.pk}
    assert first.pk not in left()


def test_a_model_that_is_wanted_again_between_look_and_delete_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    old = model(OLD)
    model(RECENT)
    candidates = training_retention.deletable_models(retention.cutoff())
    assert [each.pk for each in candidates] == [old.pk]
    monkeypatch.setattr(training_retention, "deletable_models", lambda cutoff: ModelArtifact.objects.filter(pk=old.pk))
    look = training_retention.deletable_models
    monkeypatch.undo()
    is_asked_for(old)
    assert not training_retention._delete_model(look(retention.cutoff()).get(), retention.cutoff())
    assert files(old).exists()


def test_files_of_a_model_whose_removal_was_cut_off_are_garbage_that_the_tidy_job_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = model(OLD)
    model(RECENT)

    def killed(directory: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(training_retention.artifacts, "remove_directory", killed)
        with pytest.raises(KeyboardInterrupt):
            retention.prune()
    assert files(old).exists()
    monkeypatch.setattr(housekeeping, "LEAST_AGE", dt.timedelta(days=-100_000))  # files bear this host's time
    monkeypatch.setattr(housekeeping.settings, "TRAIN_LEASE_SECONDS", -(10**10))
    assert housekeeping.remove_orphans() == [old.directory]


def test_runs_without_a_model_go_and_the_last_of_a_scope_stays() -> None:
    fields = {"state": RunState.FAILED, "created_at": OLD, "finished_at": OLD}
    runs = [TrainingRunFactory(**fields) for _ in range(3)]
    RunSymbolFactory(run=runs[0], open=False, verdict="blocked")
    retention.prune()
    assert [run.pk for run in TrainingRun.objects.all()] == [runs[-1].pk]
    assert not RunSymbol.objects.exists()


# --- what the bot and the journal wrote ---


def test_i21_decisions_of_the_time_and_those_that_led_to_an_order_or_a_position_stay() -> None:
    bot = BotFactory()
    recent = DecisionFactory(bot=bot, bar_at=RECENT)
    traded = DecisionFactory(bot=bot, bar_at=OLD)
    OrderFactory(bot=bot, decision=traded)
    held = DecisionFactory(bot=bot, bar_at=OLD)
    PositionFactory(bot=bot, entry_decision=held)
    DecisionFactory(bot=bot, bar_at=OLD)
    DecisionFactory(bar_at=OLD)  # another bot's
    assert "2 decisions" in retention.prune()
    assert set(Decision.objects.values_list("pk", flat=True)) == {recent.pk, traded.pk, held.pk}


def test_equity_of_the_past_is_kept_by_the_day() -> None:
    bot = BotFactory()
    for hour in range(50):
        EquityPointFactory(bot=bot, at=OLD + hour * HOUR)
    fresh = EquityPointFactory(bot=bot, at=RECENT)
    assert "47 equity points" in retention.prune()
    assert list(EquityPoint.objects.order_by("at").values_list("at", flat=True)) == [
        OLD + 23 * HOUR, OLD + 47 * HOUR, OLD + 49 * HOUR, fresh.at,
    ]  # fmt: skip
    assert retention.prune() == "", "a second pass finds nothing"


def test_i21_what_people_did_and_the_life_of_models_stays_in_the_journal(sim: SimulatedClock) -> None:
    person = get_user_model().objects.create_user("ada")
    journal.record("evaluated", "by itself", subject="symbol:AAA")
    journal.record("unblocked", "by a person", subject="symbol:AAA", user=person)
    journal.record("model_activated", "serves", subject="slot:x")
    alerts.raise_alert("open", "text")
    alerts.raise_alert("closed", "text")
    alerts.resolve_alert("closed")
    UniverseRefreshFactory(started_at=EPOCH)
    newest = UniverseRefreshFactory(started_at=EPOCH + HOUR)
    sim.advance(400 * DAY)
    assert retention.prune() == "1 universe refreshes, 1 events, 1 alerts"
    assert set(Event.objects.values_list("kind", flat=True)) == {"unblocked", "model_activated", "retention"}
    assert Alert.objects.get().key == "open"
    assert UniverseRefresh.objects.get() == newest


def test_a_pass_is_bounded_and_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Callable
) -> None:
    bot = BotFactory()
    symbol = SymbolFactory()
    for hour in range(30):
        DecisionFactory(bot=bot, symbol=symbol, bar_at=OLD + hour * HOUR)
    monkeypatch.setattr(retention, "BATCH", 4)
    monkeypatch.setattr(retention, "LIMIT", 10)
    with django_assert_max_num_queries(60):
        assert retention.prune() == "10 decisions"
    assert Decision.objects.order_by("bar_at")[0].bar_at == OLD + 10 * HOUR, "the oldest go first"
    retention.prune()
    retention.prune()
    assert not Decision.objects.exists()


def test_a_host_whose_clock_is_ahead_deletes_nothing_early(
    sim: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    DecisionFactory(bar_at=EPOCH)
    DecisionFactory(bar_at=OLD)
    monkeypatch.setattr(clock, "database_time", lambda: EPOCH)
    sim.advance(3650 * DAY)
    assert retention.prune() == "1 decisions"
    assert Decision.objects.get().bar_at == EPOCH


def test_nothing_is_pruned_while_a_backup_copies() -> None:
    DecisionFactory(bar_at=OLD)
    with leases.holding(retention.LEASE, ttl=dt.timedelta(minutes=1)):
        assert retention.prune() == ""
    assert retention.prune() == "1 decisions"


def test_the_job_leaves_a_run_only_once_the_installation_is_old_enough(sim: SimulatedClock) -> None:
    journal.record("set_up", "the first event")
    bot = BotFactory()
    DecisionFactory(bot=bot, bar_at=EPOCH)
    assert jobs.run_job("ops.retention") == ""
    assert not JobRun.objects.exists()
    sim.advance(366 * DAY)
    assert jobs.run_job("ops.retention") == "1 decisions, 1 events"
    assert JobRun.objects.get().result == "1 decisions, 1 events"

"""Which runs and models may go: none that served, was asked for, or is named by anything within the retention time."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Mapping

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, ForeignObjectRel, Max, OuterRef, Q, QuerySet

from ops_app import clock, retention
from ops_app.models import Event
from training_app import artifacts, policies
from training_app.choices import TERMINAL_STATES, ActivationState
from training_app.models import (
    Activation,
    ActiveModel,
    ArtifactSymbol,
    GenerationCounter,
    ModelArtifact,
    ModelWatch,
    RunSymbol,
    TrainingRun,
    TuningTrial,
)

GOOD_MODELS = 3
"""So many good models that served a slot stay, however old: the one that serves, and what one may roll back to."""
MOST_MODELS = 200
"""Models that go at one run of the job: each is a transaction of its own, and a folder."""


def prune_training(cutoff: dt.datetime, limit: int) -> Mapping[str, int]:
    """Delete models, then runs without one, that ended before `cutoff` (market time) and explain nothing since."""
    models, judged_before = 0, min(cutoff, clock.market_now() - _longest_test_window())
    for artifact in deletable_models(judged_before)[: min(limit, MOST_MODELS)]:
        models += _delete_model(artifact, judged_before)
    runs = 0
    while runs < limit and (ids := list(_empty_runs(cutoff).values_list("pk", flat=True)[: retention.BATCH])):
        with transaction.atomic():
            _delete_runs(ids)
        runs += len(ids)
    return {"models": models, "training runs": models + runs}


def _longest_test_window() -> dt.timedelta:
    """How far back the test window of a coming training may reach.

    A model that was judged there is a trial that the gates count (`quant.sharpe.Trials`), also one that was refused:
    forgotten, the same window could be looked at until luck passes.
    """
    return dt.timedelta(days=settings.HISTORY_TARGET_DAYS * policies.training_spec().test_fraction)


def deletable_models(cutoff: dt.datetime) -> QuerySet[ModelArtifact]:
    """Return the models that may go, newest first."""
    named = [
        Exists(relation.field.model._default_manager.filter(**{relation.field.name: OuterRef("pk")}))
        for relation in ModelArtifact._meta.get_fields(include_hidden=True)
        if isinstance(relation, ForeignObjectRel) and relation.field not in JUDGED_BY_TIME
    ]
    found = ModelArtifact.objects.filter(created_at__lt=cutoff).exclude(pk__in=_kept(cutoff))
    for reference in named:  # decisions, active slots: whatever app has them
        found = found.filter(~reference)
    return found.order_by("-pk")


JUDGED_BY_TIME = (
    ArtifactSymbol._meta.get_field("artifact"),
    Activation._meta.get_field("artifact"),
    Activation._meta.get_field("previous_artifact"),
    ModelWatch._meta.get_field("artifact"),
)
"""References that do not keep a model by themselves: `_kept` says until when an activation does."""


def _kept(cutoff: dt.datetime) -> set[int]:
    """Return the models that stay although nothing but their own activations may name them."""
    newest = ModelArtifact.objects.values("scope").annotate(newest=Max("pk")).values_list("newest", flat=True)
    kept = set(newest) | set(ActiveModel.objects.values_list("artifact_id", flat=True))
    since = Q(requested_at__gte=cutoff) | Q(decided_at__gte=cutoff) | Q(state=ActivationState.REQUESTED)
    for artifact_id, previous_id in Activation.objects.filter(since).values_list("artifact_id", "previous_artifact_id"):
        kept.add(artifact_id)
        if previous_id is not None:  # it served until then
            kept.add(previous_id)
    good = Activation.objects.filter(
        state=ActivationState.APPLIED, artifact__integrity_error="", artifact__retired_at__isnull=True
    )
    of_slot: dict[str, list[int]] = defaultdict(list)
    for slot, artifact_id in good.order_by("-generation").values_list("slot", "artifact_id"):
        if artifact_id not in of_slot[slot] and len(of_slot[slot]) < GOOD_MODELS:
            of_slot[slot].append(artifact_id)
    return kept.union(*of_slot.values())


def _delete_model(artifact: ModelArtifact, cutoff: dt.datetime) -> bool:
    """Delete a model with its run and all that only belongs to them, then its files; False: it is wanted again.

    Whoever is killed in between leaves files without a row, which the tidy job removes.
    """
    with transaction.atomic():
        # As every activation does first: nobody can ask for this model between the look and the delete.
        list(GenerationCounter.objects.select_for_update().filter(pk=1))
        if not deletable_models(cutoff).filter(pk=artifact.pk).exists():
            return False
        Activation.objects.filter(artifact=artifact).delete()
        Activation.objects.filter(previous_artifact=artifact).update(previous_artifact=None)
        ArtifactSymbol.objects.filter(artifact=artifact).delete()
        ModelWatch.objects.filter(artifact=artifact).delete()
        Event.objects.filter(subject=f"artifact:{artifact.pk}").delete()
        ModelArtifact.objects.filter(pk=artifact.pk).delete()
        _delete_runs([artifact.run_id])
    artifacts.remove_directory(artifact.directory)
    return True


def _empty_runs(cutoff: dt.datetime) -> QuerySet[TrainingRun]:
    """Return ended runs without a model; the newest of a scope stays, as the plan counts its intervals from it."""
    newest = TrainingRun.objects.values("scope").annotate(newest=Max("pk")).values("newest")
    return TrainingRun.objects.filter(
        state__in=sorted(TERMINAL_STATES), finished_at__lt=cutoff, artifact__isnull=True
    ).exclude(pk__in=newest)


def _delete_runs(ids: list[int]) -> None:
    RunSymbol.objects.filter(run__in=ids).delete()
    TuningTrial.objects.filter(run__in=ids).delete()
    TrainingRun.objects.filter(pk__in=ids).delete()
    Event.objects.filter(subject__in=[f"run:{pk}" for pk in ids]).delete()


retention.register("training", prune_training, app="training_app")

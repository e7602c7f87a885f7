"""Which artifact a slot serves: asked for by people and by the plan, verified and applied by workers (I10).

Every activation, also a roll-back, is a row; the slot changes by one compare-and-set; its generation is drawn from one
counter in the same transaction, so that generations are committed in order and the bot finds what changed by one query.
Nothing in this module imports LightGBM: a web process may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import IntegrityError, transaction
from django.db.models import F

from ops_app import alerts, clock, journal, queue
from ops_app.choices import Severity
from quant.compatibility import Refusal, RefusalCode
from quant.reasons import reason as reason_text
from training_app import artifacts, registry
from training_app.choices import BY_A_PERSON, OPEN_STATES, ActivationKind, ActivationState, RunTrigger
from training_app.exceptions import ActivationRefused, ArtifactError
from training_app.models import (
    Activation,
    ActiveModel,
    GenerationCounter,
    ModelArtifact,
    TrainingRun,
    TrainingScope,
)

if TYPE_CHECKING:
    from django.contrib.auth.models import User

APPLY_TASK = "training_app.tasks.apply_activation"


def request_activation(
    *,
    artifact: ModelArtifact,
    kind: ActivationKind | str = ActivationKind.MANUAL,
    user: User | None = None,
    reason: str = "",
) -> Activation:
    """Record that `artifact` shall serve its slot, and ring a worker that verifies and applies it.

    Raises ActivationRefused when it may not: with every reason, or because another request for the slot is open.
    """
    slot = artifact.scope.key
    active = ActiveModel.objects.filter(slot=slot).values_list("artifact_id", flat=True).first()
    if active == artifact.pk:
        raise ActivationRefused(f"{artifact} is active in {slot} already; there is nothing to do")
    against = _against(artifact, kind)
    if against:
        raise ActivationRefused(f"{artifact} cannot serve {slot}: " + "; ".join(each.text for each in against))
    try:
        with transaction.atomic():
            # As `activate` does first: PostgreSQL would let a request slip in between its look and its own row, and
            # the result of a whole training would be refused for it.
            list(GenerationCounter.objects.select_for_update().filter(pk=1))
            requested = Activation.objects.create(
                slot=slot,
                artifact=artifact,
                previous_artifact_id=active,
                kind=kind,
                reason=reason[:500],
                requested_by=user,
                requested_at=clock.market_now(),
                enqueued_at=clock.database_now(),
            )
            queue.enqueue(APPLY_TASK, requested.pk)
            journal.record(
                "activation_requested",
                f"{artifact} shall serve {slot} ({kind}){': ' + reason if reason else ''}",
                subject=f"slot:{slot}",
                user=user,
            )
    except IntegrityError:
        raise ActivationRefused(
            f"an activation of {slot} is being applied at this moment; look at the registry in a minute"
        ) from None
    requested.refresh_from_db()
    return requested


def roll_back(*, slot: str, user: User | None = None, reason: str = "") -> Activation:
    """Ask for the artifact that served `slot` before the present one and is still good.

    The one that is rolled back is retired when the request is applied, so that no later pass promotes it again.
    Raises ActivationRefused when there is nothing to go back to.
    """
    active = ActiveModel.objects.select_related("artifact").filter(slot=slot).first()
    if active is None:
        raise ActivationRefused(f"slot {slot!r} has no active model; see `models` for the slots")
    served = Activation.objects.filter(slot=slot, state=ActivationState.APPLIED).exclude(artifact=active.artifact_id)
    refused: list[str] = []
    seen: set[int] = set()
    for earlier in served.select_related("artifact__scope").order_by("-id"):
        if earlier.artifact_id in seen:
            continue
        seen.add(earlier.artifact_id)
        against = registry.refusals_of(earlier.artifact)
        if not against:
            return request_activation(artifact=earlier.artifact, kind=ActivationKind.ROLLBACK, user=user, reason=reason)
        refused.append(f"{earlier.artifact}: " + "; ".join(each.text for each in against))
    why = "no other model ever served it" if not refused else "; ".join(refused)
    raise ActivationRefused(f"{slot} cannot be rolled back: {why}. Train a new model, or block its symbols.")


def apply_activation(activation_id: int) -> Activation | None:
    """Verify the artifact of a request and make it active, or refuse it with the reason; a worker's work.

    None: there was nothing to do (T10). Files that cannot be trusted are remembered, so nobody selects them again.
    """
    requested = (
        Activation.objects.select_related("artifact__scope")
        .filter(pk=activation_id, state=ActivationState.REQUESTED)
        .first()
    )
    if requested is None:
        return None
    try:
        artifacts.verify(requested.artifact)
    except ArtifactError as error:
        report_broken(artifact=requested.artifact, error=str(error))
        return _refuse(requested, str(error))
    try:
        with transaction.atomic():
            TrainingScope.objects.select_for_update().get(pk=requested.artifact.scope_id)  # first, as `publish` does
            apply_verified(requested, expected=requested.previous_artifact_id)
            if requested.kind in BY_A_PERSON:
                _end_runs_before(requested)
    except ActivationRefused as error:
        return _refuse(requested, str(error))
    return requested


def activate(
    *, artifact: ModelArtifact, kind: ActivationKind | str, reason: str = "", user: User | None = None
) -> Activation:
    """Make a verified artifact active in its slot at once, inside the caller's transaction (publish).

    A request that waits for the same slot is refused: this result is newer than what it was made against.
    """
    slot = artifact.scope.key
    now = clock.market_now()
    _next_generation()  # locks the counter's row: whatever is read from here on stays so until the commit
    Activation.objects.filter(slot=slot, state=ActivationState.REQUESTED).update(
        state=ActivationState.REFUSED,
        decided_at=now,
        reason=reason_text("SUPERSEDED", artifact=artifact.pk),
    )
    previous = ActiveModel.objects.filter(slot=slot).values_list("artifact_id", flat=True).first()
    activation = Activation.objects.create(
        slot=slot,
        artifact=artifact,
        previous_artifact_id=previous,
        kind=kind,
        reason=reason[:500],
        requested_by=user,
        requested_at=now,
    )
    apply_verified(activation, expected=previous)
    return activation


def apply_verified(activation: Activation, *, expected: int | None) -> None:
    """The compare-and-set: `expected` -> the activation's artifact; call it inside `atomic()`.

    Raises ActivationRefused when the slot does not hold `expected` any more, or the artifact lost its right to serve.
    """
    now = clock.market_now()
    generation = _next_generation()
    artifact = ModelArtifact.objects.select_related("scope").get(pk=activation.artifact_id)
    against = _against(artifact, activation.kind)
    if against:
        raise ActivationRefused(f"{artifact} cannot serve: " + "; ".join(each.text for each in against))
    changes = {"artifact_id": artifact.pk, "generation": generation, "activated_at": now}
    if expected is None:
        try:
            with transaction.atomic():
                ActiveModel.objects.create(slot=activation.slot, **changes)
        except IntegrityError:
            raise _overtaken(activation) from None
    elif ActiveModel.objects.filter(slot=activation.slot, artifact=expected).update(**changes) != 1:
        raise _overtaken(activation)
    decided = Activation.objects.filter(pk=activation.pk, state=ActivationState.REQUESTED).update(
        state=ActivationState.APPLIED, generation=generation, decided_at=now
    )
    if decided != 1:
        raise ActivationRefused(f"activation {activation.pk} was decided by another process at this moment")
    if activation.kind == ActivationKind.MANUAL:
        ModelArtifact.objects.filter(pk=artifact.pk).update(retired_at=None, retired_reason="")
    if activation.kind == ActivationKind.ROLLBACK and expected is not None:
        ModelArtifact.objects.filter(pk=expected, retired_at__isnull=True).update(
            retired_at=now, retired_reason=reason_text("ROLLED_BACK", activation=activation.pk)
        )
    activation.refresh_from_db()
    journal.record(
        "model_activated",
        f"{artifact} serves {activation.slot} as generation {generation} ({activation.kind})",
        subject=f"slot:{activation.slot}",
        user=activation.requested_by,
    )
    alerts.resolve_alert(_broken_key(activation.slot))


def _end_runs_before(choice: Activation) -> None:
    """Cancel what was being trained when a person chose a model: its result would take the model's place at once."""
    from training_app.services import requests  # which import this module

    scope = choice.artifact.scope
    for run in TrainingRun.objects.filter(scope=scope, state__in=OPEN_STATES).exclude(trigger=RunTrigger.MANUAL):
        requests.cancel(run=run, user=choice.requested_by, why=f"a person chose {choice.artifact}")


def _against(artifact: ModelArtifact, kind: ActivationKind | str) -> list[Refusal]:
    """A person may bring a retired model back; nobody else may."""
    lifted = RefusalCode.RETIRED if kind == ActivationKind.MANUAL else None
    return [refusal for refusal in registry.refusals_of(artifact) if refusal.code is not lifted]


def _overtaken(activation: Activation) -> ActivationRefused:
    return ActivationRefused(
        f"{activation.slot} got another model since this was asked for; look at the registry and ask again"
    )


def _refuse(activation: Activation, why: str) -> Activation:
    Activation.objects.filter(pk=activation.pk, state=ActivationState.REQUESTED).update(
        state=ActivationState.REFUSED, decided_at=clock.market_now(), reason=why[:500]
    )
    activation.refresh_from_db()
    journal.record(
        "activation_refused",
        f"{activation.artifact} does not serve {activation.slot}: {why}",
        subject=f"slot:{activation.slot}",
        severity=Severity.WARNING,
        user=activation.requested_by,
    )
    return activation


def report_broken(*, artifact: ModelArtifact, error: str) -> bool:
    """Remember that the files of `artifact` cannot be trusted; the next plan falls back to the last good model.

    For whoever finds it: a worker that verifies, the bot that loads. True when it was not known yet. A second report
    changes nothing, so nothing can loop.
    """
    known = ModelArtifact.objects.filter(pk=artifact.pk, integrity_error="").update(
        integrity_error=error[:300] or "unknown"
    )
    if known != 1:
        return False
    text = (
        f"{artifact} of {artifact.scope.key} cannot be used: {error} "
        "The plan falls back to the last good model, or trains once."
    )
    journal.record("artifact_broken", text, subject=f"artifact:{artifact.pk}", severity=Severity.CRITICAL)
    alerts.raise_alert(_broken_key(artifact.scope.key), text, Severity.CRITICAL)
    return True


def _broken_key(slot: str) -> str:
    return f"artifact:{slot}"[:160]


def _next_generation() -> int:
    """Draw the next generation; its row stays locked to the end of the transaction, so that commits are in order."""
    if GenerationCounter.objects.filter(pk=1).update(value=F("value") + 1) != 1:
        GenerationCounter.objects.bulk_create([GenerationCounter(pk=1, value=0)], ignore_conflicts=True)
        GenerationCounter.objects.filter(pk=1).update(value=F("value") + 1)
    return GenerationCounter.objects.values_list("value", flat=True).get(pk=1)

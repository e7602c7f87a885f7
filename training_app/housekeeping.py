"""Looking after artifact files: broken ones are reported, those without a row are removed. No model is loaded."""

from __future__ import annotations

import datetime as dt

import structlog
from django.conf import settings

from ops_app import alerts, clock
from training_app import activation, artifacts
from training_app.exceptions import ArtifactError, ArtifactUnreachable
from training_app.models import ActiveModel, ModelArtifact
from training_app.storage import artifact_storage

log = structlog.get_logger(__name__)

LEAST_AGE = dt.timedelta(hours=1)
MOST_UNREADABLE = 3
UNREADABLE_ALERT = "artifacts:unreadable"


def verify_active_files(*, market: str | None = None) -> list[str]:
    """Check size and sha256 of every active artifact of the market; returns the directories found broken.

    What cannot be read now is no evidence against a model: one alert until it can, and the next pass tries again.
    """
    active = ActiveModel.objects.filter(
        artifact__scope__market=market or settings.EXCHANGE_MARKET, artifact__integrity_error=""
    ).select_related("artifact__scope")
    broken: list[str] = []
    unreadable: list[str] = []
    for row in active:
        try:
            artifacts.verify_files(row.artifact)
        except ArtifactError as error:
            if activation.report_broken(artifact=row.artifact, error=str(error)):
                broken.append(row.artifact.directory)
        except ArtifactUnreachable as error:
            log.warning("artifact_unreachable", artifact=row.artifact_id, error=str(error))
            unreadable.append(str(error))
            if len(unreadable) >= MOST_UNREADABLE:
                break  # the others are in the same place, and each may take its time-out
    if unreadable:
        text = f"Files of active models could not be checked: {unreadable[0]}. It is tried again every few minutes."
        alerts.raise_alert(UNREADABLE_ALERT, f"{text} Models in use are not affected. Look at the disk or the storage.")
    else:
        alerts.resolve_alert(UNREADABLE_ALERT)
    return broken


def remove_orphans() -> list[str]:
    """Remove directories without a row that are older than any run could still need; returns their names (T13).

    A process that was frozen for longer than that lost its lease, so its publish is refused anyway.
    """
    least_age = max(LEAST_AGE, 2 * dt.timedelta(seconds=settings.TRAIN_LEASE_SECONDS))
    oldest = clock.real_now() - least_age
    candidates = [name for name, written_at in artifact_storage().directories().items() if written_at < oldest]
    if not candidates:
        return []
    known = set(ModelArtifact.objects.values_list("directory", flat=True))
    removed = [name for name in sorted(candidates) if name not in known]
    for name in removed:
        artifacts.remove_directory(name)
    return removed

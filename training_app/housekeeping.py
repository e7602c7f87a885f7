"""Looking after artifact files: broken ones are reported, those without a row are removed. No model is loaded."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from django.conf import settings

from ops_app import clock
from training_app import activation, artifacts
from training_app.exceptions import ArtifactError
from training_app.models import ActiveModel, ModelArtifact

LEAST_AGE = dt.timedelta(hours=1)


def verify_active_files(*, market: str | None = None) -> list[str]:
    """Check size and sha256 of every active artifact of the market; returns the directories found broken."""
    active = ActiveModel.objects.filter(
        artifact__scope__market=market or settings.EXCHANGE_MARKET, artifact__integrity_error=""
    ).select_related("artifact__scope")
    broken = []
    for row in active:
        try:
            artifacts.verify_files(row.artifact)
        except ArtifactError as error:
            if activation.report_broken(artifact=row.artifact, error=str(error)):
                broken.append(row.artifact.directory)
    return broken


def remove_orphans() -> list[str]:
    """Remove directories without a row that are older than any run could still need; returns their names (T13).

    A process that was frozen for longer than that lost its lease, so its publish is refused anyway.
    """
    least_age = max(LEAST_AGE, 2 * dt.timedelta(seconds=settings.TRAIN_LEASE_SECONDS))
    oldest = (clock.real_now() - least_age).timestamp()
    root = artifacts.root()
    if not root.is_dir():
        return []
    candidates = [path for scope in _folders(root) for path in _folders(scope) if path.stat().st_mtime < oldest]
    if not candidates:
        return []
    known = set(ModelArtifact.objects.values_list("directory", flat=True))
    removed = []
    for path in candidates:
        name = f"{path.parent.name}/{path.name}"
        if name not in known:
            artifacts.remove_directory(name)
            removed.append(name)
    return removed


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())

"""Reads of the training tables that matter, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.models import QuerySet

from training_app.choices import OPEN_STATES

if TYPE_CHECKING:
    from training_app.models import ModelArtifact, TrainingRun


class RunQuerySet(QuerySet["TrainingRun"]):
    def open(self) -> RunQuerySet:
        return self.filter(state__in=OPEN_STATES)


class ArtifactQuerySet(QuerySet["ModelArtifact"]):
    def promotable(self) -> ArtifactQuerySet:
        return self.filter(gates_passed=True, retired_at__isnull=True, integrity_error="")

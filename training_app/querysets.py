"""Reads of the training tables that matter, by name."""

from __future__ import annotations

from django.db.models import QuerySet

from training_app.choices import OPEN_STATES


class RunQuerySet(QuerySet):
    def open(self) -> RunQuerySet:
        return self.filter(state__in=OPEN_STATES)


class ArtifactQuerySet(QuerySet):
    def promotable(self) -> ArtifactQuerySet:
        return self.filter(gates_passed=True, retired_at__isnull=True, integrity_error="")

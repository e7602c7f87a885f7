"""Reads of the coverage tables that matter, by name."""

from __future__ import annotations

import datetime as dt

from django.apps import apps
from django.db.models import Exists, OuterRef, Q, QuerySet


class SymbolQuerySet(QuerySet):
    def of_market(self, market: str) -> SymbolQuerySet:
        return self.filter(market=market)

    def due_for_evaluation(self, *, now: dt.datetime) -> SymbolQuerySet:
        return self.filter(Q(next_evaluation_at__isnull=True) | Q(next_evaluation_at__lte=now))

    def unblocked(self) -> SymbolQuerySet:
        block = apps.get_model("coverage_app", "Block")  # by name: the models' module imports this one
        return self.filter(~Exists(block.objects.open().filter(symbol=OuterRef("pk"))))


class BlockQuerySet(QuerySet):
    def open(self) -> BlockQuerySet:
        return self.filter(closed_at__isnull=True)

    def due(self, *, now: dt.datetime) -> BlockQuerySet:
        return self.open().filter(permanent=False, recheck_at__lte=now)

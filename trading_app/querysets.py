"""Reads of the money tables that matter, by name."""

from __future__ import annotations

from django.db.models import QuerySet

from trading_app.choices import OPEN_ORDER_STATES


class OrderQuerySet(QuerySet):
    def open(self) -> OrderQuerySet:
        return self.filter(state__in=OPEN_ORDER_STATES)


class PositionQuerySet(QuerySet):
    def open(self) -> PositionQuerySet:
        return self.filter(closed_at__isnull=True)

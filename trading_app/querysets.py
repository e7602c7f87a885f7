"""Reads of the money tables that matter, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.models import QuerySet

from trading_app.choices import OPEN_ORDER_STATES

if TYPE_CHECKING:
    from trading_app.models import Order, Position


class OrderQuerySet(QuerySet["Order"]):
    def open(self) -> OrderQuerySet:
        return self.filter(state__in=OPEN_ORDER_STATES)


class PositionQuerySet(QuerySet["Position"]):
    def open(self) -> PositionQuerySet:
        return self.filter(closed_at__isnull=True)

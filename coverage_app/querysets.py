"""Reads of the coverage tables that matter, by name."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from django.apps import apps
from django.db import connection
from django.db.models import Exists, OuterRef, Q, QuerySet

from coverage_app.choices import BACK_OFF_REASONS, TRADING_REASONS

if TYPE_CHECKING:
    from coverage_app.models import Block, Symbol


class SymbolQuerySet(QuerySet["Symbol"]):
    def of_market(self, market: str) -> SymbolQuerySet:
        return self.filter(market=market)

    def claimable(self) -> SymbolQuerySet:
        """These rows, taken by this transaction; without those that another has. SQLite lets one write at a time."""
        if not connection.features.has_select_for_update_skip_locked:
            return self
        return self.select_for_update(skip_locked=True, no_key=True)

    def locked(self) -> SymbolQuerySet:
        """These rows for an update in a transaction, locked by primary key one after the other.

        Two processes that lock many rows in different orders may wait for each other: PostgreSQL ends one with an
        error. In one order they never both wait.
        """
        if not connection.features.has_select_for_update:
            return self
        in_order = self.order_by("pk").select_for_update(no_key=True)
        return SymbolQuerySet(self.model).filter(pk__in=in_order.values("pk"))

    def due_for_evaluation(self, *, now: dt.datetime) -> SymbolQuerySet:
        """New symbols (no time yet) wait until their history was asked for: judged sooner, all would be too short."""
        waiting = Q(in_universe=True, active=True, backfilled=False, ingest_failures=0)
        return self.filter(Q(next_evaluation_at__isnull=True) & ~waiting | Q(next_evaluation_at__lte=now))

    def ingestible(self) -> SymbolQuerySet:
        """Symbols whose candles are kept up: the universe's, and those once in it, because models may need them."""
        return self.filter(Q(in_universe=True) | Q(candle_count__gt=0), delisted_at__isnull=True)

    def due_for_ingest(self, *, now: dt.datetime) -> SymbolQuerySet:
        return self.ingestible().filter(Q(ingest_due_at__isnull=True) | Q(ingest_due_at__lte=now))

    def unblocked(self) -> SymbolQuerySet:
        block = apps.get_model("coverage_app", "Block")  # by name: the models' module imports this one
        return self.filter(~Exists(block.objects.open().filter(symbol=OuterRef("pk"))))

    def ready(self) -> SymbolQuerySet:
        """Symbols that may be learnt: judged, in the universe, and nothing against them but what stops only trading."""
        block = apps.get_model("coverage_app", "Block")
        against = block.objects.open().filter(symbol=OuterRef("pk")).exclude(reason__in=TRADING_REASONS)
        return self.filter(~Exists(against), in_universe=True, last_evaluated_at__isnull=False)


class BlockQuerySet(QuerySet["Block"]):
    def open(self) -> BlockQuerySet:
        return self.filter(closed_at__isnull=True)

    def due(self, *, now: dt.datetime) -> BlockQuerySet:
        return self.open().filter(permanent=False, recheck_at__lte=now)

    def back_off_ended(self, *, now: dt.datetime) -> BlockQuerySet:
        """Open blocks that time alone closes."""
        return self.due(now=now).filter(reason__in=BACK_OFF_REASONS)

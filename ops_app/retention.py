"""What may be deleted, and when: each app registers what of its rows no longer explains a decision (I21).

A pruner is `(cutoff, limit) -> {what: how many}`: it deletes at most about `limit` rows that are older than `cutoff`
(market time) and that nothing within the retention time names, in batches that each are one short transaction. Apps
register from `<app>/retention.py`; the highest app goes first, because its rows name those of the lower ones.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from django.apps import apps
from django.conf import settings
from django.db.models import QuerySet

from ops_app import clock, journal, leases, plugins
from ops_app.models import Alert, Event

LEASE = "retention"
"""Held by whoever prunes, and by a backup, which copies files that rows of its snapshot name."""
LEASE_TTL = dt.timedelta(minutes=10)
BATCH = 500
LIMIT = 20_000
"""Rows of each kind at one run of the job: a first pass over an old database takes several hours of runs."""

Pruner = Callable[[dt.datetime, int], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class _Entry:
    app: str
    prune: Pruner


_pruners: dict[str, _Entry] = {}


def register(name: str, prune: Pruner, *, app: str) -> None:
    """Add a pruner of `app`. Raises ValueError for a name that is taken."""
    entry = _Entry(app, prune)
    if _pruners.setdefault(name, entry) != entry:
        raise ValueError(f"pruner {name!r} is registered twice")


def cutoff() -> dt.datetime:
    """Return the market time before which rows may go."""
    return clock.market_now() - dt.timedelta(days=settings.RETENTION_DAYS)


def _ahead() -> dt.timedelta:
    """Return how much market time this host's clock is ahead of the database's: what is deleted is gone (T11)."""
    return max(clock.real_now() - clock.database_time(), dt.timedelta(0)) * clock.speed()


def is_due() -> bool:
    """Tell whether this installation is old enough that anything may go: its first event tells (1 query)."""
    first = Event.objects.order_by("pk").values_list("created_at", flat=True).first()
    return first is not None and first < cutoff()


def prune() -> str:
    """Delete what is older than RETENTION_DAYS and explains nothing within them; returns what, "" for nothing.

    Does nothing while a backup is taken. What was deleted is counted in the journal.
    """
    plugins.load("retention")
    order = {config.name: place for place, config in enumerate(apps.get_app_configs())}
    before = cutoff() - _ahead()
    counts: Counter[str] = Counter()
    try:
        with leases.holding(LEASE, ttl=LEASE_TTL) as lease:
            for entry in sorted(_pruners.values(), key=lambda each: -order[each.app]):
                counts.update(entry.prune(before, LIMIT))
                leases.keep(lease)
    except leases.LeaseBusy:
        return ""
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if not said:
        return ""
    text = f"Deleted what is older than {before:%Y-%m-%d %H:%M} (RETENTION_DAYS={settings.RETENTION_DAYS}): {said}"
    journal.record("retention", text, subject="retention")
    return said


def delete_in_batches(rows: QuerySet, *, limit: int) -> int:
    """Delete the first `limit` of `rows` (ordered), BATCH at a time; returns how many of them were deleted.

    Each batch is a transaction of its own, so that nobody waits for long. Rows that something names are refused by the
    database (PROTECT): the query must leave them out.
    """
    deleted = 0
    while deleted < limit:
        ids = list(rows.values_list("pk", flat=True)[: min(BATCH, limit - deleted)])
        if not ids:
            break
        rows.model._default_manager.filter(pk__in=ids).delete()
        deleted += len(ids)
    return deleted


EVENTS_THAT_GO_WITH_THEIR_ROW = ("run:", "artifact:", "slot:")


def prune_events(before: dt.datetime, limit: int) -> Mapping[str, int]:
    """Delete events from before `before`: not those by a person, and not those that tell the life of a model."""
    old = Event.objects.filter(created_at__lt=before, user__isnull=True)
    for prefix in EVENTS_THAT_GO_WITH_THEIR_ROW:
        old = old.exclude(subject__startswith=prefix)
    since = clock.real_now() - dt.timedelta(days=settings.RETENTION_DAYS)
    closed = Alert.objects.filter(resolved_at__lt=since)
    return {
        "events": delete_in_batches(old.order_by("created_at", "pk"), limit=limit),
        "alerts": delete_in_batches(closed.order_by("pk"), limit=limit),
    }


register("events", prune_events, app="ops_app")

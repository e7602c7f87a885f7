"""Which rows of coverage may go: old looks at the exchange. Symbols and their blocks stay."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from django.db.models import Max

from coverage_app.models import UniverseRefresh
from ops_app import retention


def prune_refreshes(cutoff: dt.datetime, limit: int) -> Mapping[str, int]:
    """Delete refreshes from before `cutoff`; the newest of a market holds the next one's time."""
    newest = UniverseRefresh.objects.values("market").annotate(newest=Max("pk")).values("newest")
    old = UniverseRefresh.objects.filter(started_at__lt=cutoff).exclude(pk__in=newest)
    return {"universe refreshes": retention.delete_in_batches(old.order_by("pk"), limit=limit)}


retention.register("universe refreshes", prune_refreshes, app="coverage_app")

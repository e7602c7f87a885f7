"""Metrics of coverage, from four statements whatever the number of symbols."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Count, Q
from prometheus_client.core import Metric

from coverage_app import selectors
from coverage_app.models import Symbol
from ops_app import clock, metrics
from quant.timeframes import to_ms


def coverage() -> Iterable[Metric]:
    summary = selectors.coverage_summary()
    now = clock.market_now()
    late = Symbol.objects.of_market(summary.market).aggregate(
        evaluation=Count("pk", filter=Q(next_evaluation_at__lt=now)),
        candles=Count("pk", filter=Q(ingest_due_at__lt=now, delisted_at__isnull=True, in_universe=True)),
        failing=Count("pk", filter=Q(ingest_failures__gt=0)),
    )
    counts = {
        "listed": summary.symbols,
        "in_universe": summary.in_universe,
        "ready": summary.ready,
        "blocked": summary.blocked,
        "backfilled": summary.backfill.done,
    }
    yield metrics.labelled("symbols", "Symbols of the market, by what holds for them.", "what", counts.items())
    yield metrics.labelled("open_blocks", "Open blocks by reason.", "reason", summary.by_reason.items())
    yield metrics.labelled("symbols_late", "Symbols whose work is due.", "work", late.items())
    if summary.newest_candle_at is not None:
        age = (to_ms(now) - to_ms(summary.newest_candle_at)) / 1000
        yield metrics.gauge("newest_candle_age_seconds", "Market time since the newest candle's open.", age)


metrics.register("coverage", coverage)

"""What `manage.py doctor` asks of coverage: universe, candle store, symbols with errors, evaluations."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.db.models import Count, Min, Q

from coverage_app import market, selectors
from coverage_app.models import Symbol
from marketdata.errors import StoreError
from ops_app import clock
from ops_app.doctor import Finding, check, ok, problem, warning
from quant.timeframes import timeframe_ms, to_ms

LATE = dt.timedelta(minutes=30)
"""Real time after which work that is due has been left lying for too long."""
WORKERS = "Is a worker running? `python3 run.py` starts one; its errors are in the log."


def _late_since() -> dt.datetime:
    return clock.market_now() - LATE * clock.speed()


@check("universe", needs_tables=True)
def universe() -> Finding:
    row = selectors.newest_refresh()
    if row is None:
        return warning(f"{settings.EXCHANGE_MARKET} was never asked for its symbols", WORKERS)
    if row.error:
        return problem(f"the last refresh failed: {row.error}", f"It is tried again at {row.next_refresh_at:%H:%M}.")
    if row.next_refresh_at < _late_since():
        return warning(f"not refreshed since {row.started_at:%Y-%m-%d %H:%M} (market time)", WORKERS)
    return ok(f"{row.in_universe} of {row.found} symbols, refreshed {row.started_at:%Y-%m-%d %H:%M} (market time)")


@check("candle store", needs_tables=True)
def candle_store() -> Finding:
    store = market.candle_store()
    try:
        newest = store.last_open_times(settings.EXCHANGE_MARKET, settings.TIMEFRAME)
    except StoreError as error:
        return problem(error.reason, f"{error.path}: {error.fix}")
    lost = [
        code
        for code, at in Symbol.objects.of_market(settings.EXCHANGE_MARKET)
        .filter(last_candle_at__isnull=False)
        .values_list("code", "last_candle_at")
        if at is not None and newest.get(code, -1) < to_ms(at)
    ]
    if lost:
        return problem(
            f"candles of {len(lost)} symbols are not in the store, like {lost[0]}", "Run: manage.py backfill"
        )
    return ok(f"{len(newest)} symbols with {settings.TIMEFRAME} candles in {store.root}")


@check("candles", needs_tables=True)
def candles() -> Finding:
    counts = (
        Symbol.objects.of_market(settings.EXCHANGE_MARKET)
        .ingestible()
        .aggregate(
            all=Count("pk"),
            failing=Count("pk", filter=Q(ingest_failures__gt=0)),
            late=Count("pk", filter=Q(ingest_due_at__lt=_late_since())),
            oldest=Min("last_candle_at"),
        )
    )
    if counts["late"]:
        return warning(f"{counts['late']} of {counts['all']} symbols wait for their candles", WORKERS)
    if counts["failing"]:
        worst = (
            Symbol.objects.of_market(settings.EXCHANGE_MARKET)
            .filter(ingest_failures__gt=0)
            .order_by("-ingest_failures")
        )
        first = worst.values_list("code", "ingest_error").first()
        return warning(
            f"{counts['failing']} of {counts['all']} symbols with errors, like {first}",
            "They are tried again with back-off; `manage.py coverage --reason EXCHANGE_ERROR` lists them.",
        )
    bar = dt.timedelta(milliseconds=timeframe_ms(settings.TIMEFRAME))
    return ok(f"{counts['all']} symbols kept up, one every {bar}")


@check("coverage", needs_tables=True)
def coverage() -> Finding:
    symbols = Symbol.objects.of_market(settings.EXCHANGE_MARKET)
    late = symbols.filter(next_evaluation_at__lt=_late_since()).count()
    if late:
        return warning(f"{late} symbols are overdue for evaluation", WORKERS)
    failing = symbols.filter(evaluation_failures__gt=0).values_list("code", flat=True)
    if failing:
        return problem(
            f"{len(failing)} symbols could not be evaluated, like {failing[0]}",
            "This is a fault of the program: the log has the traceback (evaluation_failed).",
        )
    summary = selectors.coverage_summary()
    return ok(f"{summary.ready} ready, {summary.blocked} blocked of {summary.symbols}")

"""What the rows say about a symbol, in the words of `quant.policy`."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from django.conf import settings
from django.db.models import BigIntegerField, Func

from coverage_app.models import Symbol
from ops_app import clock
from quant.policy import CoveragePolicy, SymbolFacts
from quant.timeframes import timeframe_ms


class EpochMs(Func):
    """A stored time in ms since 1970, made by the database: parsing 40,000 texts costs Python half a second."""

    output_field = BigIntegerField()

    def get_db_converters(self, _connection: Any) -> list[Any]:
        return []  # both databases give an int or None: Django's own converter is called 5 times a row for nothing

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "CAST(ROUND((JULIANDAY(%(expressions)s) - 2440587.5) * 86400000) AS INTEGER)"
        return super().as_sql(compiler, connection, template=template, **context)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "ROUND(EXTRACT(EPOCH FROM %(expressions)s) * 1000)::bigint"
        return super().as_sql(compiler, connection, template=template, **context)


FACT_COLUMNS = (
    "code", "in_universe", "universe_reason", EpochMs("listed_at"), EpochMs("delisted_at"), EpochMs("history_start"),
    EpochMs("last_candle_at"), "candle_count", "expected_count", "largest_gap_bars",
    EpochMs("unbroken_since"), "price_break", "ingest_error", "ingest_failures",
)  # fmt: skip
"""The fields of SymbolFacts, in their order: for `values_list`."""


STALE_AFTER_BARS = 3
INGEST_SECONDS = 60.0
"""Real seconds that a closed candle may need into the store: sweepers, queue, fetch and write take real time."""


def coverage_policy(*, speed: float | None = None) -> CoveragePolicy:
    """Return the rules that the settings ask for, on a market clock of ``speed`` (default: the present one)."""
    speed = clock.speed() if speed is None else speed
    bar_ms = timeframe_ms(settings.TIMEFRAME)
    # On a fast clock our own work lasts bars (60 at 3600 x), which says nothing against the symbol.
    own_bars = math.ceil(INGEST_SECONDS * 1000 * speed / bar_ms) if speed > 1 else 0
    return CoveragePolicy(
        bar_ms=bar_ms,
        stale_after_bars=STALE_AFTER_BARS + own_bars,
        min_history_days=settings.HISTORY_MIN_DAYS,
        target_history_days=settings.HISTORY_TARGET_DAYS,
        min_coverage=settings.HISTORY_MIN_COVERAGE,
        evaluation_interval_ms=settings.EVALUATION_INTERVAL * 1000,
    )


def evaluation_interval() -> dt.timedelta:
    """Return the least time between two evaluations of a symbol (I3)."""
    return dt.timedelta(seconds=settings.EVALUATION_INTERVAL)


def symbol_facts(symbol: Symbol) -> SymbolFacts:
    """Return the facts of one symbol (1 query)."""
    return SymbolFacts(*Symbol.objects.filter(pk=symbol.pk).values_list(*FACT_COLUMNS).get())

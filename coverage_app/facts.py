"""What the rows say about a symbol, in the words of `quant.policy`."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings

from quant.policy import CoveragePolicy, SymbolFacts
from quant.timeframes import timeframe_ms, to_ms

FACT_FIELDS = (
    "code", "in_universe", "universe_reason", "listed_at", "delisted_at", "history_start", "last_candle_at",
    "candle_count", "expected_count", "largest_gap_bars", "price_break", "ingest_error", "ingest_failures",
)  # fmt: skip
"""Columns of Symbol that `symbol_facts` needs."""


def coverage_policy() -> CoveragePolicy:
    """Return the rules that the settings ask for."""
    return CoveragePolicy(
        bar_ms=timeframe_ms(settings.TIMEFRAME),
        min_history_days=settings.HISTORY_MIN_DAYS,
        target_history_days=settings.HISTORY_TARGET_DAYS,
        min_coverage=settings.HISTORY_MIN_COVERAGE,
        evaluation_interval_ms=settings.EVALUATION_INTERVAL * 1000,
    )


def evaluation_interval() -> dt.timedelta:
    """Return the least time between two evaluations of a symbol (I3)."""
    return dt.timedelta(seconds=settings.EVALUATION_INTERVAL)


def symbol_facts(row: Any) -> SymbolFacts:
    """Return the facts of `row`: a Symbol, or a named tuple with FACT_FIELDS."""
    return SymbolFacts(
        symbol=row.code,
        in_universe=row.in_universe,
        universe_reason=row.universe_reason,
        listed_ms=_ms(row.listed_at),
        delisted_ms=_ms(row.delisted_at),
        history_start_ms=_ms(row.history_start),
        last_candle_ms=_ms(row.last_candle_at),
        candle_count=row.candle_count,
        expected_count=row.expected_count,
        largest_gap_bars=row.largest_gap_bars,
        price_break=row.price_break or None,
        ingest_error=row.ingest_error or None,
        failures=row.ingest_failures,
    )


def _ms(moment: dt.datetime | None) -> int | None:
    return None if moment is None else to_ms(moment)

"""The figures of a symbol's history, measured when candles are stored, so that no evaluation reads candles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.conf import settings

from coverage_app.models import Symbol
from quant.timeframes import DAY_MS, floor_ms, from_ms, last_closed_open_ms, timeframe_ms, to_ms

if TYPE_CHECKING:
    from marketdata.gaps import HistoryStats
    from marketdata.store import CandleStore

FIGURES = (
    "history_start", "history_days", "history_coverage", "candle_count", "expected_count", "largest_gap_bars",
    "unbroken_since", "price_break", "last_candle_at",
)  # fmt: skip


def measure(store: CandleStore, rows: Sequence[Symbol], *, now_ms: int, timeframe: str) -> dict[str, dict[str, Any]]:
    """Return the figures of what is stored of these symbols of one market within the target window, by code.

    Whoever only got another candle after an unbroken history is measured by reading one month; all of the window is
    read for the others, and for everybody with a day's first candle: a changed setting or a lost file then shows.
    """
    from marketdata.gaps import history_stats

    if not rows:
        return {}
    step, window, market = timeframe_ms(timeframe), settings.HISTORY_TARGET_DAYS, rows[0].market
    since = floor_ms(now_ms - window * DAY_MS, step)
    found = _continued(store, rows, now_ms=now_ms, timeframe=timeframe, since_ms=since)
    whole = [row.code for row in rows if row.code not in found]
    if whole:
        stored = store.read(market, timeframe, symbols=whole, since_ms=since)
        found |= {code: history_stats(series, step, now_ms, window) for code, series in stored.items()}
    return {code: _figures(stats, step) for code, stats in found.items() if stats.first_ms is not None}


def _continued(
    store: CandleStore, rows: Sequence[Symbol], *, now_ms: int, timeframe: str, since_ms: int
) -> dict[str, HistoryStats]:
    from marketdata.gaps import continued_stats

    step = timeframe_ms(timeframe)
    today = last_closed_open_ms(now_ms, step) // DAY_MS
    before = {row.code: _stats(row) for row in rows if row.history_start is not None and row.last_candle_at is not None}
    last_ms = {code: stats.last_ms or 0 for code, stats in before.items() if (stats.last_ms or 0) // DAY_MS == today}
    if not last_ms:
        return {}
    tails = store.read(rows[0].market, timeframe, symbols=last_ms, since_ms=min(last_ms.values()))
    found = {}
    for code, tail in tails.items():
        own = tail.between(last_ms[code], now_ms)
        stats = continued_stats(before[code], own, step, now_ms, settings.HISTORY_TARGET_DAYS, since_ms)
        if stats is not None:
            found[code] = stats
    return found


def _figures(stats: HistoryStats, step: int) -> dict[str, Any]:
    """Return what a symbol's row says of a history that has candles."""
    first, last = stats.first_ms or 0, stats.last_ms or 0
    return {
        "history_start": from_ms(first),
        "history_days": (last + step - first) / DAY_MS,
        "history_coverage": stats.coverage,
        "candle_count": stats.count,
        "expected_count": stats.expected,
        "largest_gap_bars": stats.largest_gap_bars,
        "unbroken_since": None if stats.unbroken_since_ms is None else from_ms(stats.unbroken_since_ms),
        "price_break": (stats.price_break or "")[:300],
        "last_candle_at": from_ms(last),
    }


def _stats(row: Symbol) -> HistoryStats:
    """Return what `_figures` made the row say."""
    from marketdata.gaps import HistoryStats

    return HistoryStats(
        first_ms=None if row.history_start is None else to_ms(row.history_start),
        last_ms=None if row.last_candle_at is None else to_ms(row.last_candle_at),
        count=row.candle_count,
        expected=row.expected_count,
        coverage=row.history_coverage,
        largest_gap_bars=row.largest_gap_bars,
        largest_gap_at_ms=None,
        unbroken_since_ms=None if row.unbroken_since is None else to_ms(row.unbroken_since),
        price_break=row.price_break or None,
    )

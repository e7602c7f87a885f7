"""What a candle history lacks, and whether it is one asset throughout. Pure: candles in, facts out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.candles import Candles
from quant.reasons import reason
from quant.timeframes import DAY_MS, floor_ms

BREAK_FACTOR = 3.0
"""A price that changed by this factor between two closes is examined; no listed perpetual did so in one candle."""
GAP_BREAK_FACTOR = 2.5
"""... and by this factor across a gap, where a token swap happens while trading is suspended."""
MIN_GAP_BARS = 24
"""A shorter gap is an outage of the exchange; a token swap takes days."""
LONG_GAP_MS = 7 * DAY_MS
"""A longer gap is a suspension: who traded before it is gone, and the features (at most 168 hours of memory on 1h) have
forgotten. What comes after must be long enough by itself."""


@dataclass(frozen=True, slots=True)
class HistoryStats:
    """Facts on the closed candles of one symbol, over its whole history and within the window.

    `first_ms`, `last_ms`: open times of the first and last candle, None if there is none. `count`, `expected`,
    `coverage` and the gap refer to the window: from its start, or from the first candle if that is later, to the last
    closed candle. `largest_gap_at_ms` is the open time of the first missing candle. `unbroken_since_ms` is the open
    time of the first candle after the last long gap of the window, None without one. `price_break` is evidence, or
    None.
    """

    first_ms: int | None
    last_ms: int | None
    count: int
    expected: int
    coverage: float
    largest_gap_bars: int
    largest_gap_at_ms: int | None
    unbroken_since_ms: int | None
    price_break: str | None


def history_stats(candles: Candles, step_ms: int, now_ms: int, window_days: int) -> HistoryStats:
    """Judge a history at `now_ms`. Candles that are not closed by then are ignored; they must be sorted and unique.

    Coverage counts to the last *closed* candle, so a series that has just stopped loses coverage slowly; that it is
    stale shows in `last_ms`.
    """
    if window_days <= 0:
        raise ValueError(f"window_days={window_days} must be above 0; give the days of history that are needed")
    end = floor_ms(now_ms, step_ms)
    candles = candles.between(0, end)
    if not len(candles):
        return HistoryStats(None, None, 0, 0, 0.0, 0, None, None, None)
    first, last = int(candles.open_time[0]), int(candles.open_time[-1])
    start = max(first, -(-(now_ms - window_days * DAY_MS) // step_ms) * step_ms)
    window = candles.between(start, end)
    expected = max((end - start) // step_ms, 0)
    gap_bars, gap_at = _largest_gap(window.open_time, start, end, step_ms)
    return HistoryStats(
        first_ms=first,
        last_ms=last,
        count=len(window),
        expected=expected,
        coverage=len(window) / expected if expected else 0.0,
        largest_gap_bars=gap_bars,
        largest_gap_at_ms=gap_at,
        unbroken_since_ms=_unbroken_since(window.open_time, step_ms),
        price_break=find_price_break(window, step_ms),
    )


def continued_stats(
    before: HistoryStats, tail: Candles, step_ms: int, now_ms: int, window_days: int, since_ms: int
) -> HistoryStats | None:
    """What `history_stats` of the candles from `since_ms` on would say, after `tail` followed an unbroken history.

    `before` is what it said last, and `tail` begins with the candle that was the last one then. None: there was or is a
    gap or a break, or the window has left what `before` speaks of; then only a look at the whole history can tell.
    """
    end = floor_ms(now_ms, step_ms)
    tail = tail.between(0, end)
    unbroken = before.count == before.expected > 0 and before.unbroken_since_ms is None and before.price_break is None
    if not unbroken or before.first_ms is None or not len(tail) or int(tail.open_time[0]) != before.last_ms:
        return None
    last = int(tail.open_time[-1])
    first = max(before.first_ms, since_ms)
    start = max(first, -(-(now_ms - window_days * DAY_MS) // step_ms) * step_ms)
    whole = last - before.last_ms == (len(tail) - 1) * step_ms
    if not whole or start > before.last_ms or find_price_break(tail, step_ms) is not None:
        return None
    count, expected = (last - start) // step_ms + 1, (end - start) // step_ms
    missing = expected - count
    return HistoryStats(
        first_ms=first,
        last_ms=last,
        count=count,
        expected=expected,
        coverage=count / expected,
        largest_gap_bars=missing,
        largest_gap_at_ms=last + step_ms if missing else None,
        unbroken_since_ms=None,
        price_break=None,
    )


def _largest_gap(times: NDArray[np.int64], start: int, end: int, step_ms: int) -> tuple[int, int | None]:
    edges = np.concatenate([[start - step_ms], times, [end]])
    missing = np.diff(edges) // step_ms - 1
    row = int(np.argmax(missing))
    bars = int(missing[row])
    return (bars, int(edges[row]) + step_ms) if bars > 0 else (0, None)


def _unbroken_since(times: NDArray[np.int64], step_ms: int) -> int | None:
    ends = np.flatnonzero(np.diff(times) - step_ms > LONG_GAP_MS) + 1
    return int(times[ends[-1]]) if len(ends) else None


def find_price_break(candles: Candles, step_ms: int) -> str | None:
    """Evidence that the series holds two assets, or one asset in two units; None if it is one.

    A token swap or a re-used ticker shows as a jump of the price across a suspension (LUNA 2022: 0.00005 -> 1.0 after
    437 hours; VIDT 2022: 1:10 after 221 hours), a redenomination without one as a jump between two candles of which
    neither traded in between. A crash, however deep, trades through the prices it passes: its candle spans them (ADA
    2020: a wick of 52 %). So what counts is the distance between the *ranges* of neighbours, not between their closes.
    """
    if len(candles) < 2:
        return None
    gap_bars = np.diff(candles.open_time) // step_ms - 1
    risen = np.log(candles.low[1:]) - np.log(candles.high[:-1])
    fallen = np.log(candles.low[:-1]) - np.log(candles.high[1:])
    untraded = np.maximum(risen, fallen)
    bound = np.where(gap_bars >= MIN_GAP_BARS, np.log(GAP_BREAK_FACTOR), np.log(BREAK_FACTOR))
    broken = np.flatnonzero(untraded > bound)
    if not len(broken):
        return None
    row = int(broken[-1])
    return reason(
        "PRICE_BREAK",
        broken_at_ms=int(candles.open_time[row + 1]),
        gap_bars=int(gap_bars[row]),
        before=float(candles.close[row]),
        after=float(candles.open[row + 1]),
    )

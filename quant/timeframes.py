"""Timeframes and the candle grid, in integer milliseconds since 1970 (UTC)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

# Only steps that divide a day: each grid then starts at 00:00 UTC, as it does on every venue. Weeks start on different
# days on different venues, so they are left out.
TIMEFRAMES: Mapping[str, int] = MappingProxyType(
    {
        "1m": MINUTE_MS,
        "3m": 3 * MINUTE_MS,
        "5m": 5 * MINUTE_MS,
        "15m": 15 * MINUTE_MS,
        "30m": 30 * MINUTE_MS,
        "1h": HOUR_MS,
        "2h": 2 * HOUR_MS,
        "4h": 4 * HOUR_MS,
        "6h": 6 * HOUR_MS,
        "8h": 8 * HOUR_MS,
        "12h": 12 * HOUR_MS,
        "1d": DAY_MS,
    }
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def timeframe_ms(timeframe: str) -> int:
    """Return the length of a timeframe such as ``"1h"`` in ms. Raises ValueError for an unknown one."""
    try:
        return TIMEFRAMES[timeframe]
    except KeyError:
        choices = ", ".join(TIMEFRAMES)
        raise ValueError(f"timeframe {timeframe!r} is not supported; use one of: {choices}") from None


def floor_ms(time_ms: int, step_ms: int) -> int:
    """Return the open time of the candle that contains ``time_ms``."""
    if step_ms <= 0:
        raise ValueError(f"step_ms is {step_ms}; a candle must have a length: pass timeframe_ms(timeframe)")
    return time_ms - time_ms % step_ms


def last_closed_open_ms(now_ms: int, step_ms: int) -> int:
    """Return the open time of the newest candle that is closed at ``now_ms`` (a candle closes at open + step)."""
    return floor_ms(now_ms, step_ms) - step_ms


def to_ms(moment: datetime) -> int:
    """Convert an aware datetime to ms since 1970, rounding down. Raises ValueError for a naive one."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(f"datetime {moment.isoformat()} has no time zone; pass an aware one, e.g. with tzinfo=UTC")
    return (moment - _EPOCH) // _MILLISECOND


def from_ms(time_ms: int) -> datetime:
    """Convert ms since 1970 to an aware datetime in UTC (exact: no float is involved)."""
    return _EPOCH + int(time_ms) * _MILLISECOND

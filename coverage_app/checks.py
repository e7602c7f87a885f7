"""System checks of the market data: what cannot work is said at set-up and start, before anything is written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.checks import Warning as CheckWarning

from exchanges.errors import ConfigurationError
from quant.timeframes import from_ms

if TYPE_CHECKING:
    from exchanges.replay import ReplayMarket

TAG = "ops"
"""The checks that `setup` and `runall` ask for."""
SHOWN = 5


@register(TAG)
def check_archive(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 - Django's signature
    """Check that a replay has an archive, candles of the timeframe, and candles at its start (footers only)."""
    if settings.EXCHANGE != "replay" or settings.CANDLE_ARCHIVE is None:  # the second: tradingsite.options says it
        return []
    from exchanges.replay import ReplayMarket  # pyarrow: for a replay only

    try:
        data = ReplayMarket(archive=settings.CANDLE_ARCHIVE, market=settings.EXCHANGE_MARKET, now_ms=lambda: 0)
        first_ms, last_ms = data.bounds_ms()
    except ConfigurationError as error:
        return [Error(f"The candle archive cannot be used: {error}.", id="coverage.E001")]
    return [*_timeframe(data), *_start(first_ms, last_ms), *_files(data)]


def _timeframe(data: ReplayMarket) -> list[CheckMessage]:
    if settings.TIMEFRAME in data.capabilities.timeframes:
        return []
    return [
        Error(
            f"TIMEFRAME={settings.TIMEFRAME!r} cannot be had from the archive of {data.market}: it holds no such "
            "candles, and none that they could be made of.",
            hint=f"Use one of: {', '.join(data.capabilities.timeframes)}.",
            id="coverage.E002",
        )
    ]


def _start(first_ms: int, last_ms: int) -> list[CheckMessage]:
    first, last = from_ms(first_ms), from_ms(last_ms)
    try:
        start = dt.datetime.fromisoformat(settings.REPLAY_FROM).replace(tzinfo=dt.UTC)
    except ValueError:
        return [
            Error(
                f"REPLAY_FROM={settings.REPLAY_FROM!r} is not a date of the calendar.",
                hint="Write one like 2025-06-01.",
                id="coverage.E003",
            )
        ]
    if first <= start < last:
        return []
    side = "before the first candle has closed" if start < first else "not before the last candle has closed"
    return [
        Error(
            f"REPLAY_FROM={settings.REPLAY_FROM} is {side}: the archive of {settings.EXCHANGE_MARKET} goes from "
            f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, so nothing could be traded.",
            hint=f"Choose a date between them; at least HISTORY_MIN_DAYS={settings.HISTORY_MIN_DAYS} days after the "
            "first candle something can be learnt.",
            id="coverage.E004",
        )
    ]


def _files(data: ReplayMarket) -> list[CheckMessage]:
    troubles = data.troubles()
    if not troubles:
        return []
    more = f"; and {len(troubles) - SHOWN} more" if len(troubles) > SHOWN else ""
    return [
        CheckWarning(
            f"{len(troubles)} files of the candle archive cannot be used, their symbols are left out: "
            f"{'; '.join(troubles[:SHOWN])}{more}.",
            hint="`manage.py coverage` shows them; a file that was mended is found at the next look, within an hour.",
            id="coverage.W001",
        )
    ]

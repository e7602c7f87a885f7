"""Fetch what a store lacks, page by page, forward in time.

Exchanges truncate silently, hand out the running candle, repeat pages. So every page is checked before it is
believed, and the next one begins after the last candle that was really received. Whoever stops anywhere goes on from
what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from exchanges.port import MarketData
from marketdata.store import FundingSeries
from quant.candles import CandleError, Candles
from quant.timeframes import from_ms, timeframe_ms


def fetch_missing(
    data: MarketData, symbol: str, timeframe: str, since_ms: int, until_ms: int | None = None
) -> Iterator[Candles]:
    """Pages of closed candles with since <= open time < until (default: now), each non-empty, ascending, verified.

    Raises CandleError (symbol, row, rule, fix) for a page that breaks a rule, `exchanges.errors.ExchangeError` if the
    exchange does not answer. Ends when the exchange has no later candle.
    """
    step = timeframe_ms(timeframe)
    cursor = since_ms
    while True:
        now = data.now_ms()
        end = now if until_ms is None else min(until_ms, now)
        if cursor >= end:
            return
        page = data.candles(symbol, timeframe, cursor, data.page_limit)
        verify_page(page, symbol=symbol, step_ms=step, since_ms=cursor, now_ms=data.now_ms())
        wanted = page.between(cursor, end)
        if not len(wanted):
            return
        yield wanted
        cursor = int(wanted.open_time[-1]) + step


def verify_page(page: Candles, *, symbol: str, step_ms: int, since_ms: int, now_ms: int) -> None:
    """Raise CandleError unless each candle is sound, on the grid, in order, not before `since_ms` and closed."""
    try:
        page.validate(step_ms)
    except CandleError as error:
        raise CandleError(f"{symbol}: {error}") from error
    if not len(page):
        return
    if page.open_time[0] < since_ms:
        raise CandleError(
            f"{symbol}: candle 0 at {_text(page.open_time[0])}: it is before {_text(since_ms)}, which was asked for; "
            "the exchange ignored 'since': check its adapter"
        )
    if page.open_time[-1] + step_ms > now_ms:
        raise CandleError(
            f"{symbol}: candle {len(page) - 1} at {_text(page.open_time[-1])}: it closes after the exchange's time "
            f"{_text(now_ms)}; a running candle must be dropped by the adapter"
        )


def fetch_funding(data: MarketData, symbol: str, since_ms: int) -> FundingSeries:
    """All funding payments due in [since, now], as the store takes them. Empty if the exchange has none."""
    times: list[int] = []
    rates: list[float] = []
    cursor = since_ms
    while data.capabilities.funding and cursor <= data.now_ms():
        page = [payment for payment in data.funding(symbol, cursor, data.page_limit) if payment.time_ms >= cursor]
        if not page:
            break
        times += [payment.time_ms for payment in page]
        rates += [payment.rate for payment in page]
        cursor = page[-1].time_ms + 1
    return np.array(times, dtype=np.int64), np.array(rates, dtype=np.float64)


def _text(time_ms: int) -> str:
    return from_ms(int(time_ms)).isoformat()

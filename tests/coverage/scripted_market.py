"""An exchange whose answers, and failures, a test writes down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal

import numpy as np

from exchanges.port import Capabilities, FundingRate, Instrument, Ticker
from ops_app import clock
from quant.candles import Candles
from quant.timeframes import HOUR_MS

PAGE = 500


def instrument(
    symbol: str, *, listed_ms: int | None = 0, delisted_ms: int | None = None, active: bool = True
) -> Instrument:
    return Instrument(
        symbol=symbol,
        base=symbol.partition("/")[0],
        quote="USDT",
        settle="USDT",
        market_type="swap",
        tick_size=Decimal("0.01"),
        lot_size=Decimal("0.001"),
        min_quantity=Decimal("0.001"),
        min_notional=Decimal(5),
        max_leverage=Decimal(25),
        listed_ms=listed_ms,
        delisted_ms=delisted_ms,
        active=active,
    )


def hourly(start_ms: int, count: int) -> Candles:
    """Sound candles: a slow wave around 100."""
    times = start_ms + HOUR_MS * np.arange(count, dtype=np.int64)
    close = 100 + 10 * np.sin(times / HOUR_MS / 50)
    return Candles(times, close, close * 1.01, close * 0.99, close, np.full(count, 10.0))


class ScriptedMarket:
    """Hourly candles without end for every listed symbol, unless `trouble` says otherwise."""

    simulated = True
    market = "simulated"
    page_limit = PAGE

    def __init__(self, *codes: str, bulk: bool = False, listed_ms: int = 0) -> None:
        self.listed = {code: instrument(code, listed_ms=listed_ms) for code in codes}
        self.prices = {code: Ticker(code, 99.99, 100.01, 100.0, 5e6, 0) for code in codes}
        self.capabilities = Capabilities(bulk_candles=bulk, funding=True, timeframes=("1h",), page_limit=PAGE)
        self.trouble: dict[str, Callable[[Candles], Candles]] = {}
        self.outage: Exception | None = None
        self.asked: list[tuple[str, int]] = []

    def now_ms(self) -> int:
        return clock.market_now_ms()

    def instruments(self) -> list[Instrument]:
        if self.outage:
            raise self.outage
        return [self.listed[code] for code in sorted(self.listed)]

    def tickers(self) -> dict[str, Ticker]:
        return dict(self.prices)

    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        self.asked.append((symbol, since_ms))
        if self.outage:
            raise self.outage
        start = -(-max(since_ms, self.listed[symbol].listed_ms or 0) // HOUR_MS) * HOUR_MS
        count = min(limit, self.page_limit, (self.now_ms() - start) // HOUR_MS)
        page = hourly(start, max(count, 0))
        return self.trouble.get(symbol, lambda good: good)(page)

    def candles_many(self, symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        from exchanges.port import candles_one_by_one

        return candles_one_by_one(self, symbols, timeframe, since_ms, limit)

    def funding(self, symbol: str, since_ms: int, limit: int) -> list[FundingRate]:
        period = 8 * HOUR_MS
        first = -(-since_ms // period) * period
        return [FundingRate(time, 1e-4) for time in range(first, self.now_ms() + 1, period)][:limit]

"""One more bar for every symbol, from the bell to the figures, with an exchange that answers at once."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterable, Iterator, Mapping

from django.conf import settings

from coverage_app import market as sources
from coverage_app import services
from coverage_app.models import Symbol
from coverage_app.services.candles import INGEST_TASK
from exchanges.port import Capabilities, FundingRate, Instrument, Ticker
from ops_app import clock, queue
from quant.candles import Candles
from quant.timeframes import HOUR_MS, to_ms
from tradingsite.bench import worlds
from tradingsite.bench.measure import SECONDS, Figure, Scale, cpu_seconds, expect
from tradingsite.bench.store import next_bar

SIZES = (50, 500)
BYTES_PER_CANDLE = 100  # candles, and those that are made of them


class ReadyMarket:
    """An exchange that holds the next bars ready."""

    simulated = True
    page_limit = 1000
    capabilities = Capabilities(bulk_candles=True, funding=False, timeframes=("1h",), page_limit=1000)

    def __init__(self, candles: Mapping[str, Candles]) -> None:
        self.market = settings.EXCHANGE_MARKET
        self._last = to_ms(worlds.NEWEST)
        self._candles = candles

    def now_ms(self) -> int:
        return clock.market_now_ms()

    def instruments(self) -> list[Instrument]:
        return []

    def tickers(self) -> dict[str, Ticker]:
        return {}

    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        return self.candles_many([symbol], timeframe, since_ms, limit)[symbol]

    def candles_many(
        self,
        symbols: Iterable[str],
        timeframe: str,  # noqa: ARG002 - the port's
        since_ms: int,
        limit: int,  # noqa: ARG002 - the port's
    ) -> dict[str, Candles]:
        return next_bar({code: self._candles[code] for code in symbols}, (since_ms - self._last) // HOUR_MS)

    def funding(self, symbol: str, since_ms: int, limit: int) -> list[FundingRate]:  # noqa: ARG002 - the port's
        return []


def run(scale: Scale) -> Iterator[Figure]:
    candles = worlds.candles(scale)
    sources.reset()
    shutil.rmtree(settings.CANDLES_DIR, ignore_errors=True)
    sources.use(ReadyMarket(candles))
    store = sources.candle_store()
    try:
        with clock.simulated(worlds.NOW) as simulated, queue.capture() as messages:
            worlds.fill_symbols(scale)
            store.write(settings.EXCHANGE_MARKET, "1h", candles)

            def next_hour() -> None:
                simulated.advance(dt.timedelta(hours=1))
                Symbol.objects.update(ingest_due_at=simulated.now)

            def ingest() -> None:
                messages.clear()
                services.ring_ingest()
                for message in messages:
                    if message.dotted == INGEST_TASK:
                        services.ingest(symbol_ids=[int(pk) for pk in str(message.args[0]).split(",")])

            spent = cpu_seconds(ingest, before=next_hour)
            newest = Symbol.objects.filter(last_candle_at=simulated.now.replace(minute=0) - dt.timedelta(hours=1))
            expect(newest.count() == scale.symbols, "symbols lack the newest candle")
            bar = 100

            def append() -> None:
                nonlocal bar
                bar += 1
                store.write(settings.EXCHANGE_MARKET, "1h", next_bar(candles, bar))

            yield Figure(
                name="ingest.one_bar", symbols=scale.symbols, unit=SECONDS, value=spent, limit=cpu_seconds(append),
                versus="write the same candles into the store at once",
            )  # fmt: skip
    finally:
        sources.reset()

"""Public market data of a real exchange through ccxt. Read-only; no keys.

Our rules on top of ccxt: the exchange's clock decides what is closed, the running candle is dropped, pages are never
`paginate`d by ccxt (it truncates silently), markets are loaded again every ten minutes, and whatever ccxt raises
becomes an error of the port. Requests run in one event loop (`exchanges.ccxt_client`), whichever thread asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from exchanges.ccxt_client import CcxtLink, ExchangeClock, run
from exchanges.ccxt_gate import Ban, Gate, TokenBucket
from exchanges.ccxt_outcomes import decimal
from exchanges.ccxt_rules import rules_of
from exchanges.errors import ConfigurationError, ExchangeError, MarketDataError, UnknownSymbolError
from exchanges.port import Capabilities, FundingRate, Instrument, Ticker
from quant.candles import Candles
from quant.timeframes import HOUR_MS, TIMEFRAMES, timeframe_ms

_DEFAULT_PAGE_LIMIT = 300
_FUNDING_PAGE = 200
_MARKETS_FRESH_MS = 600_000
_TICKERS_FRESH_MS = 1_000
_BULK_PATIENCE_SECONDS = 600.0
_DECIMAL_PLACES = 2  # ccxt.DECIMAL_PLACES
_NO_NUMBER = Decimal("NaN")
"""For a rule that is missing or nonsense: `Instrument.flaw` names it. One symbol's must not hide the others (I20)."""


class CcxtMarketData:
    """Linear perpetuals of a ccxt exchange, or its spot pairs if `market` ends in `spot`.

    `now_ms` is our clock; it is corrected by the measured difference to the exchange's. `options` go to ccxt's
    constructor over our defaults (urls, proxies, ...). `link` and `ban` are for the account behind the same address.
    """

    simulated = False

    def __init__(
        self, *, exchange_id: str, market: str, now_ms: Callable[[], int], options: Mapping[str, object] | None = None
    ) -> None:
        self.market = market
        self._is_spot = market.endswith("spot")
        self._clock = now_ms
        self.ban = Ban()
        self.link = CcxtLink(
            exchange_id=exchange_id,
            is_spot=self._is_spot,
            clock=ExchangeClock(now_ms),
            gate=Gate(f"{exchange_id} data", ban=self.ban, bucket=budget(exchange_id, options or {}, trading=False)),
            options=options,
        )
        self._client = self.link.client
        self.page_limit = self._page_limit()
        self.capabilities = Capabilities(
            bulk_candles=False,
            funding=not self._is_spot and bool(self._client.has.get("fetchFundingRateHistory")),
            timeframes=tuple(name for name in TIMEFRAMES if name in (self._client.timeframes or {})),
            page_limit=self.page_limit,
        )
        self._markets: dict[str, dict[str, Any]] = {}
        self._markets_at: int | None = None
        self._tickers: tuple[int, dict[str, Ticker]] | None = None

    def now_ms(self) -> int:
        """The exchange's clock: ours, corrected. The difference is measured again every twenty minutes."""
        return self.link.exchange_now_ms()

    def instruments(self) -> list[Instrument]:
        self._load_markets()
        return [self._instrument(self._markets[symbol]) for symbol in sorted(self._markets)]

    def tickers(self) -> dict[str, Ticker]:
        now = self.now_ms()
        if self._tickers is None or not 0 <= now - self._tickers[0] < _TICKERS_FRESH_MS:
            self._load_markets()
            with self.link.translated(None):
                raw = self.link.call(lambda client: client.fetch_tickers())
                self._tickers = (now, {t.symbol: t for t in (self._ticker(each, now) for each in raw.values()) if t})
        return dict(self._tickers[1])

    def instrument(self, symbol: str) -> Instrument | None:
        """Rules of one symbol; None if it is not listed. Ten minutes old at most, or as old as the last ones that were
        answered: an exit must not wait for public data (I20).
        """
        try:
            self._load_markets()
        except ExchangeError:
            if not self._markets:
                raise
        each = self._markets.get(symbol)
        return None if each is None else self._instrument(each)

    def forget_markets(self) -> None:
        """Load the markets again at the next look: the venue said that our rules of a symbol are not its own."""
        self._markets_at = None

    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        step = self._step(timeframe)
        self._find(symbol)
        self.link.exchange_now_ms()
        return run(self._page(symbol, timeframe, step, since_ms, min(limit, self.page_limit)))

    def candles_many(self, symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        """In the given order (symbols with positions first), as many at a time as the budget allows.

        One symbol's trouble does not stop the others (I20): it is left out. Raises ExchangeUnavailableError when no
        symbol was answered at all.
        """
        step = self._step(timeframe)
        self._load_markets()
        self.link.exchange_now_ms()
        listed = [symbol for symbol in symbols if symbol in self._markets]
        wanted = min(limit, self.page_limit)

        async def all_pages() -> list[Candles | BaseException]:
            pages = (self._page(symbol, timeframe, step, since_ms, wanted) for symbol in listed)
            return await asyncio.gather(*pages, return_exceptions=True)

        found: dict[str, Candles] = {}
        answered, failures = 0, []
        for symbol, page in zip(listed, run(all_pages(), patience=_BULK_PATIENCE_SECONDS), strict=True):
            if isinstance(page, BaseException):
                if not isinstance(page, ExchangeError):
                    raise page
                failures.append(page)
                continue
            answered += 1
            if len(page):
                found[symbol] = page
        outages = [failure for failure in failures if not isinstance(failure, MarketDataError)]
        if outages and not answered:
            raise outages[0]
        return found

    def _step(self, timeframe: str) -> int:
        step = timeframe_ms(timeframe)
        if timeframe not in self.capabilities.timeframes:
            raise ConfigurationError(
                f"timeframe={timeframe!r} does not exist on {self._client.id}; choose one of "
                f"{', '.join(self.capabilities.timeframes)}"
            )
        return step

    async def _page(self, symbol: str, timeframe: str, step: int, since_ms: int, wanted: int) -> Candles:
        if wanted < 1:
            return Candles.empty()
        with self.link.translated(symbol):
            rows = await self.link.request(lambda client: client.fetch_ohlcv(symbol, timeframe, since_ms, wanted))
            table = np.array(rows, dtype=np.float64).reshape(len(rows), 6)
            if not np.isfinite(table).all():
                raise ValueError("a candle that is not all numbers")
        times = table[:, 0].astype(np.int64)
        # The last candle is the one that is still running, by the exchange's clock, not ours.
        usable = (times >= since_ms) & (times + step <= self.link.clock.now())
        return Candles.concat([Candles(times[usable], *table[usable, 1:].T)]).take(slice(0, wanted))

    def funding(self, symbol: str, since_ms: int, limit: int) -> list[FundingRate]:
        """In windows that cannot hold more than one page: of a longer one, Bybit returns the newest payments only."""
        listed = self._find(symbol).get("created")
        now = self.now_ms()
        cursor = max(since_ms, int(listed or 0))
        while self.capabilities.funding and limit > 0 and cursor <= now:
            until = min(cursor + _FUNDING_PAGE * HOUR_MS - 1, now)
            with self.link.translated(symbol):
                rows = self._funding_page(symbol, cursor, until)
                found = {int(row["timestamp"]): float(row["fundingRate"]) for row in rows}
            times = sorted(time for time in found if cursor <= time <= until)
            if times:
                return [FundingRate(time, found[time]) for time in times[:limit]]
            cursor = until + 1
        return []

    # ------------------------------------------------------------------ internal
    def _funding_page(self, symbol: str, since_ms: int, until_ms: int) -> list[Any]:
        return self.link.call(
            lambda client: client.fetch_funding_rate_history(symbol, since_ms, _FUNDING_PAGE, {"until": until_ms})
        )

    def _load_markets(self) -> None:
        now = self._clock()
        if self._markets_at is not None and 0 <= now - self._markets_at < _MARKETS_FRESH_MS:
            return
        with self.link.translated(None):
            raw = self.link.call(lambda client: client.load_markets(bool(client.markets)))
        self._markets = {symbol: each for symbol, each in raw.items() if self._is_ours(each)}
        self._markets_at = now

    def _is_ours(self, each: Mapping[str, Any]) -> bool:
        return bool(each.get("spot")) if self._is_spot else bool(each.get("swap") and each.get("linear"))

    def _find(self, symbol: str) -> dict[str, Any]:
        self._load_markets()
        if symbol not in self._markets:
            raise UnknownSymbolError(symbol, f"not listed on {self._client.id} ({self.market}); see instruments()")
        return self._markets[symbol]

    def _instrument(self, each: Mapping[str, Any]) -> Instrument:
        limits = each.get("limits") or {}
        precision = each.get("precision") or {}
        lot = self._grid(precision.get("amount"))
        kind: Literal["spot", "swap"] = "spot" if self._is_spot else "swap"
        created = each.get("created")
        return Instrument(
            symbol=each["symbol"],
            base=each["base"],
            quote=each["quote"],
            settle=each.get("settle") or each["quote"],
            market_type=kind,
            tick_size=self._grid(precision.get("price")),
            lot_size=lot,
            min_quantity=_limit(limits, "amount", "min", lot),
            min_notional=_limit(limits, "cost", "min", Decimal(0)),
            max_leverage=_limit(limits, "leverage", "max", Decimal(1)),
            listed_ms=None if created is None else int(created),
            delisted_ms=None,
            active=each.get("active") is not False,
        )

    def _grid(self, precision: object) -> Decimal:
        """Step of prices or quantities; NaN for none. ccxt states a step or a number of decimals, by exchange."""
        number = decimal(precision)
        if number is None:
            return _NO_NUMBER
        return Decimal(10) ** -int(number) if self._client.precisionMode == _DECIMAL_PLACES else number

    def _ticker(self, raw: Mapping[str, Any], now: int) -> Ticker | None:
        """None for other markets' symbols, for one that has never traded, and for one whose numbers are none."""
        last = raw.get("last")
        if raw.get("symbol") not in self._markets or not last:
            return None
        numbers = [float(value) for value in (raw.get("bid") or last, raw.get("ask") or last, last)]
        volume = float(raw.get("quoteVolume") or 0.0)
        if not np.isfinite([*numbers, volume]).all():  # NaN passes every bound, and would rank before the largest
            return None
        bid, ask, last = numbers
        return Ticker(
            symbol=str(raw["symbol"]),
            bid=bid,
            ask=ask,
            last=last,
            quote_volume_24h=volume,
            time_ms=int(raw.get("timestamp") or now),
        )

    def _page_limit(self) -> int:
        """Candles per request, as ccxt declares it for this kind of market."""
        kind = self._client.features.get("spot" if self._is_spot else "swap") or {}
        declared = kind if self._is_spot else (kind.get("linear") or {})
        return int((declared.get("fetchOHLCV") or {}).get("limit") or _DEFAULT_PAGE_LIMIT)


def budget(exchange_id: str, options: Mapping[str, object], *, trading: bool) -> TokenBucket | None:
    """Return our own pace for a venue whose limits are known; None leaves it to ccxt, or to nobody on loopback."""
    rules = rules_of(exchange_id)
    if rules is None or rules.requests_per_second is None or options.get("enableRateLimit") is False:
        return None
    return TokenBucket(rules.requests_per_second[int(trading)])


def _limit(limits: Mapping[str, Any], of: str, which: str, default: Decimal) -> Decimal:
    """Return a bound that ccxt gives; `default` where the venue has none, NaN for what is no number."""
    value = (limits.get(of) or {}).get(which)
    if value is None or value == "":
        return default
    number = decimal(value)
    return _NO_NUMBER if number is None else number or default

"""Public market data of a real exchange through ccxt. Read-only; no keys.

ccxt is imported when a client is made, not before: it costs a second and 76 MB (reference/exchanges.md). Our rules on
top of it: the exchange's clock decides what is closed, the running candle is dropped, pages are never `paginate`d by
ccxt (it truncates silently), markets are loaded again every ten minutes, and whatever ccxt raises becomes an error of
the port. Not for use by several threads at once: ccxt's limiter is not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from exchanges.errors import (
    ConfigurationError,
    ExchangeError,
    ExchangeUnavailableError,
    MarketDataError,
    UnknownSymbolError,
)
from exchanges.port import Capabilities, FundingRate, Instrument, Ticker, candles_one_by_one
from quant.candles import Candles
from quant.timeframes import HOUR_MS, TIMEFRAMES, timeframe_ms

_DEFAULT_PAGE_LIMIT = 300
_FUNDING_PAGE = 200
_MARKETS_FRESH_MS = 600_000
_CLOCK_FRESH_MS = 1_200_000
_TICKERS_FRESH_MS = 1_000
_TIMEOUT_MS = 10_000


class CcxtMarketData:
    """Linear perpetuals of a ccxt exchange, or its spot pairs if `market` ends in `spot`.

    `now_ms` is our clock; it is corrected by the measured difference to the exchange's. `options` go to ccxt's
    constructor over our defaults (urls, proxies, ...).
    """

    simulated = False

    def __init__(
        self, *, exchange_id: str, market: str, now_ms: Callable[[], int], options: Mapping[str, object] | None = None
    ) -> None:
        self.market = market
        self._is_spot = market.endswith("spot")
        self._clock = now_ms
        self._client = _make_client(exchange_id, is_spot=self._is_spot, options=options or {})
        self.page_limit = self._page_limit()
        self.capabilities = Capabilities(
            bulk_candles=False,
            funding=not self._is_spot and bool(self._client.has.get("fetchFundingRateHistory")),
            timeframes=tuple(name for name in TIMEFRAMES if name in (self._client.timeframes or {})),
            page_limit=self.page_limit,
        )
        self._markets: dict[str, dict[str, Any]] = {}
        self._markets_at: int | None = None
        self._clock_at: int | None = None
        self._difference_ms = 0
        self._tickers: tuple[int, dict[str, Ticker]] | None = None

    def now_ms(self) -> int:
        """The exchange's clock: ours, corrected. The difference is measured again every twenty minutes."""
        ours = self._clock()
        if self._clock_at is None or ours - self._clock_at >= _CLOCK_FRESH_MS:
            with self._translated(None):
                self._difference_ms = ours - int(self._client.fetch_time())
            self._clock_at = ours
        return ours - self._difference_ms

    def instruments(self) -> list[Instrument]:
        self._load_markets()
        return [self._instrument(self._markets[symbol]) for symbol in sorted(self._markets)]

    def tickers(self) -> dict[str, Ticker]:
        now = self.now_ms()
        if self._tickers is None or now - self._tickers[0] >= _TICKERS_FRESH_MS:
            self._load_markets()
            with self._translated(None):
                raw = self._client.fetch_tickers()
                self._require_json()
                self._tickers = (now, {t.symbol: t for t in (self._ticker(each, now) for each in raw.values()) if t})
        return dict(self._tickers[1])

    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        step = timeframe_ms(timeframe)
        if timeframe not in self.capabilities.timeframes:
            raise ConfigurationError(
                f"timeframe={timeframe!r} does not exist on {self._client.id}; choose one of "
                f"{', '.join(self.capabilities.timeframes)}"
            )
        self._find(symbol)
        wanted = min(limit, self.page_limit)
        if wanted < 1:
            return Candles.empty()
        with self._translated(symbol):
            rows = self._client.fetch_ohlcv(symbol, timeframe, since_ms, wanted)
            self._require_json()
            table = np.array(rows, dtype=np.float64).reshape(len(rows), 6)
            if not np.isfinite(table).all():
                raise ValueError("a candle that is not all numbers")
        times = table[:, 0].astype(np.int64)
        # The last candle is the one that is still running, by the exchange's clock, not ours.
        usable = (times >= since_ms) & (times + step <= self.now_ms())
        return Candles.concat([Candles(times[usable], *table[usable, 1:].T)]).take(slice(0, wanted))

    def candles_many(self, symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        return candles_one_by_one(self, symbols, timeframe, since_ms, limit)

    def funding(self, symbol: str, since_ms: int, limit: int) -> list[FundingRate]:
        """In windows that cannot hold more than one page: of a longer one, Bybit returns the newest payments only."""
        listed = self._find(symbol).get("created")
        now = self.now_ms()
        cursor = max(since_ms, int(listed or 0))
        while self.capabilities.funding and limit > 0 and cursor <= now:
            until = min(cursor + _FUNDING_PAGE * HOUR_MS - 1, now)
            with self._translated(symbol):
                rows = self._client.fetch_funding_rate_history(symbol, cursor, _FUNDING_PAGE, {"until": until})
                self._require_json()
                found = {int(row["timestamp"]): float(row["fundingRate"]) for row in rows}
            times = sorted(time for time in found if cursor <= time <= until)
            if times:
                return [FundingRate(time, found[time]) for time in times[:limit]]
            cursor = until + 1
        return []

    # ------------------------------------------------------------------ internal
    def _load_markets(self) -> None:
        now = self._clock()
        if self._markets_at is not None and now - self._markets_at < _MARKETS_FRESH_MS:
            return
        with self._translated(None):
            raw = self._client.load_markets(self._markets_at is not None)
            self._require_json()
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
        lot = self._grid(each["precision"].get("amount"))
        kind: Literal["spot", "swap"] = "spot" if self._is_spot else "swap"
        created = each.get("created")
        return Instrument(
            symbol=each["symbol"],
            base=each["base"],
            quote=each["quote"],
            settle=each.get("settle") or each["quote"],
            market_type=kind,
            tick_size=self._grid(each["precision"].get("price")),
            lot_size=lot,
            min_quantity=_decimal((limits.get("amount") or {}).get("min")) or lot,
            min_notional=_decimal((limits.get("cost") or {}).get("min")) or Decimal(0),
            max_leverage=_decimal((limits.get("leverage") or {}).get("max")) or Decimal(1),
            listed_ms=None if created is None else int(created),
            delisted_ms=None,
            active=each.get("active") is not False,
        )

    def _grid(self, precision: float | None) -> Decimal:
        """Step of prices or quantities. ccxt states it as a step or as a number of decimals, by exchange."""
        if precision is None:
            return Decimal("1e-8")
        if self._client.precisionMode == _ccxt().DECIMAL_PLACES:
            return Decimal(10) ** -int(precision)
        return Decimal(str(precision))

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

    def _require_json(self) -> None:
        """From a web page or a torn body ccxt makes an empty answer (measured): an outage would look like no data."""
        if not isinstance(self._client.last_json_response, dict | list):
            raise TypeError("the body is no JSON")

    @contextmanager
    def _translated(self, symbol: str | None) -> Iterator[None]:
        """Errors of ccxt as errors of the port. A body that ccxt cannot parse shows as a TypeError or its like."""
        ccxt = _ccxt()
        name = self._client.id
        try:
            yield
        except ccxt.BadSymbol as error:
            raise UnknownSymbolError(symbol or "all symbols", f"{name}: {error}") from error
        except ccxt.NetworkError as error:
            raise ExchangeUnavailableError(f"{name} does not answer ({type(error).__name__}: {error})") from error
        except (ccxt.BaseError, TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            detail = f"{name} gave an unusable answer ({type(error).__name__}: {error})"
            raise (ExchangeError(detail) if symbol is None else MarketDataError(symbol, detail)) from error


def _ccxt() -> Any:
    import ccxt

    return ccxt


def _make_client(exchange_id: str, *, is_spot: bool, options: Mapping[str, object]) -> Any:
    ccxt = _ccxt()
    if exchange_id not in ccxt.exchanges:
        raise ConfigurationError(f"ccxt has no exchange {exchange_id!r}; see `ccxt.exchanges`, e.g. bybit, binanceusdm")
    types = ["spot"] if is_spot else ["linear"]
    settings: dict[str, Any] = {
        "enableRateLimit": True,
        "enableLastJsonResponse": True,
        "timeout": _TIMEOUT_MS,
        # Otherwise Bybit loads spot, inverse and options too.
        "options": {"defaultType": "spot" if is_spot else "swap", "fetchMarkets": {"types": types}},
    }
    for key, value in options.items():
        merges = isinstance(value, Mapping) and isinstance(settings.get(key), dict)
        settings[key] = {**settings[key], **value} if merges else value  # type: ignore[dict-item]  # both are mappings here
    return getattr(ccxt, exchange_id)(settings)


def _decimal(value: float | str | None) -> Decimal | None:
    return None if value is None else Decimal(str(value))

"""Bybit v5's public endpoints. Each takes the query and returns the answer's `result`; all numbers are strings."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from exchanges.port import Instrument, Ticker
from quant.timeframes import timeframe_ms
from tests.bybit.checks import RefusedError
from tests.bybit.engine import BybitExchange
from tests.bybit.records import text
from tests.bybit.tape import Contract

_INTERVALS = {
    "1": "1m", "3": "3m", "5": "5m", "15": "15m", "30": "30m", "60": "1h", "120": "2h", "240": "4h", "360": "6h",
    "720": "12h", "D": "1d",
}  # fmt: skip
_FUNDING_RATE = "0.0001"
_EIGHT_HOURS_MS = 8 * 3_600_000
_MOST_FUNDING = 5_000


class PublicEndpoints:
    """What everybody may ask."""

    def __init__(self, engine: BybitExchange) -> None:
        self._engine = engine
        self.routes = {
            "/v5/market/instruments-info": self.instruments,
            "/v5/market/kline": self.kline,
            "/v5/market/tickers": self.tickers,
            "/v5/market/orderbook": self.orderbook,
            "/v5/market/funding/history": self.funding,
            "/v5/market/risk-limit": self.risk_limit,
        }

    def instruments(self, query: dict[str, str]) -> dict[str, Any]:
        _require_linear(query)
        wanted = query.get("symbol")
        rows = [
            _instrument(each)
            for name, each in self._engine.tape.contracts().items()
            if (not wanted or name == wanted) and query.get("status") != "PreLaunch"
        ]
        return _page({"category": "linear"}, rows, query, default=500, most=1000)

    def kline(self, query: dict[str, str]) -> dict[str, Any]:
        contract = self._contract(query)
        if query.get("interval") not in _INTERVALS:
            raise RefusedError(10001, "params error: Interval invalid")
        timeframe = _INTERVALS[query["interval"]]
        step = timeframe_ms(timeframe)
        limit = max(1, min(int(query.get("limit") or 200), 1000))
        now = self._engine.now_ms()
        end = min(int(query.get("end") or now), now)
        running = now // step * step
        since = int(query["start"]) if query.get("start") else (end // step - limit + 1) * step
        candles = self._engine.data.candles(contract.instrument.symbol, timeframe, since, limit)
        columns = (candles.open_time, candles.open, candles.high, candles.low, candles.close, candles.volume)
        rows = [
            [str(int(row[0])), *(repr(float(value)) for value in row[1:]), repr(float(row[4] * row[5]))]
            for row in zip(*columns, strict=True)
            if row[0] <= end
        ]
        is_next = not rows or int(rows[-1][0]) + step == running
        ticker = self._engine.tape.ticker(contract.name)
        if is_next and since <= running <= end and len(rows) < limit and ticker is not None:
            rows.append([str(running), *[repr(ticker.last)] * 4, "0", "0"])
        return {"category": "linear", "symbol": contract.name, "list": rows[::-1]}

    def tickers(self, query: dict[str, str]) -> dict[str, Any]:
        _require_linear(query)
        if query.get("symbol"):
            name = self._contract(query).name
            ticker = self._engine.tape.ticker(name)
            found = {} if ticker is None else {name: ticker}
        else:
            found = self._engine.tape.tickers()
        due = (self._engine.now_ms() // _EIGHT_HOURS_MS + 1) * _EIGHT_HOURS_MS
        return {"category": "linear", "list": [_ticker(name, each, due) for name, each in found.items()]}

    def orderbook(self, query: dict[str, str]) -> dict[str, Any]:
        """Best prices of the ticker, and ticks behind them with the size that a taker would get."""
        contract = self._contract(query)
        ticker = self._engine.tape.ticker(contract.name)
        limit = max(1, min(int(query.get("limit") or 25), 500))
        rules = contract.instrument
        size = text(
            max(
                rules.quantize_quantity(Decimal(repr(self._engine.tape.liquidity(contract.name).volume))),
                rules.lot_size,
            )
        )
        bids, asks = [], []
        if ticker is not None:
            for level in range(limit):
                bid = Decimal(repr(ticker.bid)) - level * rules.tick_size
                if bid > 0:
                    bids.append([text(bid), size])
                asks.append([text(Decimal(repr(ticker.ask)) + level * rules.tick_size), size])
        now = self._engine.now_ms()
        return {"s": contract.name, "b": bids, "a": asks, "ts": now, "u": now // 100, "seq": now, "cts": now}

    def funding(self, query: dict[str, str]) -> dict[str, Any]:
        contract = self._contract(query)
        limit = max(1, min(int(query.get("limit") or 200), 200))
        if query.get("startTime") and not query.get("endTime"):
            raise RefusedError(10001, "params error: endTime is required with startTime")
        end = int(query.get("endTime") or self._engine.now_ms())
        since = int(query.get("startTime") or max(end - limit * _EIGHT_HOURS_MS, 0))
        rates = self._engine.data.funding(contract.instrument.symbol, since, _MOST_FUNDING)
        rows = [
            {"symbol": contract.name, "fundingRate": repr(rate.rate), "fundingRateTimestamp": str(rate.time_ms)}
            for rate in rates
            if rate.time_ms <= end
        ]
        return {"category": "linear", "list": rows[-limit:][::-1]}  # the newest ones of the window, as the venue does

    def risk_limit(self, query: dict[str, str]) -> dict[str, Any]:
        contract = self._contract(query)
        row = {
            "id": 1,
            "symbol": contract.name,
            "riskLimitValue": "2000000",
            "maintenanceMargin": "0.005",
            "initialMargin": "0.01",
            "isLowestRisk": 1,
            "maxLeverage": text(contract.instrument.max_leverage),
            "mmDeduction": "",
        }
        return {"category": "linear", "list": [row], "nextPageCursor": ""}

    def _contract(self, query: dict[str, str]) -> Contract:
        return self._engine.contract({"category": "linear", **query})


def _require_linear(query: dict[str, str]) -> None:
    if query.get("category") != "linear":
        raise RefusedError(10001, "params error: category only linear is served here")


def _page(
    head: dict[str, Any], rows: list[dict[str, Any]], query: dict[str, str], *, default: int, most: int
) -> dict[str, Any]:
    """One page of rows. The cursor is where the next one begins, '' at the end."""
    limit = max(1, min(int(query.get("limit") or default), most))
    start = int(query.get("cursor") or 0)
    cursor = str(start + limit) if start + limit < len(rows) else ""
    return {**head, "list": rows[start : start + limit], "nextPageCursor": cursor}


def _instrument(contract: Contract) -> dict[str, Any]:
    each: Instrument = contract.instrument
    return {
        "symbol": contract.name,
        "contractType": "LinearPerpetual",
        "status": "Trading" if contract.status == "ReduceOnly" else contract.status,
        "baseCoin": each.base,
        "quoteCoin": each.quote,
        "settleCoin": each.settle,
        "symbolType": "",
        "launchTime": str(each.listed_ms or 0),
        "deliveryTime": "0",
        "deliveryFeeRate": "",
        "priceScale": "6",
        "leverageFilter": {"minLeverage": "1", "maxLeverage": text(each.max_leverage), "leverageStep": "0.01"},
        "priceFilter": {"minPrice": text(each.tick_size), "maxPrice": "1000000000", "tickSize": text(each.tick_size)},
        "lotSizeFilter": {
            "maxOrderQty": text(contract.max_qty),
            "maxMktOrderQty": text(contract.max_qty),
            "postOnlyMaxOrderQty": text(contract.max_qty),
            "minOrderQty": text(each.min_quantity),
            "qtyStep": text(each.lot_size),
            "minNotionalValue": text(each.min_notional),
        },
        "unifiedMarginTrade": True,
        "fundingInterval": 480,
        "copyTrading": "none",
        "isPreListing": False,
    }


def _ticker(name: str, each: Ticker, funding_ms: int) -> dict[str, Any]:
    last = repr(each.last)
    return {
        "symbol": name,
        "lastPrice": last,
        "indexPrice": last,
        "markPrice": last,
        "bid1Price": repr(each.bid),
        "bid1Size": "1",
        "ask1Price": repr(each.ask),
        "ask1Size": "1",
        "turnover24h": repr(each.quote_volume_24h),
        "volume24h": repr(each.quote_volume_24h / each.last),
        "openInterest": "1",
        "openInterestValue": "1",
        "fundingRate": _FUNDING_RATE,
        "nextFundingTime": str(funding_ms),
        "deliveryTime": "0",
        "basis": "",
    }

"""A small HTTP server that speaks Bybit v5's public market endpoints, for an unmodified ccxt client on loopback.

Give it any `MarketData` as its truth; it lies about nothing but adds what a real venue adds: the running candle, newest
candles first, numbers as strings.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from exchanges.port import MarketData
from quant.timeframes import timeframe_ms

_INTERVALS = {"5": "5m", "15": "15m", "30": "30m", "60": "1h", "240": "4h", "D": "1d"}
Answer = tuple[int, str]


class BybitLoopback:
    """`with BybitLoopback(truth, now_ms) as server:`; `server.fault` may replace the answer of a path."""

    def __init__(self, truth: MarketData, now_ms: Callable[[], int]) -> None:
        self.truth = truth
        self.now_ms = now_ms
        self.fault: Callable[[str], Answer | None] = lambda path: None
        self.requests: list[str] = []
        self._lock = threading.Lock()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = loopback.answer(self.path)
                data = body.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                """Quiet: pytest shows `requests` when a test fails."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> BybitLoopback:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def ccxt_options(self) -> dict[str, object]:
        """For `CcxtMarketData(options=...)`: the urls of this server, and no pause between requests."""
        base = f"http://127.0.0.1:{self._server.server_address[1]}"
        return {
            "urls": {"api": dict.fromkeys(("public", "private", "spot", "futures", "v2"), base)},
            "enableRateLimit": False,
        }

    def answer(self, target: str) -> Answer:
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self._lock:
            self.requests.append(target)
            faulty = self.fault(url.path)
            if faulty is not None:
                return faulty
            handler = {
                "/v5/market/time": self._time,
                "/v5/market/instruments-info": self._instruments,
                "/v5/market/kline": self._kline,
                "/v5/market/tickers": self._tickers,
                "/v5/market/funding/history": self._funding,
            }.get(url.path)
            if handler is None:
                return 404, "not found"
            code, message, result = handler(query)
        return 200, json.dumps({"retCode": code, "retMsg": message, "result": result, "time": self.now_ms()})

    def _symbols(self) -> dict[str, str]:
        return {each.base + each.quote: each.symbol for each in self.truth.instruments()}

    def _time(self, query: dict[str, str]) -> tuple[int, str, Any]:
        now = self.now_ms()
        return 0, "OK", {"timeSecond": str(now // 1000), "timeNano": str(now * 1_000_000)}

    def _instruments(self, query: dict[str, str]) -> tuple[int, str, Any]:
        rows = []
        if query.get("status") != "PreLaunch":
            for each in self.truth.instruments():
                rows.append(
                    {
                        "symbol": each.base + each.quote,
                        "contractType": "LinearPerpetual",
                        "status": "Trading" if each.active else "Closed",
                        "baseCoin": each.base,
                        "quoteCoin": each.quote,
                        "settleCoin": each.settle,
                        "launchTime": str(each.listed_ms),
                        "deliveryTime": "0",
                        "deliveryFeeRate": "",
                        "priceScale": "6",
                        "leverageFilter": {"minLeverage": "1", "maxLeverage": "25.00", "leverageStep": "0.01"},
                        "priceFilter": {"minPrice": "0", "maxPrice": "1e9", "tickSize": f"{each.tick_size:f}"},
                        "lotSizeFilter": {
                            "maxOrderQty": "1e12",
                            "minOrderQty": f"{each.min_quantity:f}",
                            "qtyStep": f"{each.lot_size:f}",
                            "minNotionalValue": f"{each.min_notional:f}",
                        },
                        "unifiedMarginTrade": True,
                        "fundingInterval": 480,
                    }
                )
        return 0, "OK", {"category": "linear", "list": rows, "nextPageCursor": ""}

    def _kline(self, query: dict[str, str]) -> tuple[int, str, Any]:
        symbol = self._symbols().get(query["symbol"])
        if symbol is None:
            return 10001, "params error: symbol invalid", {}
        timeframe = _INTERVALS[query["interval"]]
        step = timeframe_ms(timeframe)
        limit = int(query.get("limit", "200"))
        since = int(query.get("start", "0"))
        candles = self.truth.candles(symbol, timeframe, since, limit)
        columns = (candles.open_time, candles.open, candles.high, candles.low, candles.close, candles.volume)
        rows = [
            [str(int(row[0])), *(repr(float(value)) for value in row[1:]), "0"] for row in zip(*columns, strict=True)
        ]
        running = self.now_ms() // step * step
        is_next = not rows or int(rows[-1][0]) + step == running
        if is_next and running >= since and len(rows) < limit:
            rows.append([str(running), "1", "1", "1", "1", "0", "0"])
        return 0, "OK", {"category": "linear", "symbol": query["symbol"], "list": rows[::-1]}

    def _tickers(self, query: dict[str, str]) -> tuple[int, str, Any]:
        names = {symbol: name for name, symbol in self._symbols().items()}
        rows = [
            {
                "symbol": names[each.symbol],
                "lastPrice": repr(each.last),
                "bid1Price": repr(each.bid),
                "ask1Price": repr(each.ask),
                "turnover24h": repr(each.quote_volume_24h),
                "volume24h": repr(each.quote_volume_24h / each.last),
                "openInterestValue": "1",
                "fundingRate": "0.0001",
            }
            for each in self.truth.tickers().values()
        ]
        return 0, "OK", {"category": "linear", "list": rows}

    def _funding(self, query: dict[str, str]) -> tuple[int, str, Any]:
        symbol = self._symbols()[query["symbol"]]
        limit = int(query.get("limit", "200"))
        end = int(query.get("endTime", str(self.now_ms())))
        rates = [
            rate for rate in self.truth.funding(symbol, int(query.get("startTime", "0")), 5_000) if rate.time_ms <= end
        ]
        rows = [
            {"symbol": query["symbol"], "fundingRate": repr(rate.rate), "fundingRateTimestamp": str(rate.time_ms)}
            for rate in rates[-limit:]  # the newest ones, as the venue does
        ]
        return 0, "OK", {"category": "linear", "list": rows[::-1]}

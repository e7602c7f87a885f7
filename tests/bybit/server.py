"""`BybitServer`: the exchange behind HTTP, for an unmodified ccxt client."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import traceback
from collections import Counter, deque
from contextlib import suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import parse_qsl

from exchanges.port import MarketData
from tests.bybit.checks import RefusedError
from tests.bybit.control import Control
from tests.bybit.engine import BybitExchange
from tests.bybit.faults import Fault, FaultPlan
from tests.bybit.keys import FUTURE_MS, ApiKey, Stamp, check_key, check_permission, read_stamp
from tests.bybit.private import PrivateEndpoints
from tests.bybit.public import PublicEndpoints

_KEPT_REQUESTS = 100_000
_RATE_WINDOW_SECONDS = 1.0
#: Bybit's documented limits for one user, requests per second; only with `rate_limited=True`.
RATE_LIMITS = {"/v5/order/create": 10, "/v5/order/cancel": 10, "/v5/order/amend": 10, "/v5/position/trading-stop": 10,
               "/v5/position/set-leverage": 10, "/v5/order/realtime": 50, "/v5/order/history": 50,
               "/v5/execution/list": 50, "/v5/position/list": 50, "/v5/account/wallet-balance": 50}  # fmt: skip


class DroppedError(Exception):
    """The connection ends here; with a reset, or as if the server had gone."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("dropped")
        self.reset = reset


class Answer:
    """What goes over the wire. `claimed` is the Content-Length when it lies."""

    __slots__ = ("body", "claimed", "content_type", "headers", "status")

    def __init__(self, status: int, body: bytes, content_type: str = "application/json; charset=utf-8") -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers: dict[str, str] = {}
        self.claimed = len(body)


class BybitServer:
    """`with BybitServer(data) as server:` listens on a free port of 127.0.0.1 until the block ends.

    `server.faults` is the plan of faults, `server.engine` the exchange, `server.requests` what was asked (method and
    target), `server.refusals` how often each retCode was given. `data.now_ms()` is the exchange's clock; `speed` is
    how many of its ms pass in a real one.
    """

    def __init__(
        self,
        data: MarketData,
        *,
        port: int = 0,
        state: Path | str = ":memory:",
        balance: Decimal | int | str = 10_000,
        api_key: str = "loopback-key",
        api_secret: str = "loopback-secret",
        speed: float = 1.0,
        rate_limited: bool = False,
        log: TextIO | None = None,
        **settings: int,
    ) -> None:
        self.truth = data
        self.engine = BybitExchange(data, state=state, balance=Decimal(balance), speed=speed, **settings)
        self.key = ApiKey(api_key, api_secret)
        self.faults = FaultPlan()
        self.requests: deque[str] = deque(maxlen=_KEPT_REQUESTS)
        self.refusals: Counter[int] = Counter()
        #: Mistakes of this server itself: `stop` raises if there were any, so that no test passes over one.
        self.errors: list[str] = []
        self._public = PublicEndpoints(self.engine)
        self._private = PrivateEndpoints(self.engine, self.key)
        self.control = Control(self.engine, self.key)
        self._log = log
        self._rate_limited = rate_limited
        self._asked: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    # ----------------------------------------------------------------- lifecycle
    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Refuse new connections, end the open ones, wait for their threads."""
        self._server.shutdown()
        with self._lock:
            still_open = list(self._open)
        for each in still_open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()
        self.engine.close()
        if self.errors:
            raise AssertionError(f"the loopback exchange itself failed: {self.errors[0]}")

    def __enter__(self) -> BybitServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def ccxt_options(self) -> dict[str, Any]:
        """For public data, `CcxtMarketData(options=...)` or `ccxt.bybit(...)`: the urls, and no pause in between."""
        return {
            "urls": {"api": dict.fromkeys(("public", "private", "spot", "futures", "v2"), self.url)},
            "enableRateLimit": False,
            "options": {"defaultType": "swap", "fetchMarkets": {"types": ["linear"]}},
        }

    @property
    def ccxt_account(self) -> dict[str, Any]:
        """`ccxt_options` with the key: for a client that trades."""
        return {**self.ccxt_options, "apiKey": self.key.key, "secret": self.key.secret}

    # ------------------------------------------------------------------- answers
    def answer(self, method: str, target: str, headers: Any = None, body: bytes = b"") -> Answer:
        """One request from arrival to answer. Raises `DroppedError` where the connection shall end without one."""
        path, _, query = target.partition("?")
        payload = body.decode(errors="replace") if method == "POST" else query
        self.requests.append(f"{method} {target}")
        if path.startswith("/control/"):
            return self._controlled(method, path, query, payload)
        early = self._strike("before", method, path, payload)
        if early is not None:
            return early
        try:
            answer = self._venue(method, path, payload, headers or {})
        except RefusedError as refusal:
            self.refusals[refusal.code] += 1
            answer = self._refusal(refusal)
        late = self._strike("after", method, path, payload, answer)
        return answer if late is None else late

    def _venue(self, method: str, path: str, payload: str, headers: Any) -> Answer:
        engine = self.engine
        style = engine.store.state.get("maintenance", "")
        if style == "html":
            return Answer(503, b"<html><body>503 Service Temporarily Unavailable</body></html>", "text/html")
        if style:
            raise RefusedError(10016, "Server error: the system is under maintenance")
        params = _parse(method, payload)
        if path == "/v5/market/time":
            now = self._venue_now()
            return self._ok({"timeSecond": str(now // 1000), "timeNano": str(now * 1_000_000)})
        if method == "GET" and path in self._public.routes:
            struck = self._strike("during", method, path, payload)
            if struck is not None:
                return struck
            with engine.lock:
                return self._ok(self._public.routes[path](params))
        reads, writes = self._private.reads, self._private.writes
        known = (reads if method == "GET" else writes).get(path)
        if known is None:
            return Answer(404, b'{"retCode":10017,"retMsg":"request path not found or request method is invalid"}')
        check_key(self.key, headers, payload)
        stamp = read_stamp(headers)
        self._check_age(stamp)
        check_permission(self.key, writes=method == "POST")
        self._check_rate(path)
        struck = self._strike("during", method, path, payload)
        if struck is not None:
            return struck
        with engine.effect():
            self._check_age(stamp)  # it may have waited on the way to the matching engine, or for the lock
            result = reads[path](params) if method == "GET" else writes[path](params, stamp.request_ms)
        return self._ok(result)

    def _venue_now(self) -> int:
        """The exchange's clock as clients see it: `skew` lets it go wrong."""
        return self.engine.now_ms() + int(self.engine.store.state.get("skew_ms", 0))

    def _check_age(self, stamp: Stamp) -> None:
        stamp.check(self._venue_now(), tolerance_ms=int(FUTURE_MS * max(self.engine.speed, 1.0)))

    def _check_rate(self, path: str) -> None:
        if not self._rate_limited or path not in RATE_LIMITS:
            return
        now = time.monotonic()
        with self._lock:
            asked = self._asked.setdefault(path, deque())
            while asked and asked[0] <= now - _RATE_WINDOW_SECONDS:
                asked.popleft()
            if len(asked) >= RATE_LIMITS[path]:
                raise RefusedError(10006, "Too many visits. Exceeded the API Rate Limit.")
            asked.append(now)

    def _ok(self, result: Any) -> Answer:
        return self._json(0, "OK", result)

    def _refusal(self, refusal: RefusedError) -> Answer:
        answer = self._json(refusal.code, refusal.message, {})
        if refusal.code == 10006:
            reset = self._venue_now() + int(1_000 * self.engine.speed)
            answer.headers = {
                "X-Bapi-Limit": "10", "X-Bapi-Limit-Status": "0", "X-Bapi-Limit-Reset-Timestamp": str(reset),
            }  # fmt: skip
        return answer

    def _json(self, code: int, message: str, result: Any) -> Answer:
        body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": self._venue_now()}
        return Answer(200, json.dumps(body, separators=(",", ":")).encode())

    # -------------------------------------------------------------------- faults
    def _strike(self, phase: Any, method: str, path: str, payload: str, true: Answer | None = None) -> Answer | None:
        """Let a fault of this phase act: wait, drop, or give another answer. None: on as if nothing had happened."""
        fault = self.faults.pick(phase, method, path, payload)
        if fault is None:
            return None
        if fault.kind in ("delay", "delay_close"):
            time.sleep(fault.seconds)
        if fault.kind == "delay":
            return None
        if fault.kind in ("reset", "close", "delay_close"):
            raise DroppedError(reset=fault.kind == "reset")
        return self._false_answer(fault, true)

    def _false_answer(self, fault: Fault, true: Answer | None) -> Answer:
        if fault.kind == "status":
            answer = Answer(fault.status, fault.body.encode(), "text/html")
            if fault.location:
                answer.headers["Location"] = fault.location
            return answer
        if fault.kind == "html":
            return Answer(200, fault.body.encode(), "text/html")
        if fault.kind == "empty":
            return Answer(200, b"")
        if fault.kind in ("ret_code", "rate_limit"):
            code = 10006 if fault.kind == "rate_limit" else fault.code
            self.refusals[code] += 1
            message = "Too many visits. Exceeded the API Rate Limit." if fault.kind == "rate_limit" else fault.message
            return self._refusal(RefusedError(code, message))
        body = b"" if true is None else true.body
        if fault.kind in ("truncated", "broken_json"):
            torn = Answer(200, body[: len(body) * 2 // 3])
            torn.claimed = len(body) if fault.kind == "truncated" else len(torn.body)
            return torn
        told = json.loads(body)
        rows = (told.get("result") or {}).get("list")
        if isinstance(rows, list):
            doubled = [row for row in rows for _ in (0, 1)]
            changed = {"duplicate_rows": doubled, "no_rows": []}.get(fault.kind)
            told["result"]["list"] = self.faults.shuffled(rows) if changed is None else changed
        return Answer(200, json.dumps(told).encode())

    # ------------------------------------------------------------------- control
    def _controlled(self, method: str, path: str, query: str, payload: str) -> Answer:
        try:
            sent = json.loads(payload) if method == "POST" and payload else {}
            if path == "/control/books":
                return Answer(
                    200,
                    json.dumps(
                        {**self.control.books(brief=query == "brief=1"), "refusals": dict(self.refusals)}
                    ).encode(),
                )
            if path == "/control/event" and method == "POST":
                self.control.event(sent)
                return Answer(200, b"{}")
            if path == "/control/faults":
                if method == "POST":
                    self.faults.load(sent)
                return Answer(200, json.dumps(self.faults.to_json()).encode())
        except (ValueError, KeyError, TypeError) as error:
            return Answer(400, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return Answer(404, b'{"error": "control knows books, event and faults"}')

    def log(self, line: str) -> None:
        if self._log is not None:
            with self._lock:
                self._log.write(f"{self.engine.now_ms()} {line}\n")
                self._log.flush()

    def opened(self, connection: socket.socket, is_open: bool) -> None:
        with self._lock:
            (self._open.add if is_open else self._open.discard)(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined at the end: no thread outlives its server
    block_on_close = True
    request_queue_size = 128


def _handler(server: BybitServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.opened(self.connection, True)

        def finish(self) -> None:
            server.opened(self.connection, False)
            with suppress(OSError):
                super().finish()

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {self.path} {body.decode(errors='replace')}"
            try:
                answer = server.answer(self.command, self.path, self.headers, body)
            except DroppedError as drop:
                server.log(f"{asked} -> dropped, reset={drop.reset}")
                self.close_connection = True
                if drop.reset:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            except Exception:  # noqa: BLE001 - whatever it is, it is this server's own mistake and must be seen
                server.errors.append(f"{asked}\n{traceback.format_exc()}")
                answer = Answer(500, b"the loopback exchange itself failed")
            server.log(f"{asked} -> {answer.status} {answer.body[:300]!r}")
            self._send(answer)

        def _send(self, answer: Answer) -> None:
            lines = [
                f"HTTP/1.1 {answer.status} {self.responses.get(answer.status, ('Error', ''))[0]}",
                f"Content-Type: {answer.content_type}",
                f"Content-Length: {answer.claimed}",
                *(f"{name}: {value}" for name, value in answer.headers.items()),
            ]
            if answer.claimed != len(answer.body):
                self.close_connection = True
                lines.append("Connection: close")
            self.wfile.write("\r\n".join([*lines, "", ""]).encode() + answer.body)

        def log_message(self, *args: object) -> None:
            """Quiet: pytest shows `requests` when a test fails."""

    return Handler


def _parse(method: str, payload: str) -> dict[str, Any]:
    if method != "POST":
        return dict(parse_qsl(payload, keep_blank_values=True))
    try:
        sent = json.loads(payload or "{}")
    except ValueError:
        raise RefusedError(10001, "params error: the body is no JSON") from None
    if not isinstance(sent, dict):
        raise RefusedError(10001, "params error: the body is no object")
    return sent

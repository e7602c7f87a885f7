"""ccxt's asynchronous client behind a gate: one event loop in one thread, and calls that wait for their answer.

ccxt's limiter is not thread-safe, so every request of this process runs in one loop, whichever thread asks. A
`CcxtLink` is one client with its own gate and budget: public data has one, an account has another. ccxt is imported
when the first client is made: it costs a second and 100 MB (reference/exchanges.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from exchanges.ccxt_gate import Gate, Trouble, reset_at_ms, trouble_of
from exchanges.ccxt_outcomes import classes_of, shown
from exchanges.ccxt_rules import VenueRules, rules_of
from exchanges.errors import (
    ConfigurationError,
    ExchangeError,
    ExchangeUnavailableError,
    MarketDataError,
    UnknownSymbolError,
)
from exchanges.keys import Keys

CLOCK_FRESH_MS = 1_200_000
CLOCK_ALERT_MS = 1_000
"""A clock that is further off than this is reported: Bybit refuses a stamp from a second in the future."""
DATA_TIMEOUT_MS, TRADE_TIMEOUT_MS = 10_000, 5_000
DATA_PARALLEL, TRADE_PARALLEL = 16, 4
PATIENCE_SECONDS = 120.0
CLOSE_SECONDS = 1.0
T = TypeVar("T")
_UNUSABLE = (TypeError, KeyError, ValueError, IndexError, AttributeError)


@dataclass(slots=True)
class Answer:
    """What came with the newest response of the task: for error handling only."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


_answer: ContextVar[Answer] = ContextVar("answer")
_signed_at: ContextVar[int | None] = ContextVar("signed_at", default=None)
_loops: dict[int, asyncio.AbstractEventLoop] = {}
_loops_lock = threading.Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop, which runs in a daemon thread. A forked child gets its own."""
    with _loops_lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            _loops.clear()
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="exchange", daemon=True).start()
        return loop


def run(work: Coroutine[Any, Any, T], *, patience: float = PATIENCE_SECONDS) -> T:
    """Run `work` in the loop and wait for it. Raises ExchangeUnavailableError after `patience` seconds."""
    future = asyncio.run_coroutine_threadsafe(work, event_loop())
    try:
        return future.result(patience)
    except TimeoutError as error:
        if future.done():
            raise
        future.cancel()
        raise ExchangeUnavailableError(f"no end after {patience:g} s") from error


@dataclass(slots=True)
class ExchangeClock:
    """The exchange's time: ours, corrected by the measured difference. Shared by the clients of an exchange."""

    now_ms: Callable[[], int]
    offset_ms: int = 0
    measured_at: int | None = None

    @property
    def stale(self) -> bool:
        return self.measured_at is None or not 0 <= self.now_ms() - self.measured_at < CLOCK_FRESH_MS

    def now(self) -> int:
        return self.now_ms() - self.offset_ms


class CcxtLink:
    """One ccxt client. `request` belongs into the loop, `call` may be used by any thread.

    `notices` collects what a person should know (a clock that is off, a refused key); whoever owns the link takes
    them out, in a thread of its own.
    """

    def __init__(
        self,
        *,
        exchange_id: str,
        is_spot: bool,
        clock: ExchangeClock,
        gate: Gate,
        options: Mapping[str, object] | None = None,
        keys: Keys | None = None,
        timeout_ms: int = DATA_TIMEOUT_MS,
        parallel: int = DATA_PARALLEL,
    ) -> None:
        self.rules: VenueRules | None = rules_of(exchange_id)
        self.clock = clock
        self.gate = gate
        self.keys = keys
        self.notices: dict[str, str] = {}
        self._patience = timeout_ms / 1000
        self.client = run(_make(exchange_id, is_spot=is_spot, options=options or {}, keys=keys, timeout_ms=timeout_ms))
        self._slots = asyncio.Semaphore(parallel)
        _prepare(self.client, clock)
        weakref.finalize(self, _close, self.client, os.getpid())

    def call(self, operation: Callable[[Any], Awaitable[T]], *, urgent: bool = False) -> T:
        """Do `operation(client)` in the loop. Raises what ccxt raises, or GateClosedError; see `translated`."""
        return run(self.request(operation, urgent=urgent))

    async def request(
        self,
        operation: Callable[[Any], Awaitable[T]],
        *,
        urgent: bool = False,
        signed_at_ms: int | None = None,
        retries: int = 1,
    ) -> T:
        """Pass the gate, do `operation(client)`, tell the gate how it went.

        A read that is refused because of the clock is done once more (`retries`) with the difference measured anew.
        `signed_at_ms` (the exchange's time) is what the request is signed with; by default it is now.
        """
        try:
            return await self._once(operation, urgent=urgent, signed_at_ms=signed_at_ms)
        except Exception as error:
            if retries < 1 or "InvalidNonce" not in classes_of(error):
                raise
        await self.measure_clock()
        return await self._once(operation, urgent=urgent, signed_at_ms=signed_at_ms)

    async def _once(self, operation: Callable[[Any], Awaitable[T]], *, urgent: bool, signed_at_ms: int | None) -> T:
        async with self._slots:
            wait = self.gate.admit(self.clock.now_ms(), urgent=urgent)
            _answer.set(Answer())
            _signed_at.set(signed_at_ms)
            try:
                if wait:
                    await asyncio.sleep(wait / 1_000)
                result = await operation(self.client)
            except BaseException as error:
                self._failed(error)
                raise
            self.gate.answered()
            return result

    def _failed(self, error: BaseException) -> None:
        self._hide(error)
        now = self.clock.now_ms()
        answer = _answer.get()
        trouble = trouble_of(error, self.rules, status=answer.status or None)
        if not isinstance(error, Exception):  # cancelled: nobody knows what it would have become
            trouble = Trouble.SILENCE
        self.gate.failed(now, trouble, shown(error), retry_at_ms=self.retry_at_ms())
        if trouble is Trouble.KEY:
            self.notices["key"] = f"the exchange refuses this key: {shown(error)}. Nothing is sent for ten minutes."
        elif trouble is Trouble.BAN:
            self.notices["ban"] = f"the exchange refuses this address: {shown(error)}. Nothing is sent for ten minutes."

    def retry_at_ms(self) -> int | None:
        """Return when the newest answer of this task says that its limit ends (our clock), or None."""
        answer = _answer.get(None)
        if answer is None or not answer.status:
            return None
        return reset_at_ms(answer.headers, now_ms=self.clock.now_ms(), offset_ms=self.clock.offset_ms)

    def status(self) -> int | None:
        """Return the HTTP status of the newest answer of this task, or None if there was none."""
        return _answer.get(Answer()).status or None

    def _hide(self, error: BaseException) -> None:
        """Take the keys out of an error and out of what caused it, before anybody can log it."""
        seen: set[int] = set()
        each: BaseException | None = error
        while self.keys is not None and each is not None and id(each) not in seen:
            seen.add(id(each))
            each.args = tuple(self.keys.hide(value) if isinstance(value, str) else value for value in each.args)
            each = each.__cause__ or each.__context__

    # ------------------------------------------------------------------- the exchange's clock
    async def measure_clock(self) -> None:
        """Measure the difference between our clock and the exchange's; half of the way counts for each direction.

        An answer that took long says little: while the known difference may be right by it, that one stays. Else one
        slow answer would let orders be accepted for longer than their receive window (B4).
        """
        clock = self.clock
        before = clock.now_ms()
        theirs = int(await self._once(lambda client: client.fetch_time(), urgent=True, signed_at_ms=None))
        after = clock.now_ms()
        offset_ms = (before + after) // 2 - theirs
        if clock.measured_at is None or abs(offset_ms - clock.offset_ms) > (after - before) // 2:
            clock.offset_ms = offset_ms
        clock.measured_at = after
        if abs(clock.offset_ms) > CLOCK_ALERT_MS:
            self.notices["clock"] = (
                f"this host's clock is {clock.offset_ms} ms ahead of the exchange's. Requests are signed with the "
                "exchange's time; switch time synchronisation on (timedatectl set-ntp true)."
            )

    def exchange_now_ms(self) -> int:
        """Return the exchange's time, measured at most twenty minutes ago."""
        if self.clock.stale:
            with self.translated(None):
                run(self.measure_clock())
        return self.clock.now()

    # ------------------------------------------------------------------- errors
    @contextmanager
    def translated(self, symbol: str | None) -> Iterator[None]:
        """Errors of ccxt as errors of the port. A body that ccxt cannot parse shows as a TypeError or its like."""
        name = self.client.id
        try:
            yield
        except ExchangeError:
            raise
        except Exception as error:
            translated = translate(error, name, symbol)
            if translated is None:
                raise
            raise translated from error


def translate(error: Exception, name: str, symbol: str | None) -> ExchangeError | None:
    """Return the port's error for one of ccxt's, or None for what is neither ccxt's nor a broken answer."""
    names = classes_of(error)
    if "BadSymbol" in names:
        return UnknownSymbolError(symbol or "all symbols", f"{name}: {error}")
    if "AuthenticationError" in names:
        return ExchangeUnavailableError(f"{name} refuses this key ({shown(error)})")
    if "NetworkError" in names:
        return ExchangeUnavailableError(f"{name} does not answer ({shown(error)})")
    if "BaseError" in names or isinstance(error, _UNUSABLE):
        detail = f"{name} gave an unusable answer ({shown(error)})"
        return ExchangeError(detail) if symbol is None else MarketDataError(symbol, detail)
    return None


def answer_errors() -> tuple[type[BaseException], ...]:
    """Return what a request may raise for what a venue did: for `except`, where ccxt is loaded anyway."""
    from ccxt.base.errors import BaseError

    return (BaseError, ExchangeError, TimeoutError, *_UNUSABLE)


def preload() -> None:
    """Import ccxt now, for a process whose forks shall not pay for it again. Starts no thread and no loop."""
    import ccxt.async_support  # noqa: F401


async def _make(
    exchange_id: str, *, is_spot: bool, options: Mapping[str, object], keys: Keys | None, timeout_ms: int
) -> Any:
    """Make the client inside the loop that it will live in."""
    import ccxt.async_support as ccxt

    if exchange_id not in ccxt.exchanges:
        raise ConfigurationError(f"ccxt has no exchange {exchange_id!r}; see `ccxt.exchanges`, e.g. bybit, binanceusdm")
    types = ["spot"] if is_spot else ["linear"]
    rules = rules_of(exchange_id)
    settings: dict[str, Any] = {
        "enableRateLimit": rules is None or rules.requests_per_second is None,
        "timeout": timeout_ms,
        # Otherwise Bybit loads spot, inverse and options too. A repeated `create_order` would be a second order.
        "options": {
            "defaultType": "spot" if is_spot else "swap",
            "fetchMarkets": {"types": types},
            "maxRetriesOnFailure": 0,
        },
    }
    if keys is not None:
        settings |= {"apiKey": keys.api_key, "secret": keys.secret, "password": keys.passphrase}
    given = dict(options)
    sandbox = bool(given.pop("sandbox", False))
    for key, value in given.items():
        merges = isinstance(value, Mapping) and isinstance(settings.get(key), dict)
        settings[key] = {**settings[key], **value} if merges else value  # type: ignore[dict-item]  # both are mappings here
    client = getattr(ccxt, exchange_id)(settings)
    if sandbox:
        client.set_sandbox_mode(True)  # replaces the urls
    return client


def _prepare(client: Any, clock: ExchangeClock) -> None:
    """Give the client our clock, a look at every answer, and a log that never says what a request was signed with."""
    from ccxt.base.errors import BadResponse

    client.milliseconds = clock.now_ms
    client.timeout_on_exit = 0
    client.logger = logging.getLogger("exchanges.ccxt")
    client.logger.setLevel(logging.INFO)  # at DEBUG ccxt writes the key and the signature of every request

    def nonce() -> int:
        at = _signed_at.get()
        return clock.now() if at is None else at

    client.nonce = nonce
    original = client.handle_errors

    def handle_errors(
        status: int, reason: str, url: str, method: str, headers: Any, body: str, response: Any, *request: Any
    ) -> Any:
        _answer.set(Answer(status, headers or {}))
        original(status, reason, url, method, headers, body, response, *request)
        if 300 <= status < 400:  # without a place to go to, else it was refused before
            raise BadResponse(f"{client.id} {method} {url.split('?')[0]}: status {status} is no answer")
        # From a web page or a torn body ccxt makes an empty answer (measured): an outage would look like no data,
        # and an order that was placed like one without an id. A status that it does not know it takes for success.
        unknown_status = status >= 400 and str(status) not in client.httpExceptions
        if unknown_status or (status < 300 and not isinstance(response, dict | list)):
            raise BadResponse(f"{client.id} {method} {url.split('?')[0]}: status {status}, the body is no JSON")

    client.handle_errors = handle_errors
    _refuse_redirects(client)


def _refuse_redirects(client: Any) -> None:
    """Let no request be sent again to where an answer points: aiohttp would repeat a signed order (307, 308) and show
    key and signature to another host. Whether the first one had an effect is unknown.
    """
    from aiohttp import TraceConfig
    from ccxt.base.errors import BadResponse

    async def refuse(_: Any, __: Any, params: Any) -> None:
        response = params.response
        _answer.set(Answer(response.status, dict(response.headers)))
        response.close()
        place = f"{client.id} {params.method} {params.url.path}"
        raise BadResponse(f"{place}: redirected ({response.status}), which is not followed")

    refusing = TraceConfig()
    refusing.on_request_redirect.append(refuse)
    refusing.freeze()

    def watched(session: Any) -> Any:
        if session is not None and refusing not in session.trace_configs:
            session.trace_configs.append(refusing)
        return session

    opened, through_proxy = client.open, client.get_socks_proxy_session

    def open_session(lazy: bool = False) -> None:
        opened(lazy)
        watched(client.session)

    client.open = open_session
    client.get_socks_proxy_session = lambda proxy: watched(through_proxy(proxy))


def _close(client: Any, pid: int) -> None:
    """Give back the client's connections: when its link is gone, or at the end of the process."""
    loop = _loops.get(os.getpid())
    if pid != os.getpid() or loop is None:
        client.session = None  # of the process that this one was forked from
        return
    future = asyncio.run_coroutine_threadsafe(client.close(), loop)
    if threading.current_thread() is threading.main_thread():
        try:
            future.result(CLOSE_SECONDS)
        except TimeoutError:
            future.cancel()

"""When a venue may be asked: rate budget, circuit breaker, pauses and bans. Pure: the time is passed in.

One `Gate` per class of requests (public data, trading), so that a flood of candles cannot hold up a cancel, and one
`Ban` for both, because venues ban addresses. A refusal happens before anything is sent.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from exchanges.ccxt_outcomes import BAN_MS, DEFAULT_PAUSE_MS, THROTTLES, TOO_MANY_REQUESTS, classes_of
from exchanges.ccxt_rules import VenueRules
from exchanges.errors import ExchangeUnavailableError

TIMEOUTS_TO_OPEN = 3
OPEN_BASE_MS, OPEN_CAP_MS = 5_000, 60_000
MAINTENANCE_MS = 60_000
SLOW_MS = 60_000
"""How long the budget is halved after a rate limit."""
MAX_PAUSE_MS = 60_000
URGENT_SHARE = 0.25
"""Part of the budget that only cancels, stops and exits may use."""
MAX_WAIT_MS = 5_000


class GateState(StrEnum):
    CLOSED = "closed"  # requests pass
    OPEN = "open"  # three failures in a row: wait, then one probe
    PAUSED = "paused"  # the venue asked for it
    MAINTENANCE = "maintenance"
    BANNED = "banned"
    KEY_REFUSED = "key refused"


class Trouble(StrEnum):
    """What a failed request says of the access; NONE: it was answered, if only with a refusal."""

    NONE = "none"
    SILENCE = "silence"
    RATE_LIMIT = "rate limit"
    MAINTENANCE = "maintenance"
    BAN = "ban"
    KEY = "key"


class GateClosedError(ExchangeUnavailableError):
    """Nothing was sent: the venue may not be asked before `retry_at_ms` (our clock)."""

    def __init__(self, detail: str, *, retry_at_ms: int, now_ms: int) -> None:
        super().__init__(detail, retry_after_ms=max(0, retry_at_ms - now_ms))
        self.retry_at_ms = retry_at_ms


def trouble_of(error: BaseException, rules: VenueRules | None, *, status: int | None) -> Trouble:
    """Return what an error of ccxt, with the HTTP status that came with it, says of the access."""
    names = set(classes_of(error))
    code = rules.code_of(str(error)) if rules is not None else ""
    ban_statuses = rules.ban_statuses if rules is not None else frozenset({418})
    if status in ban_statuses or (rules is not None and code in rules.ban_codes) or "AccountSuspended" in names:
        return Trouble.BAN
    if rules is not None and code in rules.key_codes:
        return Trouble.KEY
    if "AuthenticationError" in names and "PermissionDenied" not in names:
        return Trouble.KEY
    if status == TOO_MANY_REQUESTS or THROTTLES & names:
        return Trouble.RATE_LIMIT
    if "OnMaintenance" in names or status == 503:
        return Trouble.MAINTENANCE
    if "InvalidNonce" in names:
        return Trouble.NONE
    if {"OperationFailed", "TimeoutError"} & names or (rules is not None and code in rules.unclear):
        return Trouble.SILENCE
    return Trouble.NONE


def reset_at_ms(headers: Mapping[str, str], *, now_ms: int, offset_ms: int) -> int | None:
    """Return when a rate limit ends by our clock, from Bybit's reset stamp or `Retry-After` in seconds; else None."""
    lowered = {name.lower(): value for name, value in headers.items()}
    stamp, seconds = lowered.get("x-bapi-limit-reset-timestamp", ""), lowered.get("retry-after", "")
    ends = []
    if stamp.isdigit():
        ends.append(int(stamp) + offset_ms)
    if seconds.isdigit():
        ends.append(now_ms + int(seconds) * 1_000)
    return min(max(ends), now_ms + MAX_PAUSE_MS) if ends else None


@dataclass(slots=True)
class TokenBucket:
    """`per_second` requests a second, a second's worth at once. `reserve` books one and says how long to wait for it.

    The last `URGENT_SHARE` of the tokens is kept for what is urgent; after a rate limit the pace is halved for a while.
    """

    per_second: float
    tokens: float = field(init=False)
    at_ms: int | None = field(init=False, default=None)
    slow_until_ms: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.tokens = self.per_second

    def reserve(self, now_ms: int, *, urgent: bool = False) -> int:
        """Return the ms to wait. Raises GateClosedError, booking nothing, if that is longer than MAX_WAIT_MS."""
        pace = self.per_second / 2 if now_ms < self.slow_until_ms else self.per_second
        if self.at_ms is not None:
            self.tokens = min(self.per_second, self.tokens + max(0, now_ms - self.at_ms) / 1_000 * pace)
        self.at_ms = now_ms
        kept = 0.0 if urgent else self.per_second * URGENT_SHARE
        missing = 1.0 + kept - self.tokens
        wait = max(0, round(missing / pace * 1_000))
        if wait > MAX_WAIT_MS:
            raise GateClosedError(f"the rate budget is used up for {wait} ms", retry_at_ms=now_ms + wait, now_ms=now_ms)
        self.tokens -= 1.0
        return wait


@dataclass(slots=True)
class Ban:
    """Shared by all gates of one address: while it lasts, nothing is sent at all."""

    until_ms: int = 0
    reason: str = ""


@dataclass(slots=True)
class Gate:
    """The circuit breaker of one class of requests."""

    name: str
    ban: Ban = field(default_factory=Ban)
    bucket: TokenBucket | None = None
    state: GateState = GateState.CLOSED
    retry_at_ms: int = 0
    failures: int = 0
    reason: str = ""
    _probing: bool = False

    def admit(self, now_ms: int, *, urgent: bool = False) -> int:
        """Let a request pass; returns the milliseconds that it must wait first. Raises GateClosedError.

        Behind an opened gate the first request after `retry_at_ms` is the probe: until it is over, no other passes.
        """
        if now_ms < self.ban.until_ms:
            raise self._closed(GateState.BANNED, self.ban.until_ms, now_ms, self.ban.reason)
        if self.state is not GateState.CLOSED:
            if now_ms < self.retry_at_ms:
                raise self._closed(self.state, self.retry_at_ms, now_ms, self.reason)
            if self._probing:
                raise self._closed(self.state, now_ms + DEFAULT_PAUSE_MS, now_ms, self.reason)
        if self.state is GateState.PAUSED:
            self.state = GateState.CLOSED
        wait = 0 if self.bucket is None else self.bucket.reserve(now_ms, urgent=urgent)
        self._probing = self.state is not GateState.CLOSED
        return wait

    def answered(self) -> None:
        """The venue answered. Only a probe opens the gate again: a late answer to an older request proves nothing."""
        if self.state is GateState.CLOSED or self._probing:
            self.state, self.failures, self.reason, self._probing = GateState.CLOSED, 0, "", False

    def failed(self, now_ms: int, trouble: Trouble, reason: str, *, retry_at_ms: int | None = None) -> None:
        """Take in what a failed request says. `retry_at_ms` is what the venue asks for, if it does."""
        if trouble is Trouble.NONE:
            self.answered()
            return
        counts = self.state is GateState.CLOSED or self._probing
        self._probing, self.reason = False, reason
        if trouble is Trouble.BAN:
            self.ban.until_ms, self.ban.reason = max(self.ban.until_ms, retry_at_ms or 0, now_ms + BAN_MS), reason
        elif trouble is Trouble.KEY:
            self._close(GateState.KEY_REFUSED, now_ms + BAN_MS)
        elif trouble is Trouble.RATE_LIMIT:
            self._close(GateState.PAUSED, max(retry_at_ms or 0, now_ms + DEFAULT_PAUSE_MS))
            if self.bucket is not None:
                self.bucket.slow_until_ms = now_ms + SLOW_MS
        elif trouble is Trouble.MAINTENANCE:
            self._close(GateState.MAINTENANCE, now_ms + MAINTENANCE_MS)
        elif counts:  # requests that were under way when it opened must not make it stay so for longer
            self.failures += 1
            if self.failures >= TIMEOUTS_TO_OPEN:
                doublings = min(self.failures - TIMEOUTS_TO_OPEN, 10)
                self._close(GateState.OPEN, now_ms + self._jittered(min(OPEN_BASE_MS << doublings, OPEN_CAP_MS)))

    def _close(self, state: GateState, retry_at_ms: int) -> None:
        self.state, self.retry_at_ms = state, retry_at_ms

    def _jittered(self, wait_ms: int) -> int:
        """Spread the probes of several processes over a fifth of the wait, the same way every time."""
        share = zlib.crc32(f"{self.name}:{self.failures}".encode()) / 2**32
        return round(wait_ms * (0.9 + 0.2 * share))

    def _closed(self, state: GateState, retry_at_ms: int, now_ms: int, reason: str) -> GateClosedError:
        detail = f"{self.name}: nothing is sent for {retry_at_ms - now_ms} ms ({state}: {reason})"
        return GateClosedError(detail, retry_at_ms=retry_at_ms, now_ms=now_ms)

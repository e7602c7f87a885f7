"""Candles and funding: fetched per symbol, stored many symbols at a time, measured when they are stored.

One symbol's error stops that symbol (R4); an exchange that does not answer stops the shard until its back-off is over.
Everything is resumable: a fetch starts after the newest stored candle, and what was fetched is stored on the way.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction

from coverage_app import market as sources
from coverage_app.models import Symbol
from coverage_app.selectors import candles_are_due
from coverage_app.services import figures
from coverage_app.services.evaluation import hasten
from exchanges.errors import ExchangeError, ExchangeUnavailableError, MarketDataError
from exchanges.port import MarketData
from marketdata.errors import StoreError
from marketdata.store import FundingSeries
from ops_app import alerts, bulk, clock, leases, queue
from ops_app.choices import Severity
from quant.candles import CandleError, Candles
from quant.policy import DAY_MS, HOUR_MS, MINUTE_MS, back_off_ms
from quant.reasons import reason
from quant.timeframes import floor_ms, from_ms, last_closed_open_ms, timeframe_ms, to_ms

log = structlog.get_logger(__name__)

INGEST_TASK = "coverage_app.tasks.ingest_task"
SHARD = 100
"""Symbols of one task (locks.md: one task per 50-100 symbols, not per symbol)."""
CLAIM_SECONDS = 120.0
"""Real seconds for which a symbol is a task's: a killed one is followed after that; a living one claims on."""
BUDGET_SECONDS = 60.0
"""Real seconds after which a task gives its other symbols back, so that a long backfill never blocks the queue."""
FLUSH_CANDLES = 200_000
FLUSH_SYMBOLS = SHARD
"""A write costs the same for one symbol as for many: candles are collected up to these numbers, then stored."""
WRITER_TTL = dt.timedelta(seconds=60)
WRITER_WAIT_SECONDS = 45.0
CLOSE_DELAY_MS = 5_000
"""After a candle's close, before it is asked for: exchanges finish it a moment late."""
LATE_RETRY_MS, LATE_WINDOW_MS = MINUTE_MS, 5 * MINUTE_MS
"""A newest candle that is not there yet is asked for again, for this long; after that the exchange left it out."""
FAILURE_BASE_MS, FAILURE_CAP_MS = 5 * MINUTE_MS, 6 * HOUR_MS
INGEST_FIELDS = (*figures.FIGURES, "backfilled", "ingest_due_at", "ingest_failures", "ingest_error")


@dataclass(slots=True)
class IngestReport:
    """What one call did. `failed` names symbols and their errors; `unavailable` is the exchange's, for all of them."""

    symbols: int = 0
    candles: int = 0
    backfilled: int = 0
    postponed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""

    def __str__(self) -> str:
        if not (self.symbols or self.failed or self.unavailable):
            return ""
        text = f"{self.symbols} symbols, {self.candles} candles, {self.backfilled} backfills finished"
        text += f", {len(self.failed)} failed" if self.failed else ""
        return f"{text}, stopped: {self.unavailable}" if self.unavailable else text


def ring_ingest(*, market: str | None = None) -> int:
    """Send the due symbols to the workers in shards; returns how many symbols. Safe in any number of processes.

    A symbol's due time moves on before its task is sent, so that the next bell does not send it again.
    """
    market = market or settings.EXCHANGE_MARKET
    now = clock.market_now()
    if not candles_are_due(market):
        return 0
    with transaction.atomic():
        due = Symbol.objects.of_market(market).due_for_ingest(now=now).claimable()
        # Those that only lack their newest candle first; by code, because the store is sorted by it.
        ids = list(due.order_by("-backfilled", "code").values_list("pk", flat=True))
        _claim(ids, now)
        for start in range(0, len(ids), SHARD):
            queue.enqueue(INGEST_TASK, ",".join(map(str, ids[start : start + SHARD])))
    return len(ids)


def ingest(*, symbol_ids: Sequence[int], budget_seconds: float | None = BUDGET_SECONDS) -> IngestReport:
    """Fetch and store what these symbols lack, and write their history figures.

    Raises StoreError (also alerted) when the store cannot be read or written, LeaseBusy when another process writes to
    it for too long, and LeaseLost: the symbols then stay claimed for a while and are due again.
    """
    rows = list(Symbol.objects.filter(pk__in=symbol_ids).ingestible().order_by("code"))
    report = IngestReport()
    for market in sorted({row.market for row in rows}):
        chosen = [row for row in rows if row.market == market]
        try:
            _Ingest(market, chosen, report, budget_seconds).run()
        except StoreError as error:
            alerts.raise_alert(_store_alert_key(market), f"Candles cannot be stored: {error}", Severity.CRITICAL)
            raise
    return report


def forget_lost_history(*, market: str | None = None, codes: Iterable[str] | None = None) -> list[str]:
    """Compare the store with the figures: symbols of which candles were lost are fetched again from the start.

    For after a file was moved away (see StoreError). Returns their codes.
    """
    market = market or settings.EXCHANGE_MARKET
    symbols = Symbol.objects.of_market(market).filter(candle_count__gt=0)
    if codes is not None:
        symbols = symbols.filter(code__in=list(codes))
    store, lost = sources.candle_store(), []
    for symbol in symbols:
        stored = store.read(
            market, settings.TIMEFRAME, symbols=[symbol.code], since_ms=to_ms(symbol.history_start or symbol.created_at)
        ).get(symbol.code)
        if stored is None or len(stored) < symbol.candle_count:
            lost.append(symbol)
    _set([symbol.pk for symbol in lost], last_candle_at=None, backfilled=False, ingest_due_at=clock.market_now())
    return [symbol.code for symbol in lost]


def _claim(symbol_ids: Sequence[int], now: dt.datetime) -> None:
    until = now + dt.timedelta(seconds=CLAIM_SECONDS * clock.speed())
    _set(symbol_ids, ingest_due_at=until)


def _set(symbol_ids: Iterable[int], **values: Any) -> None:
    """Set the same values in these rows, locked in the order in which the evaluation locks them."""
    with transaction.atomic():
        Symbol.objects.filter(pk__in=bulk.among(symbol_ids)).locked().update(**values)


class _Ingest:
    """One shard of one market on its way into the store."""

    def __init__(self, market: str, rows: list[Symbol], report: IngestReport, budget_seconds: float | None) -> None:
        self.market = market
        self.rows = {row.code: row for row in rows}
        self.report = report
        self.deadline = None if budget_seconds is None else clock.monotonic() + budget_seconds
        self.timeframe = settings.TIMEFRAME
        self.step = timeframe_ms(self.timeframe)
        self.data: MarketData = sources.market_data()
        self.store = sources.candle_store()
        self.now_ms = clock.market_now_ms()
        self.newest_ms = last_closed_open_ms(self.now_ms, self.step)
        self.collected: dict[str, list[Candles]] = {}
        self.funding: dict[str, FundingSeries] = {}
        self.ended: dict[str, str] = {}  # symbols that are through, with their error or ""
        self.waiting: list[str] = sorted(self.rows)
        swaps = [row.code for row in rows if row.market_type == "swap"]
        self.funded = self.store.last_funding_times(market, symbols=swaps) if self.data.capabilities.funding else {}

    def run(self) -> None:
        _claim([row.pk for row in self.rows.values()], from_ms(self.now_ms))
        early = self._newest_in_bulk()
        while self.waiting:
            if self.deadline is not None and clock.monotonic() > self.deadline:
                self._postpone(from_ms(self.now_ms))
                break
            code = self.waiting[0]
            try:
                self._fetch(self.rows[code], early.get(code))
            except ExchangeError as error:  # not of one symbol: `_fetch` has dealt with those
                self._flush()
                self._stop(error)
                return
            self.waiting.pop(0)
            if len(self.ended) >= FLUSH_SYMBOLS:
                self._flush()
        self._flush()
        alerts.resolve_alert(_alert_key(self.market))
        alerts.resolve_alert(_store_alert_key(self.market))

    # ----------------------------------------------------------------- fetch
    def _since_ms(self, row: Symbol) -> int:
        """Open time of the first candle that is missing at the end."""
        if row.last_candle_at is not None:
            return to_ms(row.last_candle_at) + self.step
        start = self.newest_ms + self.step - settings.HISTORY_TARGET_DAYS * DAY_MS
        listed = 0 if row.listed_at is None else floor_ms(to_ms(row.listed_at), self.step)
        return max(floor_ms(start, self.step), listed)

    def _newest_in_bulk(self) -> dict[str, Candles]:
        """Where the exchange can, ask in one call for the candles that most symbols lack: the newest."""
        if not self.data.capabilities.bulk_candles:
            return {}
        by_since: dict[int, list[str]] = {}
        for row in self.rows.values():
            since = self._since_ms(row)
            if row.backfilled and since <= self.newest_ms and self._bars_from(since) <= self.data.page_limit:
                by_since.setdefault(since, []).append(row.code)
        found: dict[str, Candles] = {}
        for since, codes in by_since.items():
            if len(codes) > 1:
                found |= self.data.candles_many(codes, self.timeframe, since, self._bars_from(since))
        return found

    def _bars_from(self, since_ms: int) -> int:
        return (self.newest_ms - since_ms) // self.step + 1

    def _fetch(self, row: Symbol, early: Candles | None) -> None:
        from marketdata.paging import fetch_missing

        since = self._since_ms(row)
        try:
            if early is not None:
                early.validate(self.step)
                self._collect(row.code, early)
            elif since <= self.newest_ms:
                for page in fetch_missing(self.data, row.code, self.timeframe, since, self.newest_ms + self.step):
                    self._collect(row.code, page)
                    if self._size() >= FLUSH_CANDLES:
                        self._flush()
            self._fetch_funding(row)
        except (MarketDataError, CandleError) as error:
            # What came before the bad page is good, and stays; of the bad page nothing is stored.
            self.ended[row.code] = _error_text(error)
        else:
            self.ended[row.code] = ""

    def _fetch_funding(self, row: Symbol) -> None:
        from marketdata.paging import fetch_funding

        if not self.data.capabilities.funding or row.market_type != "swap":
            return
        last = self.funded.get(row.code)
        times, rates = fetch_funding(self.data, row.code, self._history_start(row) if last is None else last + 1)
        if len(times):
            self.funding[row.code] = (times, rates)

    def _history_start(self, row: Symbol) -> int:
        if row.history_start is not None:
            return to_ms(row.history_start)
        return self.now_ms - settings.HISTORY_TARGET_DAYS * DAY_MS

    def _collect(self, code: str, candles: Candles) -> None:
        if len(candles):
            self.collected.setdefault(code, []).append(candles)

    def _size(self) -> int:
        return sum(len(part) for parts in self.collected.values() for part in parts)

    # ----------------------------------------------------------------- store
    def _flush(self) -> None:
        """Store what was collected; then write the figures of these symbols and of those that are through."""
        candles = {code: Candles.concat(parts) for code, parts in self.collected.items()}
        if candles or self.funding:
            with _writing(self.market) as guard:
                if candles:
                    self.store.write(self.market, self.timeframe, candles, guard=guard)
                if self.funding:
                    self.store.write_funding(self.market, self.funding, guard=guard)
        if candles or self.ended:
            self._write_rows(candles)
        self.report.candles += sum(len(series) for series in candles.values())
        self.collected, self.funding, self.ended = {}, {}, {}

    def _write_rows(self, candles: Mapping[str, Candles]) -> None:
        rows = [self.rows[code] for code in candles]
        found = figures.measure(self.store, rows, now_ms=self.now_ms, timeframe=self.timeframe)
        changes: dict[int, dict[str, Any]] = {}
        changed_verdict = []
        for code in sorted(candles.keys() | self.ended.keys()):
            row = self.rows[code]
            values = {name: getattr(row, name) for name in INGEST_FIELDS} | found.get(code, {})
            values["ingest_due_at"] = from_ms(self.now_ms) + dt.timedelta(seconds=CLAIM_SECONDS * clock.speed())
            if code in self.ended:
                self._close(row, values, self.ended[code])
            if self._may_change_verdict(row, values):
                changed_verdict.append(row.pk)
            changes[row.pk] = values
            for name, value in values.items():
                setattr(row, name, value)
        bulk.update_rows(Symbol, changes, fields=INGEST_FIELDS)
        hasten(changed_verdict, now=from_ms(self.now_ms))
        if self.waiting:
            _claim([self.rows[code].pk for code in self.waiting if code not in self.ended], clock.market_now())

    def _close(self, row: Symbol, values: dict[str, Any], error: str) -> None:
        if error:
            failures = min(row.ingest_failures + 1, 1000)
            wait = back_off_ms(failures, FAILURE_BASE_MS, FAILURE_CAP_MS, key=row.code)
            values |= {"ingest_failures": failures, "ingest_error": error, "ingest_due_at": from_ms(self.now_ms + wait)}
            self.report.failed[row.code] = error
            log.warning("ingest_failed", symbol=row.code, error=error, failures=failures)
            return
        values |= {"ingest_failures": 0, "ingest_error": "", "backfilled": True, "ingest_due_at": self._due_at(values)}
        self.report.symbols += 1
        self.report.backfilled += not row.backfilled

    def _due_at(self, values: Mapping[str, Any]) -> dt.datetime:
        """When this symbol's next candle is expected; soon, if its newest one is only late."""
        last = values["last_candle_at"]
        since_close = self.now_ms - (self.newest_ms + self.step)
        is_late = last is None or to_ms(last) < self.newest_ms
        if is_late and since_close < min(LATE_WINDOW_MS, self.step // 2):
            return from_ms(self.now_ms + LATE_RETRY_MS)
        return from_ms(self.newest_ms + 2 * self.step + CLOSE_DELAY_MS)

    def _may_change_verdict(self, row: Symbol, values: Mapping[str, Any]) -> bool:
        if values["backfilled"] != row.backfilled or bool(values["ingest_error"]) != bool(row.ingest_error):
            return True
        before, after = row.last_candle_at, values["last_candle_at"]
        was_behind = before is None or to_ms(before) < self.newest_ms - self.step
        return after != before and was_behind

    # ------------------------------------------------------------------ stop
    def _postpone(self, due: dt.datetime) -> None:
        ids = [self.rows[code].pk for code in self.waiting]
        _set(ids, ingest_due_at=due)
        self.report.postponed += len(ids)
        self.waiting = []

    def _stop(self, error: ExchangeError) -> None:
        """The exchange as a whole does not answer: nobody's fault, so no symbol is blamed; all wait."""
        failures = 1 + max(self.rows[code].ingest_failures for code in self.waiting)
        asked = error.retry_after_ms if isinstance(error, ExchangeUnavailableError) else None
        wait = max(back_off_ms(failures, MINUTE_MS, HOUR_MS), asked or 0)
        ids = [self.rows[code].pk for code in self.waiting]
        _set(ids, ingest_failures=failures)
        self._postpone(from_ms(self.now_ms + wait))
        self.report.unavailable = str(error)
        alerts.raise_alert(_alert_key(self.market), f"The exchange {self.market} does not answer: {error}")


@contextmanager
def _writing(market: str) -> Iterator[Any]:
    """Hold the right to write to the market's candles; yields the check that must pass right before each rename."""
    name = f"candles:{market}"
    lease, give_up = None, clock.monotonic() + WRITER_WAIT_SECONDS
    holder = leases.holder_name("ingest")
    while (lease := leases.acquire(name, holder=holder, ttl=WRITER_TTL)) is None:
        if clock.monotonic() > give_up:
            raise leases.LeaseBusy(f"lease {name} is held by another process for more than {WRITER_WAIT_SECONDS:g} s")
        clock.sleep(0.2)

    def guard() -> None:
        leases.keep(lease)
        if not lease.locally_valid():
            raise leases.LeaseLost(f"lease {name} ran out while candles were written")

    try:
        yield guard
    finally:
        leases.release(lease)


def _error_text(error: Exception) -> str:
    code = "BAD_CANDLES" if isinstance(error, CandleError) else "MARKET_DATA"
    detail = error.detail if isinstance(error, MarketDataError) else str(error)
    return reason(code, error=detail)[:300]


def _store_alert_key(market: str) -> str:
    return f"candles:{market}"


def _alert_key(market: str) -> str:
    return f"exchange:{market}"

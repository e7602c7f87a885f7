"""Reads of coverage: what is ready, what is blocked and why, and what happened to a symbol."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Count, Max, Min, Q

from coverage_app.models import Block, Symbol, UniverseRefresh
from coverage_app.querysets import BlockQuerySet, SymbolQuerySet
from ops_app import clock
from ops_app.models import Event
from ops_app.prepared import Prepared

# Asked on every pass, so compiled once.
_next_refresh = Prepared(
    lambda market: UniverseRefresh.objects.filter(market=market).order_by("-id").values_list("next_refresh_at")[:1]
)
_due_for_ingest = Prepared(lambda market, *, now: Symbol.objects.of_market(market).due_for_ingest(now=now))
_due_for_evaluation = Prepared(lambda market, *, now: Symbol.objects.of_market(market).due_for_evaluation(now=now))
_back_off_ended = Prepared(lambda market, *, now: Block.objects.back_off_ended(now=now).filter(symbol__market=market))


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How many symbols have been asked for their whole target history."""

    done: int
    total: int

    @property
    def fraction(self) -> float:
        return self.done / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class CoverageSummary:
    """A market at a glance. `by_reason` counts open blocks; a symbol may have several."""

    market: str
    symbols: int
    in_universe: int
    ready: int
    blocked: int
    never_evaluated: int
    backfill: BackfillProgress
    by_reason: dict[str, int]
    oldest_candle_at: dt.datetime | None
    newest_candle_at: dt.datetime | None
    next_evaluation_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One thing that happened to a symbol. `source`: block or event."""

    at: dt.datetime
    source: str
    kind: str
    text: str
    user: str


def subject_of(code: str) -> str:
    """Return the journal's subject of a symbol."""
    return f"symbol:{code}"


def ready_symbols(market: str | None = None) -> SymbolQuerySet:
    """Return the symbols that may be learnt, by code (see `SymbolQuerySet.ready`)."""
    return Symbol.objects.of_market(market or settings.EXCHANGE_MARKET).ready().order_by("code")


def backfill_progress(market: str | None = None) -> BackfillProgress:
    """Return how many of the symbols whose candles are kept up have their history (1 query)."""
    counts = (
        Symbol.objects.of_market(market or settings.EXCHANGE_MARKET)
        .ingestible()
        .aggregate(done=Count("pk", filter=Q(backfilled=True)), total=Count("pk"))
    )
    return BackfillProgress(**counts)


def counts_by_reason(market: str | None = None) -> dict[str, int]:
    """Return the number of open blocks per reason, the most frequent first (1 query)."""
    return dict(
        Block.objects.open()
        .filter(symbol__market=market or settings.EXCHANGE_MARKET)
        .order_by()
        .values_list("reason")
        .annotate(count=Count("pk"))
        .order_by("-count", "reason")
    )


def coverage_summary(market: str | None = None) -> CoverageSummary:
    """Return the market at a glance (4 queries, for any number of symbols)."""
    market = market or settings.EXCHANGE_MARKET
    symbols = Symbol.objects.of_market(market)
    counts = symbols.aggregate(
        symbols=Count("pk"),
        in_universe=Count("pk", filter=Q(in_universe=True)),
        never_evaluated=Count("pk", filter=Q(last_evaluated_at__isnull=True)),
        oldest_candle_at=Min("history_start"),
        newest_candle_at=Max("last_candle_at"),
        next_evaluation_at=Min("next_evaluation_at"),
        unblocked=Count("pk", filter=Q(pk__in=symbols.unblocked().values("pk"))),
        ready=Count("pk", filter=Q(pk__in=symbols.ready().values("pk"))),
    )
    unblocked = counts.pop("unblocked")
    return CoverageSummary(
        market=market,
        blocked=counts["symbols"] - unblocked,
        backfill=backfill_progress(market),
        by_reason=counts_by_reason(market),
        **counts,
    )


def open_blocks(symbol: Symbol) -> BlockQuerySet:
    """Return what is against a symbol now, the oldest first."""
    return Block.objects.open().filter(symbol=symbol).select_related("opened_by").order_by("opened_at", "id")


def block_history(symbol: Symbol) -> BlockQuerySet:
    """Return all blocks of a symbol, the newest first."""
    return Block.objects.filter(symbol=symbol).select_related("opened_by", "closed_by").order_by("-opened_at", "-id")


def symbol_timeline(symbol: Symbol, *, limit: int = 200) -> list[TimelineEntry]:
    """Return what happened to a symbol, the newest first: the journal, and older openings of blocks.

    Every opening and closing is in the journal; journal rows may be pruned sooner than blocks (I21), which then speak
    for themselves.
    """
    events = Event.objects.filter(subject=subject_of(symbol.code)).select_related("user")[:limit]
    entries = [TimelineEntry(event.created_at, "event", event.kind, event.text, _name(event.user)) for event in events]
    oldest = entries[-1].at if entries else None
    entries += [
        TimelineEntry(block.opened_at, "block", "block_opened", block.evidence, _name(block.opened_by))
        for block in block_history(symbol)[:limit]
        if oldest is None or block.opened_at < oldest
    ]
    return sorted(entries, key=lambda entry: entry.at, reverse=True)[:limit]


def newest_refresh(market: str | None = None) -> UniverseRefresh | None:
    """Return the last look at what the exchange lists, or None before the first."""
    return UniverseRefresh.objects.filter(market=market or settings.EXCHANGE_MARKET).order_by("-id").first()


def universe_is_due(market: str | None = None) -> bool:
    """Return whether the universe was never looked at, or is to be looked at again (1 query)."""
    newest = _next_refresh.rows(market or settings.EXCHANGE_MARKET)
    return not newest or newest[0][0] <= clock.market_now()


def candles_are_due(market: str | None = None) -> bool:
    """Return whether a symbol lacks candles (1 query)."""
    return _due_for_ingest.exists(market or settings.EXCHANGE_MARKET, now=clock.market_now())


def judging_is_due(market: str | None = None) -> bool:
    """Return whether a symbol, or the end of a back-off, waits for the evaluation (2 queries)."""
    market, now = market or settings.EXCHANGE_MARKET, clock.market_now()
    return _due_for_evaluation.exists(market, now=now) or _back_off_ended.exists(market, now=now)


def _name(user: User | None) -> str:
    return "" if user is None else user.get_username()

"""What the exchange lists, and which of it is the universe: looked at every hour of market time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction

from coverage_app import universe
from coverage_app.choices import BlockReason, RefreshTrigger
from coverage_app.exceptions import UniverseError
from coverage_app.market import market_data
from coverage_app.models import Symbol, UniverseRefresh
from coverage_app.selectors import newest_refresh, subject_of
from coverage_app.services.evaluation import hasten
from exchanges.errors import ExchangeError
from exchanges.port import Instrument, MarketData, Ticker
from ops_app import alerts, bulk, clock, journal, leases
from quant.policy import HOUR_MS, MINUTE_MS, back_off_ms
from quant.reasons import code_of, reason
from quant.timeframes import from_ms, to_ms

log = structlog.get_logger(__name__)

PERIOD = dt.timedelta(hours=1)
LEASE_TTL = dt.timedelta(seconds=60)
MOST_VANISHED = 0.5
"""A list that lacks more than this share of the tradable symbols is a broken answer, not that many delistings."""
LISTING_FIELDS = (
    "base", "quote", "market_type", "listed_at", "delisted_at", "active", "in_universe", "universe_reason",
    "volume_24h", "spread_bps", "tick_size", "lot_size", "min_notional",
)  # fmt: skip


def refresh_if_due(*, market: str | None = None) -> UniverseRefresh | None:
    """Refresh when the stored time has come; None: it has not, or another process is at it."""
    market = market or settings.EXCHANGE_MARKET
    newest = newest_refresh(market)
    if newest is not None and newest.next_refresh_at > clock.market_now():
        return None
    try:
        return refresh_universe(
            trigger=RefreshTrigger.STARTUP if newest is None else RefreshTrigger.SCHEDULED, market=market
        )
    except leases.LeaseBusy:
        return None


def refresh_universe(*, trigger: str = RefreshTrigger.SCHEDULED, market: str | None = None) -> UniverseRefresh:
    """Look at what the exchange lists, and write what changed: all, or (with an error in the row) nothing.

    The next time is stored before the start, as if this refresh failed: who is killed in it backs off like one that
    failed. Raises LeaseBusy when another process is refreshing.
    """
    market = market or settings.EXCHANGE_MARKET
    with leases.holding(f"universe:{market}", ttl=LEASE_TTL) as lease:
        now = clock.market_now()
        back_off = back_off_ms(_failures(market) + 1, MINUTE_MS, HOUR_MS)
        row = UniverseRefresh.objects.create(
            market=market, trigger=trigger, started_at=now, next_refresh_at=now + dt.timedelta(milliseconds=back_off)
        )
        try:
            data = market_data()
            _check_timeframe(data)
            instruments, tickers = data.instruments(), data.tickers()
            leases.keep(lease)  # the exchange may have taken its time
            with transaction.atomic():
                leases.held(lease)
                _apply(row, instruments, tickers, now)
        except (ExchangeError, UniverseError) as error:
            _fail(row, error)
        else:
            if row.in_universe:
                alerts.resolve_alert(_alert_key(market))
            else:
                alerts.raise_alert(
                    _alert_key(market),
                    f"Every symbol of {market} has ended, so nothing is traded any more. Is it a replay? Then its "
                    "archive is over: start the next one with another DATA_DIR and REPLAY_FROM.",
                )
    return row


def universe_rules() -> universe.UniverseRules:
    """Return the rules that the settings ask for."""
    return universe.UniverseRules(
        symbols=tuple(settings.UNIVERSE_SYMBOLS) if settings.UNIVERSE_MODE == "fixed" else None,
        exclude=frozenset(settings.UNIVERSE_EXCLUDE),
        min_volume=settings.UNIVERSE_MIN_VOLUME,
        max_spread_bps=settings.UNIVERSE_MAX_SPREAD_BPS,
        min_age_days=settings.UNIVERSE_MIN_AGE_DAYS,
        max_symbols=settings.UNIVERSE_MAX_SYMBOLS,
        max_rotation=settings.UNIVERSE_MAX_ROTATION,
    )


_holders: dict[str, Callable[[str], Collection[str]]] = {}


def register_holder(name: str, codes: Callable[[str], Collection[str]]) -> None:
    """Let `codes(market)` name symbols that must not be rotated out at present: a higher app knows why."""
    _holders[name] = codes


def held_codes(market: str) -> frozenset[str]:
    """Return the codes that somebody holds in the universe."""
    return frozenset().union(*(codes(market) for codes in _holders.values()))


def _check_timeframe(data: MarketData) -> None:
    offered = data.capabilities.timeframes
    if settings.TIMEFRAME not in offered:
        raise UniverseError(
            f"TIMEFRAME={settings.TIMEFRAME!r} cannot be had from {data.market}; use one of: {', '.join(offered)}"
        )


def _apply(
    row: UniverseRefresh, instruments: list[Instrument], tickers: Mapping[str, Ticker], now: dt.datetime
) -> None:
    known = {symbol.code: symbol for symbol in Symbol.objects.of_market(row.market)}
    inside = {code for code, symbol in known.items() if symbol.in_universe}
    rules = universe_rules()
    chosen = universe.choose(instruments, tickers, rules, now_ms=to_ms(now), inside=inside, known=known.keys())
    has_ended = bool(known) and all(code_of(text) == BlockReason.DELISTED for text in chosen.values())
    if all(chosen.values()) and not has_ended:  # what has ended is a fact, and no symbol must stay as if it traded
        raise UniverseError(universe.explain_empty(chosen, rules, row.market))
    rotation = universe.rotate(chosen, tickers, rules, inside=inside, held=held_codes(row.market))
    why = rotation.why
    listed = {instrument.symbol: _listing(instrument, tickers, why[instrument.symbol]) for instrument in instruments}
    listed |= _vanished(known, listed, now)
    bulk.insert_rows(
        Symbol(market=row.market, code=code, created_at=now, **fields)
        for code, fields in listed.items()
        if code not in known
    )
    changed = {
        symbol.pk: fields
        for code, fields in listed.items()
        if (symbol := known.get(code)) is not None
        and any(getattr(symbol, name) != value for name, value in fields.items())
    }
    bulk.update_rows(Symbol, changed, fields=LISTING_FIELDS)
    _record(row, known, listed, why, now)
    if str(rotation) and (row.entered or row.left):
        text = f"{row.entered} symbols entered, {row.left} left; {rotation}."
        journal.record("universe_rotated", text, subject=f"universe:{row.market}")


def _listing(instrument: Instrument, tickers: Mapping[str, Ticker], why_not: str) -> dict[str, Any]:
    ticker = tickers.get(instrument.symbol)
    return {
        "base": instrument.base[:32],
        "quote": instrument.quote[:32],
        "market_type": instrument.market_type,
        "listed_at": _moment(instrument.listed_ms),
        "delisted_at": _moment(instrument.delisted_ms),
        "active": instrument.active,
        "in_universe": not why_not,
        "universe_reason": why_not[:200],
        "volume_24h": None if ticker is None else ticker.quote_volume_24h,
        "spread_bps": None if ticker is None else universe.spread_bps(ticker),
        **{name: _rule(getattr(instrument, name)) for name in ("tick_size", "lot_size", "min_notional")},
    }


def _rule(value: Decimal) -> Decimal | None:
    return value if value.is_finite() else None  # see `Instrument.flaw`


def _vanished(known: Mapping[str, Symbol], listed: Mapping[str, Any], now: dt.datetime) -> dict[str, dict[str, Any]]:
    """Return the symbols that the exchange has stopped to mention: most venues drop a delisted one from their list."""
    tradable = [symbol for symbol in known.values() if symbol.active]
    gone = [symbol for symbol in tradable if symbol.code not in listed]
    if len(gone) > max(1, MOST_VANISHED * len(tradable)):
        raise UniverseError(
            f"the exchange's list lacks {len(gone)} of {len(tradable)} symbols that were tradable; more than "
            f"{MOST_VANISHED:.0%} at once is taken for a broken answer: the universe stays as it is. If it is true, "
            "check EXCHANGE and EXCHANGE_MARKET, or mark the symbols inactive in the admin"
        )
    text = reason("DELISTED", at=now, why="the exchange no longer lists it")
    return {
        symbol.code: {
            **{name: getattr(symbol, name) for name in LISTING_FIELDS},
            "delisted_at": symbol.delisted_at or now,
            "active": False,
            "in_universe": False,
            "universe_reason": text,
        }
        for symbol in gone
    }


def _record(
    row: UniverseRefresh,
    known: Mapping[str, Symbol],
    listed: Mapping[str, dict[str, Any]],
    why: Mapping[str, str],
    now: dt.datetime,
) -> None:
    """Store the figures, journal each change, and let the changed symbols be judged again."""
    events, touched = [], []
    entered = left = delisted = 0
    for code, fields in listed.items():
        before = known.get(code)
        was_in, is_in = before is not None and before.in_universe, fields["in_universe"]
        if is_in and not was_in:
            entered += 1
            events.append(("universe_entered", subject_of(code), "Entered the universe."))
        elif was_in and not is_in:
            left += 1
            events.append(("universe_left", subject_of(code), f"Left the universe: {fields['universe_reason']}"))
        is_new_end = fields["delisted_at"] is not None and (before is None or before.delisted_at is None)
        delisted += is_new_end
        if before is not None and (was_in != is_in or before.delisted_at != fields["delisted_at"]):
            touched.append(before.pk)
    hasten(touched, now=now)
    journal.record_many(events)
    row.found, row.added = len(why), len(listed.keys() - known.keys())
    row.in_universe = sum(fields["in_universe"] for fields in listed.values())
    row.entered, row.left, row.delisted = entered, left, delisted
    row.finished_at, row.next_refresh_at = clock.market_now(), now + PERIOD
    row.save()


def _fail(row: UniverseRefresh, error: Exception) -> None:
    row.error = str(error)
    row.finished_at = clock.market_now()
    row.save(update_fields=["error", "finished_at"])
    text = f"The universe of {row.market} could not be refreshed, the old one stays: {error}"
    log.warning("universe_refresh_failed", market=row.market, error=str(error), next=row.next_refresh_at.isoformat())
    alerts.raise_alert(_alert_key(row.market), text)


def _failures(market: str) -> int:
    """Return how many refreshes in a row failed, or never ended."""
    count = 0
    newest = UniverseRefresh.objects.filter(market=market).order_by("-id").values_list("error", "finished_at")
    for error, finished_at in newest[:20]:
        if not error and finished_at is not None:
            break
        count += 1
    return count


def _alert_key(market: str) -> str:
    return f"universe:{market}"


def _moment(time_ms: int | None) -> dt.datetime | None:
    return None if time_ms is None else from_ms(time_ms)

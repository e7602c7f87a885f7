"""What the dashboard and the symbol page show, read in a constant number of queries."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet

from coverage_app import selectors as coverage
from coverage_app.models import Symbol
from ops_app import clock, heartbeats
from ops_app.models import Alert, Event
from quant.timeframes import timeframe_ms, to_ms
from trading_app import selectors as trading
from trading_app.choices import DesiredState
from trading_app.models import Decision, Fill
from training_app import selectors as training
from training_app.models import TrainingRun
from training_app.selectors import State

EQUITY_POINTS = 1500
CHART_CANDLES = 500
EVENTS = 14
ALERTS = 5
RUNS_NAMED = 3
WATCHES = 5
SYMBOL_SUBJECT = coverage.subject_of("")
PER_PAGE = 100
#: What the dashboard's buttons say; the choice's own label explains it in full.
STATE_VERBS = {
    DesiredState.RUN: "Run",
    DesiredState.PAUSE: "Pause",
    DesiredState.CLOSE_ONLY: "Close only",
    DesiredState.STOP: "Stop",
}
#: These close positions or leave them alone: the page asks once more.
ASK_BEFORE = (DesiredState.CLOSE_ONLY, DesiredState.STOP)
STATE_ORDER = (State.TRADABLE, State.TRAINING, State.TRAINABLE, State.BLOCKED)


def overview() -> dict[str, Any]:
    """Return what the refreshing part of the dashboard shows."""
    now = clock.market_now()
    bot = trading.main_bot()
    states = training.symbol_states()
    counts = training.state_counts(states)
    latest = trading.latest_equity(bot) if bot is not None else None
    last_runs = training.runs(limit=4)
    positions = list(trading.open_positions(bot)) if bot is not None else []
    return {
        "now": now,
        "speed": clock.speed(),
        "bot": bot,
        "buttons": [(each, STATE_VERBS[each], each in ASK_BEFORE) for each in DesiredState],
        "latest": latest,
        "day_change": _day_change(bot, latest),
        "positions": positions,
        "exposure": sum((abs(each.quantity * each.entry_price) for each in positions), Decimal(0)),
        "closed": list(trading.closed_positions(bot, limit=6)) if bot is not None else [],
        "today": trading.decisions_today(bot, now) if bot is not None else None,
        "promises": trading.promises(bot, limit=3) if bot is not None else [],
        "summary": coverage.coverage_summary(),
        "states": [(state.value, counts[state.value]) for state in STATE_ORDER],
        "state_total": len(states),
        "open_runs": training.open_runs(),
        "last_runs": last_runs,
        "candidate": next((run.artifact for run in last_runs if hasattr(run, "artifact")), None),
        "active": training.active_models(),
        "watches": list(training.newest_watches().values())[:WATCHES],
        "pulses": heartbeats.pulses(),
        "alerts": Alert.objects.filter(resolved_at__isnull=True)[:ALERTS],
        "events": _notable_events(),
    }


def _notable_events() -> QuerySet[Event]:
    """Return the newest events without the program's own about single symbols: a refused model writes one for each."""
    of_symbols = Q(subject__startswith=SYMBOL_SUBJECT, user__isnull=True)
    return Event.objects.exclude(of_symbols).select_related("user")[:EVENTS]


def _day_change(bot: Any, latest: trading.EquityRow | None) -> float | None:
    if bot is None or latest is None or not bot.day_start_equity:
        return None
    return latest.equity / bot.day_start_equity - 1.0


def equity_chart() -> dict[str, Any]:
    """Return equity and drawdown for the chart: seconds since 1970, account currency, percent."""
    bot = trading.main_bot()
    series = trading.equity_series(bot, limit=EQUITY_POINTS) if bot is not None else []
    return {
        "equity": [{"time": to_ms(row.at) // 1000, "value": round(row.equity, 2)} for row in series],
        "drawdown": [{"time": to_ms(row.at) // 1000, "value": round(-100 * row.drawdown, 3)} for row in series],
    }


def asked_for(runs: Sequence[TrainingRun], *, before: Collection[int]) -> str:
    """Say what a wish for a training led to: which runs it made, and which were open before it (their ids)."""
    now = clock.market_now()
    parts = [
        f"Run {run.pk}{', asked for before,' if run.pk in before else ''} {training.standing(run, now=now)}."
        for run in runs[:RUNS_NAMED]
    ]
    more = len(runs) - RUNS_NAMED
    return " ".join([*parts, f"And {more} more runs: see the admin, Training runs."] if more > 0 else parts)


def _texts(state: training.SymbolState) -> list[str]:
    """Return what a search looks in: the code, the sentence that is shown, and every open block."""
    return [state.code, state.evidence, *(f"{block.reason} {block.evidence}" for block in state.blocks)]


def symbol_list(*, state: str, query: str, page: str) -> dict[str, Any]:
    """Return a page of the states of the symbols that match, and how many there are of each state."""
    states = training.symbol_states()
    known = [name.value for name in STATE_ORDER]
    state = state.strip().upper()
    words = query.strip().upper()
    shown = [
        each
        for each in states
        if (not state or each.state == state) and (not words or any(words in text.upper() for text in _texts(each)))
    ]
    counts = training.state_counts(states)
    return {
        "page": Paginator(shown, PER_PAGE).get_page(page),
        "counts": [(name.value, counts[name.value]) for name in STATE_ORDER],
        "total": len(states),
        "state": state,
        "unknown_state": "" if not state or state in known else state,
        "known_states": known,
        "now": clock.market_now(),
        "query": query,
    }


def symbol_page(symbol: Symbol) -> dict[str, Any]:
    """Return everything that is known of a symbol."""
    return {
        "symbol": symbol,
        "state": training.symbol_states(ids=[symbol.pk])[0],
        "blocks": coverage.open_blocks(symbol),
        "timeline": coverage.symbol_timeline(symbol, limit=40),
        "decisions": trading.decisions_of_symbol(symbol.pk, limit=24),
        "positions": symbol.positions.select_related("bot").order_by("-id")[:10],
        "now": clock.market_now(),
    }


def candle_chart(symbol: Symbol) -> dict[str, Any]:
    """Return the newest candles with signals, probabilities and fills for the chart; times in seconds since 1970."""
    from coverage_app.market import candle_store  # reads Parquet: only here does the web process need pyarrow

    step = timeframe_ms(settings.TIMEFRAME)
    until = clock.market_now_ms()
    since = until - CHART_CANDLES * step
    read = candle_store().read(
        symbol.market, settings.TIMEFRAME, symbols=[symbol.code], since_ms=since, until_ms=until - step + 1
    )
    candles = read.get(symbol.code)
    rows: list[dict[str, float]] = []
    if candles is not None:
        columns = (candles.open_time // 1000, candles.open, candles.high, candles.low, candles.close)
        rows = [
            {"time": int(time), "open": float(o), "high": float(h), "low": float(low), "close": float(c)}
            for time, o, h, low, c in zip(*columns, strict=True)
        ]
    start = dt.datetime.fromtimestamp(since / 1000, tz=dt.UTC)
    decided = Decision.objects.filter(symbol=symbol, bar_at__gte=start).order_by("bar_at")
    asked = decided.filter(Q(probability__isnull=False) | ~Q(side=0))
    fills = Fill.objects.filter(symbol=symbol, filled_at__gte=start).order_by("filled_at")
    return {
        "candles": rows,
        "probability": [
            {"time": to_ms(at) // 1000, "value": round(probability, 4)}
            for at, probability in asked.values_list("bar_at", "probability")
            if probability is not None
        ],
        "signals": [
            {"time": to_ms(at) // 1000, "side": side, "outcome": outcome}
            for at, side, outcome in asked.exclude(side=0).values_list("bar_at", "side", "outcome")
        ],
        "fills": [
            {"time": to_ms(at) // 1000 // (step // 1000) * (step // 1000), "side": side, "price": float(price)}
            for at, side, price in fills.values_list("filled_at", "side", "price")
        ],
        "decimals": _decimals(symbol),
    }


def _decimals(symbol: Symbol) -> int:
    """Return the decimals of a price; 4 where the exchange has not told a tick size."""
    if symbol.tick_size is None:
        return 4
    exponent = symbol.tick_size.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 4

"""Why a symbol is, or is not, traded: one answer from the rows of every app, for `manage.py explain` and the pages."""

from __future__ import annotations

import datetime as dt
import difflib
from dataclasses import asdict, dataclass
from typing import Any

from django.conf import settings

from coverage_app.models import Symbol
from ops_app import clock
from quant.outcomes import Outcome
from trading_app import selectors
from trading_app.models import Bot, Order, Position
from training_app.models import TrainingRun
from training_app.selectors import BlockFacts, SymbolState, symbol_states


class UnknownCodeError(LookupError):
    """No symbol of this code; `nearest` are the codes that a person may have meant."""

    def __init__(self, code: str, market: str, nearest: list[str]) -> None:
        hint = (
            f"Did you mean {', '.join(nearest)}?" if nearest else "See `manage.py coverage` for the symbols there are."
        )
        super().__init__(f"{code!r} is no symbol of the market {market}. {hint}")
        self.nearest = nearest


@dataclass(frozen=True, slots=True)
class ExplainedDecision:
    bar_at: dt.datetime
    outcome: str
    side: int
    probability: float | None
    reason: str
    artifact_id: int | None


@dataclass(frozen=True, slots=True)
class ExplainedRun:
    run_id: int
    state: str
    trigger: str
    cause: str
    progress: float
    stage: str
    not_before: dt.datetime
    error: str


@dataclass(frozen=True, slots=True)
class ExplainedPosition:
    quantity: str
    entry_price: str
    stop_price: str | None
    target_price: str | None
    expires_at: dt.datetime | None
    opened_at: dt.datetime
    foreign: bool
    has_live_stop: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that decides whether `code` is traded. `verdict` is the one sentence to read first."""

    code: str
    market: str
    now: dt.datetime
    verdict: str
    state: str
    evidence: str
    recheck_at: dt.datetime | None
    blocks: tuple[BlockFacts, ...]
    history_days: float
    history_coverage: float
    last_candle_at: dt.datetime | None
    artifact_id: int | None
    artifact_version: int | None
    run: ExplainedRun | None
    bot: str | None
    entries_blocked: str
    decisions: tuple[ExplainedDecision, ...]
    position: ExplainedPosition | None
    unknown_orders: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; times stay datetimes for DjangoJSONEncoder."""
        return asdict(self)


def find_symbol(code: str, *, market: str) -> Symbol:
    """Return the symbol; case is forgiven, and what follows the base or the quote. Raises UnknownCodeError."""
    found = Symbol.objects.of_market(market).filter(code=code).first()
    if found is not None:
        return found
    codes = list(Symbol.objects.of_market(market).values_list("code", flat=True))
    wanted = code.strip().upper()
    same = [each for each in codes if wanted in _short_forms(each.upper())]
    if len(same) == 1:
        return Symbol.objects.get(market=market, code=same[0])
    begins = sorted(each for each in codes if wanted and each.upper().startswith(wanted.partition("/")[0]))
    # A person remembers the base: compare it with bases, not with the long codes.
    bases = {each.partition("/")[0].upper(): each for each in codes}
    close = [bases[base] for base in difflib.get_close_matches(wanted.partition("/")[0], bases, n=5, cutoff=0.5)]
    raise UnknownCodeError(code, market, list(dict.fromkeys([*same, *begins[:5], *close]))[:5])


def _short_forms(code: str) -> tuple[str, ...]:
    """Return what a person may write for BTC/USDT:USDT: that, BTC/USDT, or BTC."""
    return code, code.partition(":")[0], code.partition("/")[0]


def explain(code: str, *, market: str | None = None, decisions: int = 10) -> Explanation:
    """Return why the symbol is, or is not, traded. Raises UnknownCodeError with the nearest codes."""
    market = market or settings.EXCHANGE_MARKET
    symbol = find_symbol(code, market=market)
    (state,) = symbol_states(market, ids=[symbol.pk])
    bot = selectors.main_bot()
    rows = tuple(
        ExplainedDecision(row.bar_at, row.outcome, row.side, row.probability, row.reason, row.artifact_id)
        for row in selectors.decisions_of_symbol(symbol.pk, limit=decisions)
    )
    position = _position(bot, symbol)
    unknown = Order.objects.filter(symbol=symbol, state="unknown").values_list("client_order_id", flat=True)
    return Explanation(
        code=symbol.code,
        market=market,
        now=clock.market_now(),
        verdict=_verdict(state, bot, rows, position),
        state=state.state.value,
        evidence=state.evidence,
        recheck_at=state.recheck_at,
        blocks=state.blocks,
        history_days=state.history_days,
        history_coverage=state.history_coverage,
        last_candle_at=state.last_candle_at,
        artifact_id=state.artifact_id,
        artifact_version=state.artifact_version,
        run=_run(state),
        bot=bot.name if bot is not None else None,
        entries_blocked=bot.entries_blocked if bot is not None else "",
        decisions=rows,
        position=position,
        unknown_orders=tuple(each or "" for each in unknown),
    )


def _verdict(
    state: SymbolState, bot: Bot | None, rows: tuple[ExplainedDecision, ...], position: ExplainedPosition | None
) -> str:
    """Say the one thing that decides, the most permanent first."""
    if position is not None and position.foreign:
        return "Not traded: the account holds a position in it that is not this bot's."
    if position is not None:
        return f"Position of {position.quantity} is open since {position.opened_at:%Y-%m-%d %H:%M} UTC."
    if not state.tradable:
        return f"Not traded: {state.state.value}, {state.evidence or state.reason}.{_next_look(state)}"
    if bot is None:
        return "Tradable, but there is no bot: run `manage.py setup`."
    if bot.entries_blocked:
        return f"Tradable, but {bot.name} opens no position: {bot.entries_blocked}."
    if not rows:
        return f"Tradable; {bot.name} has not decided a bar of it yet."
    newest = rows[0]
    verb = "Entered" if newest.outcome == Outcome.ENTER else "Not entered"
    return f"Tradable. {verb} at the bar of {newest.bar_at:%Y-%m-%d %H:%M} UTC: {newest.reason or newest.outcome}."


def _next_look(state: SymbolState) -> str:
    if state.recheck_at is None:
        return ""
    at = f"{state.recheck_at:%Y-%m-%d %H:%M} UTC"
    is_due = state.recheck_at <= clock.market_now()
    return f" Due to be looked at since {at}." if is_due else f" Looked at again at {at}."


def _run(state: SymbolState) -> ExplainedRun | None:
    run = TrainingRun.objects.filter(pk=state.run_id).first() if state.run_id is not None else None
    if run is None:
        return None
    return ExplainedRun(
        run.pk, run.state, run.trigger, run.cause, run.progress, run.stage, run.not_before, run.error[:500]
    )


def _position(bot: Bot | None, symbol: Symbol) -> ExplainedPosition | None:
    row = Position.objects.open().filter(bot=bot, symbol=symbol).first() if bot is not None else None
    if row is None:
        return None
    return ExplainedPosition(
        quantity=f"{row.quantity.normalize():f}",
        entry_price=f"{row.entry_price.normalize():f}",
        stop_price=None if row.stop_price is None else f"{row.stop_price.normalize():f}",
        target_price=None if row.target_price is None else f"{row.target_price.normalize():f}",
        expires_at=row.expires_at,
        opened_at=row.opened_at,
        foreign=row.foreign,
        has_live_stop=row.orders.filter(purpose="stop", state__in=("acked", "partially_filled")).exists(),
    )

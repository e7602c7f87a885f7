"""From rows and a stepped bar to what the engine is asked, and from its answer to rows and orders.

Pure but for the reads of `read_portfolio`: what is decided live can be decided again from the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exchanges.port import Instrument
from quant.engine import BLOCK_SEPARATOR, BarInput, EntryIntent, ExitIntent, PortfolioState, PositionState
from quant.engine import Decision as EngineDecision
from quant.outcomes import Outcome
from quant.reasons import code_of, reason
from quant.risk import TAKEN_COOLDOWN_MS, RiskLimits, cooldown_end_ms
from quant.schema import FeatureSchema
from quant.signals import primary_side
from quant.timeframes import from_ms, to_ms
from trading_app.choices import OrderPurpose
from trading_app.feed import BarRow
from trading_app.loader import LoadedModel, predict
from trading_app.margin import bad_rules
from trading_app.models import Bot, Decision, Order, Position
from trading_app.orders import NewOrder
from training_app.selectors import SymbolState

UNMANAGED = float("nan")
"""A barrier that a position does not have: it compares with nothing."""


@dataclass(frozen=True, slots=True)
class Portfolio:
    """The open positions and orders as rows, and as the engine sees them."""

    positions: dict[str, Position]
    foreign: frozenset[str]
    pending: frozenset[str]
    pending_notional: float
    exiting: frozenset[str]
    managed: dict[str, PositionState]
    cooling: dict[str, str]

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(self.positions) | self.pending


def read_portfolio(bot: Bot, *, open_ms: int, bar_ms: int, limits: RiskLimits) -> Portfolio:
    """Read positions and open orders as of the bar that opened at ``open_ms``: four queries for any number."""
    own: dict[str, Position] = {}
    foreign: set[str] = set()
    for position in Position.objects.open().filter(bot=bot).select_related("symbol"):
        if position.foreign:
            foreign.add(position.symbol.code)
        elif position.quantity != 0:
            own[position.symbol.code] = position
    pending: set[str] = set()
    notional = Decimal(0)
    for order in Order.objects.open().filter(bot=bot, purpose=OrderPurpose.ENTRY).select_related("symbol"):
        pending.add(order.symbol.code)
        notional += (order.quantity - order.filled) * (order.reference_price or Decimal(0))
    # A position is closing from its first exit order on: trading_app.protection sends the next ones.
    # Not asked with the bot, by whose index SQLite would walk through all its orders of ever.
    exits = Order.objects.filter(position__in=own.values(), purpose=OrderPurpose.EXIT)
    exiting = frozenset(exits.values_list("symbol__code", flat=True))
    return Portfolio(
        positions=own,
        foreign=frozenset(foreign),
        pending=frozenset(pending),
        pending_notional=float(notional),
        exiting=exiting,
        managed={code: position_state(code, position) for code, position in own.items()},
        cooling=_cooling(bot, open_ms=open_ms, bar_ms=bar_ms, limits=limits),
    )


def _cooling(bot: Bot, *, open_ms: int, bar_ms: int, limits: RiskLimits) -> dict[str, str]:
    """Say of each symbol that was closed lately why it is not entered again at the close of this bar."""
    longest_ms = max(TAKEN_COOLDOWN_MS, limits.cooldown_bars * bar_ms) + bar_ms
    closed = Position.objects.filter(bot=bot, foreign=False, closed_at__gte=from_ms(open_ms - longest_ms))
    longest: dict[str, tuple[int, str]] = {}
    for code, closed_at, cause in closed.order_by().values_list("symbol__code", "closed_at", "close_reason"):
        if closed_at is None:  # not with that filter; it is the column's type that allows it
            continue
        until_ms = cooldown_end_ms(cause=cause, closed_ms=to_ms(closed_at), bar_ms=bar_ms, limits=limits)
        longest[code] = max(longest.get(code, (0, "")), (until_ms, code_of(cause)))
    return {
        code: reason("COOLDOWN", after=cause, until=from_ms(until_ms + bar_ms))  # at the close of that bar
        for code, (until_ms, cause) in longest.items()
        if until_ms > open_ms
    }


def position_state(code: str, position: Position) -> PositionState:
    far = 2**62
    return PositionState(
        symbol=code,
        side=1 if position.quantity > 0 else -1,
        quantity=float(abs(position.quantity)),
        entry_price=float(position.entry_price),
        stop_price=UNMANAGED if position.stop_price is None else float(position.stop_price),
        target_price=UNMANAGED if position.target_price is None else float(position.target_price),
        opened_ms=to_ms(position.opened_at),
        expires_ms=far if position.expires_at is None else to_ms(position.expires_at),
    )


def refusals_of(
    states: Iterable[SymbolState],
    *,
    foreign: Iterable[str] = (),
    drifting: Iterable[str] = (),
    expired: Mapping[str, str] | None = None,
    instruments: Mapping[str, Instrument],
) -> dict[str, str]:
    """Return what is against each symbol, apart from coverage: block reasons first, joined as the engine expects.

    `expired` says of each symbol whose model is too old why it opens no trade; open positions stay managed.
    """
    found: dict[str, list[str]] = {}
    for state in states:
        against = [
            block.evidence if code_of(block.evidence) == block.reason else reason(block.reason, why=block.evidence)
            for block in state.blocks
        ]
        # Not STALE_DATA: it says that the workers' store is behind, and the bot reads the exchange itself.
        if not against and state.reason in ("NOT_IN_UNIVERSE", "NOT_EVALUATED"):
            against = [state.evidence]
        if against:
            found[state.code] = against
    for code, text in (expired or {}).items():
        found.setdefault(code, []).append(text)
    for code in foreign:
        found.setdefault(code, []).insert(0, reason("FOREIGN_POSITION", rule="never traded"))
    for code in drifting:
        found.setdefault(code, []).insert(0, reason("DRIFT", rule="position differs from the exchange"))
    for code, instrument in instruments.items():
        # The exchange says it before any worker does: close while it can be closed (F27).
        if not instrument.active and not any(code_of(text) == "DELISTED" for text in found.get(code, ())):
            found.setdefault(code, []).insert(0, reason("DELISTED", exchange="not active"))
    return {code: BLOCK_SEPARATOR.join(texts) for code, texts in found.items()}


def bar_input(
    *,
    row: BarRow | None,
    open_ms: int,
    symbols: tuple[str, ...],
    closes: Mapping[str, float],
    covering: Mapping[str, LoadedModel],
    refusals: Mapping[str, str],
    schema: FeatureSchema,
    signal: str,
) -> BarInput:
    """Lay the bar out over `symbols`: those of the panel from `row`, the others with a close at most."""
    n = len(symbols)
    features = np.full((n, len(schema)), np.nan, dtype=np.float32)
    close = np.array([closes.get(symbol, np.nan) for symbol in symbols], dtype=np.float64)
    if row is not None:
        place = {symbol: index for index, symbol in enumerate(row.symbols)}
        here = [index for index, symbol in enumerate(symbols) if symbol in place]
        there = [place[symbols[index]] for index in here]
        features[here] = row.features[there]
        close[here] = row.close[there]
    side = primary_side(signal, features, schema)
    covered = np.array([symbol in covering for symbol in symbols], dtype=np.bool_)
    blocked = np.array([symbol in refusals for symbol in symbols], dtype=np.bool_)
    asked = covered & ~blocked & (side != 0) & np.isfinite(close)  # the model itself refuses rows that it cannot use
    threshold = np.array(
        [covering[symbol].model.threshold if symbol in covering else np.nan for symbol in symbols], dtype=np.float64
    )
    return BarInput(
        open_time_ms=open_ms,
        symbols=symbols,
        close=close,
        atr_pct=_column(features, schema, "atr_pct"),
        volatility=_column(features, schema, "volatility_24"),
        features=features,
        side=side,
        probability=predict(covering, symbols, features, asked),
        threshold=threshold,
        covered=covered,
        refusals=refusals,
    )


def _column(features: NDArray[np.float32], schema: FeatureSchema, name: str) -> NDArray[np.float64]:
    return features[:, schema.index(name)].astype(np.float64)


def portfolio_state(
    portfolio: Portfolio, *, equity: float, bot: Bot, entries_blocked: str | None, close_all: str | None, guard: float
) -> PortfolioState:
    return PortfolioState(
        equity=equity,
        positions=portfolio.managed,
        pending=portfolio.pending | portfolio.foreign,
        pending_notional=portfolio.pending_notional,
        exiting=portfolio.exiting,
        day_start_equity=bot.day_start_equity or equity,
        peak_equity=bot.peak_equity or equity,
        entries_blocked=entries_blocked,
        close_all=close_all,
        cooling=portfolio.cooling,
        guard=guard,
    )


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A decision row to be written, and the order that belongs to it, if any (without its decision)."""

    row: Decision
    order: NewOrder | None


def outgoing(
    decision: EngineDecision,
    *,
    bot: Bot,
    open_ms: int,
    symbol_id: int,
    close: float,
    held: LoadedModel | None,
    state: SymbolState | None,
    instrument: Instrument | None,
    position: Position | None,
    now_ms: int,
) -> Outgoing:
    """Turn one decision of the engine into its row and order. A size below the venue's minimum is refused here."""
    outcome, text = decision.outcome, decision.reason
    order: NewOrder | None = None
    if isinstance(decision.intent, EntryIntent):
        made = entry_order(decision.intent, text, instrument)
        if isinstance(made, str):
            outcome, text = Outcome.REFUSED, made
        else:
            order = made
    elif isinstance(decision.intent, ExitIntent) and position is not None:
        order = exit_order(decision.intent, position, instrument)
    if text == "NOT_COVERED" and state is not None and state.evidence:
        text = reason("NOT_COVERED", state=state.state, why=state.evidence)
    row = Decision(
        bot=bot,
        symbol_id=symbol_id,
        bar_at=from_ms(open_ms),
        side=decision.side,
        probability=decision.probability if np.isfinite(decision.probability) else None,
        artifact=held.artifact if held is not None else None,
        generation=held.generation if held is not None else 0,
        outcome=outcome.value,
        reason=text[:300],
        reason_code=code_of(text)[:40],
        price=close if np.isfinite(close) else None,
        created_at=from_ms(now_ms),
    )
    return Outgoing(row, order)


def entry_order(intent: EntryIntent, why: str, instrument: Instrument | None) -> NewOrder | str:
    """Return the order on lots and ticks, or the reason why there is none: rounding goes down, never up."""
    if instrument is None:
        return reason("NO_INSTRUMENT", symbol=intent.symbol)
    if instrument.flaw:
        return bad_rules(instrument)
    price = Decimal(repr(intent.reference_price))
    quantity = instrument.quantize_quantity(Decimal(repr(intent.quantity)))
    if quantity <= 0 or quantity < instrument.min_quantity:
        return reason("TOO_SMALL", quantity=quantity, min_quantity=max(instrument.min_quantity, instrument.lot_size))
    if quantity * price < instrument.min_notional:
        return reason("TOO_SMALL", notional=quantity * price, min_notional=instrument.min_notional)
    side: Literal["buy", "sell"] = "buy" if intent.side > 0 else "sell"
    return NewOrder(
        symbol=intent.symbol,
        purpose=OrderPurpose.ENTRY,
        side=side,
        quantity=quantity,
        reason=why,
        reference_price=instrument.quantize_price(price),
        stop_price=instrument.quantize_price(Decimal(repr(intent.stop_price))),
        target_price=instrument.quantize_price(Decimal(repr(intent.target_price))),
        position_expires_at=from_ms(intent.expires_ms),
    )


def exit_order(intent: ExitIntent, position: Position, instrument: Instrument | None) -> NewOrder | None:
    """Return a reduce-only order over the whole position; None when less than a lot is left."""
    quantity = abs(position.quantity)
    if instrument is not None and not instrument.flaw:
        quantity = instrument.quantize_quantity(quantity)
    if quantity <= 0:
        return None
    return NewOrder(
        symbol=intent.symbol,
        purpose=OrderPurpose.EXIT,
        side="sell" if position.quantity > 0 else "buy",
        quantity=quantity,
        reason=intent.cause,
        reduce_only=True,
        position=position,
    )

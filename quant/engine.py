"""One engine: (portfolio, signals, probabilities, limits) -> intents, with an outcome and a reason per symbol.

The bot, the backtest, the replay and the soak call `decide`; it is pure, so a live decision and the same bar
replayed are equal. Exits are decided first and from the position alone: neither a missing candle, a missing model,
a block nor an account-wide stop can keep one from happening (I20). Entries fail closed: anything that is not a
finite number refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.labels import LabelSpec
from quant.outcomes import Outcome
from quant.reasons import code_of, details_of, reason
from quant.regime import RegimeSpec, regime_reason, regime_values
from quant.risk import CorrelatedBook, RiskLimits, check_correlated, check_entry, check_slots, entry_headroom
from quant.schema import FeatureSchema
from quant.sizing import SizingSpec, position_notional

BLOCK_SEPARATOR = " | "
"""Joins several block reasons of one symbol into one text; no reason contains it by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Rules of one bot. ``label`` gives the barriers: a position is managed as its label was made.

    ``closing_blocks`` are the block codes that close an open position; every other block only keeps new ones out,
    since a position that cannot be priced or re-trained for a while is still protected by its stop. With
    ``close_on_kill`` a played account closes everything when its kill switch is pulled; the bot has `close_all` for it.
    """

    bar_ms: int
    label: LabelSpec = field(default_factory=LabelSpec)
    limits: RiskLimits = field(default_factory=RiskLimits)
    sizing: SizingSpec = field(default_factory=SizingSpec)
    regime: RegimeSpec = field(default_factory=RegimeSpec)
    allow_short: bool = True
    closing_blocks: frozenset[str] = frozenset({"DELISTED", "PRICE_BREAK", "MANUAL"})
    close_on_kill: bool = False

    def __post_init__(self) -> None:
        if self.bar_ms <= 0:
            raise ValueError(f"bar_ms is {self.bar_ms}; it is the length of a candle in ms and must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionState:
    """An open position. ``side`` +1 or -1, ``quantity`` > 0 in base units, prices in quote currency."""

    symbol: str
    side: int
    quantity: float
    entry_price: float
    stop_price: float
    target_price: float
    opened_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortfolioState:
    """The account at the bar's close.

    ``pending`` are symbols with an entry whose outcome is open; ``pending_notional`` their gross notional in quote
    currency. ``exiting`` are symbols with an exit in flight. ``entries_blocked`` is an account-wide reason against
    entries; ``close_all`` a reason to close everything. ``cooling`` says of symbols why they are not entered again yet
    (`quant.risk.cooldown_end_ms`). ``guard`` in [0, 1] scales new positions.
    """

    equity: float
    positions: Mapping[str, PositionState] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    pending_notional: float = 0.0
    exiting: frozenset[str] = frozenset()
    day_start_equity: float
    peak_equity: float
    entries_blocked: str | None = None
    close_all: str | None = None
    cooling: Mapping[str, str] = field(default_factory=dict)
    guard: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BarInput:
    """One closed bar of S symbols. ``open_time_ms`` names the bar; decisions are taken at its close.

    ``close``, ``atr_pct`` (ATR / close), ``volatility`` (standard deviation of returns per bar), ``probability`` and
    ``threshold``: float64[S], NaN = not known; ``features``: float32[S, F]; ``side``: int8[S]; ``covered``: bool[S],
    whether the loaded model covers the symbol. ``refusals`` maps a blocked symbol to its reasons, joined by
    `BLOCK_SEPARATOR`.
    """

    open_time_ms: int
    symbols: tuple[str, ...]
    close: NDArray[np.float64]
    atr_pct: NDArray[np.float64]
    volatility: NDArray[np.float64]
    features: NDArray[np.float32]
    side: NDArray[np.int8]
    probability: NDArray[np.float64]
    threshold: NDArray[np.float64]
    covered: NDArray[np.bool_]
    refusals: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.symbols)
        for name in ("close", "atr_pct", "volatility", "side", "probability", "threshold", "covered"):
            shape = getattr(self, name).shape
            if shape != (n,):
                raise ValueError(f"{name} has shape {shape}; it needs one value for each of the {n} symbols")
        if self.features.ndim != 2 or len(self.features) != n:
            raise ValueError(f"features has shape {self.features.shape}; it needs one row for each of {n} symbols")


@dataclass(frozen=True, slots=True)
class EntryIntent:
    """Open a position: ``quantity`` in base units before rounding to lots, prices in quote currency."""

    symbol: str
    side: int
    quantity: float
    reference_price: float
    stop_price: float
    target_price: float
    expires_ms: int


@dataclass(frozen=True, slots=True)
class ExitIntent:
    """Close a position of ``side`` and ``quantity``; ``cause`` is a reason ``CODE: key=value``."""

    symbol: str
    side: int
    quantity: float
    cause: str


class Decision(NamedTuple):
    """What was decided for one symbol and why. ``probability`` NaN: the model was not asked.

    A tuple, since a bar makes one for every symbol: a frozen dataclass takes six times as long to make.
    """

    symbol: str
    side: int
    probability: float
    outcome: Outcome
    reason: str
    intent: EntryIntent | ExitIntent | None = None


def decide(
    *, bar: BarInput, portfolio: PortfolioState, spec: EngineSpec, schema: FeatureSchema
) -> tuple[Decision, ...]:
    """Return one decision per symbol of the bar, in their order, then one per position in a symbol outside it.

    When limits bind, entries are granted by falling probability, then by symbol name, so the outcome does not depend
    on the order of the symbols.
    """
    index = dict(zip(bar.symbols, range(len(bar.symbols)), strict=True))
    decisions: dict[str, Decision] = {}
    exposure = portfolio.pending_notional
    book = CorrelatedBook(unsided=portfolio.pending_notional)
    for symbol, position in portfolio.positions.items():
        row = index.get(symbol)
        decisions[symbol] = _decide_position(bar, row, position, portfolio, spec)
        price = float(bar.close[row]) if row is not None else math.nan
        notional = position.quantity * (price if math.isfinite(price) else position.entry_price)
        exposure += notional
        book.add(side=position.side, notional=notional)

    candidates: list[int] = []
    row_usable = usable_rows(features=bar.features, close=bar.close, atr_pct=bar.atr_pct).tolist()
    # Lists: a number out of an array costs ten times as much as one out of a list.
    sides, covered, probabilities = bar.side.tolist(), bar.covered.tolist(), bar.probability.tolist()
    account_refusal = _refuse_entries(portfolio)
    refuse = entry_rules(
        side=bar.side, atr_pct=bar.atr_pct, probability=bar.probability, threshold=bar.threshold,
        features=bar.features, spec=spec, schema=schema,
    )  # fmt: skip
    no_signal, refused = Outcome.NO_SIGNAL, Outcome.REFUSED  # to look a member up costs more than the rest of a row
    apart = decisions.keys() | portfolio.pending | bar.refusals.keys()
    for i, symbol in enumerate(bar.symbols):
        side, probability = sides[i], probabilities[i]
        if symbol in apart:
            if symbol in decisions:
                continue
            if symbol in portfolio.pending:
                outcome, text = Outcome.HOLD, "ENTRY_PENDING"
            else:
                outcome, text = refused, _because("BLOCKED", bar.refusals[symbol])
        elif not covered[i]:
            outcome, text = refused, "NOT_COVERED"
        elif not row_usable[i] or (side != 0 and probability != probability and _lacks_features(bar, i)):
            outcome, text = Outcome.NO_DATA, _missing_data(bar, i, schema)
        elif side == 0:
            outcome, text = no_signal, "NO_SIGNAL"
        else:
            refusal = account_refusal or portfolio.cooling.get(symbol) or refuse(i)
            if refusal is None:
                candidates.append(i)
                continue
            outcome, text = refused, refusal
        decisions[symbol] = Decision(symbol, side, probability, outcome, text)

    candidates.sort(key=lambda i: (-probabilities[i], bar.symbols[i]))
    open_positions = len(portfolio.positions) + len(portfolio.pending - portfolio.positions.keys())
    full: str | None = None
    for i in candidates:
        full = full or check_slots(equity=portfolio.equity, open_positions=open_positions, limits=spec.limits)
        if full is not None:  # nor is anything after it granted, so nothing is sized
            symbol = bar.symbols[i]
            decisions[symbol] = Decision(symbol, sides[i], probabilities[i], refused, full)
            continue
        decision, notional = _grant_entry(bar, i, exposure, book, open_positions, portfolio, spec)
        decisions[decision.symbol] = decision
        exposure += notional
        book.add(side=sides[i], notional=notional)
        open_positions += notional > 0
    outside = [symbol for symbol in portfolio.positions if symbol not in index]
    return tuple(map(decisions.__getitem__, (*bar.symbols, *sorted(outside))))


@lru_cache(maxsize=4096)  # what is against a symbol is the same bar after bar
def _because(code: str, texts: str) -> str:
    """Wrap reasons: ``BLOCKED`` + ``DELISTED: delisted_at=…`` -> ``BLOCKED: by=DELISTED, delisted_at=…``."""
    first, *others = texts.split(BLOCK_SEPARATOR)
    if not code_of(first):
        return reason(code, why=texts)
    more = {"also": " ".join(code_of(other) for other in others)} if others else {}
    return reason(code, by=code_of(first), **details_of(first), **more)


def _decide_position(
    bar: BarInput, row: int | None, position: PositionState, portfolio: PortfolioState, spec: EngineSpec
) -> Decision:
    """Exit or hold. Reads no model, no feature and no account-wide stop, so none of them can keep an exit away."""
    symbol, side = position.symbol, position.side
    probability = float(bar.probability[row]) if row is not None else math.nan
    if symbol in portfolio.exiting:
        return Decision(symbol, side, probability, Outcome.HOLD, "EXIT_PENDING")
    close = float(bar.close[row]) if row is not None else math.nan
    cause = _exit_cause(bar, close, position, portfolio, spec)
    if cause is None:
        text = "IN_POSITION" if math.isfinite(close) else "IN_POSITION: candle=missing"
        return Decision(symbol, side, probability, Outcome.HOLD, text)
    intent = ExitIntent(symbol=symbol, side=side, quantity=position.quantity, cause=cause)
    return Decision(symbol, side, probability, Outcome.EXIT, cause, intent)


def _exit_cause(
    bar: BarInput, close: float, position: PositionState, portfolio: PortfolioState, spec: EngineSpec
) -> str | None:
    if portfolio.close_all is not None:
        return _because("CLOSE_ALL", portfolio.close_all)
    blocks = bar.refusals.get(position.symbol)
    if blocks is not None:
        for block in blocks.split(BLOCK_SEPARATOR):
            if code_of(block) in spec.closing_blocks:
                return _because("BLOCKED", block)
    return barrier_cause(position, close=close, closed_ms=bar.open_time_ms + spec.bar_ms, bar_ms=spec.bar_ms)


def barrier_cause(position: PositionState, *, close: float, closed_ms: int, bar_ms: int) -> str | None:
    """Return which barrier a position has reached at a close (NaN: no candle), or None."""
    if (close - position.stop_price) * position.side <= 0:  # NaN compares as False: only time may close then
        return reason("STOP", close=close, stop=position.stop_price)
    if (close - position.target_price) * position.side > 0:  # what rests there has not filled, or not wholly
        return reason("TARGET", close=close, target=position.target_price)
    if closed_ms >= position.expires_ms:
        return reason("TIME_BARRIER", bars=(position.expires_ms - position.opened_ms) // bar_ms)
    return None


def _lacks_features(bar: BarInput, i: int) -> bool:
    """Whether a feature is missing: then the model's probability is NaN (see `MetaModel.predict`)."""
    return bool(np.isnan(bar.features[i]).any())


def _missing_data(bar: BarInput, i: int, schema: FeatureSchema) -> str:
    if not (math.isfinite(bar.close[i]) and bar.close[i] > 0):
        return "NO_CANDLE"
    missing = np.flatnonzero(~np.isfinite(bar.features[i]))
    if missing.size:
        return reason("FEATURES_MISSING", missing=int(missing.size), first=schema.names[missing[0]])
    return reason("ATR_NOT_USABLE", atr_pct=float(bar.atr_pct[i]))


def _refuse_entries(portfolio: PortfolioState) -> str | None:
    """What the account has against every entry."""
    if portfolio.entries_blocked is not None:
        return portfolio.entries_blocked
    return None if portfolio.close_all is None else _because("CLOSE_ALL", portfolio.close_all)


def usable_rows(
    *, features: NDArray[np.float32], close: NDArray[np.float64], atr_pct: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return for each row (a symbol at a bar) whether an entry can be priced: features float32[n, F], else [n]."""
    priced = np.isfinite(close) & (close > 0) & np.isfinite(atr_pct) & (atr_pct > 0)
    return np.asarray(~np.isinf(features).any(axis=1) & priced)


def entry_rules(
    *,
    side: NDArray[np.int8],
    atr_pct: NDArray[np.float64],
    probability: NDArray[np.float64],
    threshold: NDArray[np.float64],
    features: NDArray[np.float32],
    spec: EngineSpec,
    schema: FeatureSchema,
) -> Callable[[int], str | None]:
    """Return what tells everything against an entry in row i that depends on nothing but the row.

    That is, neither on the account nor on other entries nor on the time, so the rows may be of many bars.
    """
    sides, atr_pcts = side.tolist(), atr_pct.tolist()
    probabilities, thresholds = probability.tolist(), threshold.tolist()
    regimes = regime_values(features, schema)
    widest = max(spec.label.stop_loss, spec.label.profit_take)

    def refuse(i: int) -> str | None:
        if sides[i] < 0 and not spec.allow_short:
            return "SHORT_NOT_ALLOWED"
        if widest * atr_pcts[i] >= 1:
            return reason("ATR_TOO_LARGE", atr_pct=atr_pcts[i])
        probability, threshold = probabilities[i], thresholds[i]
        if not (0.0 <= probability <= 1.0 and 0.0 <= threshold <= 1.0):  # NaN is in no interval
            return reason("PROBABILITY_NOT_VALID", probability=probability, threshold=threshold)
        if probability < threshold:
            return reason("BELOW_THRESHOLD", probability=probability, threshold=threshold)
        return regime_reason(*regimes[i], spec=spec.regime)

    return refuse


def _grant_entry(
    bar: BarInput,
    i: int,
    exposure: float,
    book: CorrelatedBook,
    open_positions: int,
    portfolio: PortfolioState,
    spec: EngineSpec,
) -> tuple[Decision, float]:
    """Size one candidate within what the limits leave; return the decision and the notional taken (0.0: none)."""
    symbol, side = bar.symbols[i], int(bar.side[i])
    probability, close = float(bar.probability[i]), float(bar.close[i])
    wanted = position_notional(
        equity=portfolio.equity,
        probability=probability,
        threshold=float(bar.threshold[i]),
        volatility=float(bar.volatility[i]),
        bar_ms=spec.bar_ms,
        guard=portfolio.guard,
        spec=spec.sizing,
    )
    headroom = entry_headroom(equity=portfolio.equity, exposure=exposure, limits=spec.limits)
    # A size that only the other positions made too small is refused for exposure, not for being small.
    capped = min(wanted, headroom)
    full = capped < spec.limits.min_notional <= wanted
    refusal = check_entry(
        notional=min(wanted, spec.limits.max_position_fraction * portfolio.equity) if full else capped,
        equity=portfolio.equity,
        exposure=exposure,
        open_positions=open_positions,
        limits=spec.limits,
    )
    if refusal is None:
        same_bet = book.headroom(side=side, equity=portfolio.equity, limits=spec.limits)
        crowded = same_bet < spec.limits.min_notional  # what is left of the same bet is too small to be one
        capped = capped if crowded else min(capped, same_bet)
        refusal = check_correlated(book=book, side=side, notional=capped, equity=portfolio.equity, limits=spec.limits)
    if refusal is not None:
        return Decision(symbol, side, probability, Outcome.REFUSED, refusal), 0.0
    move = float(bar.atr_pct[i]) * close * side
    intent = EntryIntent(
        symbol=symbol,
        side=side,
        quantity=capped / close,
        reference_price=close,
        stop_price=close - spec.label.stop_loss * move,
        target_price=close + spec.label.profit_take * move,
        expires_ms=bar.open_time_ms + spec.bar_ms * (1 + spec.label.horizon),
    )
    text = reason("ENTER", probability=probability, threshold=float(bar.threshold[i]), notional=capped)
    return Decision(symbol, side, probability, Outcome.ENTER, text, intent), capped

"""An account played bar by bar over a panel: the bot's engine and fill model, without a bot.

What happens in a bar, in this order: orders of the last close fill at the open; funding that is due is paid; stops that
the bar reaches are filled, then targets that it trades through, from the very bar of the entry on; at the close the
account is valued and `quant.engine.decide` is asked. So nothing of a bar is known before it is decided on, and no
market order fills at a price that was known when it was sent.

Market orders and stops pay half the spread; a target pays the maker's fee only (`quant.fills`). An entry gets at most
its share of the last hour's volume and loses the rest; what is left of an exit goes on at the next open. A symbol
without candles for `SETTLED_AFTER_BARS` is settled at its last close, as a delisted one is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from quant import fills, risk
from quant.engine import BarInput, EngineSpec, EntryIntent, ExitIntent, PortfolioState, PositionState, decide
from quant.panel import Panel
from quant.reasons import code_of, reason
from quant.schema import FeatureSchema
from quant.timeframes import DAY_MS

SETTLED_AFTER_BARS = 48
_BASIS_POINT = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Signals that reach their threshold, k of them in order of ``bar``: what a model would trade.

    ``bar`` and ``column`` int64[k] place them in the panel; ``side`` int8; ``probability`` and ``threshold`` float64;
    ``features`` float32[k, F]; ``model`` int64[k], the number of the model that speaks (None: they are of number 0).
    ``promised_precision`` maps every model that is held to the share of its trades that it said would pay.
    """

    bar: NDArray[np.int64]
    column: NDArray[np.int64]
    side: NDArray[np.int8]
    probability: NDArray[np.float64]
    threshold: NDArray[np.float64]
    features: NDArray[np.float32]
    model: NDArray[np.int64] | None = None
    promised_precision: Mapping[int, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in ("column", "side", "probability", "threshold", "features"):
            if len(getattr(self, each)) != len(self.bar):
                raise ValueError(f"{each} has {len(getattr(self, each))} rows and bar {len(self.bar)}: one per signal")
        if self.model is not None and len(self.model) != len(self.bar):
            raise ValueError(f"model has {len(self.model)} rows and bar {len(self.bar)}: one per signal")
        if np.any(np.diff(self.bar) < 0):
            raise ValueError("bar goes backwards; signals come in order of their bars")

    def __len__(self) -> int:
        return len(self.bar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """A position from its entry to its end. Money in quote currency; ``net`` after fees and funding."""

    symbol: str
    side: int
    quantity: float
    opened_ms: int
    closed_ms: int
    entry_price: float
    exit_price: float
    fees: float
    funding: float
    probability: float
    cause: str

    @property
    def net(self) -> float:
        return self.side * self.quantity * (self.exit_price - self.entry_price) - self.fees - self.funding

    @property
    def net_return(self) -> float:
        """Net profit as a fraction of the entry's notional."""
        return self.net / (self.quantity * self.entry_price)


@dataclass(slots=True, kw_only=True)
class _Position:
    """An open position: what the engine sees of it, and what it has cost. ``left`` is what is not closed yet."""

    state: PositionState
    column: int
    entry_bar: int
    probability: float
    left: float
    model: int = 0
    fees: float = 0.0
    funding: float = 0.0
    received: float = 0.0
    exit_cause: str = ""


@dataclass(slots=True, kw_only=True)
class _Entry:
    intent: EntryIntent
    column: int
    probability: float
    model: int


@dataclass(slots=True, kw_only=True)
class Track:
    """How the trades that a model opened went, for the performance guard."""

    trades: int = 0
    wins: int = 0


@dataclass(slots=True)
class Simulation:
    """An account over ``panel``. `run` plays bars in order, as often as models change; `finish` closes what is open.

    ``equity`` float64[T] is the account's worth at each close that was played, NaN elsewhere; ``exposure`` its gross
    notional. ``risk_events`` are (bar, reason) of daily loss and kill switch: after the latter nothing is entered any
    more, as in the bot, where a person would have to reset it.
    """

    panel: Panel
    spec: EngineSpec
    schema: FeatureSchema
    initial_equity: float = 10_000.0
    trades: list[Trade] = field(default_factory=list)
    risk_events: list[tuple[int, str]] = field(default_factory=list)
    equity: NDArray[np.float64] = field(init=False)
    exposure: NDArray[np.float64] = field(init=False)
    refused: dict[str, int] = field(default_factory=dict)
    tracks: dict[int, Track] = field(default_factory=dict)
    _cash: float = field(init=False)
    _positions: dict[str, _Position] = field(default_factory=dict)
    _entries: list[_Entry] = field(default_factory=list)
    _day: int = -1
    _day_start: float = 0.0
    _peak: float = 0.0
    _daily_loss: bool = False
    _killed: str | None = None

    def __post_init__(self) -> None:
        if not self.initial_equity > 0:
            raise ValueError(f"initial_equity is {self.initial_equity}; an account starts with something")
        if self.panel.step_ms != self.spec.bar_ms:
            raise ValueError(f"the panel's bars are {self.panel.step_ms} ms long and the engine's {self.spec.bar_ms}")
        self.equity = np.full(self.panel.n_times, np.nan)
        self.exposure = np.zeros(self.panel.n_times)
        self._cash = self._peak = self._day_start = self.initial_equity

    def run(self, start: int, stop: int, signals: Signals | None) -> None:
        """Play the bars ``start <= bar < stop``, entering by ``signals`` (None: no model, so no entries)."""
        bars = np.empty(0, dtype=np.int64) if signals is None else signals.bar
        first = np.searchsorted(bars, np.arange(start, stop + 1)).tolist()
        bar = start
        while bar < stop:
            if not self._positions and not self._entries:
                # Nothing can happen before the next signal: the account stands still.
                upcoming = first[bar - start]
                until = min(stop, int(bars[upcoming])) if upcoming < len(bars) else stop
                self.equity[bar:until] = self._cash
                bar = until
                if bar == stop:
                    return
            self._play(bar, signals, first[bar - start], first[bar - start + 1])
            bar += 1

    def finish(self) -> None:
        """Close what is open at the last known close, so that the list of trades is complete."""
        played = np.flatnonzero(np.isfinite(self.equity))
        last = int(played[-1]) if len(played) else 0
        for position in list(self._positions.values()):
            close = self._last_close(position.column, last)
            self._close(position, position.left, close * self._against(-position.state.side), last, "END_OF_TEST")

    # ------------------------------------------------------------------- a bar
    def _play(self, bar: int, signals: Signals | None, first: int, last: int) -> None:
        self._fill_orders(bar)
        self._pay_funding(bar)
        self._fill_resting(bar)
        worth, exposure = self._value(bar)
        self.equity[bar], self.exposure[bar] = worth, exposure
        self._watch(bar, worth)
        if not self._positions and first == last:
            return
        self._decide(bar, worth, signals, first, last)

    def _fill_orders(self, bar: int) -> None:
        entries, self._entries = self._entries, []
        for position in [each for each in self._positions.values() if each.exit_cause]:
            price, quantity = self._take(bar, position.column, -position.state.side, position.left)
            if quantity > 0:
                self._close(position, quantity, price, bar, position.exit_cause)
        for entry in entries:
            intent = entry.intent
            price, quantity = self._take(bar, entry.column, intent.side, intent.quantity)
            if not quantity * price >= self.spec.limits.min_notional:  # nor a price that is none
                self._refuse("NO_FILL")
                continue
            fee = self._fee(quantity * price)
            self._cash -= fee
            self._positions[intent.symbol] = _Position(
                state=PositionState(
                    symbol=intent.symbol,
                    side=intent.side,
                    quantity=quantity,
                    entry_price=price,
                    stop_price=intent.stop_price,
                    target_price=intent.target_price,
                    opened_ms=int(self.panel.open_time[bar]),
                    expires_ms=intent.expires_ms,
                ),
                column=entry.column,
                entry_bar=bar,
                probability=entry.probability,
                left=quantity,
                model=entry.model,
                fees=fee,
            )

    def _take(self, bar: int, column: int, side: int, quantity: float) -> tuple[float, float]:
        """Return price and quantity that a taker of ``side`` gets at the open; quantity 0 where nothing trades."""
        opened = float(self.panel.open[bar, column])
        past = slice(max(0, bar - fills.liquidity_bars(self.spec.bar_ms)), bar)
        volume = float(np.nansum(self.panel.volume[past, column]))
        if not (opened > 0 and volume > 0):
            return math.nan, 0.0
        quantity = min(quantity, fills.MAX_VOLUME_SHARE * volume)
        closes = self.panel.close[max(0, bar - fills.VOLATILITY_BARS) : bar, column]
        sigma = fills.volatility(closes[closes > 0], step_ms=self.spec.bar_ms)
        moved = fills.impact(quantity, volume=volume, sigma=sigma)
        return opened * (self._against(side) + side * moved), quantity

    def _against(self, side: int) -> float:
        """What half the spread does to a price that a taker of ``side`` pays."""
        return 1.0 + side * self.spec.label.half_spread_bps * _BASIS_POINT

    def _fee(self, notional: float, *, maker: bool = False) -> float:
        label = self.spec.label
        return notional * (label.maker_fee_bps if maker else label.fee_bps) * _BASIS_POINT

    def _pay_funding(self, bar: int) -> None:
        """The rate of the bar in which a position was entered fell due at that very moment: it is not charged."""
        for position in self._positions.values():
            rate = float(self.panel.funding[bar, position.column])
            price = float(self.panel.open[bar, position.column])
            if rate and price > 0 and bar > position.entry_bar:
                paid = position.state.side * position.left * price * rate
                position.funding += paid
                self._cash -= paid

    def _fill_resting(self, bar: int) -> None:
        """Fill the stops and targets that wait at the exchange, the stop first in a bar that reaches both."""
        for position in list(self._positions.values()):
            column, state = position.column, position.state
            opened = float(self.panel.open[bar, column])
            if opened > 0:
                high, low = float(self.panel.high[bar, column]), float(self.panel.low[bar, column])
                price = fills.stop_price(side=state.side, trigger=state.stop_price, opened=opened, high=high, low=low)
                if price is not None:
                    cause = reason("STOP", stop=state.stop_price)
                    self._close(position, position.left, price * self._against(-state.side), bar, cause)
                elif fills.limit_reached(side=state.side, limit=state.target_price, high=high, low=low):
                    quantity = min(position.left, fills.MAX_VOLUME_SHARE * float(self.panel.volume[bar, column]))
                    if quantity > 0:
                        cause = reason("TARGET", target=state.target_price)
                        self._close(position, quantity, state.target_price, bar, cause, maker=True)
            elif self._last_bar(column, bar) < bar - SETTLED_AFTER_BARS:
                self._close(position, position.left, self._last_close(column, bar), bar, "SETTLED: series=ended")

    def _close(
        self, position: _Position, quantity: float, price: float, bar: int, cause: str, *, maker: bool = False
    ) -> None:
        state = position.state
        fee = self._fee(quantity * price, maker=maker)
        position.fees += fee
        position.received += quantity * price
        position.left -= quantity
        self._cash += state.side * quantity * (price - state.entry_price) - fee
        if position.left > 1e-9 * state.quantity:
            return
        del self._positions[state.symbol]
        trade = Trade(
            symbol=state.symbol,
            side=state.side,
            quantity=state.quantity,
            opened_ms=state.opened_ms,
            closed_ms=int(self.panel.open_time[bar]),
            entry_price=state.entry_price,
            exit_price=position.received / state.quantity,
            fees=position.fees,
            funding=position.funding,
            probability=position.probability,
            cause=code_of(cause) or cause,
        )
        self.trades.append(trade)
        track = self.tracks.setdefault(position.model, Track())
        track.trades += 1
        track.wins += trade.net > 0

    # ---------------------------------------------------------------- valuation
    def _last_bar(self, column: int, bar: int) -> int:
        known = np.flatnonzero(np.isfinite(self.panel.close[max(0, bar - 2 * SETTLED_AFTER_BARS) : bar + 1, column]))
        return max(0, bar - 2 * SETTLED_AFTER_BARS) + int(known[-1]) if len(known) else -1

    def _last_close(self, column: int, bar: int) -> float:
        known = self.panel.close[: bar + 1, column]
        return float(known[np.flatnonzero(np.isfinite(known))[-1]])

    def _value(self, bar: int) -> tuple[float, float]:
        """Return equity and gross exposure at the bar's close."""
        worth, exposure = self._cash, 0.0
        for position in self._positions.values():
            close = float(self.panel.close[bar, position.column])
            if not close > 0:
                close = self._last_close(position.column, bar)
            worth += position.state.side * position.left * (close - position.state.entry_price)
            exposure += position.left * close
        return worth, exposure

    def _watch(self, bar: int, worth: float) -> None:
        """Roll the UTC day, move the peak, and act on breached limits, as `trading_app.equity.watch_equity` does."""
        day = (int(self.panel.open_time[bar]) + self.spec.bar_ms) // DAY_MS
        if day != self._day:
            self._day, self._day_start, self._daily_loss = day, worth, False
        self._peak = max(self._peak, worth)
        limits = self.spec.limits
        if not self._daily_loss:
            why = risk.daily_loss_breached(equity=worth, day_start_equity=self._day_start, limits=limits)
            if why is not None:
                self._daily_loss = True
                self.risk_events.append((bar, why))
        if self._killed is None:
            why = risk.drawdown_breached(equity=worth, peak_equity=self._peak, limits=limits)
            if why is not None:
                self._killed = reason("KILL_SWITCH", why=why)
                self.risk_events.append((bar, self._killed))

    # ----------------------------------------------------------------- decisions
    def _decide(self, bar: int, worth: float, signals: Signals | None, first: int, last: int) -> None:
        """Ask the engine about the held symbols and those with a signal: about the others it decides nothing."""
        rows = {} if signals is None else {int(signals.column[row]): row for row in range(first, last)}
        columns = [position.column for position in self._positions.values()]
        columns += [column for column in rows if self.panel.symbols[column] not in self._positions]
        n, at = len(columns), np.array(columns, dtype=np.int64)
        asked = np.array([rows.get(column, -1) for column in columns], dtype=np.int64)
        features = np.full((n, len(self.schema)), np.nan, dtype=np.float32)
        side = np.zeros(n, dtype=np.int8)
        probability, threshold = np.full(n, np.nan), np.full(n, np.nan)
        if signals is not None:
            there = asked >= 0
            features[there] = signals.features[asked[there]]
            side[there] = signals.side[asked[there]]
            probability[there] = signals.probability[asked[there]]
            threshold[there] = signals.threshold[asked[there]]
        decisions = decide(
            bar=BarInput(
                open_time_ms=int(self.panel.open_time[bar]),
                symbols=tuple(self.panel.symbols[column] for column in columns),
                close=self.panel.close[bar, at],
                atr_pct=features[:, self.schema.index("atr_pct")].astype(np.float64),
                volatility=features[:, self.schema.index("volatility_24")].astype(np.float64),
                features=features,
                side=side,
                probability=probability,
                threshold=threshold,
                covered=np.ones(n, dtype=np.bool_),
            ),
            portfolio=PortfolioState(
                equity=worth,
                positions={symbol: replace(each.state, quantity=each.left) for symbol, each in self._positions.items()},
                exiting=frozenset(symbol for symbol, each in self._positions.items() if each.exit_cause),
                day_start_equity=self._day_start,
                peak_equity=self._peak,
                entries_blocked=self._killed or ("DAILY_LOSS" if self._daily_loss else None),
                guard=self._guard(signals),
            ),
            spec=self.spec,
            schema=self.schema,
        )
        for column, decision in zip(columns, decisions, strict=True):
            intent = decision.intent
            if isinstance(intent, ExitIntent):
                self._positions[decision.symbol].exit_cause = intent.cause
            elif isinstance(intent, EntryIntent):
                model = 0 if signals is None or signals.model is None else int(signals.model[rows[column]])
                entry = _Entry(intent=intent, column=column, probability=decision.probability, model=model)
                self._entries.append(entry)
            elif decision.symbol not in self._positions:
                self._refuse(code_of(decision.reason) or decision.reason)

    def _guard(self, signals: Signals | None) -> float:
        """What the model that keeps its promise least leaves of the usual size, as in `trading_app.bar`."""
        shares = [1.0]
        for model, promised in ({} if signals is None else signals.promised_precision).items():
            track = self.tracks.get(model, Track())
            shares.append(risk.performance_guard(promised=promised, trades=track.trades, wins=track.wins))
        return min(shares)

    def _refuse(self, code: str) -> None:
        self.refused[code] = self.refused.get(code, 0) + 1


def trades_hash(trades: list[Trade]) -> str:
    """Return the sha256 (hex) of every field of every trade: equal runs have equal hashes."""
    digest = hashlib.sha256()
    for trade in trades:
        digest.update("|".join(_exact(trade)).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _exact(trade: Trade) -> Iterator[str]:
    for each in fields(trade):
        value = getattr(trade, each.name)
        yield value.hex() if isinstance(value, float) else str(value)

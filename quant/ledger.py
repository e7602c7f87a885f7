"""What a simulated account holds, and how its orders fill: positions, cash and closed trades over a panel.

Market orders and stops pay half the spread; a target pays the maker's fee only (`quant.fills`). An entry gets at most
its share of the last hour's volume and loses the rest; what is left of an exit goes on at the next open. A symbol
without candles for `SETTLED_AFTER_BARS` is settled at its last close, as a delisted one is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from quant import fills
from quant.engine import EngineSpec, EntryIntent, PositionState, barrier_cause
from quant.panel import Panel
from quant.reasons import code_of
from quant.risk import cooldown_end_ms

SETTLED_AFTER_BARS = 48
_BASIS_POINT = 1e-4


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
class Position:
    """An open position: what the engine sees of it, whose quantity is what is not closed yet, and what it has cost."""

    state: PositionState
    entered: float
    column: int
    entry_bar: int
    probability: float
    model: int = 0
    fees: float = 0.0
    funding: float = 0.0
    received: float = 0.0
    exit_cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry on its way to the next open."""

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
class Ledger:
    """The books of an account over ``panel``. ``held`` bool[S] tells which columns have an open position.

    ``cooling_ms`` int64[S] is the open time of the first bar at whose close a column may be entered (again).
    ``entries`` are what was sent at the last close; an exit is sent by setting a position's ``exit_cause``.
    """

    panel: Panel
    spec: EngineSpec
    cash: float
    positions: dict[str, Position] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    trades: list[Trade] = field(default_factory=list)
    tracks: dict[int, Track] = field(default_factory=dict)
    held: NDArray[np.bool_] = field(init=False)
    cooling_ms: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.held = np.zeros(self.panel.n_symbols, dtype=np.bool_)
        self.cooling_ms = np.zeros(self.panel.n_symbols, dtype=np.int64)

    @property
    def idle(self) -> bool:
        """Whether nothing is held or on its way."""
        return not self.positions and not self.entries

    def fill(self, bar: int) -> int:
        """Play a bar up to its close: orders at its open, then funding, then stops and targets.

        Returns how many entries were lost, since nothing traded or what they got was too small.
        """
        lost = self._fill_orders(bar)
        self._pay_funding(bar)
        self._fill_resting(bar)
        return lost

    def value(self, bar: int) -> tuple[float, float]:
        """Return equity and gross exposure at the bar's close."""
        worth, exposure = self.cash, 0.0
        for position in self.positions.values():
            close, state = self.panel.close.item(bar, position.column), position.state
            if not close > 0:
                close = self._last_close(position.column, bar)
            worth += state.side * state.quantity * (close - state.entry_price)
            exposure += state.quantity * close
        return worth, exposure

    def exit_at_barriers(self, bar: int) -> None:
        """Send an exit for what has reached a barrier at the close: all that the engine asks if nothing is blocked."""
        closed_ms = int(self.panel.open_time[bar]) + self.spec.bar_ms
        for position in self.positions.values():
            if not position.exit_cause:
                close = self.panel.close.item(bar, position.column)
                cause = barrier_cause(position.state, close=close, closed_ms=closed_ms, bar_ms=self.spec.bar_ms)
                position.exit_cause = "" if cause is None else code_of(cause)

    def exit_all(self, cause: str) -> None:
        """Send an exit for everything whose exit is not under way."""
        for position in self.positions.values():
            position.exit_cause = position.exit_cause or cause

    def close_all(self, bar: int, cause: str) -> None:
        """Close what is open at its last known close."""
        for position in list(self.positions.values()):
            price = self._last_close(position.column, bar) * self._against(-position.state.side)
            self._close(position, position.state.quantity, price, bar, cause)

    def _fill_orders(self, bar: int) -> int:
        entries, self.entries = self.entries, []
        for position in [each for each in self.positions.values() if each.exit_cause]:
            price, quantity = self._take(bar, position.column, -position.state.side, position.state.quantity)
            if quantity > 0:
                self._close(position, quantity, price, bar, position.exit_cause)
        return sum([not self._open(bar, entry) for entry in entries])

    def _open(self, bar: int, entry: Entry) -> bool:
        intent = entry.intent
        price, quantity = self._take(bar, entry.column, intent.side, intent.quantity)
        if not quantity * price >= self.spec.limits.min_notional:  # nor a price that is none
            return False
        fee = self._fee(quantity * price)
        self.cash -= fee
        self.held[entry.column] = True
        self.positions[intent.symbol] = Position(
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
            entered=quantity,
            column=entry.column,
            entry_bar=bar,
            probability=entry.probability,
            model=entry.model,
            fees=fee,
        )
        return True

    def _take(self, bar: int, column: int, side: int, quantity: float) -> tuple[float, float]:
        """Return price and quantity that a taker of ``side`` gets at the open; quantity 0 where nothing trades."""
        opened = self.panel.open.item(bar, column)
        since = max(0, bar - fills.liquidity_bars(self.spec.bar_ms))
        traded = self.panel.volume[since:bar, column]
        volume = traded.item() if len(traded) == 1 else float(np.nansum(traded))
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
        for position in self.positions.values():
            rate = self.panel.funding.item(bar, position.column)
            if not rate:
                continue
            price = self.panel.open.item(bar, position.column)
            if price > 0 and bar > position.entry_bar:
                paid = position.state.side * position.state.quantity * price * rate
                position.funding += paid
                self.cash -= paid

    def _fill_resting(self, bar: int) -> None:
        """Fill the stops and targets that wait at the exchange, the stop first in a bar that reaches both."""
        for position in list(self.positions.values()):
            column, state = position.column, position.state
            opened = self.panel.open.item(bar, column)
            if opened > 0:
                high, low = self.panel.high.item(bar, column), self.panel.low.item(bar, column)
                price = fills.stop_price(side=state.side, trigger=state.stop_price, opened=opened, high=high, low=low)
                if price is not None:
                    self._close(position, state.quantity, price * self._against(-state.side), bar, "STOP")
                elif fills.limit_reached(side=state.side, limit=state.target_price, high=high, low=low):
                    quantity = min(state.quantity, fills.MAX_VOLUME_SHARE * self.panel.volume.item(bar, column))
                    if quantity > 0:
                        self._close(position, quantity, state.target_price, bar, "TARGET", maker=True)
            elif self._last_bar(column, bar) < bar - SETTLED_AFTER_BARS:
                self._close(position, state.quantity, self._last_close(column, bar), bar, "SETTLED")

    def _close(
        self, position: Position, quantity: float, price: float, bar: int, code: str, *, maker: bool = False
    ) -> None:
        state = position.state
        fee = self._fee(quantity * price, maker=maker)
        position.fees += fee
        position.received += quantity * price
        left = state.quantity - quantity
        self.cash += state.side * quantity * (price - state.entry_price) - fee
        if left > 1e-9 * position.entered:
            position.state = replace(state, quantity=left)
            return
        del self.positions[state.symbol]
        self.held[position.column] = False
        trade = Trade(
            symbol=state.symbol,
            side=state.side,
            quantity=position.entered,
            opened_ms=state.opened_ms,
            closed_ms=int(self.panel.open_time[bar]),
            entry_price=state.entry_price,
            exit_price=position.received / position.entered,
            fees=position.fees,
            funding=position.funding,
            probability=position.probability,
            cause=code,
        )
        self.trades.append(trade)
        until_ms = cooldown_end_ms(
            cause=code, closed_ms=trade.closed_ms, bar_ms=self.spec.bar_ms, limits=self.spec.limits
        )
        self.cooling_ms[position.column] = max(self.cooling_ms[position.column], until_ms)
        track = self.tracks.setdefault(position.model, Track())
        track.trades += 1
        track.wins += trade.net > 0

    def _last_bar(self, column: int, bar: int) -> int:
        known = np.flatnonzero(np.isfinite(self.panel.close[max(0, bar - 2 * SETTLED_AFTER_BARS) : bar + 1, column]))
        return max(0, bar - 2 * SETTLED_AFTER_BARS) + int(known[-1]) if len(known) else -1

    def _last_close(self, column: int, bar: int) -> float:
        known = self.panel.close[: bar + 1, column]
        return float(known[np.flatnonzero(np.isfinite(known))[-1]])


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

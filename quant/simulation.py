"""An account played bar by bar over a panel: the bot's engine and fill model, without a bot.

What happens in a bar, in this order: orders of the last close fill at the open; funding that is due is paid; stops that
the bar reaches are filled, then targets that it trades through, from the very bar of the entry on; at the close the
account is valued, and the rules of `quant.engine` say what leaves and what cannot enter; `decide` is asked about the
rest (a test asks it about everything, and nothing changes). So nothing of a bar is known before it is decided on, and
no market order fills at a price that was known when it was sent.

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

from quant import fills, risk
from quant.engine import (
    BarInput,
    EngineSpec,
    EntryIntent,
    PortfolioState,
    PositionState,
    barrier_cause,
    decide,
)
from quant.offers import Offers, Signals
from quant.panel import Panel
from quant.reasons import code_of, reason
from quant.schema import FeatureSchema
from quant.timeframes import DAY_MS

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
class _Position:
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
        offers = None if signals is None else Offers.of(signals, panel=self.panel, spec=self.spec, schema=self.schema)
        bar = start
        while bar < stop:
            if not self._positions and not self._entries:
                # Nothing can happen before the next signal: the account stands still.
                upcoming = first[bar - start]
                if offers is not None and self._killed is not None and offers.all_plain(upcoming, first[-1]):
                    self._refuse(self._killed, first[-1] - upcoming)  # and nothing ever will
                    self.equity[bar:stop] = self._cash
                    return
                until = min(stop, int(bars[upcoming])) if upcoming < len(bars) else stop
                self.equity[bar:until] = self._cash
                bar = until
                if bar == stop:
                    return
            self._play(bar, offers, first[bar - start], first[bar - start + 1])
            bar += 1

    def finish(self) -> None:
        """Close what is open at the last known close, so that the list of trades is complete."""
        played = np.flatnonzero(np.isfinite(self.equity))
        last = int(played[-1]) if len(played) else 0
        for position in list(self._positions.values()):
            close = self._last_close(position.column, last)
            price = close * self._against(-position.state.side)
            self._close(position, position.state.quantity, price, last, "END_OF_TEST")

    # ------------------------------------------------------------------- a bar
    def _play(self, bar: int, offers: Offers | None, first: int, last: int) -> None:
        self._fill_orders(bar)
        self._pay_funding(bar)
        self._fill_resting(bar)
        worth, exposure = self._value(bar)
        self.equity[bar], self.exposure[bar] = worth, exposure
        self._watch(bar, worth)
        self._exit(bar)
        if offers is not None and first < last:
            self._enter(bar, worth, offers, first, last)

    def _fill_orders(self, bar: int) -> None:
        entries, self._entries = self._entries, []
        for position in [each for each in self._positions.values() if each.exit_cause]:
            price, quantity = self._take(bar, position.column, -position.state.side, position.state.quantity)
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
                entered=quantity,
                column=entry.column,
                entry_bar=bar,
                probability=entry.probability,
                model=entry.model,
                fees=fee,
            )

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
        for position in self._positions.values():
            rate = self.panel.funding.item(bar, position.column)
            if not rate:
                continue
            price = self.panel.open.item(bar, position.column)
            if price > 0 and bar > position.entry_bar:
                paid = position.state.side * position.state.quantity * price * rate
                position.funding += paid
                self._cash -= paid

    def _fill_resting(self, bar: int) -> None:
        """Fill the stops and targets that wait at the exchange, the stop first in a bar that reaches both."""
        for position in list(self._positions.values()):
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
        self, position: _Position, quantity: float, price: float, bar: int, code: str, *, maker: bool = False
    ) -> None:
        state = position.state
        fee = self._fee(quantity * price, maker=maker)
        position.fees += fee
        position.received += quantity * price
        left = state.quantity - quantity
        self._cash += state.side * quantity * (price - state.entry_price) - fee
        if left > 1e-9 * position.entered:
            position.state = replace(state, quantity=left)
            return
        del self._positions[state.symbol]
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
            close, state = self.panel.close.item(bar, position.column), position.state
            if not close > 0:
                close = self._last_close(position.column, bar)
            worth += state.side * state.quantity * (close - state.entry_price)
            exposure += state.quantity * close
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
    def _exit(self, bar: int) -> None:
        """Send an exit for what has reached a barrier: all that the engine asks where nothing is blocked."""
        closed_ms = int(self.panel.open_time[bar]) + self.spec.bar_ms
        for position in self._positions.values():
            if not position.exit_cause:
                close = self.panel.close.item(bar, position.column)
                cause = barrier_cause(position.state, close=close, closed_ms=closed_ms, bar_ms=self.spec.bar_ms)
                position.exit_cause = "" if cause is None else code_of(cause)

    def _enter(self, bar: int, worth: float, offers: Offers, first: int, last: int) -> None:
        """Refuse what no entry can come of, and ask the engine about the rest, as far as there is room for any."""
        held = {position.column for position in self._positions.values()}
        blocked = self._killed or ("DAILY_LOSS" if self._daily_loss else None)
        account = blocked or risk.check_slots(
            equity=worth, open_positions=len(self._positions), limits=self.spec.limits
        )
        asked, against = [], offers.against if blocked is None else lambda _row: blocked
        for row, column in enumerate(offers.column[first:last], first):
            if column in held:
                continue
            if not offers.plain[row]:
                asked.append(row)
            elif (why := against(row) or account) is not None:
                self._refuse(why)
            else:
                asked.append(row)
        if asked:
            self._ask(bar, worth, offers, np.array(asked, dtype=np.int64), blocked)

    def _ask(self, bar: int, worth: float, offers: Offers, asked: NDArray[np.int64], blocked: str | None) -> None:
        """Ask the engine about these signals. What is held comes first in the bar: its price counts as exposure."""
        signals, held = offers.signals, [position.column for position in self._positions.values()]
        n, of = len(held) + len(asked), slice(len(held), None)
        columns = np.array([*held, *signals.column[asked].tolist()], dtype=np.int64)
        features = np.full((n, len(self.schema)), np.nan, dtype=np.float32)
        features[of] = signals.features[asked]
        side = np.zeros(n, dtype=np.int8)
        side[of] = signals.side[asked]
        numbers = np.full((4, n), np.nan)
        for line, values in zip(
            numbers, (offers.atr_pct, offers.volatility, signals.probability, signals.threshold), strict=True
        ):
            line[of] = values[asked]
        atr_pct, volatility, probability, threshold = numbers
        decisions = decide(
            bar=BarInput(
                open_time_ms=int(self.panel.open_time[bar]),
                symbols=tuple(self.panel.symbols[column] for column in columns.tolist()),
                close=self.panel.close[bar, columns],
                atr_pct=atr_pct,
                volatility=volatility,
                features=features,
                side=side,
                probability=probability,
                threshold=threshold,
                covered=np.ones(n, dtype=np.bool_),
            ),
            portfolio=PortfolioState(
                equity=worth,
                positions={symbol: each.state for symbol, each in self._positions.items()},
                exiting=frozenset(self._positions),  # their exits are decided
                day_start_equity=self._day_start,
                peak_equity=self._peak,
                entries_blocked=blocked,
                guard=self._guard(signals),
            ),
            spec=self.spec,
            schema=self.schema,
        )
        for row, decision in zip(asked.tolist(), decisions[of], strict=True):
            if isinstance(decision.intent, EntryIntent):
                self._entries.append(
                    _Entry(
                        intent=decision.intent,
                        column=offers.column[row],
                        probability=decision.probability,
                        model=0 if signals.model is None else int(signals.model[row]),
                    )
                )
            else:
                self._refuse(decision.reason)

    def _guard(self, signals: Signals | None) -> float:
        """What the model that keeps its promise least leaves of the usual size, as in `trading_app.bar`."""
        shares = [1.0]
        for model, promised in ({} if signals is None else signals.promised_precision).items():
            track = self.tracks.get(model, Track())
            shares.append(risk.performance_guard(promised=promised, trades=track.trades, wins=track.wins))
        return min(shares)

    def _refuse(self, why: str, times: int = 1) -> None:
        code = code_of(why) or why
        self.refused[code] = self.refused.get(code, 0) + times


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

"""An account played bar by bar over a panel: the bot's engine and fill model, without a bot.

What happens in a bar, in this order: orders of the last close fill at the open; funding that is due is paid; stops that
the bar reaches are filled, then targets that it trades through, from the very bar of the entry on (`quant.ledger`); at
the close the account is valued, and the rules of `quant.engine` say what leaves; then what enters. So nothing of a bar
is known before it is decided on, and no market order fills at a price that was known when it was sent.

A primary signal in a symbol that is not held enters or is counted as refused, by the first of these: the account (kill
switch, daily loss, no free slot); the symbol's cooldown; what the engine has against it whatever its probability; a
probability below the threshold; then `decide`, for what is left. So models and `decide` are asked only where an entry
can come of it. The bot asks about everything: a test does too, and no trade changes. Only the word of a refusal can be
another one than the bot's, which names "below threshold" before the regime and before full slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quant import risk
from quant.engine import BarInput, Decision, EngineSpec, EntryIntent, PortfolioState, decide, usable_rows
from quant.ledger import Entry, Ledger, Track, Trade
from quant.offers import ROW_REFUSALS, Offers, Signals
from quant.panel import Panel
from quant.reasons import code_of, reason
from quant.schema import FeatureSchema
from quant.timeframes import DAY_MS


@dataclass(slots=True)
class Simulation:
    """An account over ``panel``. `run` plays bars in order, as often as models change; `finish` closes what is open.

    ``equity`` float64[T] is the account's worth at each close that was played, NaN elsewhere; ``exposure`` its gross
    notional. ``risk_events`` are (bar, reason) of daily loss and kill switch: after the latter nothing is entered any
    more, as in the bot, where a person would have to reset it. ``refused`` counts by the code of the reason.
    """

    panel: Panel
    spec: EngineSpec
    schema: FeatureSchema
    initial_equity: float = 10_000.0
    ledger: Ledger = field(init=False)
    risk_events: list[tuple[int, str]] = field(default_factory=list)
    equity: NDArray[np.float64] = field(init=False)
    exposure: NDArray[np.float64] = field(init=False)
    refused: dict[str, int] = field(default_factory=dict)
    _by_name: NDArray[np.int64] = field(init=False)
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
        self.ledger = Ledger(self.panel, self.spec, self.initial_equity)
        self._peak = self._day_start = self.initial_equity
        names = self.panel.symbols
        self._by_name = np.argsort(sorted(range(len(names)), key=names.__getitem__))

    @property
    def trades(self) -> list[Trade]:
        """What was closed, in order of time."""
        return self.ledger.trades

    @property
    def tracks(self) -> dict[int, Track]:
        """How the trades of each model went, by its number."""
        return self.ledger.tracks

    def run(self, start: int, stop: int, signals: Signals | None) -> None:
        """Play the bars ``start <= bar < stop``, entering by ``signals`` (None: no model, so no entries)."""
        bars = np.empty(0, dtype=np.int64) if signals is None else signals.bar
        first = np.searchsorted(bars, np.arange(start, stop + 1)).tolist()
        offers = None if signals is None else Offers(signals=signals, spec=self.spec, schema=self.schema)
        bar = start
        while bar < stop:
            if self.ledger.idle:
                # Nothing can happen before the next signal, or ever after the kill switch: the account stands still.
                upcoming = first[bar - start]
                until = min(stop, int(bars[upcoming])) if upcoming < len(bars) else stop
                if self._killed is not None:
                    self._refuse(self._killed, first[-1] - upcoming)
                    until = stop
                self.equity[bar:until] = self.ledger.cash
                bar = until
                if bar == stop:
                    return
            self._play(bar, offers, first[bar - start], first[bar - start + 1])
            bar += 1

    def finish(self) -> None:
        """Close what is open at the last known close, so that the list of trades is complete."""
        played = np.flatnonzero(np.isfinite(self.equity))
        self.ledger.close_all(int(played[-1]) if len(played) else 0, "END_OF_TEST")

    def _play(self, bar: int, offers: Offers | None, first: int, last: int) -> None:
        self._refuse("NO_FILL", self.ledger.fill(bar))
        worth, exposure = self.ledger.value(bar)
        self.equity[bar], self.exposure[bar] = worth, exposure
        self._watch(bar, worth)
        self.ledger.exit_at_barriers(bar)
        if offers is not None and first < last:
            self._enter(bar, worth, offers, first, last)

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
                if self.spec.close_on_kill:
                    self.ledger.exit_all("CLOSE_ALL")

    def _enter(self, bar: int, worth: float, offers: Offers, first: int, last: int) -> None:
        """Refuse what no entry can come of, and ask about the rest, as far as there is room for any."""
        signals = offers.signals
        rows = first + np.flatnonzero(~self.ledger.held[signals.column[first:last]])
        account = self._blocked or self._full(worth)
        if account is not None:
            self._refuse(account, len(rows))
            return
        cooling = self.ledger.cooling_ms[signals.column[rows]] > self.panel.open_time[bar]
        self._refuse("COOLDOWN", int(np.count_nonzero(cooling)))
        rows = rows[~cooling]
        refusal = offers.refusal[rows]
        for code, count in zip(ROW_REFUSALS, np.bincount(refusal, minlength=len(ROW_REFUSALS) + 1)[1:], strict=True):
            self._refuse(code, int(count))
        rows = rows[refusal == 0]
        probability = offers.probability(rows)
        weak = (probability >= 0) & (probability < signals.threshold[rows])
        self._refuse("BELOW_THRESHOLD", int(np.count_nonzero(weak)))
        rows, probability = rows[~weak], probability[~weak]
        if len(rows):
            self._ask(bar, worth, offers, rows, probability)

    @property
    def _blocked(self) -> str | None:
        return self._killed or ("DAILY_LOSS" if self._daily_loss else None)

    def _full(self, worth: float, more: int = 0) -> str | None:
        """Why no entry of any size is allowed beside what is held and ``more`` entries."""
        n = len(self.ledger.positions) + more
        return risk.check_slots(equity=worth, open_positions=n, limits=self.spec.limits)

    def _ask(
        self, bar: int, worth: float, offers: Offers, rows: NDArray[np.int64], probability: NDArray[np.float64]
    ) -> None:
        """Ask the engine: about the best for the free slots, and about all if these do not take every slot.

        Entries are granted by falling probability, then by name, and depend on better ones alone. What cannot be
        decided on at all goes along with the best, as its reason is not a full slot.
        """
        room = self.spec.limits.max_open_positions - len(self.ledger.positions)
        if len(rows) > room:
            best = self._best(bar, offers, rows, probability, room)
            decisions = self._decide(bar, worth, offers, rows[best], probability[best])
            granted = sum(isinstance(decision.intent, EntryIntent) for decision in decisions)
            full = self._full(worth, granted)
            if full is not None:
                self._refuse(full, len(rows) - len(best))
                self._take(offers.signals, rows[best], decisions)
                return
        self._take(offers.signals, rows, self._decide(bar, worth, offers, rows, probability))

    def _best(
        self, bar: int, offers: Offers, rows: NDArray[np.int64], probability: NDArray[np.float64], room: int
    ) -> NDArray[np.int64]:
        """Return where in ``rows`` the ``room`` best are, and those that cannot be decided on: their order stays."""
        columns, features = offers.signals.column[rows], offers.features(rows)
        usable = usable_rows(
            features=features,
            close=self.panel.close[bar, columns],
            atr_pct=features[:, self.schema.index("atr_pct")].astype(np.float64),
        )
        decidable = usable & (probability >= 0)
        order = np.lexsort((self._by_name[columns], -probability))
        return np.sort(np.concatenate([order[decidable[order]][:room], np.flatnonzero(~decidable)]))

    def _take(self, signals: Signals, rows: NDArray[np.int64], decisions: tuple[Decision, ...]) -> None:
        for row, decision in zip(rows.tolist(), decisions, strict=True):
            if isinstance(decision.intent, EntryIntent):
                self.ledger.entries.append(
                    Entry(
                        intent=decision.intent,
                        column=int(signals.column[row]),
                        probability=decision.probability,
                        model=0 if signals.model is None else int(signals.model[row]),
                    )
                )
            else:
                self._refuse(decision.reason)

    def _decide(
        self, bar: int, worth: float, offers: Offers, rows: NDArray[np.int64], probability: NDArray[np.float64]
    ) -> tuple[Decision, ...]:
        """Return the engine's decision about each signal. What is held comes first: its price counts as exposure."""
        signals, positions = offers.signals, self.ledger.positions
        held = [position.column for position in positions.values()]
        n, of = len(held) + len(rows), slice(len(held), None)
        columns = np.array([*held, *signals.column[rows].tolist()], dtype=np.int64)
        features = np.full((n, len(self.schema)), np.nan, dtype=np.float32)
        features[of] = offers.features(rows)
        side = np.zeros(n, dtype=np.int8)
        side[of] = signals.side[rows]
        probabilities, thresholds = np.full((2, n), np.nan)
        probabilities[of], thresholds[of] = probability, signals.threshold[rows]
        return decide(
            bar=BarInput(
                open_time_ms=int(self.panel.open_time[bar]),
                symbols=tuple(self.panel.symbols[column] for column in columns.tolist()),
                close=self.panel.close[bar, columns],
                atr_pct=features[:, self.schema.index("atr_pct")].astype(np.float64),
                volatility=features[:, self.schema.index("volatility_24")].astype(np.float64),
                features=features,
                side=side,
                probability=probabilities,
                threshold=thresholds,
                covered=np.ones(n, dtype=np.bool_),
            ),
            portfolio=PortfolioState(
                equity=worth,
                positions={symbol: each.state for symbol, each in positions.items()},
                exiting=frozenset(positions),  # their exits are decided
                day_start_equity=self._day_start,
                peak_equity=self._peak,
                entries_blocked=self._blocked,
                guard=self._guard(signals),
            ),
            spec=self.spec,
            schema=self.schema,
        )[of]

    def _guard(self, signals: Signals) -> float:
        """What the model that keeps its promise least leaves of the usual size, as in `trading_app.bar`."""
        shares = [1.0]
        for model, promised in signals.promised_precision.items():
            track = self.tracks.get(model, Track())
            shares.append(risk.performance_guard(promised=promised, trades=track.trades, wins=track.wins))
        return min(shares)

    def _refuse(self, why: str, times: int = 1) -> None:
        if times:
            code = code_of(why) or why
            self.refused[code] = self.refused.get(code, 0) + times

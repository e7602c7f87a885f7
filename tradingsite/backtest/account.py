"""An account that is played stretch by stretch by the models that are held, as the bot trades while others train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.engine import EngineSpec
from quant.features import FeatureState
from quant.features import replay as replay_features
from quant.ledger import Track
from quant.model import MetaModel
from quant.offers import Signals
from quant.panel import Panel
from quant.promises import LiveRecord
from quant.signals import primary_side
from quant.simulation import Simulation
from quant.training_spec import TrainingSpec
from quant.watch import window_start

CHUNK_VALUES = 2**18
"""Features in memory at once: 1 MB, still in the cache when the signals are read from them."""
CHUNK_BARS = 24
"""At least, so that many feeds are not read bar by bar."""
EVERY_SIGNAL = 0.5
"""The probability and the threshold of a signal that no model was asked about: the least size."""


def bar_after(panel: Panel, time_ms: int) -> int:
    """Return the first bar that closes after ``time_ms``: the first that a model of that moment decides."""
    return int(np.searchsorted(panel.open_time, time_ms - panel.step_ms, side="right"))


@dataclass(slots=True, kw_only=True)
class SignalFeed:
    """The signals of a model, bar after bar: nothing after the bar that is asked for is read.

    ``symbols`` is the panel that its features are computed over, from ``data_start_ms`` on, and all that it reads.
    It trades the bars that close after ``start_ms`` and until ``end_ms``. Without a ``model`` every primary signal is
    taken. ``number`` names the model; ``promised`` is its precision on unseen data. ``reference`` is what its features
    looked like in training, up to ``fitted_ms``. ``asked`` counts the signals that the model was asked about.
    """

    panel: Panel
    spec: TrainingSpec
    symbols: tuple[str, ...]
    data_start_ms: int
    start_ms: int
    end_ms: int
    model: MetaModel | None = None
    number: int = 0
    promised: float | None = None
    reference: Mapping[str, Any] = field(default_factory=dict)
    fitted_ms: int = 0
    asked: int = field(init=False, default=0)
    _state: FeatureState = field(init=False)
    _row: int = field(init=False)
    _column: NDArray[np.int64] = field(init=False)
    _code: NDArray[np.int64] = field(init=False)
    _seen: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        place = {symbol: column for column, symbol in enumerate(self.panel.symbols)}
        self._column = np.array([place[symbol] for symbol in self.symbols], dtype=np.int64)
        codes = np.zeros(len(self.symbols)) if self.model is None else self.model.codes_for(self.symbols)
        self._code = codes.astype(np.int64)
        self._state = FeatureState.create(self.spec.schema, len(self.symbols))
        self._row = max(0, bar_after(self.panel, self.data_start_ms + self.panel.step_ms - 1))

    @property
    def values_per_bar(self) -> int:
        """The features of a bar, of all symbols."""
        return len(self.symbols) * len(self.spec.schema)

    def until(self, stop: int) -> list[Signals]:
        """Read the bars that were not read yet, up to ``stop`` (exclusive), and return their signals in parts."""
        parts, chunk = [], max(CHUNK_BARS, CHUNK_VALUES // self.values_per_bar)
        while self._row < stop:
            first, self._row = self._row, min(self._row + chunk, stop)
            rows = self.panel.rows(first, self._row)
            parts.append(self._read(first, rows if self.symbols == rows.symbols else rows.select(self.symbols)))
        return [part for part in parts if len(part)]

    def _read(self, first: int, part: Panel) -> Signals:
        features = replay_features(self._state, part)
        side = primary_side(self.spec.signal, features, self.spec.schema)
        bars, columns = np.nonzero((side != 0) & (self._code >= 0)[None, :])
        if self.reference:
            since = int(np.searchsorted(bars, np.searchsorted(part.open_time, self.fitted_ms)))
            self._seen.append((part.open_time[bars[since:]], features[bars[since:], columns[since:]]))
        closed = part.open_time[bars] + part.step_ms
        open_for = (closed > self.start_ms) & (closed <= self.end_ms) & np.isfinite(part.close[bars, columns])
        bars, columns = bars[open_for], columns[open_for]
        rows, at = bars * len(self.symbols) + columns, features.reshape(-1, len(self.spec.schema))
        codes = self._code[columns].astype(np.int32)

        def ask(signals: NDArray[np.int64]) -> NDArray[np.float64]:
            if self.model is None:
                return np.full(len(signals), EVERY_SIGNAL)
            self.asked += len(signals)
            return self.model.predict(at[rows[signals]], codes[signals])

        threshold = EVERY_SIGNAL if self.model is None else self.model.threshold
        return Signals(
            bar=bars + first,
            column=self._column[columns],
            side=side[bars, columns],
            threshold=np.full(len(bars), threshold),
            features=at,
            row=rows,
            ask=ask,
            model=np.full(len(bars), self.number, dtype=np.int64),
        )

    def window(self, now_ms: int) -> NDArray[np.float32]:
        """Return the features at the signals that the watch looks at, float32[n, F]: those read until ``now_ms``."""
        since = window_start(self.reference, fitted_ms=self.fitted_ms, until_ms=now_ms, step_ms=self.panel.step_ms)
        self._seen = [(times, rows) for times, rows in self._seen if len(times) and times[-1] >= since]
        empty = np.empty((0, len(self.spec.schema)), dtype=np.float32)
        return np.concatenate([empty, *(rows[times >= since] for times, rows in self._seen)])


@dataclass(slots=True)
class Account:
    """One account; each scope's newest feed is held until another takes its place. Played in order of time."""

    simulation: Simulation
    _bar: int
    _held: dict[str, SignalFeed] = field(default_factory=dict)

    @classmethod
    def open(
        cls, panel: Panel, *, engine: EngineSpec, training: TrainingSpec, initial_equity: float, start_ms: int
    ) -> Account:
        simulation = Simulation(panel=panel, spec=engine, schema=training.schema, initial_equity=initial_equity)
        return cls(simulation, bar_after(panel, start_ms))

    def hold(self, scope: str, feed: SignalFeed) -> None:
        """Trade ``scope`` by ``feed`` from the next bar on."""
        self._held[scope] = feed

    def play(self, until_ms: int) -> None:
        """Play the bars that close until ``until_ms`` and were not played yet, some at a time: features take room."""
        stop = bar_after(self.simulation.panel, until_ms)
        values = sum(feed.values_per_bar for feed in self._held.values())
        while self._bar < stop:
            until = min(stop, self._bar + max(CHUNK_BARS, CHUNK_VALUES // max(values, 1)))
            self.simulation.run(self._bar, until, self._signals(until))
            self._bar = until

    def finish(self, end_ms: int) -> Simulation:
        """Play up to ``end_ms``, close what is open, and return the simulation."""
        self.play(end_ms)
        self.simulation.finish()
        return self.simulation

    def record(self, feed: SignalFeed) -> LiveRecord:
        """Return how the closed trades that the feed's model opened went, beside its promise."""
        track = self.simulation.tracks.get(feed.number, Track())
        return LiveRecord(trades=track.trades, wins=track.wins, promised_precision=feed.promised)

    def _signals(self, stop: int) -> Signals | None:
        if not self._held:
            return None
        promised = {feed.number: feed.promised for feed in self._held.values()}
        parts = [part for feed in self._held.values() for part in feed.until(stop)]
        return replace(joined_signals(parts), promised_precision=promised) if parts else None


def joined_signals(parts: list[Signals]) -> Signals:
    """Return the signals of all parts in order; each still asks its own model."""
    if len(parts) == 1:
        return parts[0]
    bar, column, side, threshold, model = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("bar", "column", "side", "threshold", "model")
    )
    order = np.lexsort((column, bar))
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
    place = np.concatenate([np.arange(len(part)) for part in parts])[order]

    def ask(signals: NDArray[np.int64]) -> NDArray[np.float64]:
        answers, of = np.empty(len(signals)), part_of[signals]
        for number in np.unique(of).tolist():
            mine = np.flatnonzero(of == number)
            answers[mine] = parts[number].ask(place[signals[mine]])
        return answers

    return Signals(
        bar=bar[order],
        column=column[order],
        side=side[order],
        threshold=threshold[order],
        model=model[order],
        features=np.concatenate([part.features[part.row] for part in parts]),
        row=order,
        ask=ask,
    )

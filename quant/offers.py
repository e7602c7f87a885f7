"""Signals that an account is played by, and what of them its bars need: `quant.simulation`.

To ask a model costs more than all the rest, so it is asked where an entry can come of it: when the account may enter,
and only about signals that no rule refuses which needs no probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quant.engine import EngineSpec
from quant.schema import FeatureSchema

ROW_REFUSALS = ("SHORT_NOT_ALLOWED", "ATR_TOO_LARGE", "REGIME")
"""What `quant.engine.entry_rules` has against a signal whatever its probability, in the order in which it is asked."""
ASKED_AT_ONCE = 64
"""Signals of a model in one question, at least: the question itself costs as much as twenty of them."""

Ask = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Primary signals, k of them, in order of ``bar``, those of a bar in order of ``column``, each at most once.

    ``bar`` and ``column`` int64[k] place them in the panel; ``side`` int8[k]; ``threshold`` float64[k]. Their features
    are ``features[row]``, float32[n, F] and int64[k]. ``ask(signals: int64[m])`` returns the probability of those with
    these indices, float64[m], NaN where the model cannot tell; it does not depend on what else is asked.
    ``model`` int64[k] is the number of the model that speaks (None: they are of number 0). ``promised_precision`` maps
    every model that is held to the share of its trades that it said would pay.
    """

    bar: NDArray[np.int64]
    column: NDArray[np.int64]
    side: NDArray[np.int8]
    threshold: NDArray[np.float64]
    features: NDArray[np.float32]
    row: NDArray[np.int64]
    ask: Ask
    model: NDArray[np.int64] | None = None
    promised_precision: Mapping[int, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in ("column", "side", "threshold", "row", "model"):
            values = getattr(self, each)
            if values is not None and len(values) != len(self.bar):
                raise ValueError(f"{each} has {len(values)} rows and bar {len(self.bar)}: one per signal")
        later = np.diff(self.bar)
        if np.any(later < 0):
            raise ValueError("bar goes backwards; signals come in order of their bars")
        if np.any(np.diff(self.column)[later == 0] <= 0):
            raise ValueError("column goes backwards or repeats in a bar; a symbol has one signal there, in order")

    def __len__(self) -> int:
        return len(self.bar)


@dataclass(kw_only=True)
class Offers:
    """The signals of a run, by their indices, for bars that are played in order."""

    signals: Signals
    spec: EngineSpec
    schema: FeatureSchema
    _answered: int = field(default=0, init=False)

    @cached_property
    def refusal(self) -> NDArray[np.int8]:
        """Which of `ROW_REFUSALS` is against each signal, counted from 1, int8[k]; 0: none of them."""
        widest = max(self.spec.label.stop_loss, self.spec.label.profit_take)
        regime, ratio, adx = self.spec.regime, self._values("volatility_ratio"), self._values("adx_14")
        calm = (ratio >= regime.min_volatility_ratio) & (ratio <= regime.max_volatility_ratio)
        found = np.where(calm & (adx >= regime.min_adx), 0, 3).astype(np.int8)
        found[widest * self._values("atr_pct") >= 1] = 2
        if not self.spec.allow_short:
            found[self.signals.side < 0] = 1
        return found

    def _values(self, name: str) -> NDArray[np.float64]:
        """A feature of each signal, as the engine compares it: float64[k]."""
        return self.signals.features[self.signals.row, self.schema.index(name)].astype(np.float64)

    def features(self, signals: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return their features, float32[m, F]."""
        return self.signals.features[self.signals.row[signals]]

    def probability(self, signals: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the probability of signals of one bar, float64[m], none of which has a refusal.

        Asks about those of the next bars as well, as far as one question is too small for what it costs.
        """
        if len(signals) and signals[-1] >= self._answered:
            first, bar = int(signals[0]), self.signals.bar
            least = first + ASKED_AT_ONCE * max(len(self.signals.promised_precision), 1)
            last = int(bar[min(least, len(bar)) - 1])
            self._answered = int(np.searchsorted(bar, last, side="right"))
            asked = first + np.flatnonzero(self.refusal[first : self._answered] == 0)
            self._probabilities[asked] = self.signals.ask(asked)
        return self._probabilities[signals]

    @cached_property
    def _probabilities(self) -> NDArray[np.float64]:
        return np.full(len(self.signals), np.nan)

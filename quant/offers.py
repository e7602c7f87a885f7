"""Signals that an account is played by, and what of them is known before it is: `quant.simulation`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quant.engine import EngineSpec, entry_rules, usable_rows
from quant.panel import Panel
from quant.schema import FeatureSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Signals that reach their threshold, k of them: what a model would trade.

    They come in order of ``bar``, those of a bar in order of ``column``, each at most once.

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
        later = np.diff(self.bar)
        if np.any(later < 0):
            raise ValueError("bar goes backwards; signals come in order of their bars")
        if np.any(np.diff(self.column)[later == 0] <= 0):
            raise ValueError("column goes backwards or repeats in a bar; a symbol has one signal there, in order")

    def __len__(self) -> int:
        return len(self.bar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """Signals as a bar needs them, laid out once for all the bars of a run.

    ``column`` as in `Signals`. ``plain`` tells whether a row can be priced and has a probability, and ``against(row)``
    what is wrong with a plain one whatever the account holds. Of ``atr_pct`` and ``volatility`` float64[k].
    ``plain_before`` counts the plain ones before each row, and before the end.
    """

    signals: Signals
    column: list[int]
    plain: list[bool]
    plain_before: NDArray[np.int64]
    against: Callable[[int], str | None]
    atr_pct: NDArray[np.float64]
    volatility: NDArray[np.float64]

    @classmethod
    def of(cls, signals: Signals, *, panel: Panel, spec: EngineSpec, schema: FeatureSchema) -> Offers:
        """Lay out ``signals`` of ``panel``."""
        features = signals.features
        atr_pct = features[:, schema.index("atr_pct")].astype(np.float64)
        close = panel.close[signals.bar, signals.column]
        known = np.isfinite(signals.probability) & (signals.side != 0)
        plain = known & usable_rows(features=features, close=close, atr_pct=atr_pct)
        return cls(
            signals=signals,
            column=signals.column.tolist(),
            plain=plain.tolist(),
            plain_before=np.concatenate([[0], np.cumsum(plain)]),
            against=entry_rules(
                side=signals.side, atr_pct=atr_pct, probability=signals.probability, threshold=signals.threshold,
                features=features, spec=spec, schema=schema,
            ),
            atr_pct=atr_pct,
            volatility=features[:, schema.index("volatility_24")].astype(np.float64),
        )  # fmt: skip

    def all_plain(self, first: int, last: int) -> bool:
        """Tell whether there are rows ``first <= row < last``, all of them plain."""
        return int(self.plain_before[last] - self.plain_before[first]) == last - first > 0

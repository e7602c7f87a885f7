"""Position size = confidence x volatility target x guard, before the limits of `quant.risk`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quant.timeframes import DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingSpec:
    """``daily_volatility_target``: standard deviation of a position's profit per day as a fraction of equity.

    ``min_confidence`` is the share of the full size that a probability exactly at the threshold gets.
    """

    daily_volatility_target: float = 0.005
    min_confidence: float = 0.5

    def __post_init__(self) -> None:
        if not self.daily_volatility_target > 0:
            raise ValueError(f"daily_volatility_target is {self.daily_volatility_target}; it must be positive")
        if not 0 < self.min_confidence <= 1:
            raise ValueError(f"min_confidence is {self.min_confidence}; it must be in (0, 1]")


def bet_confidence(*, probability: float, threshold: float, min_confidence: float) -> float:
    """Return the share of the full size in [min_confidence, 1] for a probability at or above the threshold.

    López de Prado, Advances in Financial Machine Learning, 10.3: m = 2 Phi(z) - 1 with
    z = (p - p0) / sqrt(p (1 - p)); p0 is the threshold instead of 1/2, since with unequal barriers the point where
    a trade starts to pay is not 1/2. Rises with ``probability``.
    """
    spread = math.sqrt(max(probability * (1.0 - probability), 1e-12))
    bet = math.erf((probability - threshold) / spread / math.sqrt(2.0))  # 2 Phi(z) - 1
    return min_confidence + (1.0 - min_confidence) * min(max(bet, 0.0), 1.0)


def position_notional(
    *,
    equity: float,
    probability: float,
    threshold: float,
    volatility: float,
    bar_ms: int,
    guard: float,
    spec: SizingSpec,
) -> float:
    """Return the notional (quote currency) of a new position; 0.0 when any input makes a size meaningless.

    ``volatility`` is the standard deviation of returns per bar; ``guard`` in [0, 1] scales down when live precision
    falls short of what the model promised.
    """
    inputs = (equity, probability, threshold, volatility, guard)
    if not all(math.isfinite(value) for value in inputs) or equity <= 0 or volatility <= 0:
        return 0.0
    daily_volatility = volatility * math.sqrt(DAY_MS / bar_ms)
    confidence = bet_confidence(probability=probability, threshold=threshold, min_confidence=spec.min_confidence)
    return equity * spec.daily_volatility_target / daily_volatility * confidence * min(max(guard, 0.0), 1.0)

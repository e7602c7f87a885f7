"""Regime filter: market conditions in which no signal is taken. The same function filters training and trading."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.reasons import reason
from quant.schema import FeatureSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class RegimeSpec:
    """Bounds without a unit, so that they mean the same on every timeframe.

    The feature ``volatility_ratio`` compares the last day with the last week: far above 1 is a shock, in which stops
    slip and the barriers (multiples of ATR) lag; far below 1 is a market that has gone to sleep and will not pay the
    costs. ``min_adx`` refuses markets without any trend (Wilder's ADX, 0 to 100).
    """

    min_volatility_ratio: float = 0.25
    max_volatility_ratio: float = 4.0
    min_adx: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_volatility_ratio < self.max_volatility_ratio:
            raise ValueError(
                f"min_volatility_ratio is {self.min_volatility_ratio} and max_volatility_ratio "
                f"{self.max_volatility_ratio}; they must satisfy 0 <= min < max"
            )
        if not 0 <= self.min_adx < 100:
            raise ValueError(f"min_adx is {self.min_adx}; ADX runs from 0 to 100 and the bound must be below 100")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def regime_allows(*, features: NDArray[np.float32], schema: FeatureSchema, spec: RegimeSpec) -> NDArray[np.bool_]:
    """Return for each row of ``features`` (float32[..., F]) whether its regime may be traded. NaN: no."""
    ratio, adx = _columns(features, schema)
    return (ratio >= spec.min_volatility_ratio) & (ratio <= spec.max_volatility_ratio) & (adx >= spec.min_adx)


def regime_values(features: NDArray[np.float32], schema: FeatureSchema) -> list[tuple[float, float]]:
    """Return (volatility ratio, ADX) of each row of ``features`` (float32[n, F])."""
    ratio, adx = _columns(features, schema)
    return list(zip(ratio.tolist(), adx.tolist(), strict=True))


def regime_reason(ratio: float, adx: float, *, spec: RegimeSpec) -> str | None:
    """Return why a regime (see `regime_values`) may not be traded, or None."""
    if not spec.min_volatility_ratio <= ratio <= spec.max_volatility_ratio:
        return reason(
            "REGIME", volatility_ratio=ratio, minimum=spec.min_volatility_ratio, maximum=spec.max_volatility_ratio
        )
    if not adx >= spec.min_adx:
        return reason("REGIME", adx=adx, minimum=spec.min_adx)
    return None


def _columns(features: NDArray[np.float32], schema: FeatureSchema) -> tuple[NDArray[np.float64], ...]:
    """As float64: beside a float32 NumPy would round a bound such as 0.3, and a bot and a training differ by a bit."""
    return tuple(features[..., schema.index(name)].astype(np.float64) for name in ("volatility_ratio", "adx_14"))

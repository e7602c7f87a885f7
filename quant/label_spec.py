"""What a trade is: barriers, horizon and costs. Web code may import this module: it needs neither numba nor numpy."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_BASIS_POINT = 1e-4
VERSION = 2
"""Of the rules by which a trade ends. 1: a target that is touched is filled; 2: the price must trade through it."""


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """What a trade is. Barriers in ATRs of the decision bar, horizon in bars, costs per side in basis points.

    ``maker_fee_bps`` is all that a fill at the target costs (`quant.fills`); ``version`` that of the rules, so that a
    model which learnt by others is not compatible (I12).
    """

    profit_take: float = 2.0
    stop_loss: float = 1.5
    horizon: int = 24
    fee_bps: float = 5.5
    half_spread_bps: float = 1.0
    slippage_bps: float = 1.0
    maker_fee_bps: float = 2.0
    version: int = VERSION

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            positive = field.name in ("profit_take", "stop_loss", "horizon")
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                rule = "above zero" if positive else "zero or more"
                raise ValueError(f"label {field.name} is {value}; it must be a finite number {rule}")
        if int(self.horizon) != self.horizon:
            raise ValueError(f"label horizon is {self.horizon}; it must be a whole number of bars")

    @property
    def cost_per_side(self) -> float:
        """Costs of one fill by a market order or a stop, as a fraction of its notional."""
        return (self.fee_bps + self.half_spread_bps + self.slippage_bps) * _BASIS_POINT

    @property
    def target_cost(self) -> float:
        """Costs of the fill of the resting order at the target, as a fraction of its notional."""
        return self.maker_fee_bps * _BASIS_POINT

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSpec:
        """Rebuild from ``to_dict``; what names no version is of the first. Raises ValueError for unknown fields."""
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"label spec has unknown fields {sorted(unknown)}; remove them")
        return cls(**{"version": 1, **data})

    @property
    def hash(self) -> str:
        """The sha256 (hex) of the fields; 24 and 24.0 bars are one spec."""
        normal = {name: float(value) for name, value in self.to_dict().items()}
        return hashlib.sha256(json.dumps(normal, sort_keys=True).encode()).hexdigest()

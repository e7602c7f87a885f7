"""Promotion gates: what a challenger must show on data it has not seen before it may trade."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GateBounds:
    """Bounds of the gates, all judged on the unseen test window.

    ``min_t_stat`` is the confidence, as a t-statistic over blocks of time, with which the model must beat the base
    rate and with which trades taken at the threshold must earn money. ``max_champion_t_stat`` is how far below the
    champion the challenger may be before that counts as more than noise.
    """

    min_trades: int = 30
    min_t_stat: float = 2.0
    max_calibration_error: float = 0.10
    max_champion_t_stat: float = 1.0

    def __post_init__(self) -> None:
        if self.min_trades < 2:
            raise ValueError(f"min_trades is {self.min_trades}; a mean needs at least 2 trades")
        for name in ("min_t_stat", "max_calibration_error", "max_champion_t_stat"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate: measured value, the bound it was held against, the verdict, and a sentence for a person."""

    name: str
    value: float
    bound: float
    passed: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

"""Platt scaling: raw scores to probabilities by two numbers, so that an artifact needs no scikit-learn to load."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PlattCalibration:
    """p = 1 / (1 + exp(-(slope * raw + intercept))); ``slope`` is never negative."""

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept) and self.slope >= 0):
            raise ValueError(
                f"slope is {self.slope} and intercept {self.intercept}; both must be finite and the slope not negative"
            )

    def apply(self, raw: Float) -> Float:
        """Map raw scores (log odds), float64[n], to probabilities, float64[n]."""
        return _sigmoid(self.slope * raw + self.intercept)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def _sigmoid(z: Float) -> Float:
    e = np.exp(-np.abs(z))  # exp of a negative number only: no overflow for any finite score
    return np.where(z >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def fit_platt(raw: Float, y: NDArray[np.int8], weight: Float | None = None) -> PlattCalibration:
    """Fit slope and intercept by Newton's method on scores that the trees did not see (Platt 1999, his smoothing).

    ``raw``: float64[n] log odds; ``y``: 0 or 1; ``weight``: float64[n] >= 0. A fit that would turn the order of the
    scores round means that they carry no skill: the slope becomes 0 and every probability the base rate.
    Raises ValueError when a class is missing.
    """
    weight = np.ones(len(raw)) if weight is None else weight
    positive, negative = float(np.sum(weight[y == 1])), float(np.sum(weight[y == 0]))
    if positive <= 0 or negative <= 0:
        raise ValueError(f"weights of the classes are {positive} and {negative}; calibration needs samples of both")
    # Platt's targets: shrunk towards 1/2, so that separable scores do not drive the slope to infinity.
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    total = positive + negative
    base = float(np.sum(weight * target) / total)
    flat = PlattCalibration(slope=0.0, intercept=math.log(base / (1 - base)))
    # Standardised scores keep the Hessian well conditioned; the solution is mapped back at the end.
    center = float(np.sum(weight * raw) / total)
    scale = math.sqrt(float(np.sum(weight * (raw - center) ** 2)) / total)
    if scale < 1e-12:
        return flat
    x = (raw - center) / scale
    slope, intercept = 0.0, flat.intercept
    for _ in range(100):
        p = _sigmoid(slope * x + intercept)
        gradient = weight * (p - target)
        curvature = weight * p * (1 - p)
        g = np.array([np.sum(gradient * x), np.sum(gradient)])
        h = np.array(
            [
                [np.sum(curvature * x * x) + 1e-9 * total, np.sum(curvature * x)],
                [np.sum(curvature * x), np.sum(curvature) + 1e-9 * total],
            ]
        )
        move = np.linalg.solve(h, g)
        move *= min(1.0, 2.0 / max(float(np.max(np.abs(move))), 1e-12))  # bounded step: safe far from the optimum
        slope, intercept = slope - float(move[0]), intercept - float(move[1])
        if np.max(np.abs(move)) < 1e-10:
            break
    if slope <= 0:
        return flat
    return PlattCalibration(slope=slope / scale, intercept=intercept - slope * center / scale)

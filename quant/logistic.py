"""A logistic regression beside the trees, and their blend in log odds: what is linear should not cost a tree.

Fitting imports scikit-learn; what is fitted is a few numbers, which score without it.

The rules of its inputs:

- Standardised by mean and standard deviation of the rows that it is fitted on, so of development data only, and cut off
  at `CUT` standard deviations: a line goes on for ever, and a crash must not become a certainty.
- **A missing value is 0 after scaling**: the mean of the development data, which adds nothing to the log odds. A column
  beside it that says "missing" is not needed: a feature is missing for all of a symbol's life or not at all (a row
  without a feature that every symbol had is not predicted), so it would only name the symbol, and the trees know that.
- The symbol is no input: its code is no quantity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.calibration import fit_platt
from quant.metrics import log_losses

BLENDS = ("none", "logistic")
CUT = 5.0
REGULARISATION = 1.0
"""The inverse strength C of the L2 penalty: scikit-learn's own default, weak for thousands of samples."""
MOST_ROWS = 200_000
"""More rows make a handful of coefficients no better; every k-th of them is taken."""
WEIGHTS = tuple(step / 10 for step in range(11))
"""The shares of the logistic regression that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticBaseline:
    """log odds = intercept + sum of coefficient x standardised feature, F of each; ``weight`` is its share in a blend.

    Raises ValueError for numbers that make no sense.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    weight: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.scale) == len(self.coefficients):
            raise ValueError(
                f"{len(self.mean)} means, {len(self.scale)} scales and {len(self.coefficients)} coefficients: one each"
            )
        numbers = (*self.mean, *self.scale, *self.coefficients, self.intercept)
        if not all(math.isfinite(number) for number in numbers) or not all(scale > 0 for scale in self.scale):
            raise ValueError("every number of a logistic regression must be finite and every scale above 0")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; a share is from 0 to 1")

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the log odds of float32[n, F], float64[n]. A row's bits do not depend on the rows beside it (I13).

        So feature after feature is added: a matrix product, or NumPy's own sum along an axis, adds in an order that
        depends on the shape.
        """
        z = _standardised(features, np.array(self.mean), np.array(self.scale)).T
        total = np.full(len(features), self.intercept)
        for column, coefficient in enumerate(self.coefficients):
            total += coefficient * z[column]
        return total

    def blend(self, trees: NDArray[np.float64], features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the log odds of trees (float64[n]) and logistic regression together, float64[n]."""
        return mix(trees, self.score(features), self.weight)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LogisticBaseline:
        lists = {name: tuple(float(number) for number in data[name]) for name in ("mean", "scale", "coefficients")}
        return cls(**lists, intercept=float(data["intercept"]), weight=float(data["weight"]))


def mix(trees: NDArray[np.float64], logistic: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """Return the weighted mean of two log odds; ``weight`` is the share of the second."""
    return np.asarray((1.0 - weight) * trees + weight * logistic)


def _standardised(
    features: NDArray[np.float32], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    z = (features.astype(np.float64) - mean) / scale
    z[np.isnan(z)] = 0.0
    return np.asarray(np.clip(z, -CUT, CUT))


def fit_logistic(features: NDArray[np.float32], y: NDArray[np.int8], weight: NDArray[np.float64]) -> LogisticBaseline:
    """Fit on features float32[n, F] (NaN: missing), y 0 or 1, weights float64[n] >= 0; its share in a blend is 0 yet.

    Deterministic: Newton's method from zero on one thread. Raises ValueError when a class is missing.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # of scikit-learn: several threads would add in another order

    thin = slice(None, None, -(-len(features) // MOST_ROWS))
    rows = features[thin].astype(np.float64)
    known = np.isfinite(rows)
    rows[~known] = 0.0
    counts = np.maximum(known.sum(axis=0), 1)
    mean = rows.sum(axis=0) / counts
    spread = np.sqrt(np.where(known, (rows - mean) ** 2, 0.0).sum(axis=0) / counts)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    scale = np.where(varies, spread, 1.0)
    z = _standardised(features[thin], mean, scale) * varies  # a constant of the development data says nothing later
    model = LogisticRegression(C=REGULARISATION, solver="newton-cholesky", max_iter=100, tol=1e-6)
    with threadpool_limits(limits=1):
        model.fit(z, y[thin], sample_weight=weight[thin])
    return LogisticBaseline(
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        coefficients=tuple(np.where(varies, model.coef_[0], 0.0).tolist()),
        intercept=float(model.intercept_[0]),
    )


def choose_weight(
    trees: NDArray[np.float64], logistic: NDArray[np.float64], y: NDArray[np.int8], weight: NDArray[np.float64]
) -> float:
    """Return the share of the logistic regression whose blend, once calibrated, has the least log loss.

    ``trees`` and ``logistic`` are log odds of samples that neither has seen; of equals the smallest share wins, since
    the trees are what is tuned and watched.
    """

    def loss(share: float) -> float:
        raw = mix(trees, logistic, share)
        return float(np.average(log_losses(y, fit_platt(raw, y, weight).apply(raw)), weights=weight))

    return min(WEIGHTS, key=loss)

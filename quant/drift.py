"""Do the features still look as they did in training? Histograms and the population stability index (PSI).

``PSI = sum_b (p_b - q_b) ln(p_b / q_b)`` over the bins of a feature, p now and q in training: the symmetric
Kullback-Leibler divergence (Jeffreys 1946). Above 0.25 a population is usually said to have shifted (Siddiqi 2006,
*Credit Risk Scorecards*). That rule alone would call nearly every month of a market a shift, because a month shows one
regime of its slow features. So a feature counts as drifted only if its PSI is also

- above what the noise of the samples explains: without a drift, PSI / (1/n + 1/N) is about chi-squared with bins - 1
  degrees of freedom (Yurdakul and Naranjo 2020, *Statistical properties of the population stability index*), and
- well above every window of the same length inside the training data, each compared with all the others. A slow feature
  whose windows differ that much among themselves is not judged at all: it is a point in every window.

Measured on simulated markets (6 symbols, 120 and 420 days of 1 h, 80 models that no bound was chosen on): without
a change 2 of 80 asked for a training in their first week; within a month 2 of the 40 of 420 days and 6 of the 40 young
ones. With moves three times as large 63 of 80 did within a month, with twice 33. docs/drift.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
STRONG = 0.25
NOISE_DEVIATIONS = 3.0
MIN_SHARE = 1e-4
"""A bin that is empty on one side counts as this share, so that the index stays finite."""
MOST_SAMPLES = 50_000
"""More of them change no bin that matters, and a training should not wait for its histograms."""
MIN_WINDOWS = 6
"""With fewer windows in the training data nobody knows what is usual."""
USUAL_FACTOR = 3.5
MOST_USUAL = 1.0
"""A drift is that many times the largest PSI of a window in training, and with more than the latter nobody can tell."""
DRIFTED_SHARE, LEAST_DRIFTED = 0.1, 3
"""So many of the features must have drifted for the model as a whole: some are near copies of each other."""
POOL_MODELS, POOL_SHARE, POOL_FACTOR, POOL_FLOOR = 5, 0.5, 2.0, 0.1
"""Models of one symbol each judge their market together, from five on: a feature has drifted for at least half of those
that know what is usual, each beyond twice that and beyond what no sample is without."""

Shares = NDArray[np.float64]


def population_stability(now: Shares, before: Shares) -> float:
    """Return the PSI of two lists of shares of the same bins, >= 0, and 0.0 exactly for equal ones."""
    p, q = np.maximum(now, MIN_SHARE), np.maximum(before, MIN_SHARE)
    return float(np.sum((p - q) * np.log(p / q)))


def psi_noise(n: int, reference: int, *, bins: int) -> float:
    """Return a PSI that ``n`` independent samples of the same population hardly reach: mean + 3 standard deviations.

    Infinite without samples.
    """
    if n <= 0 or reference <= 0:
        return math.inf
    free = bins - 1
    return (1.0 / n + 1.0 / reference) * (free + NOISE_DEVIATIONS * math.sqrt(2.0 * free))


def make_reference(
    features: NDArray[np.float32], names: tuple[str, ...], time: NDArray[np.int64], *, window: int
) -> dict[str, Any]:
    """Return what the features (float32[n, F]) of a training looked like, as plain numbers for JSON.

    ``time`` int64[n] ascends, in bars; ``window`` is the length in bars of the windows whose usual PSI is measured.
    Bins are deciles (fewer where values repeat) and one for what is missing. The same samples give the same numbers.
    """
    if len(features) == 0 or window <= 0:
        raise ValueError(f"{len(features)} samples and a window of {window} bars: a reference needs some of both")
    stride = -(-len(features) // MOST_SAMPLES)
    features, time = features[::stride], time[::stride]
    group = ((time - time[0]) // window).astype(np.int64)
    groups = int(group[-1]) + 1
    described = {}
    for column, name in enumerate(names):
        values = features[:, column]
        edges = _edges(values)
        bins = len(edges) + 2
        counts = np.bincount(group * bins + _bin(values, edges), minlength=groups * bins).reshape(groups, bins)
        total = counts.sum(axis=0)
        described[name] = {
            "edges": edges.tolist(),
            "shares": [round(share, 6) for share in (total / len(values)).tolist()],
            "usual": _usual(counts, total),
        }
    return {"samples": len(features), "window": window, "features": described}


def window_of(span: int, longest: int) -> int:
    """Return the length of the windows of a training that spans ``span`` bars: ``longest``, or a twelfth if shorter."""
    return max(1, min(longest, span // (2 * MIN_WINDOWS)))


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """``missing`` is the share without a value, now and in the training.

    ``bound`` is what the PSI must exceed: infinite where the training does not say what is ``usual``.
    """

    name: str
    psi: float
    bound: float
    missing: float
    missing_before: float
    usual: float | None = None

    @property
    def drifted(self) -> bool:
        return self.psi > self.bound

    @property
    def judged(self) -> bool:
        return math.isfinite(self.bound)


@dataclass(frozen=True, slots=True)
class Drift:
    """The drifted features first, then by PSI, largest first; ``judged_features`` have a bound.

    Not ``judged``: too few samples now, or too little history to compare with.
    """

    samples: int
    judged: bool
    features: tuple[FeatureDrift, ...]

    @property
    def judged_features(self) -> int:
        return sum(each.judged for each in self.features)

    @property
    def drifted(self) -> tuple[FeatureDrift, ...]:
        return tuple(each for each in self.features if each.drifted) if self.judged else ()

    @property
    def strong(self) -> bool:
        """Whether so many features drifted that the model was trained for another market."""
        return _many(len(self.drifted), self.judged_features)


def _many(drifted: int, judged: int) -> bool:
    return drifted >= max(LEAST_DRIFTED, math.ceil(DRIFTED_SHARE * judged))


@dataclass(frozen=True, slots=True)
class PooledDrift:
    """What models of one symbol each say of their market together.

    ``shares`` maps each feature that at least `POOL_MODELS` of them can judge to the share for which it drifted.
    """

    models: int
    shares: Mapping[str, float]

    @property
    def drifted(self) -> tuple[str, ...]:
        """The drifted features, those first that drifted for most models."""
        found = [name for name, share in self.shares.items() if share >= POOL_SHARE]
        return tuple(sorted(found, key=lambda name: (-self.shares[name], name)))

    @property
    def strong(self) -> bool:
        return _many(len(self.drifted), len(self.shares))


def pool_drifts(drifts: Iterable[Drift]) -> PooledDrift:
    """Let models of one symbol each vote, feature by feature, on whether their market is another one.

    A month brings such a model too few signals to be sure of anything alone: its bound is far above what three times
    the moves do. But what is chance for one symbol is not for half of them on the same days. Each model compares with
    its own training, so symbols of any volatility vote alike.
    """
    votes: dict[str, list[bool]] = {}
    models = 0
    for drift in drifts:
        models += 1
        for each in drift.features:
            if each.usual is not None:
                votes.setdefault(each.name, []).append(each.psi > max(POOL_FLOOR, POOL_FACTOR * each.usual))
    shares = {name: sum(each) / len(each) for name, each in votes.items() if len(each) >= POOL_MODELS}
    return PooledDrift(models=models, shares=shares)


def measure_drift(features: NDArray[np.float32], names: tuple[str, ...], reference: Mapping[str, Any]) -> Drift:
    """Compare later rows (float32[n, F]) with a reference. A feature that the reference lacks is left out."""
    n, found = len(features), []
    noise = psi_noise(n, int(reference.get("samples", 0)), bins=BINS + 1)
    for column, name in enumerate(names):
        described = reference.get("features", {}).get(name)
        if described is None or n == 0:
            continue
        before = np.array(described["shares"])
        edges = np.array(described["edges"])
        now = np.bincount(_bin(features[:, column], edges), minlength=len(before)) / n
        usual = described["usual"]
        known = usual is not None and usual <= MOST_USUAL
        found.append(
            FeatureDrift(
                name=name,
                psi=population_stability(now, before),
                bound=max(STRONG, noise, USUAL_FACTOR * usual) if known else math.inf,
                missing=float(now[-1]),
                missing_before=float(before[-1]),
                usual=usual,
            )
        )
    judged = noise <= STRONG and any(each.judged for each in found)
    return Drift(n, judged, tuple(sorted(found, key=lambda each: (not each.drifted, -each.psi, each.name))))


def _edges(values: NDArray[np.float32]) -> Shares:
    """Return the inner edges of the bins, at most nine, ascending; six digits, as they are stored."""
    present = values[np.isfinite(values)]
    if len(present) == 0:
        return np.empty(0)
    quantiles = np.quantile(present, np.linspace(0.0, 1.0, BINS + 1)[1:-1])
    return np.unique([float(f"{value:.6g}") for value in quantiles.tolist()])


def _bin(values: NDArray[np.float32], edges: Shares) -> NDArray[np.int64]:
    """Return the bin of each value; the last one is for what is missing."""
    where = np.searchsorted(edges, values, side="left")
    return np.where(np.isfinite(values), where, len(edges) + 1)


def _usual(counts: NDArray[np.int64], total: NDArray[np.int64]) -> float | None:
    """Return the largest PSI of a window against all others; None with too few windows that can be judged."""
    found = []
    for window in counts:
        n, rest = int(window.sum()), int(total.sum() - window.sum())
        if psi_noise(n, rest, bins=BINS + 1) <= STRONG:
            found.append(population_stability(window / n, (total - window) / rest))
    return round(max(found), 6) if len(found) >= MIN_WINDOWS else None

"""How sure a Sharpe ratio is, and what is left of it after the number of tries that found it.

Every function takes returns per period (a day, a bar) and gives ratios per period; multiply by the square root of the
periods in a year to annualise. No SciPy: web code may import this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_NORMAL = NormalDist()
_EULER_MASCHERONI = 0.5772156649015329
_CONSTANT = 1e-12
"""Returns that differ by less than this share of their size are constant but for rounding."""
_LEAST_FOR_VARIANCE = 5


@dataclass(frozen=True, slots=True)
class SharpeRatio:
    """A Sharpe ratio per period with the moments that decide how sure it is.

    ``skew`` and ``kurtosis`` (3 for a normal distribution) are the bias-corrected sample moments; ``n`` counts periods.
    """

    value: float
    skew: float
    kurtosis: float
    n: int

    @property
    def standard_error(self) -> float:
        """Of the ratio (Mertens 2002; Bailey and López de Prado 2012, eq. 4): fat tails and losses' skew widen it."""
        variance = 1.0 - self.skew * self.value + (self.kurtosis - 1.0) / 4.0 * self.value**2
        return math.sqrt(max(variance, 0.0) / (self.n - 1))


def sharpe_ratio(returns: Float) -> SharpeRatio | None:
    """Return the ratio of mean and standard deviation of float64[n]; None where there is none.

    There is none for fewer than four periods (no kurtosis) and for constant returns, which are no evidence of skill.
    Raises ValueError for returns that are not finite.
    """
    returns = np.asarray(returns, dtype=np.float64)
    if not np.isfinite(returns).all():
        raise ValueError("returns hold NaN or infinity; leave out the periods that have no return")
    n = len(returns)
    if n < 4:
        return None
    mean = float(returns.mean())
    deviation = returns - mean
    spread = float(np.sqrt(np.mean(deviation**2)))
    if spread <= _CONSTANT * max(float(np.abs(returns).max()), _CONSTANT):
        return None
    scaled = deviation / spread
    third, fourth = float(np.mean(scaled**3)), float(np.mean(scaled**4))
    skew = third * math.sqrt(n * (n - 1)) / (n - 2)
    kurtosis = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * fourth - 3 * (n - 1)) + 3
    return SharpeRatio(value=mean / spread, skew=skew, kurtosis=kurtosis, n=n)


def probabilistic_sharpe(ratio: SharpeRatio, *, benchmark: float = 0.0) -> float:
    """Return the probability that the true ratio exceeds ``benchmark`` (Bailey and López de Prado 2012, eq. 7)."""
    error = ratio.standard_error
    if error == 0.0:
        return float(ratio.value > benchmark)
    return _NORMAL.cdf((ratio.value - benchmark) / error)


def expected_best_sharpe(*, trials: int, variance: float) -> float:
    """Return the ratio that the best of ``trials`` tries without skill is expected to show.

    ``variance`` is that of the ratios among the tries, per period. Extreme-value approximation of Bailey and López de
    Prado 2014 (The Deflated Sharpe Ratio), eq. 6. Raises ValueError for fewer than one try or a negative variance.
    """
    if trials < 1 or not variance >= 0:
        raise ValueError(f"trials is {trials} and variance {variance}; there is at least one try, and variance is >= 0")
    if trials == 1:
        return 0.0
    best = (1 - _EULER_MASCHERONI) * _NORMAL.inv_cdf(1 - 1 / trials)
    best += _EULER_MASCHERONI * _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * best


@dataclass(frozen=True, slots=True)
class Trials:
    """How many tries a window has been looked at with, this one included, and the variance of their ratios.

    Which tries count (Bailey and López de Prado 2014: all that were made before the one that is shown was picked):
    every model that was judged on a window that overlaps this one, whatever became of it; this one; and ``tuning``, the
    completed trials of its own search for hyper-parameters. These were compared out of fold and none saw the window, so
    counting each like a look at it is strict: they are alike, and tries that are alike find less luck. Not counted are
    trials that were cut off, of an earlier attempt of the run, which nothing was picked from, and of the searches for
    earlier models: of each the one that was picked looked at the window, and is counted.

    Without a ``variance`` that of the judged ratio's own estimate is taken: tries that differ by luck only. The trials
    of a search never set it. They share data and most of their trees, so theirs is small, and would make a gate easier
    the more of them there were.
    """

    count: int = 1
    variance: float | None = None
    tuning: int = 0

    @classmethod
    def of(cls, ratios: Sequence[float | None], *, tuning: int = 0) -> Trials:
        """Return the tries before this one, by their ratios per period; fewer than five of them show no variance.

        None: a try that took no trade, and so has no ratio. It is a look, but says nothing of how far ratios scatter:
        as a zero it would make luck look small, and nine idle models would let the tenth pass by luck six times as
        often (measured on returns without skill: 5.6 % of the looks that traded against 0.7 %).
        """
        known = [ratio for ratio in ratios if ratio is not None]
        variance = float(np.var(known)) if len(known) >= _LEAST_FOR_VARIANCE else None
        return cls(count=len(ratios) + 1 + tuning, variance=variance, tuning=tuning)


def deflated_sharpe(ratio: SharpeRatio, trials: Trials) -> float:
    """Return the probability that the true ratio exceeds what the best of so many lucky tries would show.

    Bailey and López de Prado 2014, eq. 9. With one try it is `probabilistic_sharpe`.
    """
    variance = ratio.standard_error**2 if trials.variance is None else trials.variance
    return probabilistic_sharpe(ratio, benchmark=expected_best_sharpe(trials=trials.count, variance=variance))


def least_track_record(ratio: SharpeRatio, *, benchmark: float = 0.0, confidence: float = 0.95) -> float:
    """Return after how many periods a ratio like this one would exceed ``benchmark`` with ``confidence``.

    Infinite when it does not exceed it at all. Bailey and López de Prado 2012, eq. 11.
    """
    if ratio.value <= benchmark:
        return math.inf
    variance = ratio.standard_error**2 * (ratio.n - 1)
    return 1 + variance * (_NORMAL.inv_cdf(confidence) / (ratio.value - benchmark)) ** 2


def probability_of_overfitting(returns: Float, *, blocks: int = 16) -> float:
    """Return how often the best of several strategies is below their median where it was not chosen.

    ``returns`` is float64[strategies, periods]. Combinatorially symmetric cross-validation: of ``blocks`` contiguous
    blocks every half is once the place where the best Sharpe ratio is chosen, and the rest where it is ranked. 0.5 is
    what choosing among strategies without skill gives. Bailey, Borwein, López de Prado and Zhu 2017 (The Probability
    of Backtest Overfitting), section 3. Raises ValueError for fewer than two strategies, an odd number of blocks, or
    fewer periods than blocks.
    """
    returns = np.asarray(returns, dtype=np.float64)
    if returns.ndim != 2 or returns.shape[0] < 2 or blocks < 2 or blocks % 2 or returns.shape[1] < blocks:
        raise ValueError(
            f"returns has shape {returns.shape} and blocks is {blocks}; it needs two strategies or more, an even "
            "number of blocks, and a period for each block"
        )
    if not np.isfinite(returns).all():
        raise ValueError("returns hold NaN or infinity; every strategy needs a return (0 without a trade) per period")
    # The Sharpe ratio of any union of blocks follows from each block's count, sum and sum of squares. Shifting by the
    # overall mean keeps the squares from drowning the spread.
    shift = returns.mean(axis=1, keepdims=True)
    parts = np.array_split(returns - shift, blocks, axis=1)
    count = np.array([part.shape[1] for part in parts])
    total = np.stack([part.sum(axis=1) for part in parts], axis=1)
    squares = np.stack([(part**2).sum(axis=1) for part in parts], axis=1)
    below = combos = 0
    for chosen in combinations(range(blocks), blocks // 2):
        inside = np.zeros(blocks, dtype=bool)
        inside[list(chosen)] = True
        scores = [_ratios(shift[:, 0], count[half], total[:, half], squares[:, half]) for half in (inside, ~inside)]
        best = int(np.argmax(scores[0]))
        worse, equal = np.sum(scores[1] < scores[1][best]), np.sum(scores[1] == scores[1][best])
        rank = worse + (equal + 1) / 2  # equals share their mean rank
        below += rank < (len(returns) + 1) / 2
        combos += 1
    return below / combos


def _ratios(shift: Float, count: NDArray[np.int64], total: Float, squares: Float) -> Float:
    """Sharpe ratio of each strategy over some blocks; 0 for constant returns, which never win."""
    n = count.sum()
    mean = total.sum(axis=1) / n
    variance = np.maximum(squares.sum(axis=1) / n - mean**2, 0.0)
    level = np.maximum(np.abs(shift + mean), _CONSTANT)
    moving = np.sqrt(variance) > 1e-9 * level
    return np.where(moving, (shift + mean) / np.sqrt(np.where(moving, variance, 1.0)), 0.0)

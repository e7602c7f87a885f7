"""Scores of probabilities and of trades taken by them, with confidence that respects time.

Samples of one bar and of overlapping labels move together, so means are judged over blocks of time, never as if the
samples were independent: 40 symbols of one crash are one observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_CLIP = 1e-12


def log_losses(y: NDArray[np.int8], p: Float) -> Float:
    """Return the log loss of each sample, float64[n]; probabilities are clipped to [1e-12, 1 - 1e-12]."""
    p = np.clip(p, _CLIP, 1.0 - _CLIP)
    return -np.where(y == 1, np.log(p), np.log1p(-p))


def log_loss(y: NDArray[np.int8], p: Float) -> float:
    """Mean log loss in nats."""
    return float(np.mean(log_losses(y, p)))


def brier_score(y: NDArray[np.int8], p: Float) -> float:
    """Mean squared difference of probability and outcome (Brier 1950)."""
    return float(np.mean((p - y) ** 2))


def roc_auc(y: NDArray[np.int8], p: Float) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney), ties counted half; NaN when one class is missing."""
    positives = int(np.count_nonzero(y == 1))
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    rank_sum = float(np.sum(_ranks(p)[y == 1]))
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def _ranks(values: Float) -> Float:
    """Return the rank of each value from 1, equal values sharing the mean of theirs, float64[n]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - counts + 1 + ends) / 2.0
    return np.asarray(ranks[inverse])


def calibration_error(y: NDArray[np.int8], p: Float, *, bins: int = 10) -> float:
    """Expected calibration error over bins of equal count (Naeini et al. 2015, with equal-mass bins).

    Equal-mass bins, because meta-label probabilities crowd around the base rate and would leave most equal-width
    bins empty. Every bin holds at least one sample; equal probabilities may fall into two bins.
    """
    if len(y) == 0:
        return math.nan
    order = np.argsort(p, kind="stable")
    error = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        error += len(part) * abs(float(np.mean(p[part])) - float(np.mean(y[part])))
    return error / len(y)


def calibration_curve(y: NDArray[np.int8], p: Float, *, bins: int = 10) -> list[dict[str, float]]:
    """Mean probability, share that paid and count per equal-mass bin, for a chart."""
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)))
    return [{"promised": float(np.mean(p[i])), "paid": float(np.mean(y[i])), "samples": len(i)} for i in parts]


@dataclass(frozen=True, slots=True)
class BlockMean:
    """Mean of values with a standard error over blocks of time.

    ``t_stat`` is mean / standard error; 0.0 when there are fewer than two blocks or no variation, since then there is
    no evidence that the mean is not luck.
    """

    mean: float
    standard_error: float
    t_stat: float
    n: int
    blocks: int


def block_mean(values: Float, time: NDArray[np.int64], *, block: int) -> BlockMean:
    """Mean of ``values`` (float64[n]) with the cluster-robust standard error over blocks ``time // block``.

    The ratio estimator of clustered sampling: se = sqrt(B / (B - 1) * sum_b (sum_{i in b} (v_i - mean))^2) / n
    (Cameron and Miller 2015, for a regression on a constant).
    """
    n = len(values)
    if n == 0:
        return BlockMean(mean=math.nan, standard_error=math.nan, t_stat=0.0, n=0, blocks=0)
    mean = float(np.mean(values))
    _, cluster = np.unique(np.asarray(time) // block, return_inverse=True)
    sums = np.bincount(cluster, weights=values - mean)
    blocks = len(sums)
    if blocks < 2:
        return BlockMean(mean=mean, standard_error=math.nan, t_stat=0.0, n=n, blocks=blocks)
    error = math.sqrt(blocks / (blocks - 1) * float(np.sum(sums**2))) / n
    # Residuals of a constant are rounding noise, not evidence: it would show as a huge t.
    t_stat = mean / error if error > 1e-12 * max(abs(mean), 1e-12) else 0.0
    return BlockMean(mean=mean, standard_error=error, t_stat=t_stat, n=n, blocks=blocks)


def skill_over_base_rate(y: NDArray[np.int8], p: Float, time: NDArray[np.int64], *, block: int) -> BlockMean:
    """Mean log loss saved against the window's OWN base rate, in nats: the best constant, known only in hindsight.

    Against the base rate from before the window, a model that happens to promise more than usual looks skilful for as
    long as the whole market drifts that way: in simulated markets with nothing to learn (80 seeds) t had a standard
    deviation of 1.9 and two models were promoted. Against the constant in hindsight it had a mean of -0.9, a standard
    deviation of 0.9, and none. With the level of the model corrected in hindsight as well, t of a nearly constant
    model is anything (standard deviation 2.9): noise of the level is what a tiny signal has to overcome.
    """
    base_rate = float(np.mean(y)) if len(y) else 0.5
    return block_mean(log_losses(y, np.full(len(y), base_rate)) - log_losses(y, p), time, block=block)


def information_coefficient(score: Float, outcome: Float, time: NDArray[np.int64], *, block: int) -> BlockMean:
    """Spearman's rank correlation of ``score`` and ``outcome`` (float64[n]), with its error over blocks of time.

    It is the mean of the products of the standardised ranks, so `block_mean` gives its cluster-robust error (Cameron
    and Miller 2015); the scatter of the ranks themselves is left out, which does not matter where nothing correlates.
    Where either side does not vary there is no correlation: 0, with a t of 0.
    """
    x, y = ((ranks - np.mean(ranks)) for ranks in (_ranks(score), _ranks(outcome)))
    scale = math.sqrt(float(np.mean(x**2)) * float(np.mean(y**2))) if len(score) else 0.0
    return block_mean(x * y / scale if scale > 0 else np.zeros(len(score)), time, block=block)


@dataclass(frozen=True, slots=True)
class TradeStats:
    """Trades with a probability at or above a threshold. ``net_return`` is per trade, a fraction, after costs."""

    trades: int
    precision: float
    net_return: BlockMean


def trades_at_threshold(
    y: NDArray[np.int8],
    p: Float,
    net_return: Float,
    time: NDArray[np.int64],
    *,
    threshold: float,
    block: int,
    allowed: NDArray[np.bool_] | None = None,
) -> TradeStats:
    """Precision and net return of the samples that would be traded; ``allowed`` masks those a regime refuses."""
    taken = p >= threshold
    if allowed is not None:
        taken &= allowed
    trades = int(np.count_nonzero(taken))
    return TradeStats(
        trades=trades,
        precision=float(np.mean(y[taken] == 1)) if trades else math.nan,
        net_return=block_mean(net_return[taken], time[taken], block=block),
    )


def selected_over_all(net_return: Float, taken: NDArray[np.bool_], time: NDArray[np.int64], *, block: int) -> BlockMean:
    """Mean net return of the ``taken`` trades less that of all (float64[n]): what choosing adds to a trade.

    Where every signal pays, any choice of them pays as well; only the difference shows whether the choice knows
    something. The error is that of the difference of two ratios, linearised (Cochran 1977, *Sampling Techniques*, 6.3),
    over blocks of time as in `block_mean`. ``blocks`` counts those in which something was taken. Who takes everything
    chooses nothing: 0, with a t of 0; who takes nothing: NaN, with a t of 0.
    """
    count = int(np.count_nonzero(taken))
    if count == 0:
        return BlockMean(mean=math.nan, standard_error=math.nan, t_stat=0.0, n=0, blocks=0)
    of_all, of_taken = float(np.mean(net_return)), float(np.mean(net_return[taken]))
    influence = taken * (net_return - of_taken) * (len(taken) / count) - (net_return - of_all)
    found = block_mean(of_taken - of_all + influence, time, block=block)
    return replace(found, n=count, blocks=len(np.unique(np.asarray(time)[taken] // block)))


def mean_per_bar(net_return: Float, time: NDArray[np.int64]) -> tuple[Float, NDArray[np.int64]]:
    """Return the mean net return of the trades of each bar with a trade, float64[m], and these bars, int64[m].

    What a bar brings to whoever can hold a few of its trades only, however many signals it has.
    """
    bars, position, count = np.unique(time, return_inverse=True, return_counts=True)
    return np.bincount(position, weights=net_return, minlength=len(bars)) / count, bars


def returns_per_period(
    net_return: Float,
    exit_bar: NDArray[np.int64],
    taken: NDArray[np.bool_],
    *,
    start: int,
    end: int,
    period: int,
) -> Float:
    """Return what the taken trades earned in each period of ``period`` bars from bar ``start`` to ``end``, float64[n].

    In units of one trade's notional, booked when the trade ends; a period in which none ended earned 0. A ratio of
    these does not depend on how large the trades are, as long as all are alike.
    """
    n = max(1, -(-(end - start + 1) // period))
    earned = np.bincount((exit_bar[taken] - start) // period, weights=net_return[taken], minlength=n)
    return earned.astype(np.float64, copy=False)

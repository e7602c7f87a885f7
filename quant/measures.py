"""What a window of samples says of a model, as plain numbers for the row, the page and the report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.metrics import (
    brier_score,
    calibration_error,
    information_coefficient,
    log_loss,
    returns_per_period,
    roc_auc,
    skill_over_base_rate,
    trades_at_threshold,
)
from quant.samples import Samples
from quant.sharpe import probabilistic_sharpe, probability_of_overfitting, sharpe_ratio

OVERFITTING_THRESHOLDS = 12
OVERFITTING_BLOCKS = 10


def daily_returns(
    samples: Samples, probability: NDArray[np.float64], threshold: float, *, day: int
) -> NDArray[np.float64]:
    """Return what the trades at a threshold earned on each day of ``day`` bars, as `returns_per_period`."""
    return returns_per_period(
        samples.net_return,
        samples.t1,
        (probability >= threshold) & samples.allowed,
        start=int(samples.t0.min()),
        end=int(samples.t1.max()),
        period=day,
    )


def threshold_overfitting(samples: Samples, probability: NDArray[np.float64], *, day: int) -> float | None:
    """How often the best of several thresholds is below their median elsewhere; None with too little to say.

    The threshold is the one thing that a run picks by what it earned; about 0.5 means that picking it is luck.
    """
    thresholds = np.unique(np.quantile(probability, np.linspace(0.5, 0.98, OVERFITTING_THRESHOLDS)))
    returns = np.stack([daily_returns(samples, probability, each, day=day) for each in thresholds])
    if len(thresholds) < 2 or returns.shape[1] < OVERFITTING_BLOCKS:
        return None
    return probability_of_overfitting(returns, blocks=OVERFITTING_BLOCKS)


def measure(
    samples: Samples,
    probability: NDArray[np.float64],
    threshold: float,
    *,
    block: int,
    day: int,
    score: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Scores of a window as plain numbers, None where there is none (no trade, one class).

    The Sharpe ratio is per day; ``turnover`` is the notional traded a day in notionals of one trade, both sides.
    ``ic`` is the information coefficient of ``score``, the log odds before calibration: ranks as those of the
    probability, and still ranks where the calibration found no skill and made every probability the same.
    """
    skill = skill_over_base_rate(samples.y, probability, samples.t0, block=block)
    trades = trades_at_threshold(
        samples.y,
        probability,
        samples.net_return,
        samples.t0,
        threshold=threshold,
        block=block,
        allowed=samples.allowed,
    )
    loss = log_loss(samples.y, probability)
    everything = trades_at_threshold(
        samples.y, probability, samples.net_return, samples.t0, threshold=0.0, block=block, allowed=samples.allowed
    )
    daily = daily_returns(samples, probability, threshold, day=day)
    ratio = sharpe_ratio(daily)
    ranks = information_coefficient(
        probability if score is None else score, samples.net_return, samples.t0, block=block
    )
    numbers = {
        "samples": len(samples),
        "blocks": skill.blocks,
        "base_rate": float(np.mean(samples.y)),
        "log_loss": loss,
        "skill": skill.mean,
        "skill_t": skill.t_stat,
        "relative_skill": skill.mean / (loss + skill.mean),
        "brier": brier_score(samples.y, probability),
        "auc": roc_auc(samples.y, probability),
        "ic": ranks.mean,
        "ic_t": ranks.t_stat,
        "ic_error": ranks.standard_error,
        "calibration_error": calibration_error(samples.y, probability),
        "trades": trades.trades,
        "precision": trades.precision,
        "net_return": trades.net_return.mean,
        "net_return_t": trades.net_return.t_stat,
        "net_return_of_all": everything.net_return.mean,
        "turnover": 2 * trades.trades / len(daily),
        "sharpe": math.nan if ratio is None else ratio.value,
        "sharpe_error": math.nan if ratio is None else ratio.standard_error,
        "probabilistic_sharpe": math.nan if ratio is None else probabilistic_sharpe(ratio),
    }
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}

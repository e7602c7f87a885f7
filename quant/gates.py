"""Promotion gates: what a challenger must show on data it has not seen before it may trade."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.metrics import (
    BlockMean,
    block_mean,
    calibration_error,
    log_losses,
    mean_per_bar,
    returns_per_period,
    roc_auc,
    selected_over_all,
    skill_over_base_rate,
    trades_at_threshold,
)
from quant.sharpe import Trials, deflated_sharpe, sharpe_ratio

MIN_BLOCKS = 5
"""With fewer blocks of time a t-statistic is an anecdote: two lucky days give one of any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateBounds:
    """Bounds of the gates, all judged on the unseen test window.

    ``min_t_stat`` is the confidence, as a t-statistic over blocks of time, with which the model must beat the
    window's own base rate (a rival that no model can be and that sees the future, so 1.5 is strict, see
    `quant.metrics.skill_over_base_rate`); ``min_return_t_stat`` that with which trades taken at the threshold must
    earn money, each trade alike and each bar alike; ``min_selection_t_stat`` that with which they must earn more than
    every primary signal would have. ``min_deflated_sharpe`` is the probability that the Sharpe ratio of its days is not
    the luck of having looked at the window several times. ``max_auc`` is what no honest model of a market reaches: more
    means that something from the future is among the features. ``max_champion_t_stat`` is how far below the
    champion the challenger may be before that counts as more than noise. All must hold.
    """

    min_trades: int = 30
    min_t_stat: float = 1.5
    min_return_t_stat: float = 1.0
    min_selection_t_stat: float = 1.5
    min_deflated_sharpe: float = 0.90
    max_calibration_error: float = 0.10
    max_auc: float = 0.80
    max_champion_t_stat: float = 1.0

    def __post_init__(self) -> None:
        if self.min_trades < 2:
            raise ValueError(f"min_trades is {self.min_trades}; a mean needs at least 2 trades")
        for name in (
            "min_t_stat",
            "min_return_t_stat",
            "min_selection_t_stat",
            "max_calibration_error",
            "max_champion_t_stat",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0.5 < self.max_auc <= 1:
            raise ValueError(f"max_auc is {self.max_auc}; it must be above 0.5, which is guessing, and at most 1")
        if not 0 <= self.min_deflated_sharpe < 1:
            raise ValueError(f"min_deflated_sharpe is {self.min_deflated_sharpe}; a probability below 1 can be reached")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class UnseenWindow:
    """Predictions on the unseen window, one row per signal: arrays of length n.

    ``y`` 0 or 1; ``probability`` of the challenger; ``net_return`` per trade after costs; ``time`` of the decision and
    ``exit_time`` of the trade's end in bars; ``allowed`` by the regime filter. ``champion`` holds the champion's
    probability, NaN where it does not cover the symbol or had seen the row's time already; None without a champion.
    """

    y: NDArray[np.int8]
    probability: NDArray[np.float64]
    net_return: NDArray[np.float64]
    time: NDArray[np.int64]
    exit_time: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    champion: NDArray[np.float64] | None = None


def evaluate_gates(
    window: UnseenWindow, *, threshold: float, block: int, day: int, bounds: GateBounds, trials: Trials
) -> tuple[GateResult, ...]:
    """Hold a challenger against every gate; it may be promoted only if all passed.

    ``block`` is the length in bars of the blocks of time over which confidence is judged; it must exceed the label
    horizon, since overlapping labels are one observation. ``day`` is the length in bars of a period of the Sharpe
    ratio; ``trials`` says how often the window has been looked at and how many models the challenger was picked from.
    """
    skill = skill_over_base_rate(window.y, window.probability, window.time, block=block)
    trades = trades_at_threshold(
        window.y,
        window.probability,
        window.net_return,
        window.time,
        threshold=threshold,
        block=block,
        allowed=window.allowed,
    )
    tradable = np.flatnonzero(window.allowed)
    chosen = selected_over_all(
        window.net_return[tradable],
        window.probability[tradable] >= threshold,
        window.time[tradable],
        block=block,
    )
    error = calibration_error(window.y, window.probability)
    auc = roc_auc(window.y, window.probability)
    taken = tradable[window.probability[tradable] >= threshold]
    by_bar, bars = mean_per_bar(window.net_return[taken], window.time[taken])
    # Forty signals of one bar are one that the bot can afford, so both must pay: the mean trade and the mean bar.
    earned = min(trades.net_return, block_mean(by_bar, bars, block=block), key=_evidence)
    results = [
        _at_least(
            "skill",
            _evidence(skill),
            bounds.min_t_stat,
            f"log loss is {skill.mean:.5f} below that of the window's base rate {np.mean(window.y):.3f}, "
            f"{_confidence(skill, block, bounds.min_t_stat)}",
        ),
        _at_least(
            "trades",
            float(trades.trades),
            float(bounds.min_trades),
            f"{trades.trades} signals reach the threshold {threshold:.3f} (needs {bounds.min_trades})",
        ),
        _at_least(
            "net_return",
            _evidence(earned),
            bounds.min_return_t_stat,
            f"a trade earns {trades.net_return.mean:.4%} after costs, and one of a mean bar {np.mean(by_bar):.4%}; "
            f"the less sure of both: {_confidence(earned, block, bounds.min_return_t_stat)}"
            if trades.trades
            else "no signal reaches the threshold, so no trade earned anything",
        ),
        _at_least(
            "selection",
            _evidence(chosen),
            bounds.min_selection_t_stat,
            _selection_text(chosen, len(tradable), block=block, bound=bounds.min_selection_t_stat),
        ),
        _sharpe_gate(window, threshold=threshold, day=day, bounds=bounds, trials=trials),
        GateResult(
            name="calibration",
            value=error,
            bound=bounds.max_calibration_error,
            passed=error <= bounds.max_calibration_error,
            text=f"probabilities are off by {error:.3f} on average (allowed {bounds.max_calibration_error:g})",
        ),
        GateResult(
            name="plausibility",
            value=auc,
            bound=bounds.max_auc,
            passed=auc <= bounds.max_auc,
            text=f"AUC is {auc:.3f}; above {bounds.max_auc:g} a model knows the future: look for a leak",
        ),
    ]
    if window.champion is not None:
        results.append(_champion_gate(window, window.champion, block=block, bounds=bounds))
    return tuple(results)


def _evidence(found: BlockMean) -> float:
    """The t-statistic, or 0 where it stands on too few blocks of time."""
    return found.t_stat if found.blocks >= MIN_BLOCKS else 0.0


def _confidence(found: BlockMean, block: int, bound: float) -> str:
    text = f"t = {found.t_stat:.2f} over {found.blocks} blocks of {block} bars (needs {bound:g})"
    return text if found.blocks >= MIN_BLOCKS else f"{text}; fewer than {MIN_BLOCKS} blocks are no evidence"


def _selection_text(chosen: BlockMean, signals: int, *, block: int, bound: float) -> str:
    if chosen.n == 0:
        return "no signal reaches the threshold, so nothing was chosen"
    if chosen.n == signals:
        return f"the threshold takes all {signals} signals, so the model chooses nothing"
    return (
        f"a trade earns {chosen.mean:.4%} more than one of all {signals} signals, {_confidence(chosen, block, bound)}"
    )


def _at_least(name: str, value: float, bound: float, text: str) -> GateResult:
    return GateResult(name=name, value=value, bound=bound, passed=value >= bound, text=text)


def _sharpe_gate(window: UnseenWindow, *, threshold: float, day: int, bounds: GateBounds, trials: Trials) -> GateResult:
    """What is left of the Sharpe ratio of the taken trades after all looks at this window."""
    returns = returns_per_period(
        window.net_return,
        window.exit_time,
        (window.probability >= threshold) & window.allowed,
        start=int(window.time.min()),
        end=int(window.exit_time.max()),
        period=day,
    )
    ratio = sharpe_ratio(returns)
    value = 0.0 if ratio is None else deflated_sharpe(ratio, trials)
    look = trials.count - trials.tuning
    looks = "the first look" if look == 1 else f"look number {look}"
    searched = f" and {trials.tuning} tuning trials" if trials.tuning else ""
    return _at_least(
        "deflated_sharpe",
        value,
        bounds.min_deflated_sharpe,
        f"no Sharpe ratio: {len(returns)} days without enough variation"
        if ratio is None
        else f"the Sharpe ratio is {ratio.value:.3f} ± {ratio.standard_error:.3f} a day over {ratio.n} days; at "
        f"{looks} at this window{searched} "
        f"it is real with probability {value:.2f} (needs {bounds.min_deflated_sharpe:g})",
    )


def _champion_gate(
    window: UnseenWindow, champion: NDArray[np.float64], *, block: int, bounds: GateBounds
) -> GateResult:
    """The challenger must not be worse than the champion, beyond noise, where both saw nothing.

    Without enough such rows there is nothing to compare: the gate passes and says so, since the other gates have
    already judged the challenger by itself.
    """
    both = np.isfinite(champion)
    saved = log_losses(window.y[both], champion[both]) - log_losses(window.y[both], window.probability[both])
    gain = block_mean(saved, window.time[both], block=block)
    bound = -bounds.max_champion_t_stat
    if gain.blocks < MIN_BLOCKS:
        return GateResult(
            name="champion",
            value=0.0,
            bound=bound,
            passed=True,
            text=f"not comparable: {gain.n} signals in {gain.blocks} blocks of {block} bars are unseen by both models "
            f"and covered by both (needs {MIN_BLOCKS} blocks)",
        )
    return _at_least(
        "champion",
        gain.t_stat,
        bound,
        f"log loss is {gain.mean:.5f} below the champion's on {gain.n} signals that neither has seen, "
        f"t = {gain.t_stat:.2f} (needs {bound:g})",
    )

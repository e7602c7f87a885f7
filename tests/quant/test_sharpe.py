from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from purgedcv import (
    deflated_sharpe_ratio,
    min_track_record_length,
    probabilistic_sharpe_ratio,
    probability_of_backtest_overfitting,
)

from quant.sharpe import (
    Trials,
    deflated_sharpe,
    expected_best_sharpe,
    least_track_record,
    probabilistic_sharpe,
    probability_of_overfitting,
    sharpe_ratio,
)

seeds = st.integers(0, 10_000)


def daily_returns(seed: int, *, n: int = 250, mean: float = 0.001) -> np.ndarray:
    """Fat-tailed and skewed, as returns of trades are."""
    rng = np.random.default_rng(seed)
    return mean + 0.01 * (rng.standard_t(5, n) + 0.5 * (rng.exponential(size=n) - 1))


@settings(max_examples=50)
@given(seeds, st.floats(-0.1, 0.2))
def test_the_probabilistic_sharpe_ratio_equals_that_of_purgedcv(seed: int, benchmark: float) -> None:
    returns = daily_returns(seed)
    ratio = sharpe_ratio(returns)
    assert ratio is not None
    expected = probabilistic_sharpe_ratio(returns, benchmark_skill=benchmark)
    assert probabilistic_sharpe(ratio, benchmark=benchmark) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50)
@given(seeds, st.integers(1, 500), st.floats(1e-6, 0.05))
def test_the_deflated_sharpe_ratio_equals_that_of_purgedcv(seed: int, trials: int, variance: float) -> None:
    returns = daily_returns(seed)
    ratio = sharpe_ratio(returns)
    assert ratio is not None
    expected = deflated_sharpe_ratio(returns, n_trials=trials, var_sharpe=variance)
    assert deflated_sharpe(ratio, Trials(trials, variance)) == pytest.approx(expected, abs=1e-9)


@given(seeds)
def test_the_least_track_record_equals_that_of_purgedcv(seed: int) -> None:
    returns = daily_returns(seed, mean=0.003)
    ratio = sharpe_ratio(returns)
    assert ratio is not None
    expected = min_track_record_length(
        observed_sharpe=ratio.value, target_sharpe=0.0, alpha=0.05, skew=ratio.skew, kurtosis=ratio.kurtosis
    )
    assert math.ceil(least_track_record(ratio)) == expected


def test_a_ratio_below_its_benchmark_never_has_a_long_enough_record() -> None:
    ratio = sharpe_ratio(daily_returns(1, mean=-0.02))
    assert ratio is not None
    assert least_track_record(ratio) == math.inf


@settings(max_examples=20)
@given(seeds, st.integers(2, 8), st.sampled_from([4, 6, 8]))
def test_the_probability_of_overfitting_equals_that_of_purgedcv(seed: int, strategies: int, blocks: int) -> None:
    returns = np.stack([daily_returns(seed + k, n=120 + blocks) for k in range(strategies)])
    expected = probability_of_backtest_overfitting(returns, n_splits=blocks)
    assert probability_of_overfitting(returns, blocks=blocks) == pytest.approx(expected.pbo)


def test_choosing_among_strategies_without_skill_overfits_and_among_different_ones_does_not() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.01, (20, 400))
    assert 0.3 < probability_of_overfitting(noise, blocks=8) < 0.9
    noise[7] += 0.01
    assert probability_of_overfitting(noise, blocks=8) == 0.0


def test_more_tries_leave_less_of_a_ratio_and_the_best_of_many_without_skill_is_unlikely_to_be_believed() -> None:
    rng = np.random.default_rng(5)
    tries = [sharpe_ratio(rng.normal(0, 0.01, 250)) for _ in range(200)]
    ratios = [each.value for each in tries if each is not None]
    best = max((each for each in tries if each is not None), key=lambda each: each.value)
    assert probabilistic_sharpe(best) > 0.99  # believed by whoever does not know of the other 199
    assert deflated_sharpe(best, Trials.of(ratios[1:])) < 0.75
    assert max(ratios) == pytest.approx(expected_best_sharpe(trials=200, variance=float(np.var(ratios))), rel=0.3)
    left = [deflated_sharpe(best, Trials(n)) for n in (1, 2, 10, 100, 1000)]
    assert left == sorted(left, reverse=True)
    assert left[0] == probabilistic_sharpe(best)


@pytest.mark.parametrize("returns", [[], [0.1, 0.2, 0.3], [0.0] * 50, [0.01] * 50])
def test_there_is_no_ratio_without_enough_periods_or_variation(returns: list[float]) -> None:
    assert sharpe_ratio(np.array(returns)) is None


def test_returns_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        sharpe_ratio(np.array([0.1, np.nan, 0.2, 0.3, 0.1]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        probability_of_overfitting(np.full((2, 8), np.inf), blocks=4)


@pytest.mark.parametrize("shape, blocks", [((1, 20), 4), ((3, 20), 5), ((3, 3), 4)])
def test_too_little_to_judge_overfitting_is_named(shape: tuple[int, int], blocks: int) -> None:
    with pytest.raises(ValueError, match="two strategies or more"):
        probability_of_overfitting(np.zeros(shape), blocks=blocks)


def test_impossible_numbers_of_tries_are_refused() -> None:
    with pytest.raises(ValueError, match="trials is 0"):
        expected_best_sharpe(trials=0, variance=0.1)


def test_too_few_tries_show_no_variance() -> None:
    assert Trials.of([]) == Trials(1)
    assert Trials.of([0.1, 0.2]) == Trials(3, None)
    assert Trials.of([0.1] * 5) == Trials(6, 0.0)
    assert Trials.of([0.1, None, 0.2, None, 0.1]) == Trials(6, None), "three ratios, five looks"


@given(st.lists(st.floats(-0.2, 0.2), max_size=12), st.integers(0, 30), st.integers(0, 30))
def test_looks_that_took_no_trade_never_make_luck_easier(ratios: list[float], fewer: int, more: int) -> None:
    """As zeros they shrank the scatter of the ratios, so that a fund of idle models bought the next one its pass."""
    ratio = sharpe_ratio(daily_returns(1, mean=0.002))
    assert ratio is not None
    left = [deflated_sharpe(ratio, Trials.of([*ratios, *[None] * idle])) for idle in (fewer, fewer + more)]
    assert left[1] <= left[0]

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics as oracle

from quant.metrics import (
    block_mean,
    brier_score,
    calibration_curve,
    calibration_error,
    information_coefficient,
    log_loss,
    roc_auc,
    selected_over_all,
    skill_over_base_rate,
    trades_at_threshold,
)

samples = st.lists(st.tuples(st.integers(0, 1), st.floats(0.001, 0.999)), min_size=2, max_size=60)


def columns(pairs: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([y for y, _ in pairs], dtype=np.int8), np.array([p for _, p in pairs])


@given(samples)
def test_scores_equal_those_of_scikit_learn(pairs: list[tuple[int, float]]) -> None:
    y, p = columns(pairs)
    assert log_loss(y, p) == pytest.approx(oracle.log_loss(y, p, labels=[0, 1]))
    assert brier_score(y, p) == pytest.approx(oracle.brier_score_loss(y, p, pos_label=1))
    if len(set(y.tolist())) == 2:
        assert roc_auc(y, p) == pytest.approx(oracle.roc_auc_score(y, p))
    else:
        assert math.isnan(roc_auc(y, p))


def test_a_certain_and_wrong_probability_costs_much_but_not_infinitely() -> None:
    assert 20 < log_loss(np.array([1], dtype=np.int8), np.array([0.0])) < 40


@given(samples)
def test_the_calibration_error_is_a_share_and_equals_its_curve(pairs: list[tuple[int, float]]) -> None:
    y, p = columns(pairs)
    error = calibration_error(y, p)
    curve = calibration_curve(y, p)
    assert 0 <= error <= 1
    assert sum(point["samples"] for point in curve) == len(y)
    gaps = sum(point["samples"] * abs(point["promised"] - point["paid"]) for point in curve)
    assert error == pytest.approx(gaps / len(y))


def test_calibration_tells_promise_from_lie() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 0.8, 20_000)
    y = (rng.uniform(size=20_000) < p).astype(np.int8)
    assert calibration_error(y, p) < 0.02
    assert calibration_error(y, np.clip(p + 0.15, 0, 1)) == pytest.approx(0.15, abs=0.02)


def test_with_one_sample_per_block_the_error_is_the_usual_one() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 500)
    result = block_mean(values, np.arange(500), block=1)
    assert result.mean == pytest.approx(values.mean())
    assert result.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(500))
    assert result.blocks == result.n == 500


def test_forty_symbols_of_one_crash_are_one_observation() -> None:
    """The naive error of these values is 6 times too small: it would call noise a discovery."""
    days = np.random.default_rng(2).normal(size=50)
    values, time = np.repeat(days, 40), np.repeat(np.arange(50) * 24, 40)
    clustered = block_mean(values, time, block=24)
    assert clustered.standard_error == pytest.approx(days.std(ddof=1) / math.sqrt(50))
    assert clustered.standard_error > 6 * values.std() / math.sqrt(len(values))


def test_the_t_statistic_of_pure_noise_is_standard() -> None:
    rng = np.random.default_rng(3)
    stats = []
    for _ in range(400):
        drift = np.repeat(rng.normal(size=60), 24)  # every block moves together
        stats.append(block_mean(drift + rng.normal(size=1440), np.arange(1440), block=24).t_stat)
    assert abs(np.mean(stats)) < 0.15
    assert 0.9 < np.std(stats) < 1.15
    assert np.mean(np.array(stats) > 2) < 0.05


@pytest.mark.parametrize(
    "values, time", [([], []), ([1.0, 2.0], [3, 4]), ([1.0, 1.0], [0, 100]), ([0.0, 0.0], [0, 100])]
)
def test_nothing_to_judge_by_is_no_evidence(values: list[float], time: list[int]) -> None:
    assert block_mean(np.array(values), np.array(time, dtype=np.int64), block=24).t_stat == 0.0


def test_skill_is_positive_only_for_who_tells_samples_apart() -> None:
    rng = np.random.default_rng(4)
    truth = rng.uniform(0.2, 0.6, 5_000)
    y = (rng.uniform(size=5_000) < truth).astype(np.int8)
    time = np.arange(5_000)
    assert skill_over_base_rate(y, truth, time, block=50).t_stat > 5
    assert skill_over_base_rate(y, rng.permutation(truth), time, block=50).t_stat < -5
    assert skill_over_base_rate(y, np.full(5_000, y.mean()), time, block=50).t_stat == 0.0


@given(samples, st.floats(0.001, 0.999))
def test_no_constant_beats_the_base_rate_of_the_window(pairs: list[tuple[int, float]], constant: float) -> None:
    y, _ = columns(pairs)
    skill = skill_over_base_rate(y, np.full(len(y), constant), np.arange(len(y)), block=1)
    assert skill.mean <= 1e-9


def test_trades_count_probabilities_at_the_threshold_and_respect_the_regime() -> None:
    y = np.array([1, 0, 1, 1], dtype=np.int8)
    p = np.array([0.6, 0.7, 0.5, 0.9])
    net = np.array([0.01, -0.02, 0.05, 0.03])
    time = np.array([0, 1, 2, 3])
    stats = trades_at_threshold(y, p, net, time, threshold=0.6, block=1)
    assert (stats.trades, stats.precision) == (3, pytest.approx(2 / 3))
    assert stats.net_return.mean == pytest.approx(0.02 / 3)
    allowed = np.array([True, False, True, True])
    assert trades_at_threshold(y, p, net, time, threshold=0.6, block=1, allowed=allowed).precision == 1.0
    nothing = trades_at_threshold(y, p, net, time, threshold=0.95, block=1)
    assert nothing.trades == 0
    assert math.isnan(nothing.precision)


# ------------------------------------------------------------------- information coefficient
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-5, 5)), min_size=3, max_size=60))
def test_the_information_coefficient_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    score, outcome = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    got = information_coefficient(score, outcome, np.arange(len(pairs)), block=1)
    varies = len(set(score)) > 1 and len(set(outcome)) > 1
    assert got.mean == pytest.approx(spearmanr(score, outcome).statistic if varies else 0.0, abs=1e-12)
    assert information_coefficient(np.exp(score), outcome, np.arange(len(pairs)), block=1) == got  # ranks only


def test_the_t_of_the_information_coefficient_is_standard_where_samples_overlap_and_nothing_correlates() -> None:
    rng = np.random.default_rng(4)
    time = np.repeat(np.arange(40 * 24), 3)
    naive, blocked = [], []
    for _ in range(300):
        # Score and outcome stay the same for a day and are alike for three symbols: 72 samples are one observation.
        score, outcome = (np.repeat(rng.normal(size=40), 72) + 0.3 * rng.normal(size=len(time)) for _ in range(2))
        naive.append(information_coefficient(score, outcome, np.arange(len(time)), block=1).t_stat)
        blocked.append(information_coefficient(score, outcome, time, block=24).t_stat)
    assert np.std(naive) > 5
    assert 0.9 < np.std(blocked) < 1.15
    assert abs(np.mean(blocked)) < 0.2


# ------------------------------------------------------------------- choosing against taking everything
@given(st.integers(0, 1_000), st.floats(0.1, 0.9))
def test_what_choosing_adds_is_the_share_refused_times_the_difference_to_it(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    returns, taken, time = rng.normal(size=200), rng.uniform(size=200) < share, np.sort(rng.integers(0, 500, 200))
    found = selected_over_all(returns, taken, time, block=20)
    refused_share = 1 - np.mean(taken)
    assert found.n == np.count_nonzero(taken)
    assert found.mean == pytest.approx(refused_share * (returns[taken].mean() - returns[~taken].mean()), abs=1e-12)
    assert found.blocks == len(np.unique(time[taken] // 20))


def test_choosing_all_or_nothing_is_no_evidence() -> None:
    returns, time = np.arange(10.0), np.arange(10)
    assert selected_over_all(returns, np.ones(10, dtype=np.bool_), time, block=2).t_stat == 0.0
    nothing = selected_over_all(returns, np.zeros(10, dtype=np.bool_), time, block=2)
    assert (nothing.t_stat, nothing.n, nothing.blocks) == (0.0, 0, 0)


def test_the_t_of_a_blind_choice_is_standard_although_trades_overlap_and_symbols_move_together() -> None:
    """Whole blocks are chosen together and pay together: a t that took trades as independent would be far above 1."""
    t_stats, naive = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        time = np.repeat(np.arange(40 * 48), 3)  # three symbols
        returns = 0.01 + 0.01 * np.repeat(rng.normal(size=40), 48 * 3) + 0.01 * rng.normal(size=len(time))
        taken = np.repeat(rng.uniform(size=40) < 0.5, 48 * 3) ^ (rng.uniform(size=len(time)) < 0.2)
        found = selected_over_all(returns, taken, time, block=48)
        t_stats.append(found.t_stat)
        error = np.sqrt(returns[taken].var() / taken.sum() + returns[~taken].var() / (~taken).sum())
        naive.append((returns[taken].mean() - returns[~taken].mean()) / error)
    assert abs(np.mean(t_stats)) < 0.2
    assert 0.85 < np.std(t_stats) < 1.2
    assert np.std(naive) > 3

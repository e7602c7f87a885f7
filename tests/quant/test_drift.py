"""Population stability: what it is, when it may be believed, and that a month of the same market is no drift."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant.drift import (
    MOST_USUAL,
    STRONG,
    Drift,
    FeatureDrift,
    make_reference,
    measure_drift,
    pool_drifts,
    population_stability,
    psi_noise,
    window_of,
)

NAMES = ("level", "sparse", "constant", "never")
WINDOW = 100
shares = st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(any)


def rows(n: int, *, seed: int, level: float = 0.0, scale: float = 1.0, missing: float = 0.1) -> NDArray[np.float32]:
    """A market without memory: a feature, one that is sometimes missing, one that never changes, one that never is."""
    random = np.random.default_rng(seed)
    sparse = np.where(random.random(n) < missing, np.nan, random.normal(size=n))
    return np.column_stack([level + scale * random.normal(size=n), sparse, np.full(n, 3.0), np.full(n, np.nan)]).astype(
        np.float32
    )


def drift_of(features: NDArray[np.float32], *, seed: int = 1) -> Drift:
    return measure_drift(features, NAMES, make_reference(rows(8000, seed=seed), NAMES, np.arange(8000), window=800))


def psi_of(drift: Drift, name: str) -> float:
    return next(each.psi for each in drift.features if each.name == name)


@given(shares, st.data())
def test_the_index_is_never_negative_symmetric_and_zero_for_equal_shares(
    counts: list[int], data: st.DataObject
) -> None:
    others = data.draw(st.lists(st.integers(0, 1000), min_size=len(counts), max_size=len(counts)).filter(any))
    p, q = np.array(counts) / sum(counts), np.array(others) / sum(others)
    assert population_stability(p, p) == 0.0
    assert population_stability(p, q) >= 0.0
    assert population_stability(p, q) == pytest.approx(population_stability(q, p))
    assert math.isfinite(population_stability(p, q))


def test_the_index_of_two_bins_is_what_a_person_computes() -> None:
    found = population_stability(np.array([0.6, 0.4]), np.array([0.5, 0.5]))
    assert found == pytest.approx(0.1 * math.log(1.2) - 0.1 * math.log(0.8))


@given(st.integers(0, 50))
def test_the_index_grows_with_a_shift(seed: int) -> None:
    found = [psi_of(drift_of(rows(2000, seed=seed + 100, level=level)), "level") for level in (0.0, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert found[0] < 0.05 < STRONG < found[2]


def test_noise_of_samples_without_a_drift_stays_below_its_bound_and_the_bound_is_not_lax() -> None:
    found = np.array([psi_of(drift_of(rows(300, seed=seed), seed=seed + 1000), "level") for seed in range(150)])
    bound = psi_noise(300, 8000, bins=10)
    assert np.mean(found > bound) < 0.03
    assert np.mean(found) == pytest.approx(9 * (1 / 300 + 1 / 8000), rel=0.2)  # Yurdakul and Naranjo
    assert psi_noise(0, 8000, bins=10) == math.inf


def test_samples_of_the_same_market_have_not_drifted() -> None:
    drift = drift_of(rows(1500, seed=2))
    assert (drift.judged, drift.drifted, drift.strong) == (True, (), False)


def test_a_feature_that_is_missing_more_often_has_drifted() -> None:
    drift = drift_of(rows(1500, seed=2, missing=0.6))
    (worst,) = drift.drifted
    assert worst.name == "sparse"
    assert worst.missing_before == pytest.approx(0.1, abs=0.02)
    assert worst.missing == pytest.approx(0.6, abs=0.05)
    assert not drift.strong, "one feature of four is no other market"


def test_a_feature_that_moves_in_every_window_of_the_training_must_move_further() -> None:
    """A slow regime: each month of the training looked unlike the others, so another such month is nothing new."""
    random = np.random.default_rng(3)
    levels = np.tile([-0.7, 0.7], 6).repeat(700)
    slow = np.column_stack([levels + random.normal(size=8400), random.normal(size=8400)]).astype(np.float32)
    reference = make_reference(slow, ("slow", "fast"), np.arange(8400), window=700)
    assert MOST_USUAL > reference["features"]["slow"]["usual"] > STRONG > reference["features"]["fast"]["usual"]
    again = np.column_stack([0.7 + random.normal(size=700), random.normal(size=700)]).astype(np.float32)
    drift = measure_drift(again, ("slow", "fast"), reference)
    assert psi_of(drift, "slow") > STRONG
    assert drift.drifted == ()
    further = measure_drift(again + np.float32(5.0), ("slow", "fast"), reference)
    assert {each.name for each in further.drifted} == {"slow", "fast"}


def test_a_feature_that_is_a_point_in_every_window_is_not_judged() -> None:
    random = np.random.default_rng(3)
    slow = (np.arange(12.0).repeat(700) + 0.01 * random.normal(size=8400)).astype(np.float32)[:, np.newaxis]
    reference = make_reference(slow, ("slow",), np.arange(8400), window=700)
    drift = measure_drift(slow[:700] + np.float32(50.0), ("slow",), reference)
    assert psi_of(drift, "slow") > 1.0
    assert (drift.judged, drift.judged_features, drift.drifted) == (False, 0, ())


def test_too_few_samples_or_too_short_a_history_are_not_judged() -> None:
    few = drift_of(rows(50, seed=4, level=3.0))
    assert (few.judged, few.drifted, few.strong) == (False, (), False)
    young = make_reference(rows(1000, seed=5), NAMES, np.arange(1000), window=400)
    drift = measure_drift(rows(500, seed=6, level=3.0), NAMES, young)
    assert young["features"]["level"]["usual"] is None
    assert not drift.judged
    assert measure_drift(rows(0, seed=6), NAMES, young).features == ()
    assert not measure_drift(rows(500, seed=6), NAMES, {}).judged


def test_the_reference_depends_on_the_samples_alone_and_lists_whole_shares() -> None:
    first, second = (make_reference(rows(5000, seed=7), NAMES, np.arange(5000), window=500) for _ in range(2))
    assert first == second
    for described in first["features"].values():
        assert sum(described["shares"]) == pytest.approx(1.0, abs=1e-4)
        assert described["edges"] == sorted(described["edges"])
    assert first["features"]["never"]["shares"][-1] == 1.0
    with pytest.raises(ValueError, match="needs some of both"):
        make_reference(rows(0, seed=1), NAMES, np.arange(0), window=5)


def test_a_short_training_has_shorter_windows() -> None:
    assert (window_of(24_000, 720), window_of(2_400, 720), window_of(3, 720)) == (720, 200, 1)


# ------------------------------------------------------------------- models of one symbol each, together
def saw(psi: dict[str, float], *, usual: float | None = 0.2) -> Drift:
    """What one model saw: every bound is out of reach, as with the few signals of one symbol."""
    features = tuple(
        FeatureDrift(name=name, psi=value, bound=10.0, missing=0.0, missing_before=0.0, usual=usual)
        for name, value in psi.items()
    )
    return Drift(samples=60, judged=False, features=features)


def test_what_no_model_of_one_symbol_can_say_alone_half_of_five_say_together() -> None:
    moved, same = saw(dict.fromkeys("abcd", 0.5)), saw(dict.fromkeys("abcd", 0.3))
    assert not moved.strong
    assert pool_drifts([moved, moved, moved, same, same]).drifted == ("a", "b", "c", "d")
    assert pool_drifts([same, moved, same, moved, moved]).strong
    assert not pool_drifts([moved, moved, same, same, same]).strong, "two of five are no half"
    assert not pool_drifts([moved] * 4).strong, "four are too few to vote"
    assert not pool_drifts([saw({"a": 0.5, "b": 0.5})] * 9).strong, "two features may be copies of one another"


def test_a_model_that_does_not_know_what_is_usual_has_no_vote_and_a_tiny_drift_is_none() -> None:
    moved, blind = saw(dict.fromkeys("abcd", 0.5)), saw(dict.fromkeys("abcd", 9.0), usual=None)
    assert pool_drifts([blind] * 20).shares == {}
    assert not pool_drifts([moved] * 4 + [blind] * 20).strong
    assert not pool_drifts([saw(dict.fromkeys("abcd", 0.09), usual=0.001)] * 9).strong
    assert pool_drifts([]).models == 0


def test_a_measured_drift_says_what_is_usual() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(4_000)
    features = rng.normal(size=(4_000, 1)).astype(np.float32)
    reference = make_reference(features, ("a",), time, window=300)
    (found,) = measure_drift(features[:300], ("a",), reference).features
    assert found.usual == reference["features"]["a"]["usual"]

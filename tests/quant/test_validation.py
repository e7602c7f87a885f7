from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from purgedcv import CombinatorialPurgedCV, WalkForwardSplit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import BaseCrossValidator, check_cv, cross_val_score

from quant.validation import CombinatorialPurged, PurgedWalkForward


def label_times(n_times: int, per_time: int, longest: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t0 = np.repeat(np.arange(n_times), per_time)
    return np.column_stack([t0, t0 + rng.integers(0, longest + 1, size=len(t0))])


times_and_folds = st.tuples(
    st.integers(20, 60), st.integers(1, 4), st.integers(0, 6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 99)
)


@given(times_and_folds)
def test_no_training_label_reaches_the_embargo_before_its_test_fold(arguments: tuple[int, ...]) -> None:
    n_times, per_time, longest, n_splits, embargo, seed = arguments
    times = label_times(n_times, per_time, longest, seed)
    order = np.random.default_rng(seed).permutation(len(times))  # samples may come in any order
    times = times[order]
    splitter = PurgedWalkForward(n_splits, test_size=2, embargo=embargo)
    covered: list[int] = []
    for train, test in splitter.split(groups=times):
        start, end = times[test, 0].min(), times[test, 0].max()
        # Brute force, from the definition: everything that ended early enough trains, and nothing else.
        assert set(train) == {i for i, (_, t1) in enumerate(times) if t1 + embargo < start}
        assert set(test) == {i for i, (t0, _) in enumerate(times) if start <= t0 <= end}
        covered += test.tolist()
    assert len(covered) == len(set(covered)) == n_splits * 2 * per_time
    assert times[covered, 0].max() == n_times - 1


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(0, 8), st.integers(0, 5), st.integers(0, 99))
def test_folds_equal_those_of_purgedcv(n_splits: int, longest: int, embargo: int, seed: int) -> None:
    """purgedcv's labels are half-open, so one that ends as the test begins may train; ours may not: one more hour."""
    times = label_times(60, 1, longest, seed)
    times[:, 1] += 1
    origin = pd.Timestamp("2025-01-01")
    oracle = WalkForwardSplit(
        n_splits=n_splits,
        test_size=8,
        prediction_times=origin + pd.to_timedelta(pd.Series(times[:, 0]), unit="h"),
        evaluation_times=origin + pd.to_timedelta(pd.Series(times[:, 1]), unit="h"),
        purge_horizon=pd.Timedelta(hours=embargo + 1),
    )
    ours = PurgedWalkForward(n_splits, test_size=8, embargo=embargo)
    X = np.zeros((60, 1))
    folds = [(train.tolist(), test.tolist()) for train, test in ours.split(X, groups=times)]
    assert folds == [(list(train), list(test)) for train, test in oracle.split(X)]


def test_scikit_learn_takes_it_as_one_of_its_own() -> None:
    splitter = PurgedWalkForward(3, embargo=2)
    assert isinstance(splitter, BaseCrossValidator)
    assert check_cv(splitter) is splitter
    assert splitter.get_n_splits() == 3
    assert repr(splitter) == "PurgedWalkForward(embargo=2, n_splits=3, test_size=None)"
    times = label_times(40, 2, 3)
    rng = np.random.default_rng(1)
    scores = cross_val_score(
        LogisticRegression(), rng.normal(size=(80, 2)), rng.integers(0, 2, 80), cv=splitter, groups=times
    )
    assert len(scores) == 3


@pytest.mark.parametrize(
    "groups, named",
    [
        (None, "groups is None"),
        (np.zeros(4, dtype=np.int64), "must be integers"),
        (np.zeros((4, 2)), "must be integers"),
        (np.array([[5, 4]]), "cannot end before"),
        (np.array([[0, 1], [1, 2]]), "too few"),
        (np.array([[t, 99] for t in range(20)]), "no sample to train on"),
    ],
)
def test_label_times_that_cannot_be_split_are_named(groups: np.ndarray | None, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        list(PurgedWalkForward(3).split(groups=groups))


def test_rows_of_another_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="same samples"):
        list(PurgedWalkForward(2).split(np.zeros((3, 1)), groups=label_times(20, 1, 1)))


@pytest.mark.parametrize("changes", [{"n_splits": 0}, {"embargo": -1}])
def test_settings_that_make_no_folds_are_named(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        list(PurgedWalkForward(**changes).split(groups=label_times(20, 1, 1)))


@settings(max_examples=30)
@given(st.integers(3, 6), st.integers(1, 2), st.integers(0, 5), st.integers(0, 4), st.integers(0, 99))
def test_combinatorial_folds_equal_those_of_purgedcv(
    n_groups: int, n_test_groups: int, longest: int, embargo: int, seed: int
) -> None:
    """purgedcv's labels are half-open and ours closed: theirs end an hour later, their embargo is as much shorter."""
    times = label_times(60, 1, longest, seed)
    origin = pd.Timestamp("2025-01-01")
    oracle = CombinatorialPurgedCV(
        n_splits=n_groups,
        n_test_groups=n_test_groups,
        prediction_times=origin + pd.to_timedelta(pd.Series(times[:, 0]), unit="h"),
        evaluation_times=origin + pd.to_timedelta(pd.Series(times[:, 1] + 1), unit="h"),
        embargo=pd.Timedelta(hours=embargo - 0.5) if embargo else None,
    )
    ours = CombinatorialPurged(n_groups, n_test_groups, embargo=embargo)
    X = np.zeros((60, 1))
    folds = [(train.tolist(), test.tolist()) for train, test in ours.split(X, groups=times)]
    assert len(folds) == ours.get_n_splits()
    assert folds == [(list(train), list(test)) for train, test in oracle.split(X)]


@given(times_and_folds)
def test_no_combinatorial_training_label_touches_a_tested_group(arguments: tuple[int, ...]) -> None:
    n_times, per_time, longest, _, embargo, seed = arguments
    n_times *= 3  # short groups between long labels leave nothing to train on
    times = label_times(n_times, per_time, longest, seed)
    times = times[np.random.default_rng(seed).permutation(len(times))]
    spans = [(part[0], max(t1 for t0, t1 in times if t0 in part)) for part in np.array_split(np.arange(n_times), 5)]
    splitter = CombinatorialPurged(5, 2, embargo=embargo)
    tested = np.zeros(len(times), dtype=int)
    for (train, test), chosen in zip(splitter.split(groups=times), combinations(range(5), 2), strict=True):
        tested[test] += 1
        free = [all(t1 < spans[g][0] or t0 > spans[g][1] + embargo for g in chosen) for t0, t1 in times]
        assert set(train) == set(np.flatnonzero(free)) - set(test)
    assert set(tested) == {splitter.n_paths}


def test_paths_put_every_sample_together_once_from_folds_that_tested_it() -> None:
    times = label_times(24, 2, 2)
    splitter = CombinatorialPurged(4, 2)
    folds = list(splitter.split(groups=times))
    paths = splitter.paths([np.full(len(test), float(k)) for k, (_, test) in enumerate(folds)], times)
    assert paths.shape == (splitter.n_paths, len(times)) == (3, 48)
    for i in range(len(times)):
        assert sorted(paths[:, i]) == [k for k, (_, test) in enumerate(folds) if i in test]


@pytest.mark.parametrize(
    "splitter, named",
    [
        (CombinatorialPurged(4, 4), "n_test_groups 4"),
        (CombinatorialPurged(4, 0), "n_test_groups 0"),
        (CombinatorialPurged(30, 2), "too few"),
        (CombinatorialPurged(2, 1, embargo=-1), "embargo -1"),
        (CombinatorialPurged(10, 9, embargo=20), "nothing is left"),
    ],
)
def test_combinatorial_splits_that_cannot_be_are_named(splitter: CombinatorialPurged, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        list(splitter.split(groups=label_times(20, 1, 1)))


def test_scikit_learn_takes_the_combinatorial_splitter_too() -> None:
    times = label_times(40, 2, 3)
    rng = np.random.default_rng(1)
    scores = cross_val_score(
        LogisticRegression(),
        rng.normal(size=(80, 2)),
        rng.integers(0, 2, 80),
        cv=CombinatorialPurged(5, 2, embargo=1),
        groups=times,
    )
    assert len(scores) == 10

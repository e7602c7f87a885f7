"""Purged walk-forward and combinatorial splits (López de Prado, Advances in Financial Machine Learning, 7.4 and 12).

Imports scikit-learn: for training processes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator

Indices = NDArray[np.int64]


class PurgedWalkForward(BaseCrossValidator):
    """Expanding walk-forward folds over decision times, purged by label END time, with an embargo.

    The distinct decision times are cut into contiguous test folds at the end of the data, as `TimeSeriesSplit` does
    with samples; all samples of one time fall into the same fold, however many symbols there are. A sample trains
    for a fold only if its label ended at least ``embargo`` (and in any case one unit) before the fold's first
    decision: ``t1 + embargo < test start``. The embargo lies before the test fold, because a walk-forward split
    never trains on what comes after it.

    Parameters
    ----------
    n_splits : number of folds, at least 1.
    test_size : distinct decision times per fold; None means ``n_times // (n_splits + 1)``.
    embargo : in the unit of t0 and t1 (bars, ms, ...), at least 0.

    ``split(X, y, groups)`` takes the times as ``groups``, int64[n, 2] with columns (t0, t1), so that scikit-learn's
    own tools (``cross_val_predict(..., groups=times)``) pass them through. The samples may come in any order.
    """

    def __init__(self, n_splits: int = 3, *, test_size: int | None = None, embargo: int = 0) -> None:
        self.n_splits = n_splits
        self.test_size = test_size
        self.embargo = embargo

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002 - scikit-learn's
        return self.n_splits

    def split(
        self,
        X: Any = None,
        y: Any = None,  # noqa: ARG002 - scikit-learn's signature
        groups: ArrayLike | None = None,
    ) -> Iterator[tuple[Indices, Indices]]:
        """Yield (train indices, test indices) per fold, earliest first. Raises ValueError when a fold is empty."""
        t0, t1 = _label_times(groups, X)
        if self.n_splits < 1 or self.embargo < 0:
            raise ValueError(
                f"n_splits is {self.n_splits} and embargo {self.embargo}; n_splits must be at least 1 and embargo "
                "at least 0"
            )
        times = np.unique(t0)
        size = self.test_size if self.test_size is not None else len(times) // (self.n_splits + 1)
        first = len(times) - self.n_splits * size
        if size < 1 or first < 1:
            raise ValueError(
                f"{len(times)} distinct decision times are too few for {self.n_splits} folds of {size} times and "
                "something before them to train on; use fewer splits, a smaller test_size or more data"
            )
        for k in range(self.n_splits):
            start, stop = first + k * size, first + (k + 1) * size
            test_start, test_end = times[start], times[stop - 1]
            train = np.flatnonzero(t1 + self.embargo < test_start)
            if train.size == 0:
                raise ValueError(
                    f"fold {k + 1} of {self.n_splits} has no sample to train on: every label ends within "
                    f"embargo={self.embargo} of the test start {test_start}; use fewer splits or more data"
                )
            yield train, np.flatnonzero((t0 >= test_start) & (t0 <= test_end))


class CombinatorialPurged(BaseCrossValidator):
    """Every choice of ``n_test_groups`` out of ``n_groups`` contiguous groups of time is once the test part.

    Where walk-forward gives one past, this gives ``comb(n_groups - 1, n_test_groups - 1)`` of them, so that a score has
    a distribution. It trains on what lies after a test group too: for judging a method, never for promising a return.
    The distinct decision times are cut into groups as equal as possible, the larger ones first. A sample trains only
    if its label does not touch any test group's span (first decision to last label end) and it was decided more than
    ``embargo`` after that span. López de Prado 12.4; purge 7.4.1; embargo 7.4.2.

    Parameters
    ----------
    n_groups : number of groups, at least 2.
    n_test_groups : how many of them are tested at once, 1 to ``n_groups - 1``.
    embargo : in the unit of t0 and t1, at least 0.

    ``split`` takes the times as ``groups``, as `PurgedWalkForward` does; `paths` puts predictions together again.
    """

    def __init__(self, n_groups: int = 6, n_test_groups: int = 2, *, embargo: int = 0) -> None:
        self.n_groups = n_groups
        self.n_test_groups = n_test_groups
        self.embargo = embargo

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002 - scikit-learn's
        return comb(self.n_groups, self.n_test_groups)

    @property
    def n_paths(self) -> int:
        """In how many folds each sample is tested."""
        return comb(self.n_groups - 1, self.n_test_groups - 1)

    def split(
        self,
        X: Any = None,
        y: Any = None,  # noqa: ARG002 - scikit-learn's signature
        groups: ArrayLike | None = None,
    ) -> Iterator[tuple[Indices, Indices]]:
        """Yield (train indices, test indices) per choice, in lexicographic order. ValueError for an empty one."""
        t0, t1 = _label_times(groups, X)
        member = self._members(t0)
        spans = [(t0[member == g].min(), t1[member == g].max()) for g in range(self.n_groups)]
        for chosen in combinations(range(self.n_groups), self.n_test_groups):
            tested = np.isin(member, chosen)
            train = ~tested
            for first, last in (spans[g] for g in chosen):
                train &= (t1 < first) | (t0 > last + self.embargo)
            if not train.any():
                raise ValueError(
                    f"nothing is left to train on when groups {chosen} of {self.n_groups} are tested: the labels are "
                    f"too long for so many groups, or embargo={self.embargo} is; use fewer groups"
                )
            yield np.flatnonzero(train), np.flatnonzero(tested)

    def paths(self, scores: list[NDArray[np.float64]], groups: ArrayLike | None) -> NDArray[np.float64]:
        """Return float64[n_paths, n]: the test scores of every fold of `split` as whole histories.

        ``scores`` holds one array per fold, in the order of its test indices. The k-th path takes each group from the
        k-th fold that tested it.
        """
        t0, _ = _label_times(groups)
        member = self._members(t0)
        history = np.full((self.n_paths, len(t0)), np.nan)
        used = [0] * self.n_groups
        for chosen, score in zip(combinations(range(self.n_groups), self.n_test_groups), scores, strict=True):
            tested = np.flatnonzero(np.isin(member, chosen))
            for g in chosen:
                history[used[g], member == g] = score[member[tested] == g]
                used[g] += 1
        return history

    def _members(self, t0: Indices) -> Indices:
        """The group of each sample."""
        if not 1 <= self.n_test_groups < self.n_groups or self.embargo < 0:
            raise ValueError(
                f"n_groups is {self.n_groups}, n_test_groups {self.n_test_groups}, embargo {self.embargo}; there must "
                "be more groups than are tested, at least one must be tested, and embargo must be at least 0"
            )
        times, position = np.unique(t0, return_inverse=True)
        if len(times) < self.n_groups:
            raise ValueError(f"{len(times)} distinct decision times are too few for {self.n_groups} groups")
        sizes = [len(part) for part in np.array_split(times, self.n_groups)]
        return np.repeat(np.arange(self.n_groups), sizes)[position]


def _label_times(groups: ArrayLike | None, X: Any = None) -> tuple[Indices, Indices]:
    if groups is None:
        raise ValueError("groups is None; a purged split needs the label times as groups=int64[n, 2] (t0, t1)")
    times = np.asarray(groups)
    if times.ndim != 2 or times.shape[1] != 2 or not np.issubdtype(times.dtype, np.integer):
        raise ValueError(f"groups has shape {times.shape} and type {times.dtype}; it must be integers [n, 2] (t0, t1)")
    t0, t1 = times[:, 0].astype(np.int64), times[:, 1].astype(np.int64)
    if np.any(t1 < t0):
        row = int(np.flatnonzero(t1 < t0)[0])
        raise ValueError(f"row {row} has t1={t1[row]} before t0={t0[row]}; a label cannot end before its decision")
    if X is not None and len(X) != len(t0):
        raise ValueError(f"X has {len(X)} rows and groups {len(t0)}; they must describe the same samples")
    return t0, t1

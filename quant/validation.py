"""Purged walk-forward validation (López de Prado, Advances in Financial Machine Learning, 7.4 and 12.2).

Imports scikit-learn: for training processes only.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        t0, t1 = _label_times(groups)
        if X is not None and len(X) != len(t0):
            raise ValueError(f"X has {len(X)} rows and groups {len(t0)}; they must describe the same samples")
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


def _label_times(groups: ArrayLike | None) -> tuple[Indices, Indices]:
    if groups is None:
        raise ValueError("groups is None; PurgedWalkForward needs the label times as groups=int64[n, 2] (t0, t1)")
    times = np.asarray(groups)
    if times.ndim != 2 or times.shape[1] != 2 or not np.issubdtype(times.dtype, np.integer):
        raise ValueError(f"groups has shape {times.shape} and type {times.dtype}; it must be integers [n, 2] (t0, t1)")
    t0, t1 = times[:, 0].astype(np.int64), times[:, 1].astype(np.int64)
    if np.any(t1 < t0):
        row = int(np.flatnonzero(t1 < t0)[0])
        raise ValueError(f"row {row} has t1={t1[row]} before t0={t0[row]}; a label cannot end before its decision")
    return t0, t1

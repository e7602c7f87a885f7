"""Samples of a training: what the model would have known at each signal, and what came of it.

Imports numba: for training processes only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quant.features import FeatureState, replay
from quant.labels import triple_barrier, uniqueness_weights
from quant.model import usable_rows
from quant.panel import Panel
from quant.reasons import reason
from quant.regime import regime_allows
from quant.signals import primary_side
from quant.timeframes import from_ms
from quant.training_spec import TrainingSpec

Progress = Callable[[float, str], None]


class TrainingError(Exception):
    """The data does not allow a training; the text is a reason ``CODE: key=value``."""


@dataclass(frozen=True, slots=True)
class Samples:
    """n signals in order of decision time.

    ``X`` float32[n, F]; ``code`` int32, the symbol's code in the model; ``y`` int8; ``net_return`` and ``weight``
    (uniqueness) float64; ``t0`` and ``t1`` int64, the bars of the decision and of the label's end; ``allowed`` bool,
    by the regime filter.
    """

    X: NDArray[np.float32]
    code: NDArray[np.int32]
    y: NDArray[np.int8]
    net_return: NDArray[np.float64]
    weight: NDArray[np.float64]
    t0: NDArray[np.int64]
    t1: NDArray[np.int64]
    allowed: NDArray[np.bool_]

    def take(self, rows: NDArray[Any]) -> Samples:
        return Samples(*(getattr(self, column.name)[rows] for column in fields(self)))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """Development and test samples with what they have in common.

    ``symbols`` in the order of their codes; ``dropped`` says why the other symbols of the panel are not covered;
    ``required`` bool[F] marks the features without which a row is neither sample nor trade; ``test_start`` is the
    bar of the first decision that may belong to the test window.
    """

    development: Samples
    test: Samples
    symbols: tuple[str, ...]
    dropped: dict[str, str]
    required: NDArray[np.bool_]
    test_start: int


class MakeSamples(Protocol):
    """Makes the samples of a training: `make_samples`, or what a caller of `quant.pipeline` wraps around it."""

    def __call__(self, panel: Panel, spec: TrainingSpec, *, progress: Progress) -> SampleSet: ...


def make_samples(panel: Panel, spec: TrainingSpec, *, progress: Progress) -> SampleSet:
    """Replay the features, take the signals, label them, and cut off the test window.

    What the development samples are, and which symbols and features count, depends on nothing at or after the start
    of the test window (I14). Raises TrainingError when either part has too few samples.
    """
    schema = spec.schema
    progress(0.0, "features")
    features = replay(FeatureState.create(schema, panel.n_symbols), panel, threads=spec.num_threads)
    progress(0.15, "labels")
    side = primary_side(spec.signal, features, schema)
    labels = triple_barrier(panel, side, features[..., schema.index("atr_pct")], spec.label, threads=spec.num_threads)
    if len(labels) == 0:
        raise TrainingError(reason("TOO_FEW_SAMPLES", samples=0, need=spec.min_samples, bars=panel.n_times))
    t0, t1 = labels.t_index.astype(np.int64), labels.t1_index.astype(np.int64)
    symbol = labels.s_index
    X = features[labels.t_index, symbol]
    del features  # by far the largest array of a training

    first = int(t0.min())
    test_start = panel.n_times - round(spec.test_fraction * (panel.n_times - first))
    early = t1 + spec.embargo_bars < test_start

    # A feature that a symbol never has (funding of a spot pair) is absent in training as well, so the trees know its
    # absence; one that every symbol has is required.
    required = np.ones(X.shape[1], dtype=np.bool_)
    for s in np.unique(symbol[early]):
        required &= np.isfinite(X[early & (symbol == s)]).any(axis=0)
    usable = usable_rows(X, required)
    counts = np.bincount(symbol[usable & early], minlength=panel.n_symbols)
    covered = counts >= spec.min_symbol_samples
    codes = (np.cumsum(covered) - 1).astype(np.int32)
    samples = Samples(
        X=X,
        code=codes[symbol],
        y=labels.label,
        net_return=labels.net_return,
        weight=uniqueness_weights(labels, panel.n_times),
        t0=t0,
        t1=t1,
        allowed=regime_allows(features=X, schema=schema, spec=spec.regime),
    )
    usable &= covered[symbol]
    development = samples.take(np.flatnonzero(usable & early))
    test = samples.take(np.flatnonzero(usable & (t0 >= test_start)))
    if len(development) < spec.min_samples:
        raise TrainingError(reason("TOO_FEW_SAMPLES", samples=len(development), need=spec.min_samples))
    if len(test) == 0:
        raise TrainingError(reason("EMPTY_TEST_WINDOW", bars=panel.n_times - test_start))
    for name, part in (("development", development), ("test", test)):
        if part.y.min() == part.y.max():
            raise TrainingError(reason("ONE_OUTCOME_ONLY", window=name, samples=len(part), paid=bool(part.y[0])))
    return SampleSet(
        development=development,
        test=test,
        symbols=tuple(name for s, name in enumerate(panel.symbols) if covered[s]),
        dropped={
            name: reason(
                "TOO_FEW_SAMPLES",
                samples=int(counts[s]),
                need=spec.min_symbol_samples,
                rule="signals whose outcome is known before the test window",
                test_window_from=from_ms(int(panel.open_time[test_start])),
            )
            for s, name in enumerate(panel.symbols)
            if not covered[s]
        },
        required=required,
        test_start=test_start,
    )

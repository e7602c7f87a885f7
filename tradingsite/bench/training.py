"""A training from the store to the saved model, against the bare fits inside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from marketdata.store import CandleStore
from quant.features import warm_cache
from quant.model import fit_booster, import_lightgbm
from quant.pipeline import train
from quant.schema import FeatureSchema
from tradingsite.bench import worlds
from tradingsite.bench.measure import MEGABYTES, SECONDS, Figure, Scale, cpu_seconds, peak_megabytes
from training_app import policies

SIZES = (50,)
BYTES_PER_CANDLE = 350  # candles, features, and the rows of the fits
GOAL_RATIO = 1.5
RUNS = 1
"""Beside the one that is measured for its memory and comes first."""
FIT_ROWS, FIT_TREES = 50_000, 50
MARKET, TIMEFRAME = "bench", "1h"


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    yield _fit()
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        store = CandleStore(Path(folder) / "candles")
        store.write(MARKET, TIMEFRAME, worlds.candles(scale))
        fits = _Fits()

        def pipeline() -> None:
            fits.seconds = 0.0
            panel = store.read_panel(MARKET, TIMEFRAME, symbols=worlds.codes(scale.symbols))
            result = train(panel, policies.training_spec(), progress=lambda _done, _text: None, fit=fits)
            result.model.save(Path(tempfile.mkdtemp(dir=folder)))

        peak = peak_megabytes(pipeline)
        if peak is not None:
            arrays = scale.symbols * scale.bars * (6 * 8 + len(policies.training_spec().schema) * 4) / 2**20
            yield Figure(
                name="training.memory", symbols=scale.symbols, unit=MEGABYTES, value=peak, limit=arrays,
                versus="candles and features of the whole history",
            )  # fmt: skip

        # Both of one run: what the fits take differs from run to run.
        spent, in_fits = min((cpu_seconds(pipeline, best_of=1), fits.seconds) for _ in range(RUNS))
        yield Figure(
            name="training.pipeline", symbols=scale.symbols, unit=SECONDS, value=spent, limit=in_fits,
            goal=GOAL_RATIO * in_fits, versus="the LightGBM fits inside it (folds and final model)",
        )  # fmt: skip


def _fit() -> Figure:
    """Our way to grow trees beside LightGBM's own call with the same rows and settings."""
    random = np.random.default_rng(11)
    X = random.standard_normal((FIT_ROWS, len(FeatureSchema())), dtype=np.float32)
    codes, weight = np.zeros(FIT_ROWS, dtype=np.int32), np.ones(FIT_ROWS)
    y = (X[:, 0] * X[:, 1] + random.standard_normal(FIT_ROWS) > 0).astype(np.int8)
    params = policies.training_spec().lightgbm_params()
    names = FeatureSchema().names

    def ours() -> None:
        fit_booster(
            features=X, symbol_codes=codes, y=y, weight=weight, encoding="index", n_symbols=1, feature_names=names,
            params=params, n_trees=FIT_TREES,
        )  # fmt: skip

    lightgbm = import_lightgbm()

    def bare() -> None:
        data = lightgbm.Dataset(np.column_stack([X, codes]), label=y, weight=weight, params=params)
        lightgbm.train(params, data, num_boost_round=FIT_TREES)

    return Figure(
        name="training.fit", symbols=1, unit=SECONDS, value=cpu_seconds(ours, best_of=2),
        limit=cpu_seconds(bare, best_of=2), versus=f"lightgbm.train: {FIT_ROWS:,} rows, {FIT_TREES} trees",
    )  # fmt: skip


class _Fits:
    """`fit_booster` with a stopwatch."""

    seconds = 0.0

    def __call__(self, **options: Any) -> Any:
        began = time.process_time()
        try:
            return fit_booster(**options)
        finally:
            self.seconds += time.process_time() - began

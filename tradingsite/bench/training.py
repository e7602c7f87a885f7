"""A training from the store to the saved model, against the bare fits inside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marketdata.store import CandleStore
from quant.features import warm_cache
from quant.model import fit_booster
from quant.pipeline import train
from tradingsite.bench import worlds
from tradingsite.bench.measure import SECONDS, Figure, Scale, cpu_seconds
from training_app import policies

SIZES = (50,)
GOAL_RATIO = 1.5
RUNS = 2
MARKET, TIMEFRAME = "bench", "1h"


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        store = CandleStore(Path(folder) / "candles")
        store.write(MARKET, TIMEFRAME, worlds.candles(scale))
        fits = _Fits()

        def pipeline() -> None:
            fits.seconds = 0.0
            panel = store.read_panel(MARKET, TIMEFRAME, symbols=worlds.codes(scale.symbols))
            result = train(panel, policies.training_spec(), progress=lambda _done, _text: None, fit=fits)
            result.model.save(Path(tempfile.mkdtemp(dir=folder)))

        # Both of one run: what the fits take differs from run to run.
        spent, in_fits = min((cpu_seconds(pipeline, best_of=1), fits.seconds) for _ in range(RUNS))
        yield Figure(
            name="training.pipeline", symbols=scale.symbols, unit=SECONDS, value=spent, limit=in_fits,
            goal=GOAL_RATIO * in_fits, versus="the LightGBM fits inside it (folds and final model)",
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

"""A program for test_dask_training: the whole pipeline on a local cluster of two workers, then one worker is killed.

    python -m tests.training.dask_pipeline FOLDER

Writes the model into FOLDER, and prints what happened as one line of JSON. A process of its own, because LightGBM must
not have been imported without scikit-learn before, and because clusters leave threads behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from exchanges.simulated import SimulatedMarket
from quant.panel import Panel
from quant.timeframes import DAY_MS, HOUR_MS
from quant.training_spec import TrainingSpec
from training_app import dask_engine

END_MS = 1_748_736_000_000  # 2025-06-01 UTC
SYMBOLS, DAYS = 6, 120


def panel() -> Panel:
    data = SimulatedMarket(seed=7, now_ms=lambda: END_MS, symbols=SYMBOLS, specials=False, learnable=True)
    codes = sorted(each.symbol for each in data.instruments())[:SYMBOLS]
    candles = {code: data.candles(code, "1h", END_MS - DAYS * DAY_MS, DAYS * 24) for code in codes}
    return Panel.from_candles(candles, HOUR_MS)


def train_on(address: str, folder: Path) -> dict[str, Any]:
    from quant.pipeline import train

    texts: list[str] = []
    strip = dask_engine._without_network

    def recorded(text: str) -> Any:
        texts.append(text)
        return strip(text)

    dask_engine._without_network = recorded
    stages: dict[str, float] = {}
    result = train(
        panel(),
        TrainingSpec.small(),
        progress=lambda fraction, text: stages.update({text: fraction}),
        fit=dask_engine.fit_over(address),
    )
    result.model.save(folder)
    return {
        "fits": len(texts),
        "on_two_machines": sum("[num_machines: 2]" in text for text in texts),
        "stages": stages,
        "trees": result.metrics["trees"],
        "log_loss": result.metrics["test"]["log_loss"],
        "gates": len(result.gates),
    }


def kill_a_worker(address: str, pids: list[int]) -> dict[str, Any]:
    """Grow many trees and kill a worker at the first report of one."""
    chance = np.random.default_rng(1)
    rows = 20_000
    killed: list[float] = []

    def kill(tree: int) -> None:
        if not killed:
            killed.append(time.monotonic())
            os.kill(pids[0], signal.SIGKILL)

    try:
        dask_engine.fit_over(address)(
            features=chance.normal(size=(rows, 20)).astype(np.float32),
            symbol_codes=np.zeros(rows, dtype=np.int32),
            y=(chance.uniform(size=rows) < 0.5).astype(np.int8),
            weight=np.ones(rows),
            encoding="index",
            n_symbols=1,
            feature_names=tuple(f"f{i}" for i in range(20)),
            params={"num_threads": 1, "num_leaves": 31, "seed": 1},
            n_trees=10_000,
            on_tree=kill,
        )
    except dask_engine.DaskError as error:
        return {"error": str(error), "noticed_after": time.monotonic() - killed[0]}
    return {"error": ""}


def main() -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, memory_limit=0
    ) as cluster:
        report = train_on(cluster.scheduler_address, Path(sys.argv[1]))
        pids = [worker.pid for worker in cluster.workers.values()]
        report["killed"] = kill_a_worker(cluster.scheduler_address, pids)
        print(json.dumps(report), flush=True)
        os._exit(0)  # the other worker's LightGBM waits for the dead one; its nanny ends it with this process


if __name__ == "__main__":
    main()

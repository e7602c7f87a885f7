"""Trees that are grown on a Dask cluster: the same pipeline, the same kind of artifact, an error when a worker dies."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.exceptions import ImproperlyConfigured

from quant import pipeline
from quant.model import MetaModel, encode_features, fit_booster
from quant.training_spec import TrainingSpec
from tests.training import dask_pipeline
from tradingsite.options import load_options
from training_app import dask_engine, execution
from training_app.dask_engine import DaskError, best_iteration, fit_over

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_local_cluster_of_two_workers_trains_through_the_whole_pipeline_and_a_dead_worker_is_an_error(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.training.dask_pipeline", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    assert report["on_two_machines"] == report["fits"] == 3, "two folds and the final model"
    assert list(report["stages"])[-2:] == ["test", "judged"]

    model = MetaModel.load(tmp_path)
    model.probe()
    assert "127.0.0.1" not in model.booster_text, "an artifact holds no addresses"
    assert model.booster_text.count("Tree=") == report["trees"]
    here = pipeline.train(dask_pipeline.panel(), TrainingSpec.small(), progress=lambda *_: None)
    assert report["log_loss"] == pytest.approx(here.metrics["test"]["log_loss"], abs=0.02)
    assert report["gates"] == len(here.gates)

    assert "went away during the training" in report["killed"]["error"]
    assert report["killed"]["noticed_after"] < 60


def test_the_number_of_trees_is_the_one_that_early_stopping_would_have_kept() -> None:
    chance = np.random.default_rng(4)
    rows = 3_000
    X = chance.normal(size=(rows, 5)).astype(np.float32)
    y = (X[:, 0] + 2 * chance.normal(size=rows) > 0).astype(np.int8)
    weight, codes = chance.uniform(0.2, 1, size=rows), (np.arange(rows) % 2).astype(np.int32)
    stop = slice(2_000, None)
    fit = functools.partial(
        fit_booster,
        features=X[:2_000], symbol_codes=codes[:2_000], y=y[:2_000], weight=weight[:2_000], encoding="index",
        n_symbols=2, feature_names=tuple("abcde"), n_trees=200,
        params={"num_threads": 1, "num_leaves": 15, "learning_rate": 0.1, "seed": 2, "max_bin": 63},
    )  # fmt: skip
    stopped = fit(stop_on=(X[stop], codes[stop], y[stop], weight[stop]), stop_rounds=15)
    assert 1 < stopped.best_iteration < 150
    grown = fit()
    encoded = encode_features(X[stop], codes[stop], encoding="index", n_symbols=2)
    found = best_iteration(grown, encoded, y[stop], weight[stop], rounds=15, num_threads=1)
    assert found == stopped.best_iteration


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_engine, "CONNECT_SECONDS", 0.2)
    with (
        pytest.raises(DaskError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"),
        dask_engine._client("tcp://127.0.0.1:1"),
    ):
        raise AssertionError("connected to nothing")


def test_a_process_that_can_only_predict_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from quant.model import import_lightgbm

    monkeypatch.setattr(import_lightgbm().compat, "SKLEARN_INSTALLED", False)
    with pytest.raises(DaskError, match="needs a process anew"):
        fit_over("tcp://127.0.0.1:8786")


def test_one_setting_chooses_where_the_trees_are_grown(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert execution.chosen_trainer() is pipeline.train
    monkeypatch.setattr(dask_engine, "fit_over", lambda scheduler: ("trees of", scheduler))
    settings.TRAIN_DASK_SCHEDULER = "tcp://10.0.0.9:8786"
    trainer = execution.chosen_trainer()
    assert isinstance(trainer, functools.partial)
    assert (trainer.func, trainer.keywords) == (pipeline.train, {"fit": ("trees of", "tcp://10.0.0.9:8786")})


@pytest.mark.parametrize(
    "environment, rule",
    [
        ({"TRAIN_DASK_SCHEDULER": "10.0.0.9:8786"}, "must be an address like tcp://host:8786"),
        ({"TRAIN_DASK_SCHEDULER": "tcp://user@host:8786"}, "must be an address"),
        (
            {"TRAIN_DASK_SCHEDULER": "tcp://host:8786", "TRAINING_MODE": "single_symbol"},
            "is for one large model; leave it empty",
        ),
    ],
)
def test_a_wrong_scheduler_setting_is_refused(environment: dict[str, str], rule: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rule):
        load_options(environment=environment)

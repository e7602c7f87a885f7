"""Growing the trees of one very large model on several hosts, through LightGBM's Dask interface.

`fit_over` stands in for `quant.model.fit_booster`: everything else of a training (features, folds, calibration, test,
gates) happens in the training process as always, and what comes back is the same LightGBM text. What differs:

- Each worker bins and bags its own share of the rows, so the trees are not those of one process: they depend on the
  number of workers and on which of them comes first. Two trainings on one running cluster gave equal trees, two
  clusters did not. What is tested and shipped is one set of trees all the same, which a text file holds.
- LightGBM cannot stop a distributed training early, because each worker would judge by its own rows and stop at
  another tree. All trees are grown, and the best number of them is then found as early stopping finds it.

No Django here: the workers import this module for the callback that reports their trees.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.model import FIXED_PARAMS, FitBooster, StopOn, column_names, encode_features, training_matrix

CONNECT_SECONDS = 30
POLL_SECONDS = 1.0
#: What LightGBM's scikit-learn classes call our parameters; their own defaults would stand beside ours.
_SKLEARN_NAMES = {
    "min_data_in_leaf": "min_child_samples",
    "feature_fraction": "colsample_bytree",
    "bagging_fraction": "subsample",
    "bagging_freq": "subsample_freq",
    "lambda_l2": "reg_lambda",
    "seed": "random_state",
}


class DaskError(Exception):
    """The cluster cannot train: not reachable, without workers, or one of them went away."""


def fit_over(scheduler: str) -> FitBooster:
    """Return a `FitBooster` that grows trees on the workers of the Dask scheduler at an address like tcp://host:8786.

    It raises DaskError. Call this before anything else of the process has imported LightGBM.
    """
    lightgbm = sys.modules.get("lightgbm")
    if lightgbm is not None and not lightgbm.compat.SKLEARN_INSTALLED:
        raise DaskError("LightGBM was imported without scikit-learn already: its Dask interface needs a process anew")
    try:
        import lightgbm.dask  # with scikit-learn and pandas, which a process that only predicts does without
    except ImportError as error:
        raise DaskError(f"{error}: install requirements-dask.txt") from error
    return partial(_fit, scheduler)


def _fit(
    scheduler: str,
    *,
    features: NDArray[np.float32],
    symbol_codes: NDArray[np.int32],
    y: NDArray[np.int8],
    weight: NDArray[np.float64],
    encoding: str,
    n_symbols: int,
    feature_names: tuple[str, ...],
    params: Mapping[str, Any],
    n_trees: int,
    stop_on: StopOn | None = None,
    stop_rounds: int = 0,
    on_tree: Callable[[int], None] | None = None,
) -> Any:
    """As `quant.model.fit_booster`; `num_threads` of `params` is each worker's own number of threads instead."""
    from lightgbm.dask import DaskLGBMClassifier

    matrix = training_matrix(features, symbol_codes, encoding=encoding, n_symbols=n_symbols)
    named = {_SKLEARN_NAMES.get(name, name): value for name, value in {**params, **FIXED_PARAMS}.items()}
    named.pop("num_threads", None)
    with _client(scheduler) as client:
        workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise DaskError(f"{scheduler} has no workers: start `dask worker {scheduler}` on some host")
        topic = f"trees-{client.id}"
        latest = _Latest()
        client.subscribe_topic(topic, latest.take)
        model = DaskLGBMClassifier(client=client, n_estimators=n_trees, tree_learner="data", **named)
        share = partial(_spread, client, workers)
        work = partial(
            model.fit,
            share(matrix),
            share(y),
            sample_weight=share(weight),
            feature_name=column_names(feature_names, encoding=encoding, n_symbols=n_symbols),
            callbacks=[partial(_report_tree, topic)],
        )
        _watch(client, workers, work, latest, on_tree)
        booster = _without_network(model.to_local().booster_.model_to_string())
    if stop_on is not None:
        X, codes, stop_y, stop_weight = stop_on
        encoded = encode_features(X, codes, encoding=encoding, n_symbols=n_symbols)
        booster.best_iteration = best_iteration(
            booster, encoded, stop_y, stop_weight, rounds=stop_rounds, num_threads=params["num_threads"]
        )
    return booster


def best_iteration(
    booster: Any,
    X: NDArray[np.float32],
    y: NDArray[np.int8],
    weight: NDArray[np.float64],
    *,
    rounds: int,
    num_threads: int,
) -> int:
    """Return the number of trees that LightGBM's early stopping would have kept, judged by weighted log loss.

    X float32[n, columns] as encoded, y int8[n], weight float64[n]. The first best number counts, until ``rounds``
    trees brought no gain.
    """
    raw = np.zeros(len(y))
    best, least = 0, np.inf
    for tree in range(booster.current_iteration()):
        raw += booster.predict(X, raw_score=True, start_iteration=tree, num_iteration=1, num_threads=num_threads)
        signed = np.where(y > 0, raw, -raw)
        loss = float(np.average(np.logaddexp(0.0, -signed), weights=weight))
        if loss < least:
            best, least = tree + 1, loss
        elif tree + 1 - best >= rounds:
            break
    return best


def _without_network(text: str) -> Any:
    """Return the trees without the addresses and ports that they were grown at: an artifact is not about hosts."""
    import lightgbm

    for name, default in (("machines", ""), ("local_listen_port", "12400"), ("num_machines", "1")):
        text = re.sub(rf"^\[{name}: .*\]$", f"[{name}: {default}]", text, flags=re.MULTILINE)
    return lightgbm.Booster(model_str=text)


def _report_tree(topic: str, env: Any) -> None:
    """LightGBM's callback on a worker: says how many trees it has grown."""
    from distributed import get_worker

    get_worker().log_event(topic, env.iteration + 1)


class _Latest:
    """The largest number of trees that any worker reported, and who reported: written by the client's own thread."""

    def __init__(self) -> None:
        self.trees = 0

    def take(self, event: tuple[float, Any]) -> None:
        self.trees = max(self.trees, int(event[1]))


def _watch(
    client: Any,
    workers: list[str],
    work: Callable[[], object],
    latest: _Latest,
    on_tree: Callable[[int], None] | None,
) -> None:
    """Do `work` in a thread; meanwhile tell `on_tree`, which may raise to stop, and see that the workers live.

    LightGBM waits for ever for a worker that has gone; a training that was given up goes on there until it notices.
    """
    told = 0
    pool = ThreadPoolExecutor(1, thread_name_prefix="dask-fit")
    try:
        future: Future[object] = pool.submit(work)
        while not future.done():
            wait([future], timeout=POLL_SECONDS)
            if on_tree is not None and latest.trees > told:
                told = latest.trees
                on_tree(told)
            gone = sorted(set(workers) - set(client.scheduler_info(n_workers=-1)["workers"]))
            if gone:
                raise DaskError(f"worker {gone[0]} went away during the training; the attempt is made again")
        future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _spread(client: Any, workers: list[str], rows: Any) -> Any:
    """Return a Dask array whose part i, held by worker i, is every len(workers)-th row from i on.

    Not one stretch of time for each: a worker finds the bins of its features from its own rows.
    """
    import dask
    import dask.array as da

    parts = [rows[start :: len(workers)] for start in range(len(workers))]
    held = [client.scatter(part, workers=[worker], direct=False) for part, worker in zip(parts, workers, strict=True)]
    meta = rows[:0]
    return da.concatenate(
        [
            da.from_delayed(dask.delayed(future), shape=part.shape, dtype=rows.dtype, meta=meta)
            for future, part in zip(held, parts, strict=True)
        ],
        allow_unknown_chunksizes=True,
    )


@contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)  # the default one: LightGBM waits through that
    except (OSError, TimeoutError, ValueError) as error:
        raise DaskError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    try:
        with warnings.catch_warnings():
            # Said at every fit of the class whose default it is; each worker takes its own number of threads.
            warnings.filterwarnings("ignore", message="Parameter n_jobs will be ignored")
            yield client
    finally:
        client.close()

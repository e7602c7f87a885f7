"""Doing a run: claim, read the candles up to the cut-off, train, write, verify, publish.

`manage.py train_run` calls `execute` in a process of its own; the soak and tests call it inline. LightGBM hangs in a
forked child of a process that has used it, so nothing here may run in a process that forks (Q5).
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from django.conf import settings
from django.db import DatabaseError, connection

from coverage_app.market import candle_store
from ops_app import clock
from quant.panel import Panel
from quant.reasons import reason
from quant.timeframes import DAY_MS, floor_ms, timeframe_ms, to_ms
from training_app import activation, artifacts, policies, registry, services
from training_app.choices import RunState
from training_app.exceptions import ArtifactError, RunLost
from training_app.models import ActiveModel, ModelArtifact, TrainingRun

if TYPE_CHECKING:
    from quant.model import MetaModel
    from quant.pipeline import Look, TrainingResult
    from quant.tuning import Tuner

    Trainer = Callable[..., TrainingResult]

log = structlog.get_logger(__name__)

HEARTBEATS_PER_LEASE = 4
STALLED_LEASES, STALLED_SECONDS = 5, 300.0
"""A training that says nothing for this long is stuck: its heartbeats end, its lease expires, another takes the run."""
MOST_LOOKS = 500
"""More than that many earlier models can hardly share a test window; reading stays bounded."""


TUNING_SHARE = 0.4
"""Of TRAIN_TIMEOUT_MINUTES, for the search of hyper-parameters. `train_run --drain` may begin a run at half of it, and
the final model and its test need the rest."""


class Stopped(Exception):  # noqa: N818 - it names what happened, like RunLost
    """This process was asked to stop: the run goes back to the queue."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of one claim: the run's state as this process left it, and a sentence."""

    run_id: int
    state: RunState
    text: str


class Pulse:
    """Heartbeats of a claim: sent only while training makes progress (T14), from a thread if `threaded`.

    `report` is the pipeline's progress callback. It raises RunLost as soon as the run belongs to somebody else or the
    lease could not be renewed in time, and Stopped when `stop()` says so.
    """

    def __init__(
        self,
        claim: services.Claim,
        *,
        threaded: bool,
        stop: Callable[[], bool] = lambda: False,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.claim = claim
        self._stop, self._on_lost = stop, on_lost
        self._interval = settings.TRAIN_LEASE_SECONDS / HEARTBEATS_PER_LEASE
        self._stalled_after = max(STALLED_LEASES * settings.TRAIN_LEASE_SECONDS, STALLED_SECONDS)
        self._progress, self._stage = 0.0, "claimed"
        self._reported_at = self._sent_at = clock.monotonic()
        self._lost = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True) if threaded else None

    def __enter__(self) -> Pulse:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def report(self, progress: float, stage: str) -> None:
        if self._stop():
            raise Stopped
        if self._lost or not self.claim.locally_valid():
            raise RunLost(self._lost or f"run {self.claim.run_id}: no heartbeat was confirmed before the lease ended")
        now = clock.monotonic()
        new_stage = stage != self._stage
        self._progress, self._stage, self._reported_at = progress, stage, now
        # A new stage is written at once, so that a person sees it; within a stage the pace of the lease decides.
        if new_stage or (self._thread is None and now - self._sent_at >= self._interval):
            line = f"{clock.real_now():%Y-%m-%d %H:%M:%S} attempt {self.claim.attempt}: {stage}" if new_stage else ""
            self._send(line)
            if self._lost:
                raise RunLost(self._lost)
            self._sent_at = now

    def _beat(self) -> None:
        try:
            while not self._done.wait(self._interval) and not self._lost:
                self._beat_once()
        finally:
            connection.close()  # this thread's own
        if self._lost:
            self._on_lost()

    def _beat_once(self) -> None:
        if clock.monotonic() - self._reported_at > self._stalled_after:
            log.warning("training_stalled", run=self.claim.run_id, stage=self._stage)
        else:
            self._send()
        if not self._lost and not self.claim.locally_valid():
            self._lost = f"run {self.claim.run_id}: no heartbeat was confirmed before the lease ended"

    def _send(self, line: str = "") -> None:
        try:
            services.heartbeat(self.claim, self._progress, self._stage, line=line)
        except RunLost as error:
            self._lost = str(error)
        except DatabaseError as error:  # it may come back before the lease ends; if not, the lease decides
            log.warning("heartbeat_failed", run=self.claim.run_id, error=str(error))
            connection.close()


def execute(
    run_id: int,
    owner: str,
    *,
    threaded: bool = False,
    stop: Callable[[], bool] = lambda: False,
    on_lost: Callable[[], None] = lambda: None,
    trainer: Trainer | None = None,
) -> Execution | None:
    """Claim the run and bring it to an end; None when there was nothing to claim (T10).

    Every error of the training ends in the row: with attempts left the run waits and is tried again, otherwise its
    symbols get their verdicts. The soak passes a `trainer` that fails on purpose in place of `quant.pipeline.train`.
    Raises RunLost only when somebody else has the run: its files are removed by then.
    """
    claim = services.claim(run_id, owner)
    if claim is None:
        return None
    run = TrainingRun.objects.select_related("scope").get(pk=run_id)
    bound = log.bind(run=run_id, scope=run.scope.key, attempt=claim.attempt)
    if (run.scope.training_mode, run.scope.timeframe) != (settings.TRAINING_MODE, settings.TIMEFRAME):
        services.cancel(run=run, why="the settings ask for another mode or timeframe", recheck_at=claim.data_end)
        return Execution(run_id, RunState.CANCELLED, "settings changed since it was requested")
    with Pulse(claim, threaded=threaded, stop=stop, on_lost=on_lost) as pulse:
        try:
            artifact = _train_and_publish(claim, run, pulse, trainer)
        except RunLost:
            artifacts.remove_temporary(run.scope, claim.token)
            bound.warning("run_lost")
            raise
        except Stopped:
            artifacts.remove_temporary(run.scope, claim.token)
            services.release(claim)
            return Execution(run_id, RunState.QUEUED, "stopped; it goes back to the queue")
        except Exception as error:  # noqa: BLE001 - whatever the libraries raise ends in the run's row, with its traceback
            bound.exception("training_failed")
            artifacts.remove_temporary(run.scope, claim.token)
            return _fail(claim, error)
    run.refresh_from_db()
    return Execution(run_id, RunState(run.state), f"{artifact}: {run.stage}")


def _train_and_publish(claim: services.Claim, run: TrainingRun, pulse: Pulse, trainer: Trainer | None) -> ModelArtifact:
    trainer = trainer or chosen_trainer()  # before the champion is loaded: see training_app.dask_engine
    pulse.report(0.0, "reading candles")
    panel = read_panel(claim, run)
    result = trainer(
        panel,
        policies.training_spec(),
        progress=pulse.report,
        champion=_champion(run),
        gate_bounds=policies.gate_bounds(),
        looks=_looks(run),
        tuner=_tuner(claim),
    )
    pulse.report(1.0, "writing the artifact")
    written = artifacts.write_artifact(
        result.model,
        scope=run.scope,
        version=claim.run_no,
        token=claim.token,
        manifest={"scope": run.scope.key, "version": claim.run_no, "token": claim.token, "data_hash": result.data_hash},
    )
    try:
        draft = services.draft_artifact(claim, result, written)
        artifacts.verify(draft)
        pulse.report(1.0, "publishing")
        return services.publish(claim, result, draft)
    except (RunLost, Stopped, ArtifactError):
        # Only when it is certain that no row names them. After a database error a commit may have happened: the files
        # stay, and the tidy job removes them if they are nobody's.
        artifacts.remove(written)
        raise


def chosen_trainer() -> Trainer:
    """Return the pipeline, with the trees grown here or on the cluster that TRAIN_DASK_SCHEDULER names."""
    from quant.pipeline import train  # LightGBM and numba: for training processes only

    if not settings.TRAIN_DASK_SCHEDULER:
        return train
    from training_app.dask_engine import fit_over

    return functools.partial(train, fit=fit_over(settings.TRAIN_DASK_SCHEDULER))


def _tuner(claim: services.Claim) -> Tuner | None:
    """Return the search of TRAIN_TUNING_TRIALS trials, each of which becomes a row; None: none is wanted."""
    if settings.TRAIN_TUNING_TRIALS == 0:
        return None
    from quant.tuning import tune

    return functools.partial(
        tune,
        n_trials=settings.TRAIN_TUNING_TRIALS,
        seconds=TUNING_SHARE * settings.TRAIN_TIMEOUT_MINUTES * 60,
        now=clock.monotonic,
        on_trial=functools.partial(services.record_trial, claim),
    )


def read_panel(claim: services.Claim, run: TrainingRun) -> Panel:
    """Return candles and funding of the run's symbols, closed at the data cut-off that the claim wrote, none newer.

    HISTORY_TARGET_DAYS of them, so that a training does not get dearer with every month that is stored. The artifact's
    `data_start` says where they begin, and the bot replays from there (I13). Raises TrainingError when there are none.
    """
    from quant.pipeline import TrainingError

    codes = list(run.run_symbols.order_by("symbol__code").values_list("symbol__code", flat=True))
    step_ms = timeframe_ms(run.scope.timeframe)
    cut_off_ms = floor_ms(to_ms(claim.data_end), step_ms)
    since_ms = cut_off_ms - settings.HISTORY_TARGET_DAYS * DAY_MS
    panel = candle_store().read_panel(
        run.scope.market, run.scope.timeframe, symbols=codes, since_ms=since_ms, until_ms=cut_off_ms
    )
    if panel.n_times == 0:
        raise TrainingError(reason("NO_CANDLES", symbols=len(codes), until=claim.data_end))
    return panel


def _looks(run: TrainingRun) -> list[Look]:
    """Return the test windows that earlier models of the scope were judged on, whatever became of them.

    A model that no Sharpe ratio came of, because nothing reached its threshold, looked as well.
    """
    from quant.pipeline import Look

    keys = ("metrics__windows__test_start_ms", "metrics__windows__test_end_ms", "metrics__test__sharpe")
    rows = ModelArtifact.objects.filter(scope=run.scope).order_by("-pk").values_list(*keys)[:MOST_LOOKS]
    return [Look(test_start_ms=start, test_end_ms=end, sharpe=sharpe) for start, end, sharpe in rows if end]


def _champion(run: TrainingRun) -> MetaModel | None:
    """Return the model that the challenger must match: the active one, if it can still be compared."""
    active = ActiveModel.objects.select_related("artifact__scope").filter(slot=run.scope.key).first()
    if active is None:
        return None
    if registry.refusals_of(active.artifact):  # trained by another recipe, or broken: it serves nobody
        return None
    try:
        return artifacts.load(active.artifact)
    except ArtifactError as error:
        activation.report_broken(artifact=active.artifact, error=str(error))
        return None


def _fail(claim: services.Claim, error: Exception) -> Execution:
    """Record the error of an attempt. What the data itself forbids is final: trying again would say the same."""
    from quant.pipeline import TrainingError

    final = isinstance(error, TrainingError)
    text = str(error) if final else "".join(traceback.format_exception(error, limit=-8)).strip()
    state = services.fail(claim, text, final=final)
    return Execution(claim.run_id, state, str(error))

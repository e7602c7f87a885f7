"""What workers run. Each task first finds out whether there is anything to do: messages may be lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess

import structlog
from django.conf import settings

from ops_app import journal, process, queue
from ops_app.choices import Severity
from training_app import activation, policies, services, watching
from training_app import housekeeping as keeping

log = structlog.get_logger(__name__)

TRAINER_NICE, TRAINER_OOM_SCORE = 10, 800
WATCH_SECONDS = 600.0
"""The bot and the pages go first; when memory runs out, the training is what the kernel kills."""


def train(run_id: int) -> str:
    """Train in a child process of its own and wait for it: memory comes back, it can be killed, and nothing forks after
    LightGBM was used. The child claims the run; if it dies, its lease expires and the sweeper decides.

    The message only says that there is work: if this run is somebody's already, or too large for this host, the one
    that waits longest and fits is trained instead.
    """
    chosen = run_id
    if not services.claimable(run_id):
        services.decline(run_id)
        other = services.next_claimable()
        if other is None:
            return ""
        chosen = other
    seconds = settings.TRAIN_TIMEOUT_MINUTES * 60
    threads = str(policies.training_threads())
    child = process.spawn(
        process.manage_command("train_run", str(chosen), "--drain"),
        nice=TRAINER_NICE,
        oom_score_adj=TRAINER_OOM_SCORE,
        death_signal=signal.SIGTERM,  # its worker was stopped: it gives the run back at once, not when the lease ends
        environment={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": threads},
    )
    try:
        code = child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        text = f"The training of run {chosen} was killed after {seconds:.0f} s (TRAIN_TIMEOUT_MINUTES)."
        journal.record("training_timed_out", text, subject=f"run:{chosen}", severity=Severity.WARNING)
        return text
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if code < 0:
        services.sweep()  # it was killed and could not give the run back: do not wait for the end of its lease
    return f"run {chosen}: train_run ended with {code}"


def apply_activation(activation_id: int) -> str:
    """Verify and apply what somebody asked for."""
    applied = activation.apply_activation(activation_id)
    return "" if applied is None else f"{applied}: {applied.reason}"


def plan_job() -> str:
    """Request the runs that are due."""
    runs = services.plan()
    return ", ".join(f"requested run {run.run_no} of {run.scope.key}" for run in runs)


def verify_job() -> str:
    """Look whether the files of the active models are still what was written (R1)."""
    broken = keeping.verify_active_files()
    return f"broken: {', '.join(broken)}" if broken else ""


def tidy_job() -> str:
    """Remove artifact directories that no row names."""
    removed = keeping.remove_orphans()
    return f"removed {', '.join(removed)}" if removed else ""


def watch_job() -> str:
    """Ask a worker to look at the active models."""
    queue.enqueue(watching.WATCH_TASK, queue=settings.LIGHT_QUEUE, group="watch models")
    return "asked for a look at the active models"


def watch_models() -> str:
    """Look at the active models in a child process: a light worker must not keep numba and a month of candles."""
    if not watching.is_due():
        return ""
    child = process.spawn(process.manage_command("watch_models"), nice=TRAINER_NICE, oom_score_adj=TRAINER_OOM_SCORE)
    try:
        code = child.wait(timeout=WATCH_SECONDS)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if code != 0:
        raise RuntimeError(f"manage.py watch_models ended with {code}; its output is in the worker's log")
    return "looked at the active models"

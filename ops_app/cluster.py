"""A django-q2 cluster that cannot look healthy while it is dead (reference/locks.md).

Stock `qcluster` hangs for ever when an idle worker is killed, runs tasks five times without its monitor, leaves orphans
without its guard, and deadlocks when its process group gets a SIGTERM. Here:

- every child dies with its parent, and ignores SIGTERM and SIGINT: only the main process decides to stop;
- an unplanned death of any child ends the whole cluster with exit code 70, and the supervisor starts it again: what the
  dead one held of the queues cannot be known. A planned recycle and a reported time-out are the only deaths survived;
- a guard that hangs is noticed by the main process, and ends the cluster too.

What a task was doing is safe: the rows decide, and their leases run out.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

import structlog
from django.conf import settings
from django.db import close_old_connections, connections
from django_q.cluster import Sentinel
from django_q.conf import Conf
from django_q.scheduler import scheduler
from django_q.worker import worker

from ops_app import clock, heartbeats, host, jobs, versions
from ops_app.process import die_with_parent, on_stop, show_as

log = structlog.get_logger(__name__)

UNPLANNED_DEATH = 70  # EX_SOFTWARE
GRACE_SECONDS = 10.0
SWEEP_SECONDS = 15.0
HUNG_SECONDS = 120.0  # a scheduler that waits for the database's lock is slow, not hung
SCHEDULER_SECONDS = 15.0
_LOOK_SECONDS = 0.2
_REPORT_SECONDS = 5.0
_RECYCLED, _TIMED_OUT = -2.0, 0.0
#: Libraries whose threads do not survive a fork: LightGBM hangs in a child once its parent has loaded a model (Q5).
NOT_BEFORE_FORK = ("lightgbm", "numba", "sklearn")

_context = get_context("fork")


class ForkUnsafeError(RuntimeError):
    """A library was imported that hangs in forked children."""


def require_fork_safe() -> None:
    """Raise ForkUnsafeError if this process has imported what must not be there when it forks (Q5)."""
    loaded = [name for name in NOT_BEFORE_FORK if name in sys.modules]
    if loaded:
        raise ForkUnsafeError(
            f"{', '.join(loaded)} was imported before the workers are forked, in which it can hang: import it inside "
            "the function that needs it, not at the top of a module that Django loads."
        )


def _child(target: Callable[..., object], parent_pid: int, *arguments: Any) -> None:
    die_with_parent(parent_pid)
    show_as(f"q-{target.__name__.lower()}")  # q-guard, q-worker, q-monitor, q-pusher
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    target(*arguments)


class Guard(Sentinel):
    """The process that watches workers, monitor and pusher, and runs the scheduler."""

    def __init__(self, stop_event: Any, start_event: Any, cluster_id: Any, tick: Any) -> None:
        self.tick = tick
        super().__init__(stop_event, start_event, cluster_id, start=False)
        for number in (signal.SIGTERM, signal.SIGINT):  # the base class has just set them
            signal.signal(number, signal.SIG_IGN)
        self.start()

    def spawn_process(self, target: Callable[..., object], *arguments: Any) -> Any:
        require_fork_safe()
        process = _context.Process(target=_child, args=(target, os.getpid(), *arguments), daemon=True)
        if target is worker:
            process.timer = arguments[2]  # type: ignore[attr-defined]  # where the base class looks for it
            self.pool.append(process)
        process.start()
        return process

    def guard(self) -> None:
        """Look at every child twice a second until the stop is asked for; then stop them gracefully."""
        self.start_event.set()
        log.info("cluster_running", queue=Conf.CLUSTER_NAME, workers=len(self.pool), guard=os.getpid())
        next_schedule = clock.monotonic() + SCHEDULER_SECONDS
        while True:
            self.tick.value = clock.monotonic()
            for process in list(self.pool):
                self._look_at_worker(process)
            for name, process in (("monitor", self.monitor), ("pusher", self.pusher)):
                if not process.is_alive():
                    self._end(name, process)
            if Conf.SCHEDULER and clock.monotonic() >= next_schedule:
                next_schedule = clock.monotonic() + SCHEDULER_SECONDS
                scheduler(broker=self.broker)
            if self.stop_event.wait(Conf.GUARD_CYCLE):
                break
        self.stop()

    def _look_at_worker(self, process: Any) -> None:
        lock = process.timer.get_lock()
        if not lock.acquire(timeout=_REPORT_SECONDS):
            self._end("worker that held its timer's lock", process)
        try:
            # Seconds left to a busy worker; -1 idle, -2 recycled, 0 timed out. The guard counts it down.
            left = process.timer.value
            if left > 0:
                process.timer.value = max(left - Conf.GUARD_CYCLE, 0.0)
        finally:
            lock.release()
        if process.is_alive() and left != _TIMED_OUT:
            return
        if left not in (_TIMED_OUT, _RECYCLED):
            self._end("worker", process)
        # It has reported its result and is about to end by itself. One that does not end is stuck in a library.
        process.join(timeout=_REPORT_SECONDS)
        if process.exitcode != 0:
            self._end("worker that did not end after its time-out", process)
        self.pool.remove(process)
        connections.close_all()
        self.spawn_worker()
        log.info("worker_replaced", cause="recycled" if left == _RECYCLED else "time-out", queue=Conf.CLUSTER_NAME)

    def _end(self, name: str, process: Any) -> None:
        log.critical("cluster_ends", cause=f"unplanned death of a {name}", pid=process.pid, exit_code=process.exitcode)
        logging.shutdown()
        os._exit(UNPLANNED_DEATH)  # the kernel ends the other children with this process


class Cluster:
    """The main process: forks the guard, then beats, sweeps and watches until it is told to stop."""

    def __init__(self, *, queue: str, name: str) -> None:
        self.queue = queue
        self.name = name
        self.stopping = False
        self.versions = versions.Watch()

    def run(self) -> int:
        """Serve the queue until SIGTERM or SIGINT; returns the exit code."""
        require_fork_safe()
        if settings.LOG_LEVEL != "debug":  # django-q2 writes four lines per task; failures are warnings and more
            logging.getLogger("django-q").setLevel(logging.WARNING)
        connections.close_all()
        stop_event, start_event = _context.Event(), _context.Event()
        tick = _context.Value("d", clock.monotonic(), lock=False)
        guard = _context.Process(target=_child, args=(Guard, os.getpid(), stop_event, start_event, uuid.uuid4(), tick))
        with on_stop(self._ask_to_stop):
            guard.start()
            threading.Thread(target=self._sweep_for_ever, name="sweeper", daemon=True).start()
            code = self._watch(guard, tick)
            if code in (0, versions.OUTDATED):
                stop_event.set()
                guard.join(GRACE_SECONDS)
                if guard.exitcode is None:
                    log.warning("tasks_cut_off", queue=self.queue, after_seconds=GRACE_SECONDS)
            if guard.exitcode is None:
                guard.kill()
                guard.join()
        if code in (0, versions.OUTDATED):
            with suppress(Exception):  # a database that is gone must not keep the process from stopping
                heartbeats.stop(self.name)
        log.info("cluster_stopped", queue=self.queue, exit_code=code)
        return code

    def _ask_to_stop(self) -> None:
        self.stopping = True

    def _watch(self, guard: Any, tick: Any) -> int:
        while not self.stopping:
            if self.versions.reason:
                return versions.OUTDATED
            if not guard.is_alive():
                log.critical("guard_died", queue=self.queue, exit_code=guard.exitcode)
                return UNPLANNED_DEATH
            if clock.monotonic() - tick.value > HUNG_SECONDS:
                log.critical("guard_hangs", queue=self.queue, seconds=HUNG_SECONDS)
                return UNPLANNED_DEATH
            guard.join(_LOOK_SECONDS)
        return 0

    def _sweep_for_ever(self) -> None:
        first = True
        while not self.stopping:
            try:
                close_old_connections()
                self.sweep(first=first)
                first = False
            except Exception:
                log.exception("sweep_failed", queue=self.queue)
            clock.sleep(SWEEP_SECONDS)

    def sweep(self, *, first: bool) -> None:
        """Say that the cluster lives, ring for what was forgotten; at the start, ring the jobs whose time is now."""
        share = host.training_share().to_dict()  # what may wait for a larger host is judged by it
        if self.versions.outdated():
            return
        heartbeats.beat(self.name, "worker", 60, {"queue": self.queue, "workers": int(Conf.WORKERS), **share})
        if first and Conf.SCHEDULER:
            jobs.ring_idle()
        jobs.sweep()

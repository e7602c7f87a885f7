"""What the guard and the main process of a worker cluster decide, without processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import types
from typing import Any

import pytest

from ops_app import clock, cluster
from ops_app.cluster import Cluster, Guard


class Ended(Exception):  # noqa: N818 - stands for the end of the process
    pass


class FakeProcess:
    def __init__(self, *, timer: float, alive: bool, exitcode: int | None = None) -> None:
        self.timer = multiprocessing.Value("f", timer)
        self.exitcode = exitcode
        self.pid = 1
        self._alive = alive

    def is_alive(self) -> bool:
        return self._alive

    def join(self, timeout: float | None = None) -> None:
        return None


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    """A guard without children, whose end is an exception instead of the end of this process."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(cluster.logging, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.connections, "close_all", lambda: None)
    monkeypatch.setattr(cluster, "_REPORT_SECONDS", 0.05)
    bare = object.__new__(Guard)
    bare.pool = []
    bare.spawned = 0

    def spawn() -> None:
        bare.spawned += 1

    bare.spawn_worker = spawn
    return bare


def look(guard: Guard, process: FakeProcess) -> FakeProcess:
    guard.pool.append(process)
    guard._look_at_worker(process)
    return process


def test_an_idle_and_a_busy_worker_are_left_alone_and_the_time_of_the_busy_one_runs(guard: Guard) -> None:
    assert look(guard, FakeProcess(timer=-1, alive=True)).timer.value == -1
    assert look(guard, FakeProcess(timer=10, alive=True)).timer.value == 9.5
    assert guard.spawned == 0


@pytest.mark.parametrize("timer", [-2, 0])
def test_a_worker_that_ended_as_planned_is_replaced(guard: Guard, timer: float) -> None:
    process = look(guard, FakeProcess(timer=timer, alive=False, exitcode=0))
    assert process not in guard.pool
    assert guard.spawned == 1


@pytest.mark.parametrize(
    "process",
    [
        FakeProcess(timer=-1, alive=False, exitcode=-9),
        FakeProcess(timer=120, alive=False, exitcode=-9),
        FakeProcess(timer=120, alive=False, exitcode=0),  # a task that called sys.exit()
        FakeProcess(timer=-2, alive=False, exitcode=-11),
        FakeProcess(timer=0, alive=True),  # stuck in a library: it never reported its time-out
    ],
    ids=["idle", "busy", "sys.exit", "killed while it ended", "stuck"],
)
def test_any_other_end_of_a_worker_ends_the_cluster_with_70(guard: Guard, process: FakeProcess) -> None:
    with pytest.raises(Ended, match="70"):
        look(guard, process)
    assert guard.spawned == 0


def test_q3_a_worker_that_died_with_its_timers_lock_does_not_hang_the_guard(guard: Guard) -> None:
    process = FakeProcess(timer=5, alive=False, exitcode=-9)
    owner = threading.Thread(target=process.timer.get_lock().acquire)  # the lock belongs to a thread of a process
    owner.start()
    owner.join()
    with pytest.raises(Ended, match="70"):
        look(guard, process)


def test_the_time_left_of_a_worker_reaches_exactly_zero(guard: Guard) -> None:
    """With a guard cycle of 0.3 it never would, and no task would ever time out (ops.E002)."""
    process = FakeProcess(timer=903, alive=True)
    for _ in range(2 * 903):
        guard._look_at_worker(process)
    assert process.timer.value == 0.0


def test_a_guard_that_hangs_is_noticed_by_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tick = types.SimpleNamespace(value=clock.monotonic() - cluster.HUNG_SECONDS - 1)
    guard: Any = FakeProcess(timer=0, alive=True)
    assert Cluster(queue="light", name="x")._watch(guard, tick) == cluster.UNPLANNED_DEATH


def test_the_main_process_stops_watching_when_it_is_asked_to() -> None:
    main = Cluster(queue="light", name="x")
    main._ask_to_stop()
    assert main._watch(FakeProcess(timer=0, alive=False), types.SimpleNamespace(value=0.0)) == 0


@pytest.mark.parametrize("library", cluster.NOT_BEFORE_FORK)
def test_q5_a_process_that_has_loaded_what_hangs_after_a_fork_refuses_to_fork(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    for name in cluster.NOT_BEFORE_FORK:
        monkeypatch.delitem(sys.modules, name, raising=False)
    cluster.require_fork_safe()
    monkeypatch.setitem(sys.modules, library, types.ModuleType(library))
    with pytest.raises(cluster.ForkUnsafeError, match=library):
        cluster.require_fork_safe()


@pytest.mark.django_db
def test_a_sweep_beats_rings_the_idle_jobs_once_and_calls_the_sweepers(monkeypatch: pytest.MonkeyPatch) -> None:
    from ops_app import heartbeats, jobs, queue

    swept: list[bool] = []
    monkeypatch.setattr(jobs, "_sweepers", {"x": lambda: swept.append(True)})
    main = Cluster(queue="light", name="worker of a test")
    with queue.capture() as messages:
        main.sweep(first=True)
        main.sweep(first=False)
    assert sorted(str(message.args[0]) for message in messages) == sorted(job.name for job in jobs.registered())
    assert swept == [True, True]
    assert [pulse.name for pulse in heartbeats.pulses()] == ["worker of a test"]

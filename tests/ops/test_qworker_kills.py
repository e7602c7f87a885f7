"""Kill every kind of process of a worker cluster, for real. Stock `qcluster` fails each of these (locks.md)."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.ops.processes import Program, running, wait_until

pytestmark = pytest.mark.slow

QUICK = {"DJANGO_SETTINGS_MODULE": "tests.ops.cluster_settings"}
ROLES = {"worker": r"ready for work at (\d+)", "monitor": r"monitoring at (\d+)", "pusher": r"pushing tasks at (\d+)"}


def ring(data_dir: Path, dotted: str, *args: int | str, queue: str = "light") -> None:
    """Send a message from another process, as the website would."""
    call = f"from ops_app.queue import enqueue; enqueue({dotted!r}, *{args!r}, queue={queue!r})"
    with running("shell", "--no-imports", "-c", call, data_dir=data_dir) as shell:
        assert shell.wait_end(seconds=30) == 0, shell.log


def ready(program: Program) -> dict[str, int]:
    """Wait until the cluster serves; return a pid of each kind of process."""
    pids = {"guard": int(program.wait_log(r"cluster_running .*guard=(\d+)")[0]), "main": program.pid}
    for role, pattern in ROLES.items():
        pids[role] = int(program.wait_log(pattern)[0])
    program.tree()
    return pids


def messages(data_dir: Path, function: str) -> int:
    """Return how many failures of the function the queue has stored."""
    with closing(sqlite3.connect(data_dir / "db.sqlite3")) as database:
        return int(database.execute("SELECT COUNT(*) FROM django_q_task WHERE func = ?", [function]).fetchone()[0])


@pytest.mark.parametrize("victim", ["worker", "monitor", "pusher", "guard"])
def test_q3_an_unplanned_death_of_any_child_ends_the_whole_cluster_with_70_and_no_orphan(
    data_dir: Path, victim: str
) -> None:
    with running("qworker", data_dir=data_dir) as cluster:
        pids = ready(cluster)
        assert len(cluster.seen) == 6  # main, guard, two workers, monitor, pusher
        os.kill(pids[victim], signal.SIGKILL)
        assert cluster.wait_end(seconds=10) == 70
        cluster.wait_gone()


def test_q3_a_killed_busy_worker_ends_the_cluster_too(data_dir: Path) -> None:
    with running("qworker", data_dir=data_dir) as cluster:
        ready(cluster)
        ring(data_dir, "time.sleep", 60)
        cluster.wait_log(r"processing \S+ 'time.sleep'")
        for pid in cluster.wait_log(ROLES["worker"], count=2):
            os.kill(int(pid), signal.SIGKILL)
        assert cluster.wait_end(seconds=10) == 70
        cluster.wait_gone()


def test_q4_the_death_of_the_main_process_takes_all_its_processes_with_it(data_dir: Path) -> None:
    with running("qworker", data_dir=data_dir) as cluster:
        ready(cluster)
        os.kill(cluster.pid, signal.SIGKILL)
        assert cluster.wait_end(seconds=5) == -signal.SIGKILL
        cluster.wait_gone(seconds=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_the_cluster_gracefully(data_dir: Path, number: signal.Signals) -> None:
    with running("qworker", "--queue", "training", data_dir=data_dir) as cluster:
        ready(cluster)
        os.killpg(cluster.pid, number)
        assert cluster.wait_end(seconds=10) == 0
        cluster.wait_gone()


def test_a_stop_waits_for_the_running_task(data_dir: Path) -> None:
    with running("qworker", data_dir=data_dir) as cluster:
        ready(cluster)
        ring(data_dir, "time.sleep", 3)
        cluster.wait_log(r"processing \S+ 'time.sleep'")
        cluster.process.terminate()
        assert cluster.wait_end(seconds=15) == 0
        assert "Processed 'time.sleep'" in cluster.log


def test_a_reported_time_out_and_a_recycled_worker_are_survived(data_dir: Path) -> None:
    with running("qworker", data_dir=data_dir, **QUICK) as cluster:
        ready(cluster)
        ring(data_dir, "time.sleep", 30)  # its time-out is 2 s
        cluster.wait_log(r"worker_replaced .*cause=time-out", seconds=20)
        cluster.wait_log(
            r"worker_replaced .*cause=recycled", seconds=20
        )  # after two of the jobs that every start rings
        ring(data_dir, "time.sleep", 0)
        cluster.wait_log(r"Processed 'time.sleep'", seconds=20)
        assert cluster.process.poll() is None
        wait_until(lambda: messages(data_dir, "time.sleep") == 1, what="the stored failure of the task that timed out")


def test_q5_nothing_that_hangs_after_a_fork_is_imported_before_it(data_dir: Path) -> None:
    from ops_app.cluster import NOT_BEFORE_FORK

    call = f"import sys, ops_app.cluster; print('loaded:', [n for n in {NOT_BEFORE_FORK!r} if n in sys.modules])"
    with running("shell", "--no-imports", "-c", call, data_dir=data_dir) as shell:
        assert shell.wait_end(seconds=30) == 0, shell.log
        assert "loaded: []" in shell.log


def test_a_cluster_says_that_it_lives_until_it_is_stopped(data_dir: Path) -> None:
    def beats() -> list[str]:
        with closing(sqlite3.connect(data_dir / "db.sqlite3")) as database:
            return [name for (name,) in database.execute("SELECT name FROM ops_app_heartbeat")]

    with running("qworker", "--name", "worker of a test", data_dir=data_dir) as cluster:
        wait_until(lambda: beats() == ["worker of a test"], what="its heartbeat")
        cluster.process.terminate()
        assert cluster.wait_end() == 0
        assert beats() == []


def test_an_unmigrated_database_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    with running("qworker", data_dir=tmp_path) as cluster:
        assert cluster.wait_end() == 1
        assert "not migrated" in cluster.log
        assert "python3 run.py manage setup" in cluster.log
        assert "Traceback" not in cluster.log

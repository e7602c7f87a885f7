"""Children that die with their parent, stop signals, and the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from ops_app import clock, process, supervisor
from tests.ops.processes import ROOT, alive, wait_until

PARENT = """
import sys, time; sys.path.insert(0, {root!r})
from ops_app.process import spawn
child = spawn([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal; doctor says what is weaker elsewhere")
def test_q4_a_child_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT.format(root=str(ROOT))], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive({child})
        parent.kill()
        wait_until(lambda: not alive({child}), seconds=5, what="the end of the child")


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ops_app.process import die_with_parent; "
    ended = subprocess.run(
        [sys.executable, "-c", code + "die_with_parent(1); import time; time.sleep(60)"], check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL


def test_a_child_listens_to_sigterm_though_its_parent_ignores_it_and_has_its_niceness() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        child = process.spawn(
            [sys.executable, "-c", "import os, time; print(os.nice(0), flush=True); time.sleep(60)"],
            nice=3,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert int(child.stdout.readline()) == os.nice(0) + 3
        child.terminate()
        assert child.wait(timeout=60) == -signal.SIGTERM
        child.stdout.close()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_first_signal_asks_and_the_second_forces(request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    asked: list[bool] = []
    with process.on_stop(lambda: asked.append(True)):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its name")
def test_a_process_shows_itself_under_the_name_of_its_role() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ops_app.process import show_as; import time; "
    with subprocess.Popen([sys.executable, "-c", code + "show_as('q-monitor'); time.sleep(60)"]) as child:
        wait_until(lambda: psutil.Process(child.pid).name() == "q-monitor", what="its name")
        child.kill()


def test_the_supervisor_waits_longer_after_each_death() -> None:
    assert [supervisor.restart_delay(failures) for failures in (1, 2, 3, 6, 60)] == [1, 2, 4, 5, 5]


def shell(name: str, code: str) -> supervisor.Program:
    return supervisor.Program(name=name, command=[sys.executable, "-c", code])


def test_the_supervisor_restarts_what_dies_says_why_and_leaves_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "restart_delay", lambda failures: 0.0)
    said: list[str] = []
    orphan = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    code = orphan + "print('child', p.pid, flush=True); print('out of luck', flush=True); sys.exit(3)"
    watched = supervisor.Supervisor([shell("unlucky", code)], log_dir=tmp_path, say=said.append)
    try:
        wait_until(lambda: watched.look() or len(said) >= 2, what="two deaths")
    finally:
        watched.stop()
    assert "unlucky ended with exit code 3" in said[0]
    assert "| out of luck" in said[0]
    pids = {int(line.split()[1]) for line in (tmp_path / "unlucky.log").read_text().splitlines() if "child" in line}
    assert len(pids) >= 2
    wait_until(lambda: not alive(pids), seconds=5, what="no orphans")


def test_what_dies_after_it_had_worked_is_started_at_once_and_what_dies_again_at_once_waits(tmp_path: Path) -> None:
    said: list[str] = []
    watched = supervisor.Supervisor([shell("brief", "")], log_dir=tmp_path, say=said.append)
    (child,) = watched.children
    with clock.simulated(datetime(2026, 1, 1, tzinfo=UTC)) as sim:
        for worked in (5, 0, 0):
            watched.look()
            assert child.process is not None
            child.process.wait()
            sim.advance(timedelta(seconds=worked))
            watched.look()
            sim.now = max(sim.now, sim.start + timedelta(seconds=child.next_start))
    watched.stop()
    waits = [text.partition(" again ")[2].partition(".")[0] for text in said]
    assert waits == ["now", "in 2 s", "in 4 s"]


def test_the_supervisor_kills_what_does_not_listen_when_it_is_forced(tmp_path: Path) -> None:
    said: list[str] = []
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf = f"{ignore}; print('deaf', flush=True); time.sleep(60)"
    watched = supervisor.Supervisor([shell("deaf", deaf)], log_dir=tmp_path, say=said.append)
    watched.look()
    wait_until(lambda: (tmp_path / "deaf.log").read_text() == "deaf\n", what="its first line")
    began = time.monotonic()
    watched.stop(forced=lambda: time.monotonic() - began > 0.3)
    assert time.monotonic() - began < 30
    assert said == ["deaf did not stop in time; it is killed."]
    assert not watched.children[0].running

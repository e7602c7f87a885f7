"""`manage.py runall`: one copy, everything restarted, everything stopped, nothing left."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from django.core.management.base import CommandError

from ops_app import progress, stages
from ops_app.management.commands import runall
from tests.ops.processes import running, wait_until


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def logged(data_dir: Path, name: str) -> str:
    path = data_dir / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def clusters_ran(data_dir: Path, count: int) -> bool:
    return all(logged(data_dir, name).count("cluster_running") >= count for name in ("worker-light", "worker-training"))


def kinds_alive(data_dir: Path) -> set[str]:
    with closing(sqlite3.connect(data_dir / "db.sqlite3")) as database:
        return {kind for (kind,) in database.execute("SELECT kind FROM ops_app_heartbeat")}


@pytest.mark.slow
def test_everything_starts_once_and_nothing_outlives_a_runall_that_is_killed(data_dir: Path) -> None:
    """That what is killed comes back, and all stops on one signal, is shown by tests/site/test_crashtest.py."""
    bind = f"127.0.0.1:{free_port()}"
    with running("runall", data_dir=data_dir, WEB_BIND=bind, WEB_WORKERS="1") as all_of_it:
        wait_until(lambda: clusters_ran(data_dir, 1), seconds=30, what="both clusters")
        wait_until(lambda: "Booting worker" in logged(data_dir, "web"), seconds=30, what="the web server")
        assert "admin_password" in all_of_it.log
        assert (data_dir / "admin_password").read_text().strip() not in all_of_it.log

        with running("runall", data_dir=data_dir, WEB_BIND="127.0.0.1:1") as second:
            assert second.wait_end(seconds=30) == 1
            assert f"running already for {data_dir}: pid {all_of_it.pid}" in second.log

        wait_until(lambda: {"bot", "web", "worker"} <= kinds_alive(data_dir), seconds=30, what="all to say they live")
        assert len(all_of_it.tree()) >= 12
        os.kill(all_of_it.pid, signal.SIGKILL)
        all_of_it.wait_gone(seconds=15)


def test_an_unmigrated_database_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    with running("runall", data_dir=tmp_path) as refused:
        assert refused.wait_end(seconds=30) == 1
        assert "python3 run.py manage setup" in refused.log
        assert "Traceback" not in refused.log


def test_a_taken_port_is_named_with_one_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CommandError, match=rf"Port {port} of 127.0.0.1 is taken.* WEB_BIND=127.0.0.1:\d+"):
            runall.require_free_port(f"127.0.0.1:{port}")
    runall.require_free_port(f"127.0.0.1:{free_port()}")
    runall.require_free_port("unix:/tmp/x.sock")


@pytest.mark.parametrize("bind", ["8000", "localhost:", "localhost:web", "127.0.0.1:70000", "127.0.0.1:0"])
def test_a_bind_that_is_no_address_is_refused_with_an_example(bind: str) -> None:
    with pytest.raises(CommandError, match=re.escape(repr(bind))):
        runall.require_free_port(bind)


def test_the_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "runall.lock"
    with runall.only_copy(path):
        refusal = pytest.raises(CommandError, match=f"pid {os.getpid()}")
        with refusal, runall.only_copy(path):
            pytest.fail("two copies")
    with runall.only_copy(path):
        pass


def test_setup_keeps_the_password_for_its_owner_alone(migrated: Path) -> None:
    assert stat.S_IMODE((migrated / "admin_password").stat().st_mode) == 0o600


# --- how the first minutes are shown ---


def test_a_plain_line_is_written_only_for_news() -> None:
    half, more = stages.Stage("a", share=0.5), stages.Stage("b", share=0.6)
    assert progress.is_news(None, half, seconds=0)
    assert not progress.is_news(half, half, seconds=1000)
    assert not progress.is_news(half, more, seconds=1)
    assert progress.is_news(half, more, seconds=progress.REPEAT_SECONDS)
    assert progress.is_news(half, stages.Stage("c", share=0.75), seconds=1)
    assert progress.is_news(half, stages.Stage("a", done=True), seconds=0)
    assert not progress.is_news(stages.Stage("a", done=True), stages.Stage("b", done=True), seconds=1000)


def test_a_bar_is_always_as_wide_as_it_should_be() -> None:
    assert progress.bar(0.0) == "[....................]   0%"
    assert progress.bar(0.5) == "[##########..........]  50%"
    assert {len(progress.bar(share)) for share in (-1.0, 0.0, 0.33, 1.0, 7.0)} == {len(progress.bar(0.0))}


@pytest.mark.django_db
def test_the_stages_of_an_empty_database_say_what_they_wait_for() -> None:
    from tradingsite import stages as ours

    texts = [read() for read in (ours.symbols, ours.history, ours.coverage, ours.training, ours.model, ours.decisions)]
    assert not any(stage.done for stage in texts)
    assert all(stage.text for stage in texts)

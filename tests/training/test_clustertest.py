"""`manage.py clustertest`: what it refuses, that its judge sees what went wrong, and a small dose of real clusters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from coverage_app.models import Symbol
from ops_app import clock, journal
from ops_app.clock import SimulatedClock
from ops_app.models import JobRun
from ops_app.queue import Message
from tests.factories import MARKET
from tests.ops.processes import ROOT, environment, wait_until
from tests.training.conftest import request, train_model
from training_app import artifacts, services
from training_app.clustertest import hosts, judge
from training_app.models import Activation, ModelArtifact, RunSymbol, TrainingRun, TrainingScope


@pytest.mark.parametrize(
    "arguments,rule",
    [
        (["--workers", "0"], "from 1 to 16"),
        (["--workers", "2", "2"], "different numbers"),
        (["--trainings", "0"], "at least 1"),
        (["--broker", "redis"], "needs REDIS_URL"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_rule(settings: Any, arguments: list[str], rule: str) -> None:
    settings.OPTIONS = {**settings.OPTIONS, "REDIS_URL": ""}
    with pytest.raises(CommandError, match=rule):
        call_command("clustertest", *arguments)


def test_namespaces_need_linux_root_tools_and_postgresql(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.OPTIONS = {**settings.OPTIONS, "DATABASE_URL": ""}
    monkeypatch.setattr(hosts.sys, "platform", "darwin")
    with pytest.raises(CommandError, match="needs Linux"):
        call_command("clustertest", "--namespaces")
    monkeypatch.setattr(hosts.sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CommandError, match="needs root"):
        call_command("clustertest", "--namespaces")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(hosts.shutil, "which", lambda name: None)
    with pytest.raises(CommandError, match="apt-get install iproute2"):
        call_command("clustertest", "--namespaces")
    monkeypatch.setattr(hosts.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(CommandError, match="needs PostgreSQL"):
        call_command("clustertest", "--namespaces")


def test_the_relay_passes_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as far, socket.create_server(("127.0.0.1", 0)) as free:
        port, target = free.getsockname()[1], far.getsockname()[1]
        free.close()

        def answer() -> None:
            connection, _ = far.accept()
            with connection:
                connection.sendall(connection.recv(100).upper())

        threading.Thread(target=answer, daemon=True).start()
        command = [sys.executable, "-m", "training_app.clustertest.relay", f"127.0.0.1:{port}", f"127.0.0.1:{target}"]
        with subprocess.Popen(command, cwd=ROOT) as relay:
            try:
                near = _connect(port)
                with near:
                    near.sendall(b"hello")
                    assert near.recv(100) == b"HELLO"
            finally:
                relay.terminate()


def _connect(port: int) -> socket.socket:
    made: list[socket.socket] = []

    def connected() -> bool:
        try:
            made.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        except ConnectionRefusedError:
            return False
        return True

    wait_until(connected, what="the relay")
    return made[0]


# --- the judge ---


@pytest.fixture
def good(scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]) -> ModelArtifact:
    """A scope whose one run has one result."""
    return train_model(scope, symbols)


@pytest.mark.django_db
def test_the_judge_accepts_a_run_with_one_effect_and_one_that_the_data_refused(
    good: ModelArtifact, scope: TrainingScope, symbols: list[Symbol]
) -> None:
    assert judge.judge_runs(MARKET, asked=1) == []
    assert judge.orphans() == []
    other = TrainingScope.objects.create(key="other", market=MARKET, training_mode="x", timeframe="1h")
    run = request(other, symbols)
    claim = services.claim(run.pk, "worker")
    assert claim is not None
    services.fail(claim, "TOO_FEW_SAMPLES: samples=1", final=True)
    assert judge.judge_runs(MARKET, asked=2) == []
    TrainingRun.objects.filter(pk=run.pk).update(error="LEASE_EXPIRED: attempt=3")
    assert "is failed without a result" in judge.judge_runs(MARKET, asked=2)[0]


@pytest.mark.django_db
def test_the_judge_sees_each_thing_that_can_go_wrong(good: ModelArtifact, scope: TrainingScope) -> None:
    def found() -> str:
        return " ".join(judge.judge_runs(MARKET, asked=1))

    assert "2 runs were asked for, there are 1" in judge.judge_runs(MARKET, asked=2)[0]
    journal.record("model_accepted", "again", subject=f"run:{good.run_id}")
    assert "told 2 times" in found()
    TrainingScope.objects.update(active_token=1)
    assert "tokens differ" in found()
    Activation.objects.all().delete()
    assert "1 runs were promoted, 0 activations were applied" in found()
    RunSymbol.objects.update(open=True, verdict="")
    assert "3 symbols of ended runs have no verdict" in found()
    (artifacts.path_of(good) / "model.txt").write_text("cut off")
    assert "size" in found() or "sha256" in found() or "bytes" in found()
    stray = artifacts.path_of(good).parent / "v9-9"
    stray.mkdir()
    (stray / "model.txt").touch()
    assert "belongs to no row" in judge.orphans()[0]


@pytest.mark.django_db
def test_the_judge_of_jobs_sees_an_error_and_a_job_that_did_not_run() -> None:
    now = clock.real_now()
    JobRun.objects.create(job="a", slot=1, started_at=now)
    report, found = judge.judge_jobs(least={"a": 1})
    assert (report, found) == ({"job_runs": 1, "jobs": 1}, [])
    JobRun.objects.create(job="a", slot=2, started_at=now, error="Traceback\nValueError: no")
    _, found = judge.judge_jobs(least={"a": 3, "b": 1})
    assert found == ["job a slot 2: ValueError: no", "job a ran 2 times, 3 at least", "job b ran 0 times, 1 at least"]


# --- real clusters ---


@pytest.mark.slow
def test_two_clusters_on_one_database_train_each_symbol_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "clustertest", "--workers", "2", "--trainings", "3", "--json"],
        cwd=ROOT, env=environment(tmp_path, LOG_LEVEL="warning"), check=False, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["violations"] == 0
    (stage,) = report["stages"]
    assert (stage["workers"], stage["trainings"], sum(stage["states"].values())) == (2, 3, 3)
    assert stage["attempts"] >= 3
    assert not list(Path(tmp_path).glob("clusters")), "everything was on a database of its own"

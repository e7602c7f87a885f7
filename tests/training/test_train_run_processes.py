"""Real `manage.py train_run` processes on a database of their own: two claim one run, one is killed in the middle."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings

from marketdata.store import CandleStore
from tests.factories import MARKET
from tests.ops.processes import alive
from tests.training.conftest import simulated_candles

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 15
"""Long enough for a heartbeat on a busy machine, short enough to wait for its end."""
PATIENCE = 240.0

PREPARE = """
import json, sys
from coverage_app.models import Symbol
from ops_app import clock, queue
from training_app import services
now = clock.market_now()
codes = json.loads(sys.argv[1])
for code in codes:
    Symbol.objects.create(market="simulated", code=code, base=code, quote="USDT", in_universe=True, created_at=now,
                          last_candle_at=now, last_evaluated_at=now, next_evaluation_at=now)
with queue.capture():
    scope = services.ensure_scope(market="simulated")
    run = services.request_run(scope=scope, trigger="manual", cause="MANUAL: user=test",
                               symbols=list(Symbol.objects.values_list("pk", flat=True)))
print(json.dumps(run.pk))
"""
SWEEP = """
import json
from ops_app import queue
from training_app import services
with queue.capture() as sent:
    counts = services.sweep()
print(json.dumps([counts, [list(message.args) for message in sent]]))
"""
OUTCOME = """
import json
from training_app import artifacts
from training_app.models import ModelArtifact, RunSymbol, TrainingRun, TrainingScope
run = TrainingRun.objects.get()
for artifact in ModelArtifact.objects.all():
    artifacts.verify(artifact)
print(json.dumps({
    "state": run.state, "attempt": run.attempt, "error": run.error,
    "artifacts": list(ModelArtifact.objects.values_list("directory", "fencing_token")),
    "active_token": TrainingScope.objects.get().active_token,
    "open": RunSymbol.objects.filter(open=True).count(),
    "verdicts": list(RunSymbol.objects.values_list("verdict", flat=True)),
}))
"""


class World:
    """A DATA_DIR and a database that only this test uses."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder, self.database_url = folder, database_url
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "DATA_DIR": str(folder),
            "DATABASE_URL": database_url,
            "TRAIN_LEASE_SECONDS": str(LEASE_SECONDS),
            "TRAIN_THREADS": "1",
            "TRAIN_TREES": "100",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "DJANGO_SETTINGS_MODULE": "tradingsite.settings",
            "LOG_LEVEL": "error",
        }
        self.manage("migrate", "--verbosity", "0")

    def manage(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "manage.py", *arguments], cwd=ROOT, env=self.environment, check=True, timeout=PATIENCE
        )

    def ask(self, script: str, *arguments: str) -> Any:
        """Run `script` with Django set up, and return the JSON of its last line."""
        code = f"import django; django.setup()\n{script}"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT, env=self.environment, check=False, timeout=PATIENCE, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    def train(self, run_id: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "manage.py", "train_run", str(run_id)],
            cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def worker(self, run_id: int) -> subprocess.Popen[str]:
        """Start what a worker process does for one message: the task, which waits for its `train_run`."""
        code = f"import django; django.setup()\nfrom training_app import tasks\nprint(tasks.train({run_id}))"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run_row(self) -> tuple[str, str, str]:
        """Return state, stage and owner, read without Django: starting it would take longer than a fold."""
        return self._read("state, stage, owner")

    def lease_is_over(self) -> bool:
        (expires,) = self._read("lease_expires_at")
        if isinstance(expires, str):  # SQLite's, which is UTC
            expires = dt.datetime.fromisoformat(expires).replace(tzinfo=dt.UTC)
        return bool(expires <= dt.datetime.now(dt.UTC))

    def _read(self, columns: str) -> tuple[Any, ...]:
        query = f"SELECT {columns} FROM training_app_trainingrun"
        if not self.database_url:
            import sqlite3

            with closing(sqlite3.connect(self.folder / "db.sqlite3", timeout=20)) as connection:
                (row,) = connection.execute(query).fetchall()
            return tuple(row)
        import psycopg

        with psycopg.connect(self.database_url) as connection:
            (row,) = connection.execute(query).fetchall()
        return tuple(row)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database = settings.DATABASES["default"]
    if "postgresql" not in database["ENGINE"]:
        yield World(tmp_path, "")
        return
    import psycopg

    login = f"{database['USER']}:{database['PASSWORD']}@{database['HOST']}:{database['PORT'] or 5432}"
    name = f"dev_t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"postgres://{login}/postgres", autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        try:
            yield World(tmp_path, f"postgres://{login}/{name}")
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for: {what}"
        time.sleep(0.02)


def test_f32_two_processes_claim_one_run_and_a_kill_in_the_middle_ends_in_one_accepted_artifact(world: World) -> None:
    candles = simulated_candles(6, 150)
    CandleStore(world.folder / "candles").write(MARKET, "1h", candles)
    run_id = world.ask(PREPARE, json.dumps(list(candles)))

    first = [world.train(run_id), world.train(run_id)]
    wait_until(lambda: world.run_row()[1].startswith("fold"), "a training that is in its folds")
    state, _, owner = world.run_row()
    assert state == "running"
    by_pid = {child.pid: child for child in first}
    victim = by_pid.pop(int(owner.split(":")[1]))
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=PATIENCE)
    assert victim.returncode == -signal.SIGKILL
    (loser,) = by_pid.values()
    output, _ = loser.communicate(timeout=PATIENCE)
    assert loser.returncode == 0
    assert "nothing to claim" in output

    wait_until(world.lease_is_over, "the end of the lease: until then no sweeper need be started to find nothing")
    counts: dict[str, int] = {}

    def reaped() -> bool:
        nonlocal counts
        counts, sent = world.ask(SWEEP)
        return counts["requeued"] == 1 and sent == [[run_id]]

    wait_until(reaped, "the sweeper to take the run from the dead")

    second = [world.train(run_id), world.train(run_id)]
    outputs = [child.communicate(timeout=PATIENCE)[0] for child in second]
    assert [child.returncode for child in second] == [0, 0], outputs
    assert sum("nothing to claim" in output for output in outputs) == 1

    outcome = world.ask(OUTCOME)
    assert outcome["state"] in {"succeeded", "rejected"}, outcome
    assert outcome["attempt"] == 2
    ((directory, token),) = outcome["artifacts"]
    assert token == outcome["active_token"] == 65536 + 2
    assert outcome["open"] == 0
    assert len(outcome["verdicts"]) == 6
    assert all(outcome["verdicts"])
    folder = world.folder / "artifacts" / Path(directory).parent
    assert [path.name for path in folder.iterdir()] == [Path(directory).name]


def test_a_worker_that_is_ended_takes_its_training_along_which_gives_the_run_back(world: World) -> None:
    """At a planned stop a cluster waits ten seconds, then the kernel ends its workers; a training takes longer."""
    candles = simulated_candles(6, 150)
    CandleStore(world.folder / "candles").write(MARKET, "1h", candles)
    run_id = world.ask(PREPARE, json.dumps(list(candles)))

    worker = world.worker(run_id)
    wait_until(lambda: world.run_row()[1].startswith("fold"), "a training that is in its folds")
    trainer = int(world.run_row()[2].split(":")[1])
    assert psutil.Process(trainer).ppid() == worker.pid
    worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive({trainer}), "the end of the training")
    worker.communicate(timeout=PATIENCE)

    state, _, owner = world.run_row()
    assert (state, owner) == ("queued", ""), "given back by the training itself: nobody swept"
    _, sent = world.ask(SWEEP)
    assert sent in ([], [[run_id]]), "it waits for a worker, which was rung or is rung now"
    second = world.train(run_id)
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, output
    outcome = world.ask(OUTCOME)
    assert outcome["state"] in {"succeeded", "rejected"}, outcome
    assert outcome["attempt"] == 2
    assert len(outcome["artifacts"]) == 1
    assert outcome["open"] == 0

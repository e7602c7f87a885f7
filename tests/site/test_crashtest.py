"""The crash test: a small dose of it on a real installation, and that it sees what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management.base import CommandError

from ops_app import leases
from ops_app.models import JobRun
from tests.ops.processes import ROOT, environment, wait_until
from tradingsite.crashtest import processes, tasks
from tradingsite.crashtest.driver import CrashTest
from tradingsite.crashtest.installation import WholeInstallation
from tradingsite.crashtest.report import CrashReport
from tradingsite.crashtest.strikes import WHOLE, WORKERS_ONLY, Plan, Strike
from tradingsite.management.commands.crashtest import chosen

DOSE = ("kill web main", "kill light guard", "kill training trainer", "kill bot main")


@pytest.mark.slow
def test_web_worker_trainer_and_bot_come_back_after_kill_9_and_nothing_is_lost_or_left(tmp_path: Path) -> None:
    """`crashtest --minutes 10` is the proof. This machine may be busy, so the time is not judged here."""
    kinds = [word for kind in DOSE for word in ("--kind", kind)]
    small = ["--kills", "4", "--symbols", "2", "--pause", "0.5", "--limit", "80"]
    done = subprocess.run(
        [sys.executable, "manage.py", "crashtest", "--json", *small, *kinds],
        cwd=ROOT, env=environment(tmp_path, TMPDIR=str(tmp_path)), check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    report = json.loads(done.stdout)
    assert report["kills"] == dict.fromkeys(sorted(DOSE), 1)
    assert set(report["recovered_seconds"]) == {"all", *DOSE}
    assert report["orphans"] == report["zombies"] == report["lost"] == 0
    assert report["violations"] == []
    assert report["trainings"] >= 1
    assert report["retried_trainings"] >= 1
    assert report["decisions"] > 0


# --- what it does ---


def test_every_kind_of_strike_comes_before_any_comes_again_and_the_seed_decides_the_order() -> None:
    first, again, other = (Plan(WHOLE, seed=seed) for seed in (1, 1, 2))
    drawn = [first.next() for _ in WHOLE]
    assert sorted(strike.name for strike in drawn) == sorted(strike.name for strike in WHOLE)
    assert drawn == [again.next() for _ in WHOLE]
    assert drawn != [other.next() for _ in WHOLE]


def test_the_kill_table_of_stock_qcluster_is_struck_line_by_line() -> None:
    table = {"worker (idle)", "worker (busy)", "monitor", "guard", "main"}
    for program in ("light", "training"):
        names = {strike.name for strike in WORKERS_ONLY}
        assert {f"kill {program} {line}" for line in table} < names
        assert f"term {program} group" in names


def test_a_kind_that_is_none_is_refused_with_those_that_are() -> None:
    assert chosen(WHOLE, ["kill bot main"]) == [Strike("bot", "main")]
    assert chosen(WHOLE, None) == WHOLE
    with pytest.raises(CommandError, match=r"'kill bot' is none of: .*kill bot main"):
        chosen(WHOLE, ["kill bot"])


# --- what it would see ---


def row(number: int) -> JobRun:
    return JobRun.objects.get(job=tasks.JOB, slot=number)


@pytest.mark.django_db
def test_a_task_has_its_effect_once_however_often_it_is_rung() -> None:
    tasks.ask(7, queue_name="light")
    assert tasks.undone() == [7]
    with leases.holding("crashtest:7", ttl=tasks.LEASE):
        assert tasks.work(7) == "", "another worker is at it"
    assert tasks.work(7) == "task 7 done"
    assert tasks.work(7) == ""
    assert row(7).result == f" {os.getpid()}{tasks.DONE}"
    assert tasks.undone() == []
    assert tasks.done_twice() == []


@pytest.mark.django_db
def test_an_effect_that_came_twice_is_seen() -> None:
    """The control: without the look at the row, the second worker of a doubled bell would do it again."""
    tasks.ask(7, queue_name="light")
    tasks.work(7)
    JobRun.objects.filter(pk=row(7).pk).update(finished_at=None)
    tasks.work(7)
    assert tasks.done_twice() == [f"task 7 had its effect 2 times ({row(7).result.strip()})"]


def new_test(tmp_path: Path) -> CrashTest:
    installation = WholeInstallation(tmp_path / "said.log")
    return CrashTest(installation=installation, plan=Plan(WHOLE, seed=1), report=CrashReport({}), limit=10.0)


def test_a_process_that_nobody_looks_after_is_an_orphan(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradingsite.crashtest.driver.LEFTOVER_SECONDS", 0.0)
    settings.DATA_DIR = tmp_path
    test = new_test(tmp_path)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep, env=environment(tmp_path)) as orphan, subprocess.Popen(sleep) as other:
        wait_until(lambda: processes.of_installation(str(tmp_path)), what="its environment")
        monkeypatch.setattr(WholeInstallation, "supervisor_pid", other.pid)
        test._leftovers(None, "a kill")
        orphan.kill()
        other.kill()
    assert test.report.orphans == 1
    assert test.report.violations == [f"after a kill: orphans [{orphan.pid}], zombies []"]
    assert not test.report.ok


def test_a_test_that_hits_nobody_ends_and_is_no_success(tmp_path: Path) -> None:
    test = new_test(tmp_path)
    test.strikes = 1
    while not test._over():
        test._pass_over("kill bot main, nobody was there")
    assert test.report.violations == ["20 strikes hit nobody, the last one: kill bot main, nobody was there"]


@pytest.mark.parametrize("wrong", ["orphans", "zombies", "lost", "slow", "violations"])
def test_a_report_is_good_only_when_nothing_is_wrong(wrong: str) -> None:
    report = CrashReport({})
    assert report.ok
    setattr(report, wrong, 1 if wrong in ("orphans", "zombies", "lost") else ["a sentence"])
    assert not report.ok


def test_what_is_slow_is_named_with_the_load_and_a_planned_stop_may_wait_for_its_tasks(tmp_path: Path) -> None:
    test = new_test(tmp_path)
    test._note(Strike("bot", "main"), 11.0, 0.0)
    test._note(Strike("light", "group", "term"), 11.0, 0.0)
    assert len(test.report.slow) == 1
    assert "kill bot main" in test.report.slow[0]
    assert "10 s are allowed (load" in test.report.slow[0]
    assert test.report.to_dict()["recovered_seconds"]["all"] == {"median": 11.0, "worst": 11.0}

"""The hammer in a small dose, the control that must be convicted, and the judge on evidence made by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError

from training_app.choices import RunState
from training_app.locktest.judge import Artifact, Broken, Change, Evidence, Run, Told, judge, spread, takeovers

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
QUEUED, RUNNING, SUCCEEDED, REJECTED = RunState.QUEUED, RunState.RUNNING, RunState.SUCCEEDED, RunState.REJECTED
COVERED = ((False, "covered", False),)


# --- real processes ---


def hammer(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the command on the database that this test run uses; return its exit code and report."""
    environment = {**os.environ, "DATA_DIR": str(folder), "DJANGO_SETTINGS_MODULE": "tradingsite.settings"}
    done = subprocess.run(
        [sys.executable, "manage.py", "locktest", "--kill", "--lease", "0.6", "--json", *options],
        cwd=ROOT, env=environment, check=False, timeout=PATIENCE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["database"] == ("postgresql" if "postgresql" in settings.DATABASES["default"]["ENGINE"] else "sqlite")
    return done.returncode, report


@pytest.mark.database
@pytest.mark.slow
def test_t9_processes_that_are_killed_and_frozen_break_nothing(tmp_path: Path) -> None:
    code, report = hammer(tmp_path, "--processes", "4", "--seconds", "8")
    assert (report["violations"], report["crashed"]) == (0, []), report
    assert code == 0
    assert report["lost"] == report["two_results"] == report["symbol_in_two_runs"] == 0
    assert report["without_verdicts"] == report["stale_tokens_accepted"] == 0
    assert report["runs"] == sum(report["ended"].values()) > 0
    assert report["claims"] > 5
    assert report["kills"] > 2
    assert report["takeovers"] > 0, "nobody was followed: the strikes hit nothing"


@pytest.mark.database
@pytest.mark.slow
def test_t4_without_the_fence_the_same_hammer_is_convicted(tmp_path: Path) -> None:
    reports = []
    for seconds in ("10", "20", "40"):  # on a machine that is busy a stroke hits less often
        code, report = hammer(tmp_path / seconds, "--processes", "6", "--seconds", seconds, "--no-fence")
        assert report["crashed"] == []
        reports.append(report)
        if report["stale_tokens_accepted"]:
            break
    assert reports[-1]["stale_tokens_accepted"] > 0, reports
    assert code == 1


@pytest.mark.parametrize("option, value", [("--processes", "1"), ("--seconds", "0"), ("--lease", "-1")])
def test_a_senseless_number_is_refused(option: str, value: str) -> None:
    with pytest.raises(CommandError, match=f"{option} "):
        call_command("locktest", option, value)


def test_the_hammers_result_has_all_that_a_real_one_has() -> None:
    from quant.pipeline import TrainingResult
    from training_app.locktest.worker import FakeResult

    real = {each.name for each in dataclasses.fields(TrainingResult)} | {"gates_passed", "score"}
    fake = {each.name for each in dataclasses.fields(FakeResult)} | set(dir(FakeResult))
    assert real - fake == set()


# --- the judge ---


def history(*changes: Change) -> tuple[Change, ...]:
    return tuple(dataclasses.replace(change, at=float(second)) for second, change in enumerate(changes))


def asked(run_id: int, scope_id: int = 1) -> Change:
    return Change(0, "run", run_id, scope_id, after=QUEUED)


def claimed(run_id: int, token: int, *, before: str = QUEUED, old: int | None = None, scope_id: int = 1) -> Change:
    return Change(0, "run", run_id, scope_id, before=before, after=RUNNING, old_token=old, token=token)


def became(run_id: int, state: str, token: int, scope_id: int = 1) -> Change:
    return Change(0, "run", run_id, scope_id, before=RUNNING, after=state, old_token=token, token=token)


GOOD = Evidence(
    runs=[Run(1, 1, SUCCEEDED, 1, 3, 11, COVERED), Run(2, 1, REJECTED, 1, 3, 21, ((False, "blocked", True),))],
    artifacts=[Artifact(1, 1, 11), Artifact(2, 1, 21)],
    active_tokens={1: 21},
    history=history(
        asked(1), claimed(1, 11), became(1, RUNNING, 11), became(1, SUCCEEDED, 11),
        asked(2), claimed(2, 21), became(2, REJECTED, 21),
    ),
    told=[Told("claim", 1, 11), Told("beat", 1, 11), Told(SUCCEEDED, 1, 11), Told("refused"), Told(REJECTED, 2, 21)],
)  # fmt: skip


def broken(**changes: Any) -> set[Broken]:
    return {violation.broken for violation in judge(dataclasses.replace(GOOD, **changes))}


def test_the_judge_finds_nothing_where_nothing_is() -> None:
    assert judge(GOOD) == []


@pytest.mark.parametrize(
    "changes, found",
    [
        ({"told": [Told(SUCCEEDED, 1, 11), Told(SUCCEEDED, 1, 11)]}, Broken.TWO_RESULTS),
        ({"artifacts": [*GOOD.artifacts, Artifact(1, 1, 12)]}, Broken.TWO_RESULTS),
        ({"history": (*GOOD.history, Change(9, "run", 1, 1, before=SUCCEEDED, after=QUEUED))}, Broken.TWO_RESULTS),
        ({"artifacts": [Artifact(1, 1, 10), Artifact(2, 1, 21)]}, Broken.STALE_TOKEN),
        ({"told": [Told("beat", 1, 10)]}, Broken.STALE_TOKEN),
        ({"told": [Told(REJECTED, 2, 20)]}, Broken.STALE_TOKEN),
        ({"told": [Told("claim", 1, 11), Told("claim", 1, 11)]}, Broken.TOKEN_TWICE),
        ({"active_tokens": {1: 11}}, Broken.TOKEN_FELL),
        ({"history": (*GOOD.history, Change(9, "scope", None, 1, old_token=21, token=20))}, Broken.TOKEN_FELL),
        ({"runs": [Run(1, 1, QUEUED, 1, 3, 11, COVERED), GOOD.runs[1]]}, Broken.LOST),
        ({"runs": [Run(1, 1, SUCCEEDED, 1, 3, 11, ()), GOOD.runs[1]]}, Broken.WITHOUT_VERDICT),
        ({"runs": [Run(1, 1, SUCCEEDED, 1, 3, 11, ((True, "", False),)), GOOD.runs[1]]}, Broken.WITHOUT_VERDICT),
        ({"runs": [GOOD.runs[0], Run(2, 1, REJECTED, 1, 3, 21, ((False, "blocked", False),))]}, Broken.WITHOUT_VERDICT),
        ({"runs": [Run(1, 1, SUCCEEDED, 2, 3, 11, COVERED), GOOD.runs[1]]}, Broken.ATTEMPTS),
        ({"runs": [Run(1, 1, SUCCEEDED, 1, 0, 11, COVERED), GOOD.runs[1]]}, Broken.ATTEMPTS),
        ({"artifacts": [Artifact(1, 1, 11, "cut off"), Artifact(2, 1, 21)]}, Broken.FILES),
        ({"told": [Told("files", text="v1-11 exists already")]}, Broken.FILES),
    ],
)
def test_the_judge_convicts_what_must_never_be(changes: dict[str, Any], found: Broken) -> None:
    assert found in broken(**changes)


def test_the_judge_convicts_a_symbol_in_two_open_runs_at_any_moment() -> None:
    def symbol(run_id: int, after: str) -> Change:
        return Change(0, "symbol", run_id, None, 7, after=after)

    in_turn = history(symbol(1, "open"), symbol(1, "closed"), symbol(2, "open"), symbol(2, "closed"))
    at_once = history(symbol(1, "open"), symbol(2, "open"), symbol(1, "closed"), symbol(2, "closed"))
    assert broken(history=(*GOOD.history, *in_turn)) == set()
    assert broken(history=(*GOOD.history, *at_once)) == {Broken.SYMBOL_IN_TWO_RUNS}


def test_the_judge_convicts_two_open_runs_of_a_scope_and_executions_that_overlap() -> None:
    changes = history(
        asked(1), claimed(1, 11), asked(2), claimed(2, 21), became(1, SUCCEEDED, 11), became(2, REJECTED, 21)
    )
    assert broken(history=changes, told=[]) == {Broken.TWO_OPEN_RUNS, Broken.OVERLAP}


def test_a_request_that_was_taken_back_in_its_own_transaction_is_no_open_run() -> None:
    taken_back = Change(0, "run", 7, 1, before=QUEUED, after="taken back")
    assert broken(history=(*history(asked(7), taken_back), *GOOD.history)) == set()


def test_the_judge_convicts_tokens_that_fall_or_come_twice() -> None:
    fell = history(
        asked(1), claimed(1, 11), asked(9, 5), claimed(9, 92, scope_id=5), claimed(9, 91, old=92, scope_id=5)
    )
    twice = history(asked(9, 5), claimed(9, 91, scope_id=5), claimed(9, 91, old=90, scope_id=5))
    assert Broken.TOKEN_FELL in broken(history=fell)
    assert Broken.TOKEN_TWICE in broken(history=twice)


def test_the_judge_convicts_a_claim_before_the_lease_was_over() -> None:
    taken = claimed(1, 12, before=RUNNING, old=11)
    early, late = (dataclasses.replace(taken, at=5.0, lease_end=end) for end in (5.5, 4.9))
    assert Broken.TAKEN_EARLY in broken(history=(*GOOD.history, early))
    assert Broken.TAKEN_EARLY not in broken(history=(*GOOD.history, late))


def test_a_takeover_is_timed_from_the_end_of_the_lease_or_from_the_kill_when_that_came_first() -> None:
    swept = dataclasses.replace(became(1, QUEUED, 11), note="LEASE_EXPIRED: attempt=1", lease_end=1.5, owner="a")
    died = dataclasses.replace(swept, note="TRAINER_DIED: attempt=1", lease_end=60.0)
    failed = dataclasses.replace(swept, note="ValueError: no", lease_end=60.0)
    following = claimed(1, 12, old=11)
    direct = dataclasses.replace(claimed(1, 12, before=RUNNING, old=11), lease_end=0.25, owner="a")
    assert takeovers(history(asked(1), claimed(1, 11), swept, following), {}) == [1.5]
    assert takeovers(history(asked(1), claimed(1, 11), died, following), {"a": 1.25}) == [1.75]
    assert takeovers(history(asked(1), claimed(1, 11), failed, following), {}) == []
    assert takeovers(history(asked(1), direct), {}) == [0.75]
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "worst": 3.0}
    assert spread([]) == {"median": 0.0, "worst": 0.0}

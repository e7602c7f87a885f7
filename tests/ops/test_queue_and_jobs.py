"""The doorbell, and jobs that run once per slot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.db import IntegrityError, connection, transaction
from django_q.models import OrmQ, Schedule
from django_q.signing import SignedPackage

from ops_app import clock, jobs, queue
from ops_app.models import JobRun
from tests.ops.processes import ROOT, environment

START = datetime(2026, 1, 1, tzinfo=UTC)
calls: list[str] = []


def work() -> str:
    calls.append("work")
    return "did something"


def idle() -> str:
    calls.append("idle")
    return ""


def broken() -> str:
    raise RuntimeError("no")


def job(name: str, function: str = "work", **changes: object) -> jobs.Job:
    values = {"period": timedelta(minutes=5), "queue": "light", "help": "A job of a test.", **changes}
    return jobs.Job(name=name, function=f"{__name__}.{function}", **values)


@pytest.fixture
def own_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries of this test alone."""
    for registry in ("_jobs", "_followers", "_sweepers"):
        monkeypatch.setattr(jobs, registry, {})
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[work.__module__])
    calls.clear()
    yield
    calls.clear()


# --- queue ---


@pytest.mark.django_db(transaction=True)
def test_q2_a_message_names_its_queue_and_keeps_no_success_row() -> None:
    queue.enqueue("coverage_app.tasks.ingest_task", "1,2,3", queue="training", group="ingest")
    message = OrmQ.objects.get()
    task = SignedPackage.loads(message.payload)
    assert message.key == "training"
    assert (task["func"], task["args"], task["save"]) == ("coverage_app.tasks.ingest_task", ("1,2,3",), False)


@pytest.mark.django_db(transaction=True)
def test_i7_t10_a_message_appears_with_its_row_or_not_at_all() -> None:
    def fail() -> None:
        with transaction.atomic():
            queue.enqueue("time.sleep", 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not OrmQ.objects.exists()
    with transaction.atomic():
        queue.enqueue("time.sleep", 0)
    assert OrmQ.objects.count() == 1


@pytest.mark.django_db
def test_t10_with_redis_the_bell_rings_after_the_commit_and_its_error_harms_nothing(
    settings, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks
) -> None:
    rung: list[queue.Message] = []
    settings.Q_CLUSTER = {key: value for key, value in settings.Q_CLUSTER.items() if key != "orm"}
    monkeypatch.setattr(queue, "_send", rung.append)
    with django_capture_on_commit_callbacks(execute=True):
        queue.enqueue("time.sleep", 0)
        assert rung == []
    assert len(rung) == 1

    def unreachable(message: queue.Message) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(queue, "_send", unreachable)
    with django_capture_on_commit_callbacks(execute=True):
        queue.enqueue("time.sleep", 0)


@pytest.mark.parametrize("value", [1.5, None, True, [1], {"a": 1}, datetime(2026, 1, 1, tzinfo=UTC)])
def test_q1_only_int_and_str_may_be_sent(value: object) -> None:
    with pytest.raises(TypeError, match="only int and str"):
        queue.enqueue("time.sleep", value)  # type: ignore[arg-type]  # the point of the test


def test_q1_a_function_or_an_unknown_queue_is_refused() -> None:
    with pytest.raises(TypeError, match="dotted name"):
        queue.enqueue(work)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="light, training"):
        queue.enqueue("time.sleep", 0, queue="trainings")


def test_captured_messages_are_not_sent() -> None:
    with queue.capture() as messages:
        queue.enqueue("time.sleep", 0)
        with queue.capture() as inner:
            queue.enqueue("time.sleep", 1)
    assert [message.args for message in messages] == [(0,)]
    assert [message.args for message in inner] == [(1,)]


# --- jobs ---


@pytest.mark.django_db
def test_i8_s2_a_job_runs_once_per_slot_however_often_it_is_rung(own_jobs: None) -> None:
    jobs.register(job("a"))
    with clock.simulated(START + timedelta(minutes=1)) as sim:
        assert jobs.run_job("a") == "did something"
        assert [jobs.run_job("a") for _ in range(5)] == [""] * 5
        sim.advance(timedelta(minutes=4))
        assert jobs.run_job("a") == "did something"
    assert len(calls) == 2
    run = JobRun.objects.first()
    assert run is not None
    assert (run.result, run.error) == ("did something", "")
    assert run.finished_at is not None


@pytest.mark.django_db
def test_i8_after_a_long_time_down_a_job_runs_once_and_not_for_every_missed_slot(own_jobs: None) -> None:
    jobs.register(job("a"))
    with clock.simulated(START) as sim, queue.capture() as messages:
        jobs.run_job("a")
        sim.advance(timedelta(hours=12))
        assert jobs.ring_idle() == 1
        for message in messages:
            jobs.run_job(*message.args)
        assert jobs.ring_idle() == 0
    assert len(calls) == 2


@pytest.mark.django_db
def test_a_follower_runs_once_for_each_time_that_its_cause_did_something(own_jobs: None) -> None:
    jobs.register(job("a"))
    jobs.register(job("b", "idle"))
    jobs.after("a", "b")
    jobs.after("a", "b")
    with clock.simulated(START) as sim, queue.capture() as messages:
        jobs.run_job("b")  # its slot is taken
        jobs.run_job("a")
        sim.advance(timedelta(minutes=5))
        jobs.run_job("a")
        assert len(messages) == 2
        for message in messages + messages:  # delivered twice
            jobs.run_job(*message.args)
    assert calls == ["idle", "work", "work", "idle", "idle"]


@pytest.mark.django_db
def test_a_job_that_did_nothing_rings_nobody(own_jobs: None) -> None:
    jobs.register(job("b", "idle"))
    jobs.register(job("a"))
    jobs.after("b", "a")
    with queue.capture() as messages:
        jobs.run_job("b")
    assert messages == []


@pytest.mark.django_db
def test_a_failed_job_keeps_its_error_and_its_slot(own_jobs: None) -> None:
    jobs.register(job("c", "broken"))
    with clock.simulated(START):
        with pytest.raises(RuntimeError, match="no"):
            jobs.run_job("c")
        assert jobs.run_job("c") == ""
    assert "RuntimeError: no" in JobRun.objects.get().error


def test_wrong_jobs_are_refused_with_the_rule(own_jobs: None) -> None:
    with pytest.raises(ValueError, match="whole minutes"):
        job("a", period=timedelta(seconds=90))
    with pytest.raises(ValueError, match="light, training"):
        job("a", queue="other")
    jobs.register(job("a"))
    with pytest.raises(ValueError, match="twice"):
        jobs.register(job("a", "idle"))
    with pytest.raises(LookupError, match="there are: a"):
        jobs.find("b")


def test_one_failing_sweeper_does_not_keep_the_others_from_running(own_jobs: None) -> None:
    jobs.register_sweeper("broken", broken)
    jobs.register_sweeper("works", work)
    assert jobs.sweep() == {"broken": "RuntimeError: no"}
    assert calls == ["work"]


@pytest.mark.django_db
def test_i8_s1_s3_seeding_is_idempotent_follows_the_code_and_leaves_other_schedules_alone(own_jobs: None) -> None:
    jobs.register(job("a"))
    jobs.register(job("b", queue="training"))
    Schedule.objects.create(name="someone's", func="time.sleep", args="1,")
    with clock.simulated(START + timedelta(minutes=2)):
        assert jobs.seed_schedules() == 2
        assert jobs.seed_schedules() == 0
        light, training = Schedule.objects.exclude(func="time.sleep").order_by("name")
        assert (light.func, light.args, light.minutes, light.cluster) == ("ops_app.jobs.run_job", "('a',)", 5, "light")
        assert light.next_run == START + timedelta(minutes=5)  # the next start of a slot
        assert (training.func, training.cluster) == ("ops_app.jobs.ring", "light")  # only light has a scheduler
        jobs._jobs.clear()
        jobs.register(job("a", period=timedelta(minutes=10)))
        assert jobs.seed_schedules() == 2
    assert {row.name: row.minutes for row in Schedule.objects.all()} == {"a": 10, "someone's": None}


@pytest.mark.django_db(transaction=True)  # the scheduler closes its old connections
def test_i8_django_q_skips_late_runs_and_keeps_to_the_slots(own_jobs: None) -> None:
    from django_q.scheduler import scheduler

    jobs.register(job("a"))
    jobs.seed_schedules()
    late = clock.real_now() - timedelta(hours=12)
    late_slot = jobs.find("a").slot_start(jobs.find("a").slot(late))
    Schedule.objects.update(next_run=late_slot)
    scheduler()
    scheduler()
    assert OrmQ.objects.filter(key="light").count() == 1
    next_run = Schedule.objects.get().next_run
    assert next_run > clock.real_now()
    assert (next_run - late_slot) % timedelta(minutes=5) == timedelta(0)


@pytest.mark.django_db
def test_s1_the_database_refuses_a_second_schedule_of_the_same_name() -> None:
    Schedule.objects.create(name="a", func="time.sleep")
    with pytest.raises(IntegrityError), transaction.atomic():
        Schedule.objects.create(name="a", func="time.sleep")


@pytest.mark.django_db
def test_the_queue_is_read_through_its_index() -> None:
    sql = "SELECT id FROM django_q_ormq WHERE key = 'light' AND lock < '2026-01-01'"
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
            assert "ops_ormq_key_lock" in str(cursor.fetchall())
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, "django_q_ormq")
    assert constraints["ops_ormq_key_lock"]["columns"] == ["key", "lock"]


SEED = """
import os, sys; sys.path.insert(0, {root!r}); os.environ["DJANGO_SETTINGS_MODULE"] = "tradingsite.settings"
import django; django.setup()
from datetime import timedelta
from ops_app import jobs
for number in range(20):
    jobs.register(jobs.Job(f"race.{{number}}", "time.time", timedelta(minutes=1), "light", "A race."))
sys.stdin.readline()
jobs.seed_schedules()
"""


@pytest.mark.slow
def test_i8_s1_four_racing_processes_seed_each_schedule_once(data_dir: Path) -> None:
    """Without the unique index: 34-51 rows instead of 20 (locks.md)."""
    import sqlite3
    from contextlib import closing

    racers = [
        subprocess.Popen(
            [sys.executable, "-c", SEED.format(root=str(ROOT))],
            cwd=ROOT, env=environment(data_dir), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        _, errors = racer.communicate(timeout=240)
        assert racer.returncode == 0, errors
    with closing(sqlite3.connect(data_dir / "db.sqlite3")) as database:
        rows = database.execute("SELECT COUNT(*) FROM django_q_schedule WHERE name LIKE 'race.%'").fetchone()
    assert rows == (20,)


def test_every_registered_job_exists_and_says_what_it_does() -> None:
    from django.utils.module_loading import import_string

    assert {"ops.alerts", "ops.prune", "ops.watch"} <= {job.name for job in jobs.registered()}
    for registered in jobs.registered():
        assert callable(import_string(registered.function)), registered.name
        assert registered.help.endswith(".")
        assert registered.queue in (django_settings.LIGHT_QUEUE, django_settings.TRAINING_QUEUE)

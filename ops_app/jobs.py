"""Periodic jobs: declared in code, seeded as django-q2 schedules, run at most once per slot (I8, S1-S3).

A job is `() -> str`: what it did, "" for nothing. Apps register theirs in `<app>/schedules.py`, which AppConfig.ready
imports. A *sweeper* is a function that every worker cluster's thread calls every 15 s: it rings again for rows whose
message was lost. It is a thread and not a schedule, because schedules use the queue that it mends.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.module_loading import import_string

from ops_app import clock, queue
from ops_app.models import JobRun
from quant.timeframes import from_ms, to_ms

log = structlog.get_logger(__name__)

RUN_JOB, RING = "ops_app.jobs.run_job", "ops_app.jobs.ring"
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Job:
    """`function` (dotted name of `() -> str`) every `period` of real time, in whole minutes, on `queue`.

    `due` (dotted name of `() -> bool`) is asked before the slot is taken: False means that there is nothing to do, so
    that an idle minute costs one read and leaves no row.
    """

    name: str
    function: str
    period: timedelta
    queue: str
    help: str
    due: str = ""

    def __post_init__(self) -> None:
        if self.period < MINUTE or self.period % MINUTE:
            raise ValueError(f"job {self.name}: period is {self.period}; it must be whole minutes, at least one")
        if self.queue not in queue.queues():
            raise ValueError(f"job {self.name}: queue is {self.queue!r}; use one of {', '.join(queue.queues())}")

    def slot(self, real: datetime) -> int:
        """Return the number of the slot that contains `real`."""
        return to_ms(real) // (self.period // timedelta(milliseconds=1))

    def slot_start(self, slot: int) -> datetime:
        return from_ms(slot * (self.period // timedelta(milliseconds=1)))


def market_period(period: timedelta) -> timedelta:
    """Return how often a job runs, in real time, that should run every `period` of market time; at least a minute."""
    speed = {"simulated": settings.SIM_SPEED, "replay": settings.REPLAY_SPEED}.get(settings.EXCHANGE, 1.0)
    return max(period / speed // MINUTE, 1) * MINUTE


_jobs: dict[str, Job] = {}
_followers: dict[str, list[str]] = {}
_sweepers: dict[str, Callable[[], object]] = {}


def register(job: Job) -> Job:
    """Declare a job. Raises ValueError for a second one with the same name."""
    if _jobs.setdefault(job.name, job) != job:
        raise ValueError(f"job {job.name} is registered twice: {_jobs[job.name].function} and {job.function}")
    return job


def after(job_name: str, follower_name: str) -> None:
    """Run `follower_name` each time that `job_name` did something: a lower app need not know who waits for it."""
    followers = _followers.setdefault(job_name, [])
    if follower_name not in followers:
        followers.append(follower_name)


def register_sweeper(name: str, function: Callable[[], object]) -> None:
    """Declare a sweeper: cheap, idempotent, safe in any number of processes at once."""
    _sweepers[name] = function


def registered() -> tuple[Job, ...]:
    """Return all jobs by name."""
    return tuple(_jobs[name] for name in sorted(_jobs))


def sweepers() -> dict[str, Callable[[], object]]:
    """Return the sweepers by name."""
    return dict(_sweepers)


def find(name: str) -> Job:
    """Return the job. Raises LookupError that names the ones there are."""
    try:
        return _jobs[name]
    except KeyError:
        raise LookupError(f"job {name!r} is not registered; there are: {', '.join(sorted(_jobs))}") from None


def run_job(name: str, cause: int = 0) -> str:
    """Run a job, unless its slot was taken already; returns what it did, "" for nothing. The queue calls this.

    `cause` is the id of the JobRun that a follower answers; 0: the slot of the present time. Whatever is delivered
    twice, or seeded by four schedulers, finds the (job, slot) row and does nothing (S2).
    """
    job = find(name)
    if job.due and not import_string(job.due)():
        return ""
    began = clock.monotonic()
    try:
        with transaction.atomic():
            run = JobRun.objects.create(
                job=name, slot=-cause if cause else job.slot(clock.real_now()), started_at=clock.real_now()
            )
    except IntegrityError:
        return ""
    try:
        result = import_string(job.function)() or ""
    except Exception:
        _finish(run, began, error=traceback.format_exc(limit=-5))
        raise  # the queue stores the failure; the next slot tries again
    _finish(run, began, result=result)
    if result:
        log.info("job_done", job=name, result=result)
        for follower in _followers.get(name, ()):
            queue.enqueue(RUN_JOB, follower, run.pk, queue=find(follower).queue, group=follower)
    return result


def _finish(run: JobRun, began: float, *, result: str = "", error: str = "") -> None:
    JobRun.objects.filter(pk=run.pk).update(
        finished_at=clock.real_now(), seconds=clock.monotonic() - began, result=result[:2000], error=error[-4000:]
    )


def ring(name: str) -> None:
    """Ask a worker to run the job now, if its present slot is not taken yet."""
    job = find(name)
    queue.enqueue(RUN_JOB, name, queue=job.queue, group=name)


def ring_idle() -> int:
    """Ring every job whose present slot is not taken; returns how many. django-q2 first looks 30 s after its start."""
    now = clock.real_now()
    taken = set(JobRun.objects.filter(slot__gt=0, started_at__gte=now - timedelta(days=2)).values_list("job", "slot"))
    # In the order in which the apps declared them: what lists symbols before what judges them.
    idle = [job for job in _jobs.values() if (job.name, job.slot(now)) not in taken]
    for job in idle:
        ring(job.name)
    return len(idle)


def sweep() -> dict[str, str]:
    """Call every sweeper once; returns the errors by name. One that fails does not keep the others from running."""
    errors = {}
    for name, function in _sweepers.items():
        try:
            function()
        except Exception as error:
            log.exception("sweeper_failed", sweeper=name)
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def seed_schedules() -> int:
    """Bring django-q2's schedules in line with the registered jobs; returns how many rows were changed.

    Safe in any number of processes at once: a unique index on the name decides (S1). `args` is written here only,
    because one unparsable literal stops every schedule (S3). The first run is at the next start of a slot, so that the
    scheduler's delay never moves a run into the neighbouring slot.
    """
    from django_q.models import Schedule

    now = clock.real_now()
    wanted = {job.name: _schedule_fields(job) for job in registered()}
    present = {row.name: row for row in Schedule.objects.filter(func__in=(RUN_JOB, RING))}
    missing = [
        Schedule(name=name, next_run=_jobs[name].slot_start(_jobs[name].slot(now) + 1), **fields)
        for name, fields in wanted.items()
        if name not in present
    ]
    if missing:
        Schedule.objects.bulk_create(missing, ignore_conflicts=True)
    changed = len(missing)
    for name, row in present.items():
        if name not in wanted:
            changed += Schedule.objects.filter(pk=row.pk).delete()[0]
        elif any(getattr(row, field) != value for field, value in wanted[name].items()):
            next_run = _jobs[name].slot_start(_jobs[name].slot(now) + 1)
            changed += Schedule.objects.filter(pk=row.pk).update(next_run=next_run, **wanted[name])
    return changed


def _schedule_fields(job: Job) -> dict[str, object]:
    from django_q.models import Schedule

    # Only the light cluster has a scheduler, and it passes over schedules of other clusters: it rings for them.
    return {
        "func": RUN_JOB if job.queue == settings.LIGHT_QUEUE else RING,
        "args": repr((job.name,)),
        "schedule_type": Schedule.MINUTES,
        "minutes": job.period // MINUTE,
        "repeats": -1,
        "cluster": settings.LIGHT_QUEUE,
    }

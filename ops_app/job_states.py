"""What people see of the periodic jobs: last run, its result and duration, and the next time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max

from ops_app import clock, jobs, journal, queue
from ops_app.jobs import Job
from ops_app.models import JobRun

BY_PERSON = 1 << 40
"""Added to the number of the journal's row that a run by a person answers, so that it is no other run's cause."""
HANGS_AFTER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class JobState:
    """A job and its last run; `next_at` in real time, None when nothing will start it."""

    job: Job
    last: JobRun | None
    next_at: datetime | None

    @property
    def verdict(self) -> str:
        """One word: `never`, `running`, `broken off` (its worker was killed), `failed` or `ok`."""
        if self.last is None:
            return "never"
        if self.last.error:
            return "failed"
        if self.last.finished_at is None:
            return "running" if clock.real_now() - self.last.started_at < HANGS_AFTER else "broken off"
        return "ok"

    @property
    def text(self) -> str:
        """The result, or the last line of the error."""
        if self.last is None:
            return "It leaves a run when there is something to do." if self.job.due else ""
        lines = (self.last.error or self.last.result).strip().splitlines()
        return lines[-1] if lines else ""


def job_states() -> list[JobState]:
    """Return every registered job by name: 3 queries for any number of them."""
    from django_q.models import Schedule

    newest = JobRun.objects.values("job").annotate(newest=Max("pk")).values("newest")
    last = {run.job: run for run in JobRun.objects.filter(pk__in=newest)}
    planned = dict(Schedule.objects.filter(func__in=(jobs.RUN_JOB, jobs.RING)).values_list("name", "next_run"))
    return [JobState(job, last.get(job.name), planned.get(job.name)) for job in jobs.registered()]


def run_now(name: str, *, user: User) -> str:
    """Ask a worker to run the job now, also when its slot is taken; returns the sentence for the person.

    Raises LookupError for a name that is not registered.
    """
    job = jobs.find(name)
    with transaction.atomic():
        asked = journal.record("job_asked_for", f"{name} shall run now.", subject=f"job:{name}", user=user)
        queue.enqueue(jobs.RUN_JOB, name, BY_PERSON + asked.pk, queue=job.queue, group=name)
    return f"A worker was asked to run {name}. It leaves a run below, if there is something to do."

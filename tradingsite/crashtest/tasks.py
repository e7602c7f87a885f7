"""What the crash test lets workers do: a row that must be worked on exactly once, however often it is rung for.

The manner of every task of the project: the row is the truth, the bell may be lost or doubled, a lease with a fence
keeps two workers apart, and whoever finds the row done does nothing.
"""

from __future__ import annotations

import os
from datetime import timedelta

from django.db import transaction
from django.db.models import F, Value
from django.db.models.functions import Concat

from ops_app import clock, leases, queue
from ops_app.models import JobRun

JOB = "crashtest"
WORK = "tradingsite.crashtest.tasks.work"
DONE = " done"
LEASE = timedelta(seconds=4)
STEP_SECONDS = 0.1


def ask(number: int, *, queue_name: str, seconds: float = 0.0) -> None:
    """Write the row of `number`, and ring a worker for it."""
    JobRun.objects.create(job=JOB, slot=number, started_at=clock.real_now(), seconds=seconds, error=queue_name)
    ring(number)


def ring(number: int) -> None:
    """Ring again, as a sweeper does for a row whose bell may be lost."""
    queue.enqueue(WORK, number, queue=JobRun.objects.get(job=JOB, slot=number).error)


def is_done(number: int) -> bool:
    return JobRun.objects.filter(job=JOB, slot=number, finished_at__isnull=False).exists()


def undone() -> list[int]:
    return list(JobRun.objects.filter(job=JOB, finished_at__isnull=True).values_list("slot", flat=True))


def done_twice() -> list[str]:
    """Return a sentence for each row whose effect is there more than once."""
    return [
        f"task {row.slot} had its effect {row.result.count(DONE)} times ({row.result.strip()})"
        for row in JobRun.objects.filter(job=JOB)
        if row.result.count(DONE) > 1
    ]


def worker_of(number: int) -> int | None:
    """Return the pid of the process that works on the row now, as far as the row knows."""
    row = JobRun.objects.filter(job=JOB, slot=number, finished_at__isnull=True).first()
    words = row.result.split() if row is not None else []
    return int(words[-1]) if words else None


def work(number: int) -> str:
    """Work on the row for as long as it says, unless it is done or another worker is at it."""
    row = JobRun.objects.get(job=JOB, slot=number)
    if row.finished_at is not None:
        return ""
    try:
        with leases.holding(f"{JOB}:{number}", ttl=LEASE) as lease:
            if is_done(number):  # since it was read
                return ""
            mine = JobRun.objects.filter(pk=row.pk)
            mine.update(result=Concat(F("result"), Value(f" {os.getpid()}")))
            until = clock.monotonic() + (row.seconds or 0.0)
            while clock.monotonic() < until:
                clock.sleep(STEP_SECONDS)
                leases.keep(lease)
            with transaction.atomic():
                leases.held(lease)
                # Appended and not set: an effect that came twice would be seen.
                mine.update(result=Concat(F("result"), Value(DONE)), finished_at=clock.real_now())
    except (leases.LeaseBusy, leases.LeaseLost):
        return ""
    return f"task {number} done"

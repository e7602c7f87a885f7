"""What the workers run. A task is a doorbell: it looks for due work, does it, and says what it did."""

from __future__ import annotations

from django.db import IntegrityError, transaction

from coverage_app import services
from ops_app import clock, jobs, queue
from ops_app.models import JobRun
from quant.timeframes import to_ms

EVALUATE_JOB = "evaluate"


def universe_task() -> str:
    """Refresh the universe when its stored time has come."""
    row = services.refresh_if_due()
    if row is None:
        return ""
    if row.error:
        return f"failed, next at {row.next_refresh_at:%Y-%m-%d %H:%M}: {row.error}"
    return f"{row.in_universe} of {row.found} in the universe, {row.entered} entered, {row.left} left"


def ingest_due_task() -> str:
    """Send the symbols that lack candles to the workers."""
    count = services.ring_ingest()
    return f"{count} symbols sent to the workers" if count else ""


def evaluate_task() -> str:
    """Judge the symbols that are due. Says something, and so rings whoever follows, only when a verdict changed."""
    report = services.evaluate_due()
    return str(report) if report.changed else ""


def ingest_task(symbol_ids: str) -> str:
    """Ingest one shard ("1,2,3"), then ring the evaluation, and through it whoever follows it.

    The shard leaves a JobRun, as periodic jobs do: people see what it did, and its followers have a cause to name.
    """
    ids = [int(part) for part in symbol_ids.split(",")]
    began = clock.monotonic()
    try:
        with transaction.atomic():
            run = JobRun.objects.create(
                job=f"ingest shard {ids[0]}", slot=to_ms(clock.real_now()), started_at=clock.real_now()
            )
    except IntegrityError:
        return ""  # the same bell, rung twice
    report = services.ingest(symbol_ids=ids)
    JobRun.objects.filter(pk=run.pk).update(
        finished_at=clock.real_now(), seconds=clock.monotonic() - began, result=str(report)[:2000]
    )
    if str(report):
        queue.enqueue(jobs.RUN_JOB, EVALUATE_JOB, run.pk)
    return str(report)

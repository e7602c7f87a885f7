"""When coverage works. The jobs are bells: due times in the rows decide what is done."""

from __future__ import annotations

from datetime import timedelta

from ops_app import jobs
from ops_app.jobs import Job

MINUTE = timedelta(minutes=1)
LIGHT = "light"

TASKS, SELECTORS = "coverage_app.tasks", "coverage_app.selectors"

jobs.register(
    Job(
        "universe",
        f"{TASKS}.universe_task",
        MINUTE,
        LIGHT,
        "Look at what the exchange lists, when due.",
        due=f"{SELECTORS}.universe_is_due",
    )
)
jobs.register(
    Job(
        "ingest",
        f"{TASKS}.ingest_due_task",
        MINUTE,
        LIGHT,
        "Fetch candles of the symbols that lack some.",
        due=f"{SELECTORS}.candles_are_due",
    )
)
jobs.register(
    Job(
        "evaluate",
        f"{TASKS}.evaluate_task",
        MINUTE,
        LIGHT,
        "Judge the symbols that are due.",
        due=f"{SELECTORS}.judging_is_due",
    )
)
jobs.after("universe", "ingest")


def sweep_ingest() -> int:
    """Send due symbols to the workers between two slots too: with a fast clock a bar lasts no longer than a slot."""
    from coverage_app.services import ring_ingest

    return ring_ingest()


jobs.register_sweeper("candles due", sweep_ingest)

"""The periodic jobs of training, what follows the evaluation, and the sweeper."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings

from ops_app import jobs
from training_app.services import plan_waiting, sweep

PLAN_JOB, EVALUATE_JOB = "plan", "evaluate"

jobs.register(
    jobs.Job(
        name=PLAN_JOB,
        function="training_app.tasks.plan_job",
        period=jobs.market_period(timedelta(minutes=5)),
        queue=settings.LIGHT_QUEUE,
        help="Request the training runs that are due; fall back to the best good model where one is missing.",
    )
)
jobs.register(
    jobs.Job(
        name="verify models",
        function="training_app.tasks.verify_job",
        period=timedelta(minutes=10),
        queue=settings.LIGHT_QUEUE,
        help="Check size and hash of the active models' files.",
    )
)
jobs.register(
    jobs.Job(
        name="tidy artifacts",
        function="training_app.tasks.tidy_job",
        period=timedelta(hours=1),
        queue=settings.LIGHT_QUEUE,
        help="Remove artifact files that belong to no row.",
    )
)
jobs.register(
    jobs.Job(
        name="training capacity",
        function="training_app.capacity.watch_job",
        period=timedelta(minutes=5),
        queue=settings.LIGHT_QUEUE,
        help="Raise an alert for runs that no live worker's host can do.",
        due="training_app.capacity.is_due",
    )
)
jobs.register(
    jobs.Job(
        name="watch models",
        function="training_app.tasks.watch_job",
        period=jobs.market_period(timedelta(hours=1)),
        queue=settings.LIGHT_QUEUE,
        help="Compare features and trades of the active models with their training, once a market day.",
        due="training_app.watching.is_due",
    )
)
jobs.after(EVALUATE_JOB, PLAN_JOB)
jobs.register_sweeper("training runs", sweep)
jobs.register_sweeper("plans that waited", plan_waiting)

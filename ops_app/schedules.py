"""The periodic jobs of this app."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings

from ops_app import jobs

jobs.register(
    jobs.Job(
        name="ops.alerts",
        function="ops_app.alerts.send_pending",
        period=timedelta(minutes=1),
        queue=settings.LIGHT_QUEUE,
        help="Send the alerts that are waiting.",
        due="ops_app.alerts.are_pending",
    )
)
jobs.register(
    jobs.Job(
        name="ops.watch",
        function="ops_app.watch.watch_heartbeats",
        period=timedelta(minutes=1),
        queue=settings.LIGHT_QUEUE,
        help="Raise an alert for each process that has fallen silent.",
        due="ops_app.watch.is_due",
    )
)
jobs.register(
    jobs.Job(
        name="ops.prune",
        function="ops_app.watch.prune",
        period=timedelta(hours=1),
        queue=settings.LIGHT_QUEUE,
        help="Delete rows of the queue and of jobs that nobody will look at again.",
    )
)
jobs.register(
    jobs.Job(
        name="ops.retention",
        function="ops_app.retention.prune",
        period=timedelta(hours=1),
        queue=settings.LIGHT_QUEUE,
        help="Delete decisions, events, runs and models that are older than RETENTION_DAYS and explain nothing since.",
        due="ops_app.retention.is_due",
    )
)

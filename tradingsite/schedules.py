"""The periodic jobs of the whole site."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings

from ops_app import jobs

if settings.BACKUP_INTERVAL_HOURS:
    jobs.register(
        jobs.Job(
            name="backup",
            function="tradingsite.backup.job.take_scheduled",
            period=timedelta(hours=settings.BACKUP_INTERVAL_HOURS),
            queue=settings.LIGHT_QUEUE,
            help="Copy database, artifacts and candles to BACKUP_DIR; keep the newest BACKUP_KEEP.",
        )
    )

"""What the periodic jobs of this app do: notice silent processes, delete what explains nothing any more."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Max

from ops_app import alerts, clock, heartbeats
from ops_app.choices import Severity
from ops_app.models import Alert, JobRun
from ops_app.prepared import Prepared

KEEP_JOB_RUNS = timedelta(days=2)
KEEP_FAILURES = timedelta(days=14)
PREFIX = "silent:"

_open_alerts = Prepared(lambda: Alert.objects.filter(key__startswith=PREFIX, resolved_at__isnull=True))


def is_due() -> bool:
    """Return whether a process is silent, or was when somebody last looked."""
    return heartbeats.any_dead() or _open_alerts.exists()


def watch_heartbeats() -> str:
    """Raise an alert for each process that is silent, and resolve it when the process is back or was stopped."""
    silent = {f"{PREFIX}{pulse.name}"[:160]: pulse for pulse in heartbeats.dead()}
    raised = 0
    for key, pulse in silent.items():
        text = (
            f"{pulse.name} on {pulse.host or 'an unknown host'} has been silent for "
            f"{pulse.age.total_seconds():.0f} s. Look at its log, then start it again."
        )
        raised += alerts.raise_alert(key, text, Severity.CRITICAL) is not None
    back = Alert.objects.filter(key__startswith=PREFIX, resolved_at__isnull=True).exclude(key__in=silent)
    resolved = back.update(resolved_at=clock.real_now())
    return f"{raised} raised, {resolved} resolved" if raised or resolved else ""


def prune() -> str:
    """Delete old job runs (not the last of a job) and reports of the queue: they explain no decision (I21)."""
    from django_q.models import Task

    now = clock.real_now()
    last = JobRun.objects.values("job").annotate(last=Max("pk")).values("last")
    runs, _ = JobRun.objects.filter(started_at__lt=now - KEEP_JOB_RUNS).exclude(pk__in=last).delete()
    tasks, _ = Task.objects.filter(stopped__lt=now - KEEP_FAILURES).delete()
    return f"{runs} job runs, {tasks} queue reports deleted" if runs or tasks else ""

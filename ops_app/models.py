"""Leases, heartbeats, the journal, alerts and the market's clock."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from ops_app.choices import AlertState, Severity


class MarketClock(models.Model):
    """One row that makes market time a pure function of real time, so that every process and restart agrees.

    market time = market_start + (real time - real_start) * speed. No row: market time is real time.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    market = models.CharField(max_length=64, help_text="Market key that this clock belongs to.")
    source = models.CharField(max_length=120, blank=True, help_text="What its candles depend on, like the seed.")
    market_start = models.DateTimeField()
    real_start = models.DateTimeField()
    speed = models.FloatField(help_text="Seconds of market time per real second.")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="one_market_clock"),
            models.CheckConstraint(condition=models.Q(speed__gt=0), name="market_clock_runs_forward"),
        ]

    def __str__(self) -> str:
        return f"{self.market}: {self.speed:g} x from {self.market_start:%Y-%m-%d %H:%M}"


class Lease(models.Model):
    """The right to do one thing, on the database's clock; `token` only grows (reference/locks.md)."""

    name = models.CharField(max_length=120, unique=True)
    holder = models.CharField(max_length=120, blank=True)
    token = models.BigIntegerField(default=0)
    expires_at = models.DateTimeField(null=True, blank=True)
    acquired_at = models.DateTimeField(null=True, blank=True)
    renewed_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name


class Heartbeat(models.Model):
    """What each process last said of itself; older than `ttl_seconds` means dead or stuck."""

    name = models.CharField(max_length=120, unique=True)
    kind = models.CharField(max_length=40)
    beat_at = models.DateTimeField(help_text="On the database's clock.")
    ttl_seconds = models.PositiveIntegerField(default=60)
    pid = models.PositiveIntegerField(null=True, blank=True)
    host = models.CharField(max_length=120, blank=True)
    detail = models.JSONField(default=dict, blank=True)

    def __str__(self) -> str:
        return self.name


class Event(models.Model):
    """Append-only journal: what happened to what, why, and who did it (I21)."""

    created_at = models.DateTimeField(db_index=True, help_text="Market time.")
    recorded_at = models.DateTimeField(help_text="Real time.")
    severity = models.CharField(max_length=10, choices=Severity, default=Severity.INFO)
    kind = models.CharField(max_length=60, db_index=True)
    subject = models.CharField(
        max_length=120, blank=True, db_index=True, help_text="Like symbol:BTC/USDT:USDT or run:7."
    )
    text = models.TextField()
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["subject", "-id"], name="event_of_subject")]

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"[:120]


class Alert(models.Model):
    """Outbox: a row is written with the thing that it reports, and sent later by a worker (F41)."""

    created_at = models.DateTimeField()
    severity = models.CharField(max_length=10, choices=Severity, default=Severity.WARNING)
    key = models.CharField(max_length=160, help_text="Alerts with the same key are raised once until resolved.")
    text = models.TextField()
    state = models.CharField(max_length=10, choices=AlertState, default=AlertState.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    not_before = models.DateTimeField(null=True, blank=True)
    sent_at = models.DateTimeField(null=True, blank=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["key"], condition=models.Q(resolved_at__isnull=True), name="one_open_alert_per_key"
            )
        ]

    def __str__(self) -> str:
        return self.text[:120]


class JobRun(models.Model):
    """One slot of a periodic job: unique per job and slot, so that four schedulers start it once (S2)."""

    job = models.CharField(max_length=80)
    slot = models.BigIntegerField(help_text="Number of the slot: real time / period.")
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    seconds = models.FloatField(null=True, blank=True)
    result = models.TextField(blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["job", "slot"], name="one_job_run_per_slot")]

    def __str__(self) -> str:
        return f"{self.job} #{self.slot}"

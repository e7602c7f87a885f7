"""Symbols, why they are blocked, and the refreshes of the universe."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from simple_history.models import HistoricalRecords

from coverage_app.choices import BlockReason, RefreshTrigger
from coverage_app.querysets import BlockQuerySet, SymbolQuerySet


class Symbol(models.Model):
    """A market of the exchange and what is known of its history. All times are market time.

    The history figures are written when candles are written, so that no evaluation reads candles. The state (TRADABLE,
    TRAINING, TRAINABLE, BLOCKED) is derived, never stored.
    """

    market = models.CharField(max_length=64, help_text="Market key, like simulated or binance_um.")
    code = models.CharField(max_length=64, help_text="ccxt's unified code, like BTC/USDT:USDT.")
    base = models.CharField(max_length=32)
    quote = models.CharField(max_length=32)
    market_type = models.CharField(max_length=16, default="swap")

    listed_at = models.DateTimeField(null=True, blank=True)
    delisted_at = models.DateTimeField(null=True, blank=True)
    active = models.BooleanField(default=True, help_text="The exchange lists it as trading.")
    in_universe = models.BooleanField(default=False)
    universe_reason = models.CharField(max_length=200, blank=True, help_text="Why it is not in the universe.")
    volume_24h = models.FloatField(null=True, blank=True, help_text="In the quote currency.")
    spread_bps = models.FloatField(null=True, blank=True)
    tick_size = models.DecimalField(max_digits=30, decimal_places=15, null=True, blank=True)
    lot_size = models.DecimalField(max_digits=30, decimal_places=15, null=True, blank=True)
    min_notional = models.DecimalField(max_digits=20, decimal_places=8, null=True, blank=True)

    history_start = models.DateTimeField(null=True, blank=True, help_text="Open time of the first stored candle.")
    history_days = models.FloatField(default=0.0, help_text="Days from the first to the last stored candle.")
    history_coverage = models.FloatField(default=0.0, help_text="Share of the expected candles that are stored.")
    candle_count = models.PositiveIntegerField(default=0, help_text="Stored candles within the target history.")
    expected_count = models.PositiveIntegerField(default=0, help_text="Candles that the same time could hold.")
    largest_gap_bars = models.PositiveIntegerField(default=0)
    unbroken_since = models.DateTimeField(
        null=True, blank=True, help_text="First candle after the last gap of more than 7 days: what counts as history."
    )
    price_break = models.CharField(max_length=300, blank=True, help_text="Evidence of a broken price series.")
    last_candle_at = models.DateTimeField(null=True, blank=True, help_text="Open time of the newest stored candle.")
    backfilled = models.BooleanField(default=False, help_text="The whole target history has been asked for once.")
    ingest_due_at = models.DateTimeField(null=True, blank=True)
    ingest_failures = models.PositiveSmallIntegerField(default=0)
    ingest_error = models.CharField(max_length=300, blank=True)

    next_evaluation_at = models.DateTimeField(null=True, blank=True, help_text="Null: at once (a new symbol).")
    last_evaluated_at = models.DateTimeField(null=True, blank=True)
    evaluations = models.PositiveIntegerField(default=0)
    evaluation_failures = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField()

    objects = SymbolQuerySet.as_manager()

    class Meta:
        ordering = ["market", "code"]
        constraints = [models.UniqueConstraint(fields=["market", "code"], name="symbol_once_per_market")]
        indexes = [
            models.Index(fields=["market", "next_evaluation_at"], name="symbol_evaluation_due"),
            models.Index(fields=["market", "ingest_due_at"], name="symbol_ingest_due"),
        ]

    def __str__(self) -> str:
        return self.code


class Block(models.Model):
    """A reason why a symbol is not learnt or traded, with its evidence; open until `closed_at`."""

    symbol = models.ForeignKey(Symbol, on_delete=models.PROTECT, related_name="blocks")
    reason = models.CharField(max_length=20, choices=BlockReason)
    evidence = models.CharField(max_length=500, help_text="`CODE: key=value, key=value`.")
    permanent = models.BooleanField(default=False)
    failures = models.PositiveSmallIntegerField(default=1, help_text="How often in a row: the back-off grows with it.")
    opened_at = models.DateTimeField()
    opened_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    recheck_at = models.DateTimeField(null=True, blank=True, help_text="Null only for a permanent block.")
    closed_at = models.DateTimeField(null=True, blank=True)
    closed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    close_reason = models.CharField(max_length=200, blank=True)

    objects = BlockQuerySet.as_manager()
    history = HistoricalRecords()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["symbol", "reason"],
                condition=models.Q(closed_at__isnull=True),
                name="one_open_block_per_reason",
            ),
            models.CheckConstraint(
                condition=models.Q(permanent=True)
                | models.Q(recheck_at__isnull=False)
                | models.Q(closed_at__isnull=False),
                name="temporary_block_has_recheck",
            ),
        ]
        indexes = [
            models.Index(fields=["recheck_at"], condition=models.Q(closed_at__isnull=True), name="block_recheck_due")
        ]

    def __str__(self) -> str:
        return f"{self.symbol_id} {self.reason}"


class UniverseRefresh(models.Model):
    """One look at what the exchange lists: what was found, what changed, or why it failed."""

    market = models.CharField(max_length=64)
    trigger = models.CharField(max_length=10, choices=RefreshTrigger, default=RefreshTrigger.SCHEDULED)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    found = models.PositiveIntegerField(default=0)
    added = models.PositiveIntegerField(default=0)
    in_universe = models.PositiveIntegerField(default=0)
    entered = models.PositiveIntegerField(default=0)
    left = models.PositiveIntegerField(default=0)
    delisted = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True)
    next_refresh_at = models.DateTimeField(help_text="Stored before the refresh starts.")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["market", "-id"], name="refresh_newest")]

    def __str__(self) -> str:
        return f"{self.market} {self.started_at:%Y-%m-%d %H:%M}"

"""Money: bots, decisions, orders, fills, positions, equity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Q
from simple_history.models import HistoricalRecords

from coverage_app.models import Symbol
from quant.risk import MOST_COOLDOWN_BARS, RiskLimits
from quant.sizing import SizingSpec
from trading_app.choices import BotMode, DesiredState, FillKind, KillPolicy, OrderPurpose, OrderState, RiskKind
from trading_app.querysets import OrderQuerySet, PositionQuerySet
from training_app.models import ModelArtifact


class Bot(models.Model):
    """One bot on one account: what people want of it, its limits, and what it last did."""

    name = models.CharField(max_length=40, unique=True)
    market = models.CharField(max_length=64)
    account = models.CharField(
        max_length=64, unique=True, help_text="One bot per account (I15); also the lease's name."
    )
    mode = models.CharField(max_length=10, choices=BotMode)
    desired_state = models.CharField(max_length=10, choices=DesiredState, default=DesiredState.RUN)

    max_leverage = models.FloatField(default=2.0, help_text="Gross exposure / equity.")
    max_correlated = models.FloatField(
        default=1.5,
        help_text="Exposure / equity with symbols that move together counted as one bet: below the gross exposure.",
    )
    max_position = models.FloatField(default=0.2, help_text="Notional of one position / equity.")
    max_positions = models.PositiveIntegerField(default=10)
    cooldown_bars = models.PositiveSmallIntegerField(
        default=4,
        validators=[MaxValueValidator(MOST_COOLDOWN_BARS)],
        help_text="Bars without a new entry in a symbol whose stop was hit; 24 h if the exchange took it away.",
    )
    daily_loss_limit = models.FloatField(default=0.05, help_text="Loss of a UTC day / equity that stops entries.")
    max_drawdown = models.FloatField(default=0.2, help_text="Loss from the peak / equity that pulls the kill switch.")
    on_kill_switch = models.CharField(
        max_length=5, choices=KillPolicy, default=KillPolicy.KEEP, help_text="What becomes of open positions then."
    )
    volatility_target = models.FloatField(
        default=0.01, help_text="Daily standard deviation of one position's profit / equity that its size aims at."
    )

    kill_switch_at = models.DateTimeField(null=True, blank=True, help_text="Latched: only a person resets it (I19).")
    kill_switch_reason = models.CharField(max_length=300, blank=True)
    peak_equity = models.FloatField(null=True, blank=True)
    day = models.DateField(null=True, blank=True, help_text="UTC day of market time that day_start_equity belongs to.")
    day_start_equity = models.FloatField(null=True, blank=True)
    daily_loss_hit = models.BooleanField(default=False)
    entries_blocked = models.CharField(
        max_length=300, blank=True, help_text="Why no position is opened at present; empty: they may be."
    )

    last_bar_at = models.DateTimeField(null=True, blank=True, help_text="Open time of the last bar that was decided.")
    last_fill_at = models.DateTimeField(null=True, blank=True, help_text="Cursor of the fills that were read.")
    loaded_generation = models.PositiveBigIntegerField(default=0)
    loaded_at = models.DateTimeField(null=True, blank=True)
    refused_generation = models.PositiveBigIntegerField(default=0, help_text="Not tried again (I10).")
    reloads = models.PositiveIntegerField(default=0)
    missed_bars = models.PositiveIntegerField(default=0, help_text="Closed while the bot was down: never traded.")
    started_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField()

    history = HistoricalRecords(
        excluded_fields=[
            "peak_equity", "day", "day_start_equity", "daily_loss_hit", "entries_blocked", "last_bar_at",
            "last_fill_at", "loaded_generation", "loaded_at", "refused_generation", "reloads", "missed_bars",
            "started_at",
        ]
    )  # fmt: skip

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse limits that the engine would refuse: a person's typing error must not stop the bot and its exits."""
        super().clean()
        limits: dict[str, Callable[[Any], object]] = {
            "max_leverage": lambda value: RiskLimits(max_leverage=value),
            "max_correlated": lambda value: RiskLimits(max_correlated_fraction=value),
            "max_position": lambda value: RiskLimits(max_position_fraction=value),
            "max_positions": lambda value: RiskLimits(max_open_positions=value),
            "cooldown_bars": lambda value: RiskLimits(cooldown_bars=value),
            "daily_loss_limit": lambda value: RiskLimits(daily_loss_fraction=value),
            "max_drawdown": lambda value: RiskLimits(max_drawdown_fraction=value),
            "volatility_target": lambda value: SizingSpec(daily_volatility_target=value),
        }
        errors = {}
        for name, check in limits.items():
            value = getattr(self, name)
            if value is None:  # the field has said so already
                continue
            try:
                check(value)
            except ValueError as error:
                errors[name] = f"{error}."
        if errors:
            raise ValidationError(errors)


class Decision(models.Model):
    """What the bot decided for a symbol at the close of a bar, and why. Immutable."""

    bot = models.ForeignKey(Bot, on_delete=models.PROTECT, related_name="decisions")
    symbol = models.ForeignKey(Symbol, on_delete=models.PROTECT, related_name="decisions")
    bar_at = models.DateTimeField(help_text="Open time of the closed bar, market time.")
    side = models.SmallIntegerField(default=0, help_text="The primary signal: 1 long, -1 short, 0 none.")
    probability = models.FloatField(null=True, blank=True)
    artifact = models.ForeignKey(
        ModelArtifact, null=True, blank=True, on_delete=models.PROTECT, related_name="decisions"
    )
    generation = models.PositiveBigIntegerField(default=0)
    outcome = models.CharField(max_length=12)
    reason = models.CharField(max_length=300, blank=True)
    reason_code = models.CharField(max_length=40, blank=True, help_text="Code of the reason, for counting.")
    price = models.FloatField(null=True, blank=True, help_text="Close of the bar.")
    created_at = models.DateTimeField(help_text="Market time.")

    class Meta:
        ordering = ["-bar_at", "symbol_id"]
        constraints = [models.UniqueConstraint(fields=["bot", "symbol", "bar_at"], name="one_decision_per_bar")]
        indexes = [
            models.Index(fields=["bot", "-bar_at"], name="decision_newest"),
            models.Index(fields=["symbol", "-bar_at"], name="decision_of_symbol"),
        ]

    def __str__(self) -> str:
        return f"{self.symbol_id} {self.bar_at:%Y-%m-%d %H:%M} {self.outcome}"


class Position(models.Model):
    """A position: the fold of its fills (I17); one open per bot and symbol."""

    # No index of its own: SQLite would rather walk through all positions of a bot than use the one of the open ones.
    bot = models.ForeignKey(Bot, on_delete=models.PROTECT, related_name="positions", db_index=False)
    symbol = models.ForeignKey(Symbol, on_delete=models.PROTECT, related_name="positions")
    side = models.SmallIntegerField()
    quantity = models.DecimalField(max_digits=30, decimal_places=12, default=0, help_text="Signed; 0 when closed.")
    entry_price = models.DecimalField(max_digits=30, decimal_places=12, default=0)
    stop_price = models.DecimalField(max_digits=30, decimal_places=12, null=True, blank=True)
    target_price = models.DecimalField(max_digits=30, decimal_places=12, null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Vertical barrier, market time.")
    realised_pnl = models.DecimalField(max_digits=30, decimal_places=12, default=0)
    fees = models.DecimalField(max_digits=30, decimal_places=12, default=0)
    entry_decision = models.ForeignKey(Decision, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    foreign = models.BooleanField(
        default=False, help_text="Found at the exchange, not opened by this bot: never traded."
    )
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)
    close_reason = models.CharField(max_length=200, blank=True)

    objects = PositionQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["bot", "symbol"], condition=Q(closed_at__isnull=True), name="one_open_position_per_symbol"
            )
        ]
        indexes = [models.Index(fields=["closed_at"], name="position_closed")]

    def __str__(self) -> str:
        return f"{self.symbol_id} {self.quantity}"


class Order(models.Model):
    """An order intent and what became of it. The row is committed before anything is sent (I16).

    INTENT -> SENDING -> ACKED -> PARTIALLY_FILLED -> FILLED | CANCELLED | EXPIRED; SENDING -> REJECTED | UNKNOWN;
    UNKNOWN -> any of them by evidence, or NOT_PLACED when the exchange proves that it never had it.
    """

    # No index of its own: SQLite would rather walk through all orders of a bot than use the one of their states.
    bot = models.ForeignKey(Bot, on_delete=models.PROTECT, related_name="orders", db_index=False)
    symbol = models.ForeignKey(Symbol, on_delete=models.PROTECT, related_name="orders")
    position = models.ForeignKey(Position, null=True, blank=True, on_delete=models.PROTECT, related_name="orders")
    decision = models.ForeignKey(Decision, null=True, blank=True, on_delete=models.PROTECT, related_name="orders")
    purpose = models.CharField(max_length=8, choices=OrderPurpose)
    side = models.CharField(max_length=4, help_text="buy or sell")
    kind = models.CharField(max_length=12, help_text="market, limit or stop_market")
    quantity = models.DecimalField(max_digits=30, decimal_places=12)
    reference_price = models.DecimalField(max_digits=30, decimal_places=12, null=True, blank=True)
    trigger_price = models.DecimalField(max_digits=30, decimal_places=12, null=True, blank=True)
    stop_price = models.DecimalField(
        max_digits=30, decimal_places=12, null=True, blank=True, help_text="Of the position to be."
    )
    target_price = models.DecimalField(max_digits=30, decimal_places=12, null=True, blank=True)
    position_expires_at = models.DateTimeField(null=True, blank=True)
    reduce_only = models.BooleanField(default=False)
    client_order_id = models.CharField(
        max_length=18, unique=True, null=True, blank=True, help_text="Derived from the row (I16)."
    )
    venue_order_id = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=16, choices=OrderState, default=OrderState.INTENT)
    filled = models.DecimalField(max_digits=30, decimal_places=12, default=0)
    average_price = models.DecimalField(max_digits=30, decimal_places=12, null=True, blank=True)
    reason = models.CharField(max_length=300, blank=True, help_text="Why it was placed; then why it was refused.")
    fencing_token = models.BigIntegerField(help_text="Of the bot's lease when the intent was written (I15).")
    lookups = models.PositiveSmallIntegerField(default=0)
    next_lookup_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(help_text="Market time.")
    sent_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = OrderQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["bot", "state"], name="order_of_state")]

    def __str__(self) -> str:
        return self.client_order_id or f"intent {self.pk}"


class Fill(models.Model):
    """A trade at the exchange: unique per account and trade id, whatever arrives how often (I17)."""

    bot = models.ForeignKey(Bot, on_delete=models.PROTECT, related_name="fills")
    order = models.ForeignKey(Order, null=True, blank=True, on_delete=models.PROTECT, related_name="fills")
    position = models.ForeignKey(Position, null=True, blank=True, on_delete=models.PROTECT, related_name="fills")
    symbol = models.ForeignKey(Symbol, on_delete=models.PROTECT, related_name="fills")
    account = models.CharField(max_length=64)
    trade_id = models.CharField(max_length=80)
    client_order_id = models.CharField(max_length=64, blank=True)
    kind = models.CharField(max_length=10, choices=FillKind, default=FillKind.TRADE)
    side = models.CharField(max_length=4)
    quantity = models.DecimalField(max_digits=30, decimal_places=12)
    price = models.DecimalField(max_digits=30, decimal_places=12)
    fee = models.DecimalField(max_digits=30, decimal_places=12, default=0)
    filled_at = models.DateTimeField(help_text="The exchange's time.")

    class Meta:
        ordering = ["-filled_at", "-id"]
        constraints = [models.UniqueConstraint(fields=["account", "trade_id"], name="fill_once_per_account")]

    def __str__(self) -> str:
        return self.trade_id


class EquityPoint(models.Model):
    """Equity at the close of a bar."""

    bot = models.ForeignKey(Bot, on_delete=models.PROTECT, related_name="equity_points")
    at = models.DateTimeField()
    equity = models.FloatField()
    cash = models.FloatField()
    exposure = models.FloatField(default=0.0, help_text="Gross notional of the open positions.")
    drawdown = models.FloatField(default=0.0, help_text="Loss from the peak / peak.")
    open_positions = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-at"]
        constraints = [models.UniqueConstraint(fields=["bot", "at"], name="one_equity_point_per_bar")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.equity:.2f}"


class RiskEvent(models.Model):
    """Append-only: limits that were hit, kill switches pulled and reset, and by whom (I19, I21)."""

    bot = models.ForeignKey(Bot, on_delete=models.PROTECT, related_name="risk_events")
    kind = models.CharField(max_length=20, choices=RiskKind)
    evidence = models.CharField(max_length=500)
    created_at = models.DateTimeField()
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.kind}: {self.evidence}"[:120]

"""Rows for tests, one factory per table: sensible defaults, so that a test names only what it is about.

Times are market time; `EPOCH` is the present of the tests that use a simulated clock.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import factory
from django.contrib.auth import get_user_model
from factory.django import DjangoModelFactory

from coverage_app.choices import BlockReason
from coverage_app.models import Block, Symbol, UniverseRefresh
from ops_app.models import Event
from quant.compatibility import ModelRequirement
from trading_app.choices import BotMode, OrderPurpose, OrderState
from trading_app.models import Bot, Decision, EquityPoint, Fill, Order, Position
from training_app.choices import RunState, RunTrigger
from training_app.models import ActiveModel, ArtifactSymbol, ModelArtifact, RunSymbol, TrainingRun, TrainingScope

EPOCH = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
MARKET = "simulated"


class UserFactory(DjangoModelFactory):
    """A user without a role: put it into a group of `tradingsite.permissions.ROLES`, or make it a superuser."""

    class Meta:
        model = get_user_model()
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"user{n}")
    password = factory.django.Password("secret-of-a-test")


class SymbolFactory(DjangoModelFactory):
    """A healthy symbol: in the universe, two years of hourly candles up to now, evaluated, not due."""

    class Meta:
        model = Symbol

    class Params:
        now = EPOCH
        fresh = factory.Trait(
            history_start=None, history_days=0.0, history_coverage=0.0, candle_count=0, expected_count=0,
            last_candle_at=None, backfilled=False, ingest_due_at=None, next_evaluation_at=None, last_evaluated_at=None,
            evaluations=0,
        )  # fmt: skip

    market = MARKET
    code = factory.Sequence(lambda n: f"C{n:04d}/USDT:USDT")
    base = factory.LazyAttribute(lambda row: row.code.partition("/")[0])
    quote = "USDT"
    market_type = "swap"
    listed_at = factory.LazyAttribute(lambda row: row.now - 1000 * DAY)
    in_universe = True
    volume_24h = 5e6
    spread_bps = 2.0
    tick_size = Decimal("0.01")
    lot_size = Decimal("0.001")
    min_notional = Decimal(5)
    history_start = factory.LazyAttribute(lambda row: row.now - 730 * DAY)
    history_days = 730.0
    history_coverage = 1.0
    candle_count = 730 * 24
    expected_count = 730 * 24
    last_candle_at = factory.LazyAttribute(lambda row: row.now - HOUR)
    backfilled = True
    ingest_due_at = factory.LazyAttribute(lambda row: row.now + HOUR)
    next_evaluation_at = factory.LazyAttribute(lambda row: row.now + 5 * HOUR / 60)
    last_evaluated_at = factory.LazyAttribute(lambda row: row.now)
    evaluations = 1
    created_at = factory.LazyAttribute(lambda row: row.now - 30 * DAY)


class BlockFactory(DjangoModelFactory):
    """An open, temporary block."""

    class Meta:
        model = Block

    symbol = factory.SubFactory(SymbolFactory)
    reason = BlockReason.TRAINING_FAILED
    evidence = factory.LazyAttribute(lambda row: f"{row.reason}: made_by=test")
    opened_at = EPOCH
    recheck_at = factory.LazyAttribute(lambda row: None if row.permanent else row.opened_at + HOUR)
    permanent = False


class UniverseRefreshFactory(DjangoModelFactory):
    class Meta:
        model = UniverseRefresh

    market = MARKET
    started_at = EPOCH
    finished_at = factory.LazyAttribute(lambda row: row.started_at)
    next_refresh_at = factory.LazyAttribute(lambda row: row.started_at + HOUR)


class EventFactory(DjangoModelFactory):
    class Meta:
        model = Event

    created_at = EPOCH
    recorded_at = EPOCH
    kind = "test_event"
    text = "Something happened."


class TrainingScopeFactory(DjangoModelFactory):
    """The scope of all symbols of a market."""

    class Meta:
        model = TrainingScope
        django_get_or_create = ("key",)

    market = MARKET
    training_mode = "multi_symbol"
    timeframe = "1h"
    key = factory.LazyAttribute(lambda row: f"{row.training_mode}:{row.market}:{row.timeframe}")


class TrainingRunFactory(DjangoModelFactory):
    """A queued run. `running=True`: claimed, with lease and token; `succeeded=True`: ended with a verdict."""

    class Meta:
        model = TrainingRun

    class Params:
        running = factory.Trait(
            state=RunState.RUNNING,
            attempt=1,
            owner="test-worker",
            started_at=EPOCH,
            fencing_token=factory.LazyAttribute(lambda row: row.run_no * 65536 + row.attempt),
            lease_expires_at=EPOCH + HOUR,
            heartbeat_at=EPOCH,
        )
        succeeded = factory.Trait(
            state=RunState.SUCCEEDED,
            attempt=1,
            owner="test-worker",
            started_at=EPOCH,
            finished_at=EPOCH,
            progress=1.0,
            fencing_token=factory.LazyAttribute(lambda row: row.run_no * 65536 + row.attempt),
        )

    scope = factory.SubFactory(TrainingScopeFactory)
    run_no = factory.Sequence(lambda n: n + 1)
    state = RunState.QUEUED
    trigger = RunTrigger.NO_MODEL
    cause = "NO_MODEL: made_by=test"
    not_before = EPOCH
    created_at = EPOCH


class RunSymbolFactory(DjangoModelFactory):
    class Meta:
        model = RunSymbol

    run = factory.SubFactory(TrainingRunFactory)
    symbol = factory.SubFactory(SymbolFactory)


class ArtifactFactory(DjangoModelFactory):
    """A promotable artifact that fits `requirement` (default: the settings' own shape); its files do not exist.

    `symbols=[...]` lists the symbols that it covers.
    """

    class Meta:
        model = ModelArtifact
        skip_postgeneration_save = True

    class Params:
        requirement: Any = None

    run = factory.SubFactory(TrainingRunFactory, succeeded=True)
    scope = factory.LazyAttribute(lambda row: row.run.scope)
    version = factory.LazyAttribute(lambda row: row.run.run_no)
    fencing_token = factory.LazyAttribute(lambda row: row.run.fencing_token)
    directory = factory.Sequence(lambda n: f"test/v{n}")
    size = 1000
    sha256 = "0" * 64
    training_mode = factory.LazyAttribute(lambda row: _required(row, "training_mode", row.scope.training_mode))
    symbol_encoding = factory.LazyAttribute(lambda row: _required(row, "symbol_encoding", "index"))
    blend = factory.LazyAttribute(lambda row: _required(row, "blend", "none"))
    timeframe = factory.LazyAttribute(lambda row: _required(row, "timeframe", row.scope.timeframe))
    signal = factory.LazyAttribute(lambda row: _required(row, "signal", "trend"))
    schema_hash = factory.LazyAttribute(lambda row: _required(row, "schema_hash", "s" * 64))
    label_spec = factory.LazyFunction(dict)
    label_hash = factory.LazyAttribute(lambda row: _required(row, "label_hash", "l" * 64))
    threshold = 0.55
    score = 0.01
    gates_passed = True
    data_start = EPOCH - 730 * DAY
    data_end = EPOCH
    data_hash = "d" * 64
    created_at = EPOCH

    @factory.post_generation
    def symbols(self, create: bool, extracted: list[Symbol] | None, **_: Any) -> None:
        for symbol in extracted or ():
            ArtifactSymbolFactory(artifact=self, symbol=symbol)


class ArtifactSymbolFactory(DjangoModelFactory):
    class Meta:
        model = ArtifactSymbol

    artifact = factory.SubFactory(ArtifactFactory)
    symbol = factory.SubFactory(SymbolFactory)


class ActiveModelFactory(DjangoModelFactory):
    class Meta:
        model = ActiveModel

    artifact = factory.SubFactory(ArtifactFactory)
    slot = factory.LazyAttribute(lambda row: row.artifact.scope.key)
    generation = factory.Sequence(lambda n: n + 1)
    activated_at = EPOCH


class BotFactory(DjangoModelFactory):
    class Meta:
        model = Bot

    name = factory.Sequence(lambda n: f"bot{n}")
    market = MARKET
    account = factory.LazyAttribute(lambda row: f"{row.market}:{row.name}")
    mode = BotMode.SIMULATED
    created_at = EPOCH


class DecisionFactory(DjangoModelFactory):
    class Meta:
        model = Decision

    bot = factory.SubFactory(BotFactory)
    symbol = factory.SubFactory(SymbolFactory)
    bar_at = EPOCH - HOUR
    outcome = "NO_SIGNAL"
    reason = "NO_SIGNAL"
    price = 100.0
    created_at = EPOCH


class PositionFactory(DjangoModelFactory):
    """An open long position of one unit."""

    class Meta:
        model = Position

    bot = factory.SubFactory(BotFactory)
    symbol = factory.SubFactory(SymbolFactory)
    side = 1
    quantity = 1
    entry_price = 100
    stop_price = 95
    target_price = 110
    expires_at = EPOCH + DAY
    opened_at = EPOCH


class OrderFactory(DjangoModelFactory):
    """An entry at the exchange, not filled yet."""

    class Meta:
        model = Order

    bot = factory.SubFactory(BotFactory)
    symbol = factory.SubFactory(SymbolFactory)
    purpose = OrderPurpose.ENTRY
    side = "buy"
    kind = "market"
    quantity = 1
    client_order_id = factory.Sequence(lambda n: f"T{n:012d}")
    state = OrderState.ACKED
    fencing_token = 1
    created_at = EPOCH


class FillFactory(DjangoModelFactory):
    class Meta:
        model = Fill

    order = factory.SubFactory(OrderFactory)
    bot = factory.LazyAttribute(lambda row: row.order.bot)
    symbol = factory.LazyAttribute(lambda row: row.order.symbol)
    account = factory.LazyAttribute(lambda row: row.bot.account)
    trade_id = factory.Sequence(lambda n: f"trade{n}")
    client_order_id = factory.LazyAttribute(lambda row: row.order.client_order_id)
    side = "buy"
    quantity = 1
    price = 100
    filled_at = EPOCH


class EquityPointFactory(DjangoModelFactory):
    class Meta:
        model = EquityPoint

    bot = factory.SubFactory(BotFactory)
    at = factory.Sequence(lambda n: EPOCH + n * HOUR)
    equity = 10_000.0
    cash = 10_000.0


def _required(row: Any, name: str, default: str) -> str:
    requirement: ModelRequirement | None = row.requirement
    return default if requirement is None else getattr(requirement, name)

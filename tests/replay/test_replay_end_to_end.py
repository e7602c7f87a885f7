"""Real candles through universe, coverage, training and bot; and the same on an archive that ends at the clock."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from django.db import transaction

from coverage_app import market
from coverage_app import services as coverage
from coverage_app.models import Block, Symbol
from ops_app import clock
from ops_app.clock import SimulatedClock
from quant.pipeline import TrainingResult, train
from quant.training_spec import TrainingSpec
from trading_app.bot import BotRunner
from trading_app.models import Decision, EquityPoint, Fill, Order
from trading_app.services import ensure_bot
from training_app import activation, execution, policies, services
from training_app.models import Activation, ModelArtifact, TrainingRun

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

MARKET = "binance_um"
STEMS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "ZECUSDT")
CODES = ("BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT", "ZEC/USDT:USDT")
YOUNG = "ZEC/USDT:USDT"
"""Its candles begin on 2025-05-01."""
START = dt.datetime(2025, 6, 1, 0, 0, 10, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
BARS = 72


@dataclass(frozen=True)
class Story:
    """Everything that a replay left in the tables, without the ids of rows."""

    universe: list[tuple[Any, ...]]
    blocks: list[tuple[Any, ...]]
    models: list[tuple[Any, ...]]
    decisions: list[tuple[Any, ...]]
    orders: list[tuple[Any, ...]]
    fills: list[tuple[Any, ...]]
    equity: list[tuple[Any, ...]]


def tell() -> Story:
    return Story(
        universe=list(Symbol.objects.order_by("code").values_list(
            "code", "listed_at", "delisted_at", "in_universe", "volume_24h", "tick_size", "history_start",
            "candle_count", "expected_count", "last_candle_at",
        )),
        blocks=list(Block.objects.order_by("symbol__code", "reason", "opened_at").values_list(
            "symbol__code", "reason", "evidence", "opened_at", "closed_at"
        )),
        models=list(ModelArtifact.objects.order_by("id").values_list(
            "data_start", "data_end", "data_hash", "threshold", "score", "metrics", "gates"
        )),
        decisions=list(Decision.objects.order_by("bar_at", "symbol__code").values_list(
            "bar_at", "symbol__code", "side", "probability", "outcome", "reason", "price"
        )),
        orders=list(Order.objects.order_by("id").values_list(
            "symbol__code", "purpose", "side", "quantity", "trigger_price", "state", "reason", "created_at"
        )),
        fills=list(Fill.objects.order_by("id").values_list(
            "symbol__code", "kind", "side", "quantity", "price", "fee", "filled_at"
        )),
        equity=list(EquityPoint.objects.order_by("at").values_list("at", "equity", "exposure")),
    )  # fmt: skip


def lifted(*arguments: Any, **options: Any) -> TrainingResult:
    """The real training; its gates are answered with yes, because a real market may well deserve a no."""
    result = train(*arguments, **options)
    return replace(result, gates=tuple(replace(gate, passed=True) for gate in result.gates))


def look(sim: SimulatedClock) -> None:
    """What the workers do between two bars."""
    coverage.refresh_if_due()
    coverage.ingest(symbol_ids=list(Symbol.objects.values_list("pk", flat=True)), budget_seconds=None)
    coverage.evaluate_due()


def learn(sim: SimulatedClock, trainer: Callable[..., TrainingResult] | None) -> TrainingRun:
    services.plan()
    sim.advance(dt.timedelta(minutes=11))
    (run,) = services.plan()
    execution.execute(run.pk, "replay-test", trainer=trainer)
    for asked in Activation.objects.all():
        activation.apply_activation(asked.pk)
    run.refresh_from_db()
    return run


@pytest.fixture
def play(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Story]]:
    """`play(archive, bars)`: three days of real candles from an empty database; the tables are empty again after it."""
    settings.EXCHANGE, settings.EXCHANGE_MARKET, settings.TIMEFRAME = "replay", MARKET, "1h"
    settings.UNIVERSE_MODE, settings.UNIVERSE_SYMBOLS = "fixed", CODES
    settings.HISTORY_TARGET_DAYS, settings.HISTORY_MIN_DAYS = 240, 90
    monkeypatch.setattr(policies, "training_spec", lambda: TrainingSpec.small(max_trees=20))

    def run(
        archive: Path, *, bars: int = BARS, trainer: Callable[..., TrainingResult] | None = lifted,
        watch: Callable[[], None] = lambda: None,
    ) -> Story:  # fmt: skip
        place = tmp_path / f"{archive.name}-data"
        settings.CANDLE_ARCHIVE, settings.CANDLES_DIR = archive, place / "candles"
        settings.ARTIFACTS_DIR, settings.LEDGER_DIR = place / "artifacts", place / "ledger"
        market.reset()
        with transaction.atomic(), clock.simulated(START) as sim:
            look(sim)
            learn(sim, trainer)
            runner = BotRunner(ensure_bot(), lease_ttl=dt.timedelta(days=30))
            runner.tick()
            for _ in range(bars):
                sim.now = sim.now.replace(minute=0, second=10) + HOUR
                look(sim)
                runner.tick()
                watch()
            story = tell()
            transaction.set_rollback(True)
        market.reset()
        shutil.rmtree(place)
        return story

    yield run
    market.reset()


def cut(archive: Path, target: Path, until: dt.datetime | None) -> Path:
    """Copy the symbols of this test: whole, or what was known at `until`."""
    for folder, step in (("1h", HOUR), ("funding", dt.timedelta(0))):
        (target / MARKET / folder).mkdir(parents=True)
        for stem in STEMS:
            source = archive / MARKET / folder / f"{stem}.parquet"
            if not source.exists():
                continue
            table = pq.read_table(source)
            if until is not None:
                known_ms = int((until - step).timestamp() * 1000)
                table = table.filter(pc.less_equal(table["timestamp"], known_ms))
            pq.write_table(table, target / MARKET / folder / source.name)
    return target


def test_a_replay_learns_from_what_was_known_then_and_trades_every_bar(
    candle_archive: Path, tmp_path: Path, play: Callable[..., Story]
) -> None:
    """I14 from end to end: cut the archive at the clock, and not one bit of any row is another."""

    def nothing_is_newer_than_the_clock() -> None:
        now = clock.market_now()
        assert all(each.last_candle_at + HOUR <= now for each in Symbol.objects.filter(last_candle_at__isnull=False))
        assert not Fill.objects.filter(filled_at__gt=now).exists()

    whole = play(cut(candle_archive, tmp_path / "whole", None), watch=nothing_is_newer_than_the_clock)
    assert len(whole.decisions) == (BARS + 1) * len(CODES), "every bar, with a reason for every symbol"
    assert {row[4] for row in whole.decisions} >= {"ENTER", "REFUSED"}
    assert {kind for _, kind, *_ in whole.fills} == {"trade", "funding"}
    assert [(row[0], row[1]) for row in whole.blocks if row[4] is None] == [(YOUNG, "SHORT_HISTORY")]
    ((_, data_end, *_),) = whole.models
    assert data_end <= START + dt.timedelta(minutes=11)

    for bars in (1, 25, BARS):
        now = START.replace(second=10) + bars * HOUR
        known = play(cut(candle_archive, tmp_path / f"cut-{bars}", now), bars=bars)
        assert known.models == whole.models
        assert known.decisions == whole.decisions[: len(known.decisions)]
        assert known.fills == whole.fills[: len(known.fills)]
        assert known.equity == whole.equity[: len(known.equity)]
        if bars == BARS:
            assert known == whole


def test_a_replay_that_learns_nothing_trades_nothing_and_says_why(
    candle_archive: Path, tmp_path: Path, play: Callable[..., Story]
) -> None:
    """Twenty trees on eight months of three symbols: whatever the gates say, it is written, and obeyed."""
    story = play(cut(candle_archive, tmp_path / "whole", None), bars=6, trainer=None)
    (model,) = story.models
    passed = all(gate["passed"] for gate in model[-1])
    refused = {code for code, reason, *_ in story.blocks if reason == "MODEL_REJECTED"}
    assert refused == (set() if passed else set(CODES) - {YOUNG})
    if not passed:
        assert story.orders == []
        assert all("MODEL_REJECTED" in row[5] for row in story.decisions if row[1] in refused)

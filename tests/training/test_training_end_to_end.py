"""Both modes and encodings from stored candles to a verdict, with the real pipeline on little data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coverage_app.models import Block, Symbol
from marketdata.store import CandleStore
from ops_app.clock import SimulatedClock
from ops_app.queue import Message
from quant.compatibility import RefusalCode
from quant.panel import Panel
from quant.timeframes import to_ms
from tests.factories import EPOCH, MARKET, BotFactory, DecisionFactory, PositionFactory, SymbolFactory
from tests.training.conftest import simulated_candles
from trading_app.selectors import promises
from training_app import artifacts, execution, policies, registry, services
from training_app.choices import RunState, Verdict
from training_app.exceptions import ArtifactError
from training_app.models import ActiveModel, ModelArtifact, RunSymbol, TrainingRun

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("small_training")]

StoreMarket = Callable[..., list[Symbol]]


def plan_after_debounce(sim: SimulatedClock) -> list[TrainingRun]:
    services.plan()
    sim.advance(dt.timedelta(minutes=11))
    return services.plan()


def execute(run: TrainingRun) -> execution.Execution:
    done = execution.execute(run.pk, "test-worker")
    assert done is not None
    return done


@pytest.mark.parametrize("encoding", ["index", "one_hot"])
def test_a_multi_symbol_model_is_trained_judged_and_leaves_a_verdict_for_every_symbol(
    encoding: str, settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    settings.SYMBOL_ENCODING = encoding
    symbols = stored_market(n_symbols=8)
    (run,) = plan_after_debounce(sim)
    assert execute(run).state in (RunState.SUCCEEDED, RunState.REJECTED)
    artifact = ModelArtifact.objects.get()
    assert artifact.symbol_encoding == encoding
    assert artifact.gates
    assert artifact.gates_passed == ActiveModel.objects.exists()
    assert artifacts.load(artifact).symbols == tuple(sorted(symbol.code for symbol in symbols))
    verdicts = RunSymbol.objects.filter(run=run)
    assert verdicts.count() == 8
    assert not verdicts.filter(open=True).exists()
    log = TrainingRun.objects.get().log
    assert "fold 1" in log
    assert "publishing" in log


def test_i12_a_model_of_another_blend_is_refused(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    settings.TRAIN_BLEND = "logistic"
    stored_market(n_symbols=8)
    (run,) = plan_after_debounce(sim)
    execute(run)
    artifact = ModelArtifact.objects.get()
    assert artifact.blend == artifacts.load(artifact).blend == "logistic"
    assert artifact.metrics["logistic_share"] == artifacts.load(artifact).logistic.weight
    assert RefusalCode.BLEND not in {each.code for each in registry.refusals_of(artifact)}
    settings.TRAIN_BLEND = "none"
    (refusal,) = [each for each in registry.refusals_of(artifact) if each.code is RefusalCode.BLEND]
    assert refusal.text == "BLEND: has=logistic, needs=none"
    artifact.blend = "none"  # the row says one thing and the files another
    with pytest.raises(ArtifactError, match="blend is logistic in the files, none in the database"):
        artifacts.load(artifact)


def test_the_numbers_that_live_trading_is_compared_with_are_in_a_trained_artifact(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    """`trading_app.selectors.promises` reads them by name; one that the pipeline lacks would switch the guard off."""
    stored_market(n_symbols=8)
    (run,) = plan_after_debounce(sim)
    execute(run)
    artifact = ModelArtifact.objects.get()
    symbol = artifact.artifact_symbols.earliest("pk").symbol
    bot = BotFactory()
    entry = DecisionFactory(bot=bot, symbol=symbol, artifact=artifact, outcome="ENTER")
    PositionFactory(bot=bot, symbol=symbol, entry_decision=entry, closed_at=EPOCH)
    (promise,) = promises(bot)
    tested = artifact.metrics["test"]
    assert tested["trades"] > 0
    assert promise.promised_precision == tested["precision"]
    assert promise.promised_net_return == tested["net_return"]
    assert 0 <= promise.promised_precision <= 1


def test_single_symbol_mode_trains_a_model_for_each_symbol_that_does_not_know_the_others(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    settings.TRAINING_MODE = "single_symbol"
    symbols = stored_market(n_symbols=2, days=400)
    runs = services.plan()
    assert [run.scope.key for run in runs] == [f"single_symbol:simulated:1h:{symbol.code}" for symbol in symbols]
    for run in runs:
        done = execute(run)
        assert done.state in (RunState.SUCCEEDED, RunState.REJECTED), done.text
    for symbol in symbols:
        artifact = ModelArtifact.objects.get(scope__symbol=symbol)
        assert artifact.panel_symbols == [symbol.code]
        names = artifacts.load(artifact).feature_names
        assert not [name for name in names if name.startswith("market_")]
    for row in RunSymbol.objects.all():
        assert (row.verdict == Verdict.COVERED) == ActiveModel.objects.filter(artifact__scope=row.run.scope).exists()
        assert (row.verdict == Verdict.BLOCKED) == Block.objects.open().filter(symbol=row.symbol).exists()


def test_a_symbol_with_too_few_samples_is_left_out_with_the_pipelines_reason(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_market(n_symbols=6)
    newcomer = SymbolFactory(code="ZZZ/USDT:USDT")
    series = next(iter(simulated_candles(6, 120).values()))
    CandleStore(settings.CANDLES_DIR).write(
        MARKET, "1h", {newcomer.code: series.between(int(series.open_time[-60]), int(series.open_time[-1]) + 1)}
    )
    (run,) = plan_after_debounce(sim)
    execute(run)
    row = RunSymbol.objects.get(run=run, symbol=newcomer)
    assert row.verdict == Verdict.BLOCKED
    covered = ModelArtifact.objects.get().artifact_symbols.values_list("symbol__code", flat=True)
    assert newcomer.code not in covered
    if ActiveModel.objects.exists():
        assert "TOO_FEW" in row.reason


def test_i14_a_run_reads_nothing_newer_than_its_cut_off(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_market(n_symbols=6)
    sim.now = EPOCH - dt.timedelta(days=10, minutes=7)  # the store holds ten days of future
    Symbol.objects.update(last_evaluated_at=sim.now)
    (run,) = plan_after_debounce(sim)
    seen: list[Panel] = []
    original = execution.read_panel
    monkeypatch.setattr(execution, "read_panel", lambda *args: seen.append(original(*args)) or seen[-1])
    execute(run)
    (panel,) = seen
    newest_close = np.datetime64(int(panel.open_time[-1]) + panel.step_ms, "ms")
    claimed_at = np.datetime64(sim.now.replace(tzinfo=None), "ms")
    assert np.timedelta64(0, "ms") <= claimed_at - newest_close < np.timedelta64(1, "h")
    artifact = ModelArtifact.objects.get()
    assert artifact.data_end <= sim.now
    assert artifact.data_hash == panel.content_hash()


def test_i13_a_run_reads_the_target_history_however_much_is_stored_and_the_model_says_where_it_began(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    """What a training costs does not grow with every month that is stored."""
    stored_market(n_symbols=6)
    settings.HISTORY_TARGET_DAYS, settings.HISTORY_MIN_DAYS = 100, 60
    (run,) = plan_after_debounce(sim)
    execute(run)
    artifact = ModelArtifact.objects.get()
    assert artifact.data_end - artifact.data_start == dt.timedelta(days=100)
    store = CandleStore(settings.CANDLES_DIR)
    panel = store.read_panel(MARKET, "1h", symbols=artifact.panel_symbols, since_ms=to_ms(artifact.data_start))
    assert artifact.data_hash == panel.until(to_ms(artifact.data_end)).content_hash()


def test_the_same_candles_give_the_same_files_to_the_byte(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    stored_market(n_symbols=6)
    hashes = []
    for _ in range(2):
        runs = plan_after_debounce(sim) or services.train_now()
        sim.advance(max(runs[0].not_before - sim.now, dt.timedelta(0)))
        claimable = TrainingRun.objects.get(pk=runs[0].pk)
        execute(claimable)
        artifact = ModelArtifact.objects.latest("pk")
        hashes.append((artifact.data_hash, artifact.sha256))
        Block.objects.all().delete()
        ActiveModel.objects.all().delete()
        ModelArtifact.objects.filter(pk=artifact.pk).update(integrity_error="set aside")
        sim.advance(dt.timedelta(days=8))
        Symbol.objects.update(last_candle_at=sim.now)
    assert hashes[0] == hashes[1]


def test_a_market_in_which_nothing_can_be_learnt_is_refused_and_its_symbols_wait(
    sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    stored_market(n_symbols=6, learnable=False)
    (run,) = plan_after_debounce(sim)
    assert execute(run).state == RunState.REJECTED
    assert not ActiveModel.objects.exists()
    blocks = Block.objects.open()
    assert {block.reason for block in blocks} == {"MODEL_REJECTED"}
    assert all(block.recheck_at > sim.now for block in blocks)
    assert all("gate=" in block.evidence for block in blocks)


def test_a_broken_candle_file_is_an_attempt_that_failed_with_the_path_and_the_fix(
    settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: StoreMarket
) -> None:
    stored_market(n_symbols=2)
    victim = sorted((settings.CANDLES_DIR / MARKET / "1h").glob("*.parquet"))[1]
    victim.write_bytes(victim.read_bytes()[:200])
    (run,) = plan_after_debounce(sim)
    done = execute(run)
    assert done.state == RunState.QUEUED
    assert victim.name in TrainingRun.objects.get().error


def test_without_any_candle_a_run_fails_at_once_with_the_reason(sim: SimulatedClock, sent: list[Message]) -> None:
    SymbolFactory()
    (run,) = plan_after_debounce(sim)
    assert execute(run).state == RunState.FAILED
    assert TrainingRun.objects.get().error.startswith("NO_CANDLES")


def test_the_settings_decide_how_a_run_trains(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real spec, not the small one
    settings.TRAIN_TREES, settings.TRAIN_SEED, settings.TRAIN_THREADS = 77, 5, 3
    spec = policies.training_spec()
    assert (spec.max_trees, spec.seed, spec.num_threads) == (77, 5, 3)
    settings.TRAIN_THREADS, settings.TRAINING_WORKERS = 0, 64
    assert policies.training_threads() == 1

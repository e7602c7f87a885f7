"""Which model the bot holds (I10, I11), and that what it computes live is what training computes (I13)."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ops_app import clock
from ops_app.models import Alert
from quant.calibration import PlattCalibration
from quant.candles import Candles
from quant.features import FeatureState, replay
from quant.label_spec import LabelSpec
from quant.model import MetaModel, Probe, fit_booster
from quant.panel import Panel
from quant.schema import FeatureSchema
from quant.timeframes import DAY_MS, HOUR_MS, to_ms
from tests.factories import EPOCH, MARKET, ActiveModelFactory, ArtifactFactory
from tests.trading.conftest import HOUR, StandIn, World
from trading_app.feed import FeatureFeed
from trading_app.models import Bot, Decision, Order, RiskEvent
from training_app import artifacts, registry
from training_app.choices import ActivationKind, ActivationState
from training_app.exceptions import ArtifactError
from training_app.models import Activation, ActiveModel

pytestmark = pytest.mark.django_db


def real_model(codes: tuple[str, ...]) -> MetaModel:
    schema = FeatureSchema()
    random = np.random.default_rng(1)
    X = random.normal(size=(300, len(schema.names))).astype(np.float32)
    booster = fit_booster(
        features=X, symbol_codes=(np.arange(300) % len(codes)).astype(np.int32), y=(X[:, 0] > 0).astype(np.int8),
        weight=np.ones(300), encoding="index", n_symbols=len(codes), feature_names=schema.names,
        params={"num_threads": 1, "num_leaves": 4, "seed": 1}, n_trees=3,
    )  # fmt: skip
    model = MetaModel(
        booster_text=str(booster.model_to_string()), calibration=PlattCalibration(1.0, 0.0), threshold=0.0,
        symbol_encoding="index", symbols=codes, panel_symbols=codes, feature_names=schema.names, required_features=(),
        fit_end_ms=to_ms(EPOCH), facts={"schema_hash": schema.hash, "label_hash": LabelSpec().hash},
    )  # fmt: skip
    asked = np.zeros(4, dtype=np.int32)
    model.probe_rows = Probe(features=X[:4], symbol_codes=asked, predictions=model.predict(X[:4], asked))
    return model


def activate_real(world: World) -> ActiveModel:
    """Write a real artifact as training does, and make it active."""
    artifact = ArtifactFactory(
        requirement=registry.requirement(), panel_symbols=list(world.codes), symbols=list(world.symbols.values())
    )
    written = artifacts.write_artifact(
        real_model(world.codes),
        scope=artifact.scope,
        version=artifact.version,
        token=artifact.fencing_token,
        manifest={},
    )
    artifact.directory, artifact.size, artifact.sha256 = written.directory, written.size, written.sha256
    artifact.save()
    newest = max(ActiveModel.objects.values_list("generation", flat=True), default=0) + 1
    ActiveModel.objects.filter(slot=artifact.scope.key).delete()
    return ActiveModelFactory(artifact=artifact, generation=newest)


def test_a_real_artifact_is_loaded_verified_and_asked(make_world: Any) -> None:
    world: World = make_world()
    active = activate_real(world)
    runner = world.runner(load=artifacts.load)
    report = runner.tick()
    assert report.models_loaded == 1
    world.pass_bars(runner, 6)
    asked = Decision.objects.filter(probability__isnull=False)
    assert asked.exists()
    assert set(asked.values_list("artifact", flat=True)) == {active.artifact_id}


def test_a_model_that_is_too_old_opens_no_trade_and_says_so_until_a_newer_one_comes(
    make_world: Any, settings: Any
) -> None:
    world: World = make_world()
    settings.MODEL_MAX_AGE_DAYS = 10
    old = activate_real(world)
    old.artifact.data_end = clock.market_now() - dt.timedelta(days=11)
    old.artifact.save()
    runner = world.runner(load=artifacts.load)
    world.pass_bars(runner, 6)
    reasons = set(Decision.objects.values_list("reason_code", "outcome"))
    assert reasons == {("BLOCKED", "REFUSED")}
    assert "MODEL_EXPIRED" in Decision.objects.first().reason
    assert not Order.objects.exists()
    alert = Alert.objects.get(key=f"model_expired:{old.slot}")
    assert "newer model" in alert.text
    new = activate_real(world)
    new.artifact.data_end = clock.market_now()
    new.artifact.save()
    world.pass_bars(runner, 6)
    assert Decision.objects.filter(probability__isnull=False).exists()
    alert.refresh_from_db()
    assert alert.resolved_at is not None


@pytest.mark.parametrize("sixteenth", [0, 5, 11, 15])
def test_f31_i10_a_damaged_model_is_refused_once_the_last_good_one_stays_and_a_person_is_told(
    make_world: Any, sixteenth: int
) -> None:
    world: World = make_world()
    good = activate_real(world)
    loads: list[int] = []

    def load(artifact: Any) -> MetaModel:
        loads.append(artifact.pk)
        return artifacts.load(artifact)

    runner = world.runner(load=load)
    runner.tick()
    bad = activate_real(world)
    path: Path = artifacts.path_of(bad.artifact) / "model.txt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * sixteenth // 16])
    report = runner.tick()
    assert (report.models_loaded, report.models_refused) == (0, 1)
    world.pass_bars(runner, 3)
    assert loads == [good.artifact_id, bad.artifact_id], "the refused generation is not tried again"
    held = runner.loader.models[bad.slot]
    assert held.artifact.pk == good.artifact_id
    bot = Bot.objects.get()
    assert (bot.loaded_generation, bot.refused_generation) == (good.generation, bad.generation)
    assert Alert.objects.filter(key=f"model_refused:{bad.slot}", resolved_at__isnull=True).exists()
    assert RiskEvent.objects.filter(kind="model_refused").count() == 1
    bad.artifact.refresh_from_db()
    assert bad.artifact.integrity_error, "the registry knows it, so that the next plan falls back"
    good.artifact.refresh_from_db()
    assert good.artifact.integrity_error == ""
    next_good = activate_real(world)
    assert runner.tick().models_loaded == 1
    assert runner.loader.models[bad.slot].artifact.pk == next_good.artifact_id
    assert not Alert.objects.filter(key=f"model_refused:{bad.slot}", resolved_at__isnull=True).exists()


def test_i10_after_a_restart_the_refused_generation_is_not_tried_and_the_one_before_serves(world: World) -> None:
    good = ActiveModel.objects.get()
    Activation.objects.create(
        slot=good.slot, artifact=good.artifact, kind=ActivationKind.PROMOTION, state=ActivationState.APPLIED,
        generation=good.generation, requested_at=EPOCH,
    )  # fmt: skip
    good_artifact = good.artifact
    bad = world.activate(ArtifactError("cut off"))
    first = world.runner()
    first.tick()
    assert first.loader.models[bad.slot].artifact.pk == good_artifact.pk
    first.release()
    again = world.runner()
    again.tick()
    assert again.loader.models[bad.slot].artifact.pk == good_artifact.pk
    assert world.load.loads.count(bad.artifact_id) == 1


def test_i11_no_symbol_is_traded_that_the_loaded_artifact_does_not_cover(make_world: Any) -> None:
    world: World = make_world()
    covered = world.codes[:3]
    model = StandIn(covered, world.codes)
    world.activate(model, codes=covered)
    runner = world.runner()
    runner.tick()
    world.pass_bars(runner, 12)
    outside = Decision.objects.filter(symbol__code__in=world.codes[3:])
    assert outside.count() == 13 * 3
    assert set(outside.values_list("reason_code", flat=True)) == {"NOT_COVERED"}
    assert all(set(names) <= set(covered) for names in model.asked)
    assert Decision.objects.filter(symbol__code__in=covered, outcome="ENTER").exists()


def test_without_a_model_every_symbol_is_refused_with_what_it_waits_for(make_world: Any) -> None:
    world: World = make_world()
    runner = world.runner()
    assert runner.tick().decisions == len(world.codes)
    reasons = Decision.objects.values_list("outcome", "reason")
    assert all(outcome == "REFUSED" and reason.startswith("NOT_COVERED: state=") for outcome, reason in reasons)


def test_single_symbol_mode_holds_a_model_per_slot_and_asks_each_about_its_own(make_world: Any, settings: Any) -> None:
    from tests.factories import TrainingRunFactory, TrainingScopeFactory

    settings.TRAINING_MODE = "single_symbol"
    world: World = make_world()
    models = {}
    for number, code in enumerate(world.codes[:2], start=1):
        scope = TrainingScopeFactory(
            key=registry.slot_key(market=MARKET, symbol=code), training_mode="single_symbol", symbol=world.symbols[code]
        )
        artifact = ArtifactFactory(
            run=TrainingRunFactory(scope=scope, succeeded=True), requirement=registry.requirement(),
            symbols=[world.symbols[code]],
        )  # fmt: skip
        models[code] = world.load.models[artifact.pk] = StandIn((code,), (code,))
        ActiveModelFactory(artifact=artifact, generation=number)
    runner = world.runner()
    assert runner.tick().models_loaded == 2
    world.pass_bars(runner, 24)
    assert runner.trader.feed is not None
    assert runner.trader.feed.panel_symbols == tuple(sorted(world.codes[:2]))
    for code, model in models.items():
        assert set(model.asked) <= {(code,)}
    assert any(model.asked for model in models.values())
    third = ActiveModel.objects.get(generation=1)
    third.generation = 3
    third.save()
    assert runner.tick().models_loaded == 1, "only the slot that changed is loaded again"


# --- I13


def test_i13_live_features_equal_replayed_ones_to_the_bit(world: World) -> None:
    """A bot that starts, steps 30 bars live with funding, and a replay of the whole history, as training does it."""
    schema = FeatureSchema()
    feed = FeatureFeed(world.data, world.store, MARKET, "1h", schema, dict.fromkeys(world.codes, 0))
    start = to_ms(EPOCH) - HOUR_MS
    feed.rebuild(start)
    live = []
    for number in range(1, 31):
        world.sim.advance(HOUR)
        open_ms = start + number * HOUR_MS
        live.append(feed.advance(open_ms, feed.fetch(open_ms)).features)
    since, count = start - 50 * 24 * HOUR_MS, 60 * 24
    candles = {code: world.data.candles(code, "1h", since, count) for code in world.codes}
    stored = world.store.read(MARKET, "1h")
    first = min(int(each.open_time[0]) for each in stored.values())
    candles = {code: each.between(first, 2**62) for code, each in candles.items()}
    funding = {}
    for code in world.codes:
        rates = [rate for rate in world.data.funding(code, first, count) if rate.time_ms < start + 31 * HOUR_MS]
        funding[code] = (np.array([rate.time_ms for rate in rates]), np.array([rate.rate for rate in rates]))
    panel = Panel.from_candles(candles, HOUR_MS, funding=funding, symbols=world.codes)
    expected = replay(FeatureState.create(schema, len(world.codes)), panel)
    assert expected[-30:].tobytes() == np.stack(live).tobytes()
    assert np.isfinite(expected[-1]).all(axis=1).any(), "the comparison is of numbers, not only of missing ones"


def test_i13_a_bot_that_starts_late_computes_what_one_that_ran_all_the_time_does(world: World) -> None:
    schema = FeatureSchema()
    start = to_ms(EPOCH) - HOUR_MS
    running = FeatureFeed(world.data, world.store, MARKET, "1h", schema, dict.fromkeys(world.codes, 0))
    running.rebuild(start)
    for number in range(1, 100):
        world.sim.advance(HOUR)
        open_ms = start + number * HOUR_MS
        row = running.advance(open_ms, running.fetch(open_ms))
    late = FeatureFeed(world.data, world.store, MARKET, "1h", schema, dict.fromkeys(world.codes, 0))
    late.rebuild(open_ms - HOUR_MS)
    assert late.advance(open_ms, late.fetch(open_ms)).features.tobytes() == row.features.tobytes()


def test_i13_each_symbols_features_begin_where_its_models_training_did(world: World) -> None:
    """In single_symbol mode one feed serves models that were trained on panels with starts of their own."""
    schema = FeatureSchema(market_wide=False)
    until = to_ms(EPOCH) - HOUR_MS
    since = {code: to_ms(EPOCH) - (4 + 5 * index) * DAY_MS for index, code in enumerate(world.codes)}
    feed = FeatureFeed(world.data, world.store, MARKET, "1h", schema, since)
    feed.rebuild(until)
    world.sim.advance(HOUR)
    live = feed.advance(until + HOUR_MS, feed.fetch(until + HOUR_MS)).features
    world.store.write(MARKET, "1h", {code: world.data.candles(code, "1h", until, 2) for code in world.codes})
    whole = world.store.read_panel(MARKET, "1h", symbols=world.codes)
    from_the_first = replay(FeatureState.create(schema, len(world.codes)), whole)[-1]
    for index, code in enumerate(world.codes):
        trained = world.store.read_panel(MARKET, "1h", symbols=[code], since_ms=since[code])
        alone = replay(FeatureState.create(schema, 1), trained)[-1]
        assert alone.tobytes() == live[[index]].tobytes()
        assert alone.tobytes() != from_the_first[[index]].tobytes(), "the start shows, or this test proves nothing"


def test_a_model_whose_training_began_elsewhere_gets_features_of_its_own(world: World) -> None:
    world.activate()
    runner = world.runner()
    runner.tick()
    before = runner.trader.feed
    world.activate()
    runner.tick()
    assert runner.trader.feed is before, "the same panel from the same candle on keeps its state"
    active = world.activate()
    active.artifact.data_start += dt.timedelta(days=700)
    active.artifact.save()
    runner.tick()
    assert runner.trader.feed is not before
    assert runner.trader.feed is not None
    assert set(runner.trader.feed.since_ms.values()) == {to_ms(active.artifact.data_start)}


def test_a_broken_candle_is_not_traded_as_it_is_not_learnt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training never sees such a candle, because it is not stored: live it is missing too."""
    runner = world.runner()
    runner.tick()
    broken = world.codes[0]
    sound = world.data.candles_many

    def candles_many(symbols: Any, *arguments: Any) -> dict[str, Candles]:
        found = sound(symbols, *arguments)
        candles = found[broken]
        high = np.append(candles.high[:-1], candles.low[-1] / 2)
        found[broken] = replace(candles, high=high)
        return found

    monkeypatch.setattr(world.data, "candles_many", candles_many)
    world.sim.advance(HOUR)
    world.keep_fresh()
    runner.tick()
    newest = Decision.objects.order_by("-bar_at").values_list("bar_at", flat=True)[0]
    decisions = {row.symbol.code: row for row in Decision.objects.filter(bar_at=newest).select_related("symbol")}
    assert (decisions[broken].outcome, decisions[broken].reason_code) == ("NO_DATA", "NO_CANDLE")
    assert all(row.reason_code != "NO_CANDLE" for code, row in decisions.items() if code != broken)

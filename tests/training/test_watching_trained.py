"""A model that the real pipeline made is watched: over the market that it knows, and over one that has changed."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coverage_app.models import Symbol
from exchanges.simulated import SimulatedMarket
from marketdata.store import CandleStore
from ops_app.clock import SimulatedClock
from ops_app.models import Event
from ops_app.queue import Message
from quant.candles import Candles
from quant.features import FeatureState, replay
from quant.label_spec import LabelSpec
from quant.labels import triple_barrier
from quant.pipeline import TrainingResult, train
from quant.promises import LiveRecord
from quant.reasons import code_of
from quant.risk import performance_guard
from quant.signals import primary_side
from quant.timeframes import DAY_MS, to_ms
from tests.factories import EPOCH, MARKET
from tests.training.conftest import make_result
from tradingsite.soak.watches import verified_cause
from training_app import artifacts, execution, registry, services, watching
from training_app.choices import RunTrigger, WatchVerdict
from training_app.models import ModelArtifact, ModelWatch, TrainingRun, TrainingScope

pytestmark = pytest.mark.django_db

DAY = dt.timedelta(days=1)
DAYS = 14


def wild(candles: Candles, factor: float) -> Candles:
    """The same market with `factor` times its volatility: every log move from the first close on is stretched."""
    base = candles.close[0]
    stretched = {
        name: base * np.exp(factor * np.log(getattr(candles, name) / base)) for name in ("open", "high", "low", "close")
    }
    return dataclasses.replace(candles, **stretched)


def store_later(codes: list[str], settings: Any, *, factor: float = 1.0) -> None:
    """Store what the simulated market brings after EPOCH, with `factor` times its moves."""
    start_ms = to_ms(EPOCH)
    data = SimulatedMarket(
        seed=7, now_ms=lambda: start_ms + DAYS * DAY_MS, symbols=len(codes), specials=False, learnable=True
    )
    later = {code: wild(data.candles(code, "1h", start_ms, DAYS * 24), factor) for code in codes}
    CandleStore(settings.CANDLES_DIR).write(MARKET, "1h", later)


def own_trades(artifact: ModelArtifact, settings: Any, now: dt.datetime) -> LiveRecord:
    """Every signal since EPOCH that reaches the model's threshold, and what came of it until `now`."""
    schema, model = registry.feature_schema(), artifacts.load(artifact)
    panel = CandleStore(settings.CANDLES_DIR).read_panel(
        MARKET, "1h", symbols=artifact.panel_symbols, since_ms=to_ms(artifact.data_start), until_ms=to_ms(now)
    )
    features = replay(FeatureState.create(schema, panel.n_symbols), panel)
    side = primary_side(artifact.signal, features, schema)
    labels = triple_barrier(panel, side, features[..., schema.index("atr_pct")], LabelSpec())
    code = model.codes_for(panel.symbols)[labels.s_index]
    since = np.flatnonzero((panel.open_time[labels.t_index] >= to_ms(EPOCH)) & (code >= 0))
    probability = model.predict(features[labels.t_index, labels.s_index][since], code[since])
    taken = since[probability >= artifact.threshold]
    return LiveRecord(
        trades=len(taken),
        wins=int(np.count_nonzero(labels.label[taken])),
        promised_precision=artifact.metrics["test"]["precision"],
    )


@pytest.fixture
def trained(
    small_training: None,
    stored_market: Callable[..., list[Symbol]],
    settings: Any,
    sim: SimulatedClock,
    sent: list[Message],
) -> ModelArtifact:
    """A model that the real pipeline made of 300 days, serving whatever its gates said, and two weeks since.

    Not of 120 days: so young a model knows too few regimes (docs/drift.md). No schedule trains meanwhile.
    """
    settings.TRAIN_INTERVAL_HOURS = 10_000.0
    symbols = stored_market(n_symbols=6, days=300)
    run = services.request_run(
        scope=services.ensure_scope(market=MARKET),
        trigger="no_model",
        cause="NO_MODEL: made_by=test",
        symbols=[symbol.pk for symbol in symbols],
    )

    def passing(*args: Any, **kwargs: Any) -> TrainingResult:
        return dataclasses.replace(train(*args, **kwargs), gates=make_result(["A"]).gates)

    assert execution.execute(run.pk, "test-worker", trainer=passing) is not None
    artifact = ModelArtifact.objects.get()
    store_later(artifact.panel_symbols, settings)
    return artifact


@pytest.fixture
def traded(
    trained: ModelArtifact, settings: Any, sim: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> ModelArtifact:
    """The same model; its closed trades are those that it would have taken since."""
    monkeypatch.setattr(
        watching, "_live_sources", [lambda ids: {pk: own_trades(trained, settings, sim.now) for pk in ids}]
    )
    return trained


def live(sim: SimulatedClock) -> list[TrainingRun]:
    """Live through the days as the jobs do: a look when due, and plans; a run that is asked for fails."""
    asked: list[TrainingRun] = []
    steps = dt.timedelta(minutes=9), dt.timedelta(minutes=11)  # the debounce of ten minutes is not over, and over
    sim.advance(sum(steps, dt.timedelta()))
    for _ in range(DAYS):
        sim.advance(DAY - sum(steps, dt.timedelta()))
        assert watching.is_due()
        watching.watch_models()
        for step in steps:
            sim.advance(step)
            for run in services.plan():
                asked.append(run)
                claim = services.claim(run.pk, "worker")
                assert claim is not None
                services.fail(claim, "it failed", final=True)
    return asked


def asked_once(artifact: ModelArtifact, run: TrainingRun) -> list[ModelWatch]:
    """Check that one look asked, that one debounced run answered, and that it says why; return the looks."""
    looks = list(artifact.watches.order_by("at"))
    (asking,) = (look for look in looks if look.asks)
    assert asking == next(look for look in looks if look.verdict in (WatchVerdict.DRIFTED, WatchVerdict.BELOW_PROMISE))
    assert run.trigger == RunTrigger.DRIFT
    assert code_of(asking.text) in run.cause
    assert verified_cause(run) == "the model's watch saw a drift that no run had answered"
    assert run.created_at - asking.at == dt.timedelta(minutes=20), "not after nine minutes: it is debounced"
    assert Event.objects.filter(kind="model_drifted", subject=f"artifact:{artifact.pk}").count() == 1
    assert TrainingScope.objects.get().failures == 1, "the run failed, and none came after it"
    return looks


def test_i5_a_trained_model_whose_features_drift_asks_for_one_debounced_training_that_says_why(
    trained: ModelArtifact, sim: SimulatedClock, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_live_sources", [])
    store_later(trained.panel_symbols, settings, factor=20.0)
    (run,) = live(sim)
    looks = asked_once(trained, run)
    assert "FEATURES_DRIFTED" in run.cause
    assert {look.guard for look in looks} == {1.0}, "without a trade the guard knows nothing"
    assert looks[-1].verdict == WatchVerdict.DRIFTED
    by_name = {each["feature"]: each for each in looks[-1].features}
    assert by_name["return_1"]["drifted"], by_name["return_1"]
    assert by_name["return_1"]["psi"] > by_name["return_1"]["bound"] >= 0.25
    assert not by_name["hour_sin"]["drifted"], "the clock did not change"


def test_i5_a_trained_model_whose_trades_fail_in_a_wild_market_asks_once_and_the_guard_cuts_its_size(
    traded: ModelArtifact, sim: SimulatedClock, settings: Any
) -> None:
    store_later(traded.panel_symbols, settings, factor=20.0)
    (run,) = live(sim)
    looks = asked_once(traded, run)
    for look in looks:
        assert look.guard == performance_guard(promised=look.promised_precision, trades=look.trades, wins=look.wins)
    assert min(look.guard for look in looks) < 1.0
    assert "BELOW_PROMISE" in {code_of(look.text) for look in looks}

"""Active models are watched: a market that changes is seen, asks for one training, and never for a second one."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.urls import reverse

from coverage_app.models import Symbol
from exchanges.simulated import SimulatedMarket
from marketdata.store import CandleStore
from ops_app import jobs, metrics
from ops_app.clock import SimulatedClock
from ops_app.models import Event
from ops_app.queue import Message
from quant.candles import Candles
from quant.pipeline import TrainingResult, train
from quant.promises import LiveRecord
from quant.reasons import code_of
from quant.timeframes import DAY_MS, to_ms
from tests.factories import EPOCH, MARKET, UserFactory
from tests.training.conftest import make_result, train_model
from tradingsite.soak.watches import verified_cause
from training_app import execution, services, tasks, watching
from training_app.choices import RunTrigger, WatchVerdict
from training_app.models import ModelArtifact, ModelWatch, TrainingRun, TrainingScope

pytestmark = pytest.mark.django_db

DAY, HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)
SINCE = 20 * DAY
BELOW = LiveRecord(trades=40, wins=12, promised_precision=0.6)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> dict[int, LiveRecord]:
    """The closed trades of each artifact, as a test wants them."""
    records: dict[int, LiveRecord] = {}
    monkeypatch.setattr(watching, "_live_sources", [lambda ids: {pk: records[pk] for pk in ids if pk in records}])
    return records


def wild(candles: Candles, factor: float) -> Candles:
    """The same market with `factor` times its volatility: every log move from the first close on is stretched."""
    base = candles.close[0]
    stretched = {
        name: base * np.exp(factor * np.log(getattr(candles, name) / base)) for name in ("open", "high", "low", "close")
    }
    return dataclasses.replace(candles, **stretched)


def later_candles(codes: list[str], days: int) -> dict[str, Candles]:
    """What the same simulated market brings after EPOCH."""
    start_ms = to_ms(EPOCH)
    data = SimulatedMarket(
        seed=7, now_ms=lambda: start_ms + days * DAY_MS, symbols=len(codes), specials=False, learnable=True
    )
    return {code: data.candles(code, "1h", start_ms, days * 24) for code in codes}


@pytest.fixture
def trained(
    small_training: None,
    stored_market: Callable[..., list[Symbol]],
    settings: Any,
    sim: SimulatedClock,
    sent: list[Message],
) -> ModelArtifact:
    """A model that the real pipeline made of 120 days, serving whatever its gates said, and 20 days since."""
    symbols = stored_market(n_symbols=6, days=120)
    run = services.request_run(
        scope=services.ensure_scope(market=MARKET),
        trigger="no_model",
        cause="NO_MODEL: made_by=test",
        symbols=[symbol.pk for symbol in symbols],
    )

    def passing(*args: Any, **kwargs: Any) -> TrainingResult:
        return dataclasses.replace(train(*args, **kwargs), gates=make_result(["A"]).gates)

    assert execution.execute(run.pk, "test-worker", trainer=passing) is not None
    sim.advance(SINCE)
    CandleStore(settings.CANDLES_DIR).write(MARKET, "1h", later_candles([s.code for s in symbols], SINCE.days))
    return ModelArtifact.objects.get()


@pytest.fixture
def serving(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], live: dict[int, LiveRecord]
) -> ModelArtifact:
    """A tiny model without candles, a day old."""
    artifact = train_model(scope, symbols)
    sim.advance(DAY)
    return artifact


def test_the_same_market_is_steady_and_a_wild_one_has_drifted_and_asks(trained: ModelArtifact, settings: Any) -> None:
    assert trained.drift_reference["samples"] == trained.metrics["development_samples"]
    (calm,) = watching.watch_models()
    assert calm.samples > 100
    assert calm.verdict == WatchVerdict.STEADY, calm.text
    assert not calm.asks
    later = later_candles(trained.panel_symbols, SINCE.days)
    candles = {code: wild(each, 20.0) for code, each in later.items()}
    CandleStore(settings.CANDLES_DIR).write(MARKET, "1h", candles)
    (drifted,) = watching.watch_models(every=dt.timedelta(0))
    assert (drifted.verdict, drifted.asks) == (WatchVerdict.DRIFTED, True), drifted.text
    worst = drifted.features[0]
    assert worst["drifted"]
    assert worst["psi"] > worst["bound"] >= 0.25
    by_name = {each["feature"]: each for each in drifted.features}
    assert by_name["return_1"]["drifted"], by_name["return_1"]
    assert not by_name["hour_sin"]["drifted"], "the clock did not change"
    assert Event.objects.filter(kind="model_drifted", subject=f"artifact:{trained.pk}").count() == 1


def test_i5_a_drift_asks_for_one_training_whatever_becomes_of_it(
    serving: ModelArtifact, live: dict[int, LiveRecord], sim: SimulatedClock
) -> None:
    live[serving.pk] = BELOW
    asked = []
    for _ in range(24 * 6):  # below SCHEDULED, which comes after seven days
        if watching.is_due():
            watching.watch_models()
        for run in services.plan():
            asked.append(run)
            assert verified_cause(run) == "the model's watch saw a drift that no run had answered"
            claim = services.claim(run.pk, "worker")
            assert claim is not None
            services.fail(claim, "it failed", final=True)
        sim.advance(HOUR)
    assert [run.trigger for run in asked] == [RunTrigger.DRIFT]
    assert "BELOW_PROMISE" in asked[0].cause
    assert asked[0].created_at >= EPOCH + DAY + dt.timedelta(minutes=10), "debounced"
    assert serving.watches.count() == 6, "one look a day"
    assert [watch.asks for watch in serving.watches.order_by("pk")] == [True] + 5 * [False]


def test_i5_the_database_refuses_a_model_that_asks_twice(serving: ModelArtifact, live: dict[int, LiveRecord]) -> None:
    live[serving.pk] = BELOW
    (watch,) = watching.watch_models()
    with pytest.raises(IntegrityError), transaction.atomic():
        ModelWatch.objects.create(
            artifact=serving, at=watch.at, since=watch.since, samples=0, drifted=0, verdict="below", text="", asks=True
        )


def test_a_run_since_the_watch_has_answered_it_whatever_it_was_asked_for(
    serving: ModelArtifact, live: dict[int, LiveRecord], sim: SimulatedClock
) -> None:
    live[serving.pk] = BELOW
    watching.watch_models()
    sim.advance(dt.timedelta(minutes=1))
    (run,) = services.train_now()
    assert run.trigger == RunTrigger.MANUAL
    services.cancel(run=run, why="the test says so", recheck_at=sim.now)
    sim.advance(7 * HOUR)
    assert services.plan() == []
    scope = TrainingScope.objects.get()
    assert code_of(scope.decision) == "NOT_YET_SCHEDULED"


def test_a_drift_of_a_model_that_serves_no_more_asks_nobody(
    serving: ModelArtifact, live: dict[int, LiveRecord], sim: SimulatedClock, symbols: list[Symbol]
) -> None:
    live[serving.pk] = BELOW
    watching.watch_models()
    run = train_model(serving.scope, symbols, seed=2).run
    run.__class__.objects.filter(pk=run.pk).update(created_at=sim.now - HOUR)  # asked for before the watch looked
    sim.advance(7 * HOUR)
    assert services.plan() == []


def test_a_training_of_no_use_is_not_found_in_a_soak(serving: ModelArtifact, scope: TrainingScope) -> None:
    run = services.request_run(
        scope=scope, trigger=RunTrigger.DRIFT, cause="DRIFT: made_by=test",
        symbols=[row.symbol_id for row in serving.artifact_symbols.all()],
    )  # fmt: skip
    assert verified_cause(run) == "", "nobody saw a drift"


def test_each_model_of_single_symbol_mode_is_watched_by_one_replay(
    settings: Any, stored_market: Callable[..., list[Symbol]], sim: SimulatedClock, sent: list[Message]
) -> None:
    settings.TRAINING_MODE = "single_symbol"
    symbols = stored_market(n_symbols=3, days=60)
    for symbol in symbols:
        train_model(services.ensure_scope(market=MARKET, symbol=symbol), [symbol], market_wide=False)
    ModelArtifact.objects.update(drift_reference={"window": 240, "samples": 0, "features": {}})
    sim.advance(DAY)
    rows = watching.watch_models()
    assert [row.artifact.scope.symbol for row in rows] == symbols
    assert len({row.samples for row in rows}) > 1, "each of its own signals"
    assert not watching.is_due()


def test_the_job_rings_once_a_day_and_the_task_starts_a_process_only_then(
    serving: ModelArtifact, sent: list[Message], sim: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Child:
        code = 0

        def wait(self, timeout: float) -> int:
            return self.code

        def poll(self) -> int:
            return self.code

    def spawn(command: list[str], **_: Any) -> Child:
        started.append(command)
        return Child()

    monkeypatch.setattr("ops_app.process.spawn", spawn)
    sent.clear()
    assert jobs.run_job("watch models")
    assert [message.dotted for message in sent] == [watching.WATCH_TASK]
    tasks.watch_models()
    assert started[0][-1] == "watch_models"
    monkeypatch.setattr(Child, "code", 3)
    with pytest.raises(RuntimeError, match="ended with 3"):
        tasks.watch_models()
    watching.watch_models()
    sim.advance(HOUR)
    assert jobs.run_job("watch models") == ""
    assert tasks.watch_models() == ""
    assert len(started) == 2


def test_the_command_says_what_it_saw_and_when_there_is_nothing_to_do(
    serving: ModelArtifact, live: dict[int, LiveRecord]
) -> None:
    def run(*arguments: str) -> str:
        out = io.StringIO()
        call_command("watch_models", *arguments, stdout=out)
        return out.getvalue()

    live[serving.pk] = BELOW
    (row,) = json.loads(run("--json"))
    assert (row["verdict"], row["asks"], row["trades"], row["wins"]) == ("below", True, 40, 12)
    assert "No active model is due" in run()
    assert "below its promise" in run("--now")


def test_pages_and_metrics_show_the_drift(client: Any, serving: ModelArtifact, live: dict[int, LiveRecord]) -> None:
    live[serving.pk] = BELOW
    (watch,) = watching.watch_models()
    ModelWatch.objects.update(
        psi_max=0.75, drifted=1,
        features=[{"feature": "atr_pct", "psi": 0.75, "bound": 0.25, "missing": 0.0, "missing_before": 0.0,
                   "drifted": True}],
    )  # fmt: skip
    client.force_login(UserFactory(is_superuser=True, is_staff=True))
    for name, pk in (("modelartifact", serving.pk), ("modelwatch", watch.pk)):
        page = client.get(reverse(f"admin:training_app_{name}_change", args=[pk])).content.decode()
        assert "atr_pct" in page
        assert "0.75" in page
    assert client.get(reverse("admin:training_app_modelwatch_changelist")).status_code == 200
    dashboard = client.get(reverse("dashboard")).content.decode()
    assert "its trades are below its promise" in dashboard
    assert "largest PSI 0.75" in dashboard
    assert "it asked for a training" in dashboard
    assert f'tradingbot_model_drift_psi_max{{slot="{serving.scope.key}"}} 0.75' in metrics.text().decode()
    assert TrainingRun.objects.count() == 1

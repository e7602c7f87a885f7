"""A simulated clock, a queue that only collects, folders of their own, and results without the time of a training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coverage_app import market
from coverage_app.models import Symbol
from exchanges.simulated import SimulatedMarket
from marketdata.store import CandleStore
from ops_app import clock, queue
from ops_app.clock import SimulatedClock
from quant.calibration import PlattCalibration
from quant.candles import Candles
from quant.gates import GateResult
from quant.label_spec import LabelSpec
from quant.model import MetaModel, Probe, fit_booster
from quant.pipeline import TrainingResult
from quant.schema import FeatureSchema
from quant.timeframes import DAY_MS, HOUR_MS, to_ms
from quant.training_spec import TrainingSpec
from tests.factories import EPOCH, MARKET, SymbolFactory
from tests.s3 import bucket, s3_endpoint  # noqa: F401 - fixtures
from training_app import artifacts, policies, services
from training_app.models import ModelArtifact, TrainingScope


@pytest.fixture(autouse=True)
def _places(settings: Any, tmp_path: Path) -> Iterator[None]:
    """Every setting that these tests rely on, whatever the environment says."""
    settings.ARTIFACTS_DIR = tmp_path / "artifacts"
    settings.CANDLES_DIR = tmp_path / "candles"
    settings.EXCHANGE, settings.EXCHANGE_MARKET, settings.TIMEFRAME = "simulated", MARKET, "1h"
    settings.TRAINING_MODE, settings.SYMBOL_ENCODING, settings.PRIMARY_SIGNAL = "multi_symbol", "index", "trend"
    settings.TRAIN_LEASE_SECONDS, settings.TRAIN_MAX_ATTEMPTS = 60, 3
    settings.TRAIN_MIN_INTERVAL_HOURS, settings.TRAIN_INTERVAL_HOURS = 6.0, 168.0
    settings.TRAIN_DEBOUNCE_MINUTES = 10.0
    market.reset()
    yield
    market.reset()


@pytest.fixture
def sim() -> Iterator[SimulatedClock]:
    """All time stands at EPOCH until the test advances it."""
    with clock.simulated(EPOCH) as simulated:
        yield simulated


@pytest.fixture
def sent() -> Iterator[list[queue.Message]]:
    """What was sent to the workers; nothing is delivered by itself."""
    with queue.capture() as messages:
        yield messages


@pytest.fixture
def symbols(db: None) -> list[Symbol]:
    """Three ready symbols."""
    return [SymbolFactory(code=f"{base}/USDT:USDT") for base in ("AAA", "BBB", "CCC")]


@pytest.fixture
def scope(db: None) -> TrainingScope:
    return services.ensure_scope(market=MARKET)


def ids(symbols: Sequence[Symbol]) -> list[int]:
    return [symbol.pk for symbol in symbols]


def request(scope: TrainingScope, symbols: Sequence[Symbol], **changes: Any) -> Any:
    fields = {"trigger": "no_model", "cause": "NO_MODEL: made_by=test"} | changes
    return services.request_run(scope=scope, symbols=ids(symbols), **fields)


@functools.cache
def _booster_text(market_wide: bool, n_symbols: int, seed: int) -> str:
    names = FeatureSchema(market_wide=market_wide).names
    random = np.random.default_rng(seed)
    X = random.normal(size=(400, len(names))).astype(np.float32)
    booster = fit_booster(
        features=X,
        symbol_codes=(np.arange(400) % n_symbols).astype(np.int32),
        y=(X[:, 0] > 0).astype(np.int8),
        weight=np.ones(400),
        encoding="index",
        n_symbols=n_symbols,
        feature_names=names,
        params={"num_threads": 1, "num_leaves": 4, "seed": seed},
        n_trees=3,
    )
    return str(booster.model_to_string())


def make_model(codes: Sequence[str], *, market_wide: bool = True, seed: int = 1) -> MetaModel:
    """A real, tiny model that covers `codes`."""
    schema = FeatureSchema(market_wide=market_wide)
    model = MetaModel(
        booster_text=_booster_text(market_wide, len(codes), seed),
        calibration=PlattCalibration(1.0, 0.0),
        threshold=0.55,
        symbol_encoding="index",
        symbols=tuple(codes),
        panel_symbols=tuple(codes),
        feature_names=schema.names,
        required_features=(),
        fit_end_ms=to_ms(EPOCH),
        facts={"schema_hash": schema.hash, "label_hash": LabelSpec().hash},
    )
    rows = np.random.default_rng(seed).normal(size=(4, len(schema.names))).astype(np.float32)
    asked = np.zeros(4, dtype=np.int32)
    model.probe_rows = Probe(features=rows, symbol_codes=asked, predictions=model.predict(rows, asked))
    return model


def make_result(
    codes: Sequence[str],
    *,
    passed: bool = True,
    dropped: dict[str, str] | None = None,
    market_wide: bool = True,
    score: float = 0.01,
    seed: int = 1,
) -> TrainingResult:
    """What the pipeline returns, around a tiny model."""
    gate = GateResult(name="skill", value=3.0 if passed else 0.1, bound=2.0, passed=passed, text="beats the base rate")
    return TrainingResult(
        model=make_model(codes, market_wide=market_wide, seed=seed),
        metrics={"validation": {"relative_skill": score}, "test": {"trades": 100}},
        gates=(gate,),
        symbols=tuple(codes),
        panel_symbols=tuple(codes),
        dropped=dropped or {},
        data_start_ms=to_ms(EPOCH) - 730 * DAY_MS,
        data_end_ms=to_ms(EPOCH),
        data_hash="d" * 64,
        champion_metrics=None,
    )


def finish(claim: services.Claim, result: TrainingResult) -> ModelArtifact:
    """Write, verify and publish `result`, as an execution does."""
    scope = TrainingScope.objects.get(pk=claim.scope_id)
    written = artifacts.write_artifact(result.model, scope=scope, version=claim.run_no, token=claim.token, manifest={})
    draft = services.draft_artifact(claim, result, written)
    artifacts.verify(draft)
    return services.publish(claim, result, draft)


def train_model(scope: TrainingScope, symbols: Sequence[Symbol], **changes: Any) -> ModelArtifact:
    """Request, claim and publish a run of `symbols`."""
    run = request(scope, symbols)
    claim = services.claim(run.pk, "test-worker")
    assert claim is not None
    return finish(claim, make_result([symbol.code for symbol in symbols], **changes))


@pytest.fixture
def small_training(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """A real training of little data in about a second."""

    def spec() -> TrainingSpec:
        return TrainingSpec.small(
            training_mode=settings.TRAINING_MODE,
            symbol_encoding=settings.SYMBOL_ENCODING,
            blend=settings.TRAIN_BLEND,
            timeframe=settings.TIMEFRAME,
            signal=settings.PRIMARY_SIGNAL,
        )

    monkeypatch.setattr(policies, "training_spec", spec)


@functools.cache
def simulated_candles(n_symbols: int, days: int, learnable: bool = True) -> dict[str, Candles]:
    """Hourly candles of the simulated exchange up to EPOCH, by code."""
    end_ms = to_ms(EPOCH)
    data = SimulatedMarket(seed=7, now_ms=lambda: end_ms, symbols=n_symbols, specials=False, learnable=learnable)
    codes = sorted(each.symbol for each in data.instruments())[:n_symbols]
    start_ms = end_ms - days * DAY_MS
    step = data.page_limit * HOUR_MS
    return {
        code: Candles.concat(
            [
                data.candles(code, "1h", since, min(data.page_limit, (end_ms - since) // HOUR_MS))
                for since in range(start_ms, end_ms, step)
            ]
        )
        for code in codes
    }


@pytest.fixture
def stored_market(db: None, settings: Any) -> Callable[..., list[Symbol]]:
    """Store simulated candles and make their symbols, ready for a run."""

    def store(*, n_symbols: int = 6, days: int = 120, learnable: bool = True) -> list[Symbol]:
        candles = simulated_candles(n_symbols, days, learnable)
        CandleStore(settings.CANDLES_DIR).write(MARKET, "1h", candles)
        return [SymbolFactory(code=code) for code in candles]

    return store

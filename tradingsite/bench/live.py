"""The bot's cycle at a bar's close, from candles in memory to decisions: features, probabilities, engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from quant.calibration import PlattCalibration
from quant.engine import BarInput, EngineSpec, PortfolioState, decide
from quant.features import FeatureState, replay, step, warm_cache
from quant.model import MetaModel, encode_features, fit_booster
from quant.schema import FeatureSchema
from quant.signals import primary_side
from quant.timeframes import HOUR_MS
from trading_app import deciding
from trading_app.feed import BarRow
from trading_app.loader import LoadedModel
from tradingsite.bench import worlds
from tradingsite.bench.measure import SECONDS, Figure, Scale, expect, many_times
from training_app.models import ModelArtifact

SIZES = (50, 500)
BYTES_PER_CANDLE = 250  # as features
MOST_DAYS = 60  # to warm the features up
TREES, LEAVES, ROWS = 200, 63, 20_000
GOAL = 0.010
TIMES = 20


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    schema = FeatureSchema()
    panel = worlds.panel(scale)
    state = FeatureState.create(schema, scale.symbols, step_ms=panel.step_ms)
    features = replay(state, panel)
    model = usual_model(schema, panel.symbols)
    covering = dict.fromkeys(panel.symbols, LoadedModel("bench", 1, ModelArtifact(), model))
    spec = EngineSpec(bar_ms=HOUR_MS)
    portfolio = PortfolioState(equity=1e6, day_start_equity=1e6, peak_equity=1e6)
    row, close = panel.row(panel.n_times - 1)._asdict(), panel.close[-1]

    def stepped() -> BarRow:
        row["open_time_ms"] = int(state.last_open_ms or 0) + panel.step_ms
        return BarRow(row["open_time_ms"], panel.symbols, step(state, **row), close)

    def laid_out(bar: BarRow) -> BarInput:
        return deciding.bar_input(
            row=bar, open_ms=bar.open_time_ms, symbols=panel.symbols, closes={}, covering=covering, refusals={},
            schema=schema, signal="trend",
        )  # fmt: skip

    def cycle() -> None:
        bar = laid_out(stepped())
        expect(bool(np.isfinite(bar.probability).all()), "a symbol got no probability")
        decisions = decide(bar=bar, portfolio=portfolio, spec=spec, schema=schema)
        expect(len(decisions) == scale.symbols, "a symbol got no decision")

    def all_long(signal: str, features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
        return np.ones_like(primary_side(signal, features, schema))

    def predict() -> None:
        model.predict(features[-1], codes)

    codes = model.codes_for(panel.symbols)
    predict()
    booster, rows = model._booster, encode_features(features[-1], codes, encoding="index", n_symbols=scale.symbols)
    bare = many_times(lambda: booster.predict(rows, num_threads=1), TIMES)
    with mock.patch.object(deciding, "primary_side", all_long):
        spent = many_times(cycle, TIMES)
    yield Figure(
        name="live.cycle", symbols=scale.symbols, unit=SECONDS, goal=GOAL, value=spent, limit=bare,
        versus=f"LightGBM alone, {TREES} trees; every symbol has a signal, the most there can be",
    )  # fmt: skip
    yield Figure(
        name="live.predict", symbols=scale.symbols, unit=SECONDS, value=many_times(predict, TIMES), limit=bare,
        versus="LightGBM alone on the same rows",
    )  # fmt: skip
    bar = _with_signals(laid_out(stepped()))

    def read() -> None:
        for column in (bar.close, bar.atr_pct, bar.volatility, bar.side, bar.probability, bar.threshold, bar.covered):
            column.tolist()
        [object() for _ in bar.symbols]

    yield Figure(
        name="live.decide", symbols=scale.symbols, unit=SECONDS, goal=0.001,
        value=many_times(lambda: decide(bar=bar, portfolio=portfolio, spec=spec, schema=schema), TIMES),
        limit=many_times(read, TIMES), versus="read the bar, make an object for each symbol; every second has a signal",
    )  # fmt: skip


def usual_model(schema: FeatureSchema, symbols: tuple[str, ...]) -> MetaModel:
    """A model of the usual size; what it learnt does not matter here."""
    random = np.random.default_rng(7)
    features = random.standard_normal((ROWS, len(schema)), dtype=np.float32)
    codes = random.integers(0, len(symbols), ROWS).astype(np.int32)
    y = (features[:, 0] + features[:, 1] * features[:, 2] + random.standard_normal(ROWS) > 0).astype(np.int8)
    booster = fit_booster(
        features=features, symbol_codes=codes, y=y, weight=np.ones(ROWS), encoding="index", n_symbols=len(symbols),
        feature_names=schema.names, n_trees=TREES,
        params={"objective": "binary", "num_leaves": LEAVES, "num_threads": 1, "verbose": -1},
    )  # fmt: skip
    return MetaModel(
        booster_text=booster.model_to_string(), calibration=PlattCalibration(1.0, 0.0), threshold=0.5,
        symbol_encoding="index", symbols=symbols, panel_symbols=symbols, feature_names=schema.names,
        required_features=(), fit_end_ms=0,
    )  # fmt: skip


def _with_signals(bar: BarInput) -> BarInput:
    """The bar as a busy one: every second symbol has a signal, and half of those are likely enough."""
    n = len(bar.symbols)
    random = np.random.default_rng(3)
    side = np.where(np.arange(n) % 2 == 0, 1, 0).astype(np.int8)
    return replace(bar, side=side, probability=np.where(side != 0, random.random(n), np.nan))

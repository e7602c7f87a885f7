"""I14 for decisions: whatever happens after a bar, nothing that was decided up to it changes by a bit.

Candles go the way they go live: the kernel, the primary signal, the model, the engine, with `deciding.bar_input` laying
the bar out. The same checker is then turned on paths with a look-ahead planted in each of these places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant.calibration import PlattCalibration
from quant.engine import Decision, EngineSpec, EntryIntent, ExitIntent, PortfolioState, PositionState, decide
from quant.features import FeatureState, replay
from quant.model import MetaModel, fit_booster
from quant.outcomes import Outcome
from quant.panel import Panel
from quant.schema import FeatureSchema
from quant.signals import primary_side
from tests.quant.feature_worlds import STEP, random_panel
from trading_app import deciding
from trading_app.feed import BarRow
from trading_app.loader import LoadedModel
from training_app.models import ModelArtifact

BARS, SYMBOLS = 680, 3
FIRST = 590
"""The first bar that is decided: by then every feature is known."""
SCHEMA = FeatureSchema()
ENGINE = EngineSpec(bar_ms=STEP)
VALUES = ("open", "high", "low", "close", "volume")
CHANGES = ("prices", "volumes", "missing", "added", "removed", "funding", "longer", "shorter", "next candle")
Path = Callable[[Panel, int], list[Decision]]
Features = NDArray[np.float32]


@cache
def model() -> MetaModel:
    """A fixed small model over all kinds of features: of prices, volumes, funding, and the market as a whole."""
    panel = random_panel(1, 900, SYMBOLS)
    X = replay(FeatureState.create(SCHEMA, SYMBOLS), panel)[SCHEMA.warmup :].reshape(-1, len(SCHEMA))
    said = X[:, [SCHEMA.index(name) for name in ("funding_rate", "volume_zscore_24", "market_return_1", "return_4")]]
    score = ((said - np.nanmean(said, axis=0)) / np.nanstd(said, axis=0)).sum(axis=1)
    booster = fit_booster(
        features=X,
        symbol_codes=(np.arange(len(X)) % SYMBOLS).astype(np.int32),
        y=(score > 0).astype(np.int8),
        weight=np.ones(len(X)),
        encoding="index",
        n_symbols=SYMBOLS,
        feature_names=SCHEMA.names,
        params={"num_threads": 1, "num_leaves": 15, "min_data_in_leaf": 10, "learning_rate": 0.3, "seed": 1},
        n_trees=15,
    )
    return MetaModel(
        booster_text=booster.model_to_string(),
        calibration=PlattCalibration(1.0, 0.0),
        threshold=0.5,
        symbol_encoding="index",
        symbols=panel.symbols,
        panel_symbols=panel.symbols,
        feature_names=SCHEMA.names,
        required_features=(),
        fit_end_ms=0,
        facts={},
    )


@dataclass(frozen=True)
class Parts:
    """The steps of the path, each of which may look ahead when a test wants it to."""

    candles: Callable[[Panel], Panel] = lambda panel: panel
    features: Callable[[Panel], Features] = lambda panel: replay(FeatureState.create(SCHEMA, panel.n_symbols), panel)
    seen: Callable[[Features, int], Features] = lambda features, bar: features[bar]


def decisions(panel: Panel, until: int, parts: Parts) -> list[Decision]:
    """Decide the bars up to ``until`` of a panel that goes on; entries and exits are filled at the close."""
    panel = parts.candles(panel)
    features = parts.features(panel)
    held: dict[str, PositionState] = {}
    covering = {symbol: LoadedModel("slot", 1, ModelArtifact(), model()) for symbol in panel.symbols}
    made: list[Decision] = []
    for bar in range(FIRST, until + 1):
        row = BarRow(int(panel.open_time[bar]), panel.symbols, parts.seen(features, bar), panel.close[bar])
        asked = deciding.bar_input(
            row=row, open_ms=row.open_time_ms, symbols=panel.symbols, closes={}, covering=covering, refusals={},
            schema=SCHEMA, signal="trend",
        )  # fmt: skip
        state = PortfolioState(equity=1e4, positions=dict(held), day_start_equity=1e4, peak_equity=1e4)
        for decision in decide(bar=asked, portfolio=state, spec=ENGINE, schema=SCHEMA):
            made.append(decision)
            if isinstance(decision.intent, EntryIntent):
                held[decision.symbol] = opened(decision.intent, row.open_time_ms)
            elif isinstance(decision.intent, ExitIntent):
                del held[decision.symbol]
    return made


def opened(intent: EntryIntent, open_ms: int) -> PositionState:
    return PositionState(
        symbol=intent.symbol, side=intent.side, quantity=intent.quantity, entry_price=intent.reference_price,
        stop_price=intent.stop_price, target_price=intent.target_price, opened_ms=open_ms + STEP,
        expires_ms=intent.expires_ms,
    )  # fmt: skip


def exact(decision: Decision) -> tuple[str, ...]:
    """Every field with the bits of its floats."""
    values = [*decision[:-1]]
    if decision.intent is not None:
        values += [getattr(decision.intent, field.name) for field in fields(decision.intent)]
    return tuple(value.hex() if isinstance(value, float) else str(value) for value in values)


def another_future(panel: Panel, row: int, changes: frozenset[str], seed: int) -> Panel:
    """The same candles and funding up to ``row``, and others after it."""
    random = np.random.default_rng(seed)
    values = {name: getattr(panel, name).copy() for name in (*VALUES, "funding")}
    after, shape = slice(row + 1, None), panel.close[row + 1 :].shape
    if "prices" in changes:
        factor = np.exp(random.choice([0.05, 1.0, 8.0], shape) * random.standard_normal(shape))
        for name in VALUES[:-1]:
            values[name][after] *= factor
    if "volumes" in changes:
        values["volume"][after] *= random.choice([0.0, 0.5, 1e6], shape)
    if "missing" in changes:
        for name in VALUES:
            values[name][after][random.random(shape) < 0.5] = np.nan
    if "added" in changes:
        fresh = random_panel(seed, panel.n_times, panel.n_symbols)
        gone = np.isnan(values["close"][after])
        for name in VALUES:
            values[name][after][gone] = getattr(fresh, name)[after][gone]
    if "removed" in changes:
        for name in VALUES:
            values[name][after, int(random.integers(panel.n_symbols))] = np.nan
    if "funding" in changes:
        values["funding"][after] = random.normal(0.0, 0.01, shape)
    if "next candle" in changes and row + 1 < panel.n_times:
        for name in VALUES[:-1]:
            values[name][row + 1] *= 1.5
    changed = replace(panel, **values)
    if "shorter" in changes:
        return changed.rows(0, row + 1)
    if "longer" in changes:
        more = random_panel(seed, 60, panel.n_symbols)
        times = panel.open_time[0] + STEP * np.arange(panel.n_times + 60, dtype=np.int64)
        joined = {name: np.vstack([getattr(changed, name), getattr(more, name)]) for name in values}
        return replace(changed, open_time=times, **joined)
    return changed


def nothing_looks_ahead(parts: Parts, *, examples: int, derandomize: bool = False) -> list[Decision]:
    """Try to change what was decided by changing what came later. Returns the decisions of every world tried.

    Raises AssertionError with the first decision that knew its future.
    """
    tried: list[Decision] = []

    @hypothesis.settings(
        max_examples=examples,
        phases=[hypothesis.Phase.generate],
        database=None,
        report_multiple_bugs=False,
        derandomize=derandomize,
    )
    @given(
        seed=st.integers(0, 2**32 - 1),
        other=st.integers(0, 2**32 - 1),
        row=st.integers(FIRST, BARS - 2),
        changes=st.frozensets(st.sampled_from(CHANGES), min_size=1),
        missing=st.sampled_from([0.0, 0.05, 0.3]),
    )
    def check(seed: int, other: int, row: int, changes: frozenset[str], missing: float) -> None:
        panel = random_panel(seed, BARS, SYMBOLS, missing=missing)
        mine = decisions(panel, row, parts)
        theirs = decisions(another_future(panel, row, changes, other), row, parts)
        tried.extend(mine)
        for one, two in zip(mine, theirs, strict=True):
            assert exact(one) == exact(two), f"decided with {sorted(changes)} after bar {row} in sight"

    check()
    return tried


def test_i14_no_decision_depends_on_a_later_candle() -> None:
    tried = nothing_looks_ahead(Parts(), examples=25)
    outcomes = {each.outcome for each in tried}
    assert {Outcome.ENTER, Outcome.EXIT, Outcome.HOLD, Outcome.NO_SIGNAL, Outcome.REFUSED} <= outcomes
    assert len({each.probability for each in tried if each.probability == each.probability}) > 100
    assert {each.side for each in tried} == {-1, 0, 1}


# ------------------------------------------------------------------------- the checker has teeth
def filled_backwards(panel: Panel) -> Panel:
    """Missing candles get the next one there is: what a careless `bfill` does."""
    values = {}
    for name in VALUES:
        column = getattr(panel, name).copy()
        for bar in range(panel.n_times - 2, -1, -1):
            column[bar] = np.where(np.isnan(column[bar]), column[bar + 1], column[bar])
        values[name] = column
    return replace(panel, **values)


def volumes_by_their_mean(panel: Panel) -> Panel:
    """Volumes as shares of the mean of the whole history."""
    return replace(panel, volume=panel.volume / np.nanmean(panel.volume, axis=0, keepdims=True))


def paid_early(panel: Panel) -> Panel:
    """Each bar knows the funding that falls due until its eighth next one."""
    return replace(panel, funding=np.vstack([panel.funding[8:], panel.funding[-8:]]))


def whole_history(panel: Panel) -> Features:
    """Each feature less its mean over the whole history: what a scaler does that was fitted on everything."""
    features = replay(FeatureState.create(SCHEMA, panel.n_symbols), panel)
    return features - np.nanmean(features, axis=(0, 1), keepdims=True).astype(np.float32)


def next_row(features: Features, bar: int) -> Features:
    """Off by one: the bar that is still open."""
    return features[min(bar + 1, len(features) - 1)]


def next_side(features: Features, bar: int) -> Features:
    """One feature of the signal, one bar early."""
    known = features[bar].copy()
    known[:, SCHEMA.index("macd_hist")] = next_row(features, bar)[:, SCHEMA.index("macd_hist")]
    return known


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize(
    "parts",
    [
        Parts(candles=filled_backwards),
        Parts(candles=volumes_by_their_mean),
        Parts(candles=paid_early),
        Parts(features=whole_history),
        Parts(seen=next_row),
        Parts(seen=next_side),
    ],
    ids=["filled backwards", "volumes by their mean", "funding early", "scaled by the whole", "next row", "next side"],
)
def test_i14_a_planted_look_ahead_of_a_decision_is_found(parts: Parts) -> None:
    with pytest.raises(AssertionError, match="in sight"):
        nothing_looks_ahead(parts, examples=100, derandomize=True)


def test_the_planted_signal_differs_from_the_honest_one_only_sometimes() -> None:
    """The smallest plant is no caricature: it changes a side now and then."""
    features = Parts().features(random_panel(5, BARS, SYMBOLS))
    honest = np.array([primary_side("trend", features[bar], SCHEMA) for bar in range(BARS)])
    early = np.array([primary_side("trend", next_side(features, bar), SCHEMA) for bar in range(BARS)])
    assert 0 < np.mean(honest != early) < 0.1

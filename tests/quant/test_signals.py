from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.features import FeatureState, replay
from quant.schema import FeatureSchema
from quant.signals import DEFAULT_SIGNAL, SHIPPED, PrimarySignal, primary_side, register, sides
from tests.quant.feature_worlds import mixed, random_panel

SCHEMA = FeatureSchema()
names = st.sampled_from(sorted(signal.name for signal in SHIPPED))


def row(**values: float) -> np.ndarray:
    features = np.full(len(SCHEMA), np.nan, dtype=np.float32)
    for name, value in values.items():
        features[SCHEMA.index(name)] = value
    return features


@pytest.mark.parametrize(
    "ema, macd, rsi, side",
    [
        (0.01, 0.2, 60, 1), (-0.01, -0.2, 40, -1), (0.01, -0.2, 60, 0), (0.01, 0.2, 45, 0), (-0.01, -0.2, 55, 0),
        (0.01, 0.2, 80, 0), (-0.01, -0.2, 20, 0), (0.0, 0.2, 60, 0), (np.nan, 0.2, 60, 0), (0.01, 0.2, np.nan, 0),
    ],
)  # fmt: skip
def test_trend_needs_all_three_to_agree(ema: float, macd: float, rsi: float, side: int) -> None:
    assert primary_side("trend", row(ema_ratio=ema, macd_hist=macd, rsi_14=rsi), SCHEMA) == side


@pytest.mark.parametrize(
    "name, values, side",
    [
        ("ema_cross", {"ema_ratio": 0.01, "ema_ratio_long": 0.02}, 1),
        ("ema_cross", {"ema_ratio": -0.01, "ema_ratio_long": -0.02}, -1),
        ("ema_cross", {"ema_ratio": 0.01, "ema_ratio_long": -0.02}, 0),
        ("rsi", {"rsi_14": 20}, 1),
        ("rsi", {"rsi_14": 80}, -1),
        ("rsi", {"rsi_14": 50}, 0),
        ("macd", {"macd_hist": 0.2}, 1),
        ("macd", {"macd_hist": -0.2}, -1),
        ("macd", {"macd_hist": 0.01}, 0),
        ("breakout", {"donchian_position_168": 0.99, "adx_14": 30}, 1),
        ("breakout", {"donchian_position_168": 0.01, "adx_14": 30}, -1),
        ("breakout", {"donchian_position_168": 0.99, "adx_14": 10}, 0),
        ("reversion", {"bollinger_position_20": -0.1, "adx_14": 10}, 1),
        ("reversion", {"bollinger_position_20": 1.1, "adx_14": 10}, -1),
        ("reversion", {"bollinger_position_20": 0.5, "adx_14": 10}, 0),
    ],
)
def test_the_other_signals_trade_what_they_say(name: str, values: dict[str, float], side: int) -> None:
    assert primary_side(name, row(**values), SCHEMA) == side


@settings(max_examples=20)
@given(names, st.integers(0, 2**32 - 1))
def test_i13_a_signal_row_by_row_equals_the_signal_of_the_whole_history(name: str, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(30, 4, len(SCHEMA))).astype(np.float32) * 50
    whole = primary_side(name, features, SCHEMA)
    assert whole.dtype == np.int8
    assert whole.shape == (30, 4)
    assert np.array_equal(np.array([primary_side(name, each, SCHEMA) for each in features]), whole)


@settings(max_examples=10)
@given(names, st.integers(0, 2**32 - 1), st.integers(0, 399))
def test_i14_no_signal_depends_on_a_later_candle(name: str, seed: int, at: int) -> None:
    panel = random_panel(seed, 400, 3)
    changed = mixed(panel, random_panel(seed + 1, 400, 3), at)
    proposed = [
        primary_side(name, replay(FeatureState.create(SCHEMA, 3), each), SCHEMA)[: at + 1] for each in (panel, changed)
    ]
    assert np.array_equal(proposed[0], proposed[1])


def test_every_signal_proposes_both_sides_and_reads_only_what_it_declares() -> None:
    features = replay(FeatureState.create(SCHEMA, 4), random_panel(1, 2000, 4))
    for signal in SHIPPED:
        name = signal.name
        proposed = primary_side(name, features, SCHEMA)
        assert {-1, 0, 1} == set(np.unique(proposed).tolist()), name
        hidden = np.full_like(features, np.nan)
        for each in signal.requires:
            hidden[..., SCHEMA.index(each)] = features[..., SCHEMA.index(each)]
        assert np.array_equal(primary_side(name, hidden, SCHEMA), proposed)
        assert not primary_side(name, np.full_like(features, np.nan), SCHEMA).any()
    assert DEFAULT_SIGNAL in {signal.name for signal in SHIPPED}


def test_an_unknown_signal_and_a_foreign_schema_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'trnd' does not exist; use one of: trend"):
        primary_side("trnd", row(), SCHEMA)
    with pytest.raises(ValueError, match="use one schema"):
        primary_side("trend", row()[:-1], SCHEMA)


def rule(**changes: object) -> PrimarySignal:
    """A signal of a user's own that is as it should be, but for `changes`."""
    index = SCHEMA.index("candle_body")
    good: dict[str, object] = {
        "name": "body",
        "description": "the candle's colour",
        "requires": ("candle_body",),
        "function": lambda features, _schema: sides(long=features[..., index] > 0, short=features[..., index] < 0),
    }
    return PrimarySignal(**(good | changes))  # type: ignore[arg-type]  # wrong ones are what is tested


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"name": "trend"}, "exists already"),
        ({"requires": ("candle_boddy",)}, "'candle_boddy' is not in the schema"),
        ({"requires": ("hour_sin",)}, "does not declare"),
        ({"function": lambda features, _schema: features[..., 0] > 0}, "must give int8"),
        ({"function": lambda features, _schema: (features[..., 0] > 0).astype(np.int8) * 2}, "a side is -1, 0 or 1"),
        ({"function": lambda features, _schema: np.ones(features.shape[:-1], dtype=np.int8)}, "NaN must give 0"),
        (
            {"function": lambda features, _schema: sides(long=features[..., 0] > features[..., 0].mean(),
                                                         short=features[..., 0] < -1e9)},
            "depends on other rows",
        ),
    ],
)  # fmt: skip
def test_i13_a_rule_that_would_not_give_live_what_it_gave_in_training_is_refused(
    changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        register(rule(**changes))

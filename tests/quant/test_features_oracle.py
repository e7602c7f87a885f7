"""Features against TA-Lib and NumPy after warm-up, where the definitions are the same."""

from __future__ import annotations

import numpy as np
import pytest
import talib

from quant.features import FeatureState, replay
from quant.schema import FeatureSchema
from tests.quant.feature_worlds import random_panel

SCHEMA = FeatureSchema(market_wide=False)
SETTLED = 2500
PANEL = random_panel(11, 4000, 3)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return replay(FeatureState.create(SCHEMA, PANEL.n_symbols), PANEL).astype(np.float64)


def expected(name: str, symbol: int) -> np.ndarray:
    open_, high, low, close, volume = (
        np.ascontiguousarray(getattr(PANEL, each)[:, symbol]) for each in ("open", "high", "low", "close", "volume")
    )
    atr = talib.ATR(high, low, close, 14)
    upper, middle, lower = talib.BBANDS(close, 20, 2.0, 2.0)
    match name:
        case "rsi_14":
            return talib.RSI(close, 14)
        case "atr_pct":
            return atr / close
        case "adx_14":
            return talib.ADX(high, low, close, 14)
        case "di_difference_14":
            return talib.PLUS_DI(high, low, close, 14) - talib.MINUS_DI(high, low, close, 14)
        case "macd_hist":
            return talib.MACD(close, 12, 26, 9)[2] / atr
        case "ema_ratio":
            return talib.EMA(close, 12) / talib.EMA(close, 48) - 1
        case "ema_ratio_long":
            return talib.EMA(close, 48) / talib.EMA(close, 168) - 1
        case "bollinger_width_20":
            return (upper - lower) / middle
        case "bollinger_position_20":
            return (close - lower) / (upper - lower)
        case "donchian_position":
            top, bottom = talib.MAX(high, 24), talib.MIN(low, 24)
            return (close - bottom) / (top - bottom)
        case "donchian_position_168":
            top, bottom = talib.MAX(high, 168), talib.MIN(low, 168)
            return (close - bottom) / (top - bottom)
        case "donchian_width_24":
            return (talib.MAX(high, 24) - talib.MIN(low, 24)) / close
        case "bars_since_high_168":
            return (np.arange(len(close)) - talib.MAXINDEX(high, 168)) / 168
        case "bars_since_low_168":
            return (np.arange(len(close)) - talib.MININDEX(low, 168)) / 168
        case "candle_body":
            return (close - open_) / (high - low)
        case "range_atr":
            return (high - low) / atr
        case "return_1" | "return_4" | "return_12" | "return_24" | "return_72" | "return_168":
            lag = int(name.rpartition("_")[2])
            return np.log(close / np.roll(close, lag))
        case "volatility_24" | "volatility_168":
            span = int(name.rpartition("_")[2])
            returns = np.diff(np.log(close), prepend=np.log(close[0]))
            return np.sqrt(talib.EMA(returns**2, span))
        case "range_volatility_24":
            return np.sqrt(talib.EMA(np.log(high / low) ** 2, 24) / (4 * np.log(2)))
        case "money_flow_24":
            pressure = (2 * close - high - low) / (high - low)
            return talib.EMA(pressure * close * volume, 24) / talib.EMA(close * volume, 24)
        case "efficiency_24":
            returns = np.diff(np.log(close), prepend=np.log(close[0]))
            return talib.EMA(returns, 24) / talib.EMA(np.abs(returns), 24)
        case _:
            raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    [
        "rsi_14", "atr_pct", "adx_14", "di_difference_14", "macd_hist", "ema_ratio", "ema_ratio_long",
        "bollinger_width_20", "bollinger_position_20", "donchian_position", "donchian_position_168",
        "donchian_width_24", "bars_since_high_168", "bars_since_low_168", "candle_body", "range_atr", "return_1",
        "return_4", "return_12", "return_24", "return_72", "return_168", "volatility_24", "volatility_168",
        "range_volatility_24", "money_flow_24", "efficiency_24",
    ],
)  # fmt: skip
def test_after_warm_up_a_feature_equals_the_reference(name: str, features: np.ndarray) -> None:
    for symbol in range(PANEL.n_symbols):
        np.testing.assert_allclose(
            features[SETTLED:, symbol, SCHEMA.index(name)],
            expected(name, symbol)[SETTLED:],
            rtol=2e-5,
            atol=2e-6,
            err_msg=name,
        )


def test_rsi_and_atr_equal_the_reference_as_soon_as_they_are_defined(features: np.ndarray) -> None:
    """They are seeded as TA-Lib seeds them, so no convergence is needed."""
    for name in ("rsi_14", "atr_pct"):
        own = features[:, 0, SCHEMA.index(name)]
        defined = ~np.isnan(own)
        assert defined.sum() > 3800
        np.testing.assert_allclose(own[defined], expected(name, 0)[defined], rtol=1e-5)


def test_the_calendar_is_the_time_of_day_and_week(features: np.ndarray) -> None:
    hours = PANEL.open_time / 3_600_000
    np.testing.assert_allclose(features[:, 0, SCHEMA.index("hour_sin")], np.sin(2 * np.pi * hours / 24), atol=1e-6)
    np.testing.assert_allclose(features[:, 0, SCHEMA.index("hour_cos")], np.cos(2 * np.pi * hours / 24), atol=1e-6)
    monday = (hours - 4 * 24) / 168  # 1970-01-05 was a Monday
    np.testing.assert_allclose(features[:, 0, SCHEMA.index("weekday_sin")], np.sin(2 * np.pi * monday), atol=1e-6)
    np.testing.assert_allclose(features[:, 0, SCHEMA.index("weekday_cos")], np.cos(2 * np.pi * monday), atol=1e-6)


def test_funding_keeps_the_newest_rate_and_its_mean_per_bar(features: np.ndarray) -> None:
    paid = PANEL.funding[:, 1]
    rows = np.arange(len(paid))
    newest = paid[rows // 8 * 8]
    np.testing.assert_allclose(features[:, 1, SCHEMA.index("funding_rate")], newest, rtol=1e-6)
    mean = talib.EMA(np.ascontiguousarray(paid), 168)
    np.testing.assert_allclose(features[SETTLED:, 1, SCHEMA.index("funding_mean_168")], mean[SETTLED:], rtol=1e-5)


@pytest.mark.parametrize("span", [24, 168])
def test_the_volume_surprise_is_measured_against_what_came_before(span: int, features: np.ndarray) -> None:
    turnover = np.log1p(PANEL.close[:, 0] * PANEL.volume[:, 0])
    mean = variance = 0.0
    for t, value in enumerate(turnover, start=1):
        weight, delta = max(1 / t, 2 / (span + 1)), value - mean
        score = delta / np.sqrt(variance) if variance > 0 else np.nan
        mean += weight * delta
        variance = (1 - weight) * (variance + weight * delta * delta)
    assert features[-1, 0, SCHEMA.index(f"volume_zscore_{span}")] == pytest.approx(score, rel=1e-5)

"""Primary signals: which side a trade would have, per symbol and bar. Whether it pays is the meta-model's question.

A signal is a pure function of one row of features, so it gives live what it gave in training. A feature that is NaN
gives no signal. Source of the method: López de Prado, Advances in Financial Machine Learning, 2018, ch. 3.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.schema import FeatureSchema

    SideFunction = Callable[[NDArray[np.float32], FeatureSchema], NDArray[np.int8]]

_RSI_MIDDLE = 50.0
# Beyond these the move has mostly happened, and entries there pay for the pullback.
_RSI_OVERBOUGHT = 75.0
_RSI_OVERSOLD = 25.0
_TRENDING_ADX = 20.0
_CHANNEL_EDGE = 0.05
_BAND_EDGE = 0.0


@dataclass(frozen=True, slots=True)
class PrimarySignal:
    """A named rule: ``function(features float32[..., F], schema) -> int8[...]`` and the features that it reads."""

    name: str
    description: str
    requires: tuple[str, ...]
    function: SideFunction


def _sides(long: NDArray[np.bool_], short: NDArray[np.bool_]) -> NDArray[np.int8]:
    return long.astype(np.int8) - short.astype(np.int8)


def _trend(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    ema = features[..., schema.index("ema_ratio")]
    macd = features[..., schema.index("macd_hist")]
    rsi = features[..., schema.index("rsi_14")]
    return _sides(
        (ema > 0) & (macd > 0) & (rsi > _RSI_MIDDLE) & (rsi < _RSI_OVERBOUGHT),
        (ema < 0) & (macd < 0) & (rsi < _RSI_MIDDLE) & (rsi > _RSI_OVERSOLD),
    )


def _breakout(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    position = features[..., schema.index("donchian_position_168")]
    adx = features[..., schema.index("adx_14")]
    trending = adx > _TRENDING_ADX
    return _sides(trending & (position > 1 - _CHANNEL_EDGE), trending & (position < _CHANNEL_EDGE))


def _reversion(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    position = features[..., schema.index("bollinger_position_20")]
    adx = features[..., schema.index("adx_14")]
    calm = adx < _TRENDING_ADX
    return _sides(calm & (position < _BAND_EDGE), calm & (position > 1 - _BAND_EDGE))


SIGNALS: Mapping[str, PrimarySignal] = MappingProxyType(
    {
        signal.name: signal
        for signal in (
            PrimarySignal(
                name="trend",
                description="EMA cross, MACD histogram and RSI agree, and RSI is not exhausted",
                requires=("ema_ratio", "macd_hist", "rsi_14"),
                function=_trend,
            ),
            PrimarySignal(
                name="breakout",
                description="close at the edge of the 168-candle Donchian channel while ADX shows a trend",
                requires=("donchian_position_168", "adx_14"),
                function=_breakout,
            ),
            PrimarySignal(
                name="reversion",
                description="close outside the Bollinger bands while ADX shows no trend: trade back to the middle",
                requires=("bollinger_position_20", "adx_14"),
                function=_reversion,
            ),
        )
    }
)
DEFAULT_SIGNAL = "trend"


def primary_side(name: str, features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    """Return the side (+1 long, -1 short, 0 none) for every row of ``features`` float32[..., F].

    Raises ValueError for an unknown signal and for features that do not have the schema's columns.
    """
    try:
        signal = SIGNALS[name]
    except KeyError:
        raise ValueError(f"signal {name!r} does not exist; use one of: {', '.join(SIGNALS)}") from None
    if features.shape[-1] != len(schema):
        raise ValueError(f"features have {features.shape[-1]} columns and the schema {len(schema)}: use one schema")
    return signal.function(features, schema)

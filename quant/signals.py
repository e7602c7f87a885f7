"""Primary signals: which side a trade would have, per symbol and bar. Whether it pays is the meta-model's question.

A signal is a pure function of one row of features, so it gives live what it gave in training. A feature that is NaN
gives no signal. Source of the method: López de Prado, Advances in Financial Machine Learning, 2018, ch. 3.6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quant.schema import FeatureSchema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    SideFunction = Callable[[NDArray[np.float32], FeatureSchema], NDArray[np.int8]]

_RSI_MIDDLE = 50.0
# Beyond these the move has mostly happened, and entries there pay for the pullback.
_RSI_OVERBOUGHT = 75.0
_RSI_OVERSOLD = 25.0
_TRENDING_ADX = 20.0
_CHANNEL_EDGE = 0.05
_BAND_EDGE = 0.0
_MACD_NOISE = 0.05
"""A MACD histogram nearer to zero than this share of an ATR has no direction."""


@dataclass(frozen=True, slots=True)
class PrimarySignal:
    """A named rule: ``function(features float32[..., F], schema) -> int8[...]`` and the features that it reads."""

    name: str
    description: str
    requires: tuple[str, ...]
    function: SideFunction


def sides(*, long: NDArray[np.bool_], short: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return +1 where ``long``, -1 where ``short``, 0 where neither or both, int8 of their shape."""
    return long.astype(np.int8) - short.astype(np.int8)


def _ema_cross(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    fast = features[..., schema.index("ema_ratio")]
    slow = features[..., schema.index("ema_ratio_long")]
    return sides(long=(fast > 0) & (slow > 0), short=(fast < 0) & (slow < 0))


def _rsi(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    rsi = features[..., schema.index("rsi_14")]
    return sides(long=rsi < _RSI_OVERSOLD, short=rsi > _RSI_OVERBOUGHT)


def _macd(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    histogram = features[..., schema.index("macd_hist")]
    return sides(long=histogram > _MACD_NOISE, short=histogram < -_MACD_NOISE)


def _trend(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    ema = features[..., schema.index("ema_ratio")]
    macd = features[..., schema.index("macd_hist")]
    rsi = features[..., schema.index("rsi_14")]
    return sides(
        long=(ema > 0) & (macd > 0) & (rsi > _RSI_MIDDLE) & (rsi < _RSI_OVERBOUGHT),
        short=(ema < 0) & (macd < 0) & (rsi < _RSI_MIDDLE) & (rsi > _RSI_OVERSOLD),
    )


def _breakout(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    position = features[..., schema.index("donchian_position_168")]
    adx = features[..., schema.index("adx_14")]
    trending = adx > _TRENDING_ADX
    return sides(long=trending & (position > 1 - _CHANNEL_EDGE), short=trending & (position < _CHANNEL_EDGE))


def _reversion(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    position = features[..., schema.index("bollinger_position_20")]
    adx = features[..., schema.index("adx_14")]
    calm = adx < _TRENDING_ADX
    return sides(long=calm & (position < _BAND_EDGE), short=calm & (position > 1 - _BAND_EDGE))


SHIPPED: tuple[PrimarySignal, ...] = (
    PrimarySignal(
        name="trend",
        description="EMA cross, MACD histogram and RSI agree, and RSI is not exhausted",
        requires=("ema_ratio", "macd_hist", "rsi_14"),
        function=_trend,
    ),
    PrimarySignal(
        name="ema_cross",
        description="EMA 12 above EMA 48 above EMA 168, or all the other way round",
        requires=("ema_ratio", "ema_ratio_long"),
        function=_ema_cross,
    ),
    PrimarySignal(
        name="rsi",
        description="RSI is exhausted: trade against the move",
        requires=("rsi_14",),
        function=_rsi,
    ),
    PrimarySignal(
        name="macd",
        description="the MACD histogram points one way by more than noise",
        requires=("macd_hist",),
        function=_macd,
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
_signals: dict[str, PrimarySignal] = {signal.name: signal for signal in SHIPPED}
DEFAULT_SIGNAL = "trend"


def names() -> tuple[str, ...]:
    """Return the names of the signals that there are, shipped ones first."""
    return tuple(_signals)


def register(signal: PrimarySignal) -> None:
    """Add a signal, so that settings may name it. Registering the same one again changes nothing.

    Raises ValueError for a name that another signal has, and for a rule that would not give live what it gave in
    training: a feature that does not exist, a side without its features, rows that depend on each other.
    """
    if _signals.get(signal.name, signal) != signal:
        raise ValueError(f"signal {signal.name!r} exists already; give yours another name")
    _check(signal, FeatureSchema())
    _signals[signal.name] = signal


def _check(signal: PrimarySignal, schema: FeatureSchema) -> None:
    for feature in signal.requires:
        schema.index(feature)
    rows = np.random.default_rng(0).normal(scale=30.0, size=(64, len(schema))).astype(np.float32)
    whole = signal.function(rows, schema)
    if not isinstance(whole, np.ndarray) or whole.shape != (64,) or whole.dtype != np.int8:
        raise ValueError(
            f"signal {signal.name!r} gave {type(whole).__name__} {getattr(whole, 'dtype', '')} of shape "
            f"{getattr(whole, 'shape', '')} for 64 rows; it must give int8 of shape (64,): end with `sides(...)`"
        )
    if not np.isin(whole, (-1, 0, 1)).all():
        raise ValueError(f"signal {signal.name!r} gave {sorted(set(whole.tolist()))}; a side is -1, 0 or 1")
    if not np.array_equal(np.array([signal.function(row, schema) for row in rows]), whole):
        raise ValueError(f"signal {signal.name!r} depends on other rows; it must decide each row by itself (I13)")
    hidden = np.full_like(rows, np.nan)
    columns = [schema.index(feature) for feature in signal.requires]
    hidden[:, columns] = rows[:, columns]
    if not np.array_equal(signal.function(hidden, schema), whole):
        raise ValueError(f"signal {signal.name!r} reads features that it does not declare in `requires`")
    if signal.function(np.full_like(rows, np.nan), schema).any():
        raise ValueError(f"signal {signal.name!r} gives a side without its features; NaN must give 0")


def primary_side(name: str, features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    """Return the side (+1 long, -1 short, 0 none) for every row of ``features`` float32[..., F].

    Raises ValueError for an unknown signal and for features that do not have the schema's columns.
    """
    try:
        signal = _signals[name]
    except KeyError:
        raise ValueError(f"signal {name!r} does not exist; use one of: {', '.join(_signals)}") from None
    if features.shape[-1] != len(schema):
        raise ValueError(f"features have {features.shape[-1]} columns and the schema {len(schema)}: use one schema")
    return signal.function(features, schema)

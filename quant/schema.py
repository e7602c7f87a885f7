"""Names, formulas and warm-up of every feature. Web code may import this module: it needs neither numba nor numpy.

Rules that hold for every feature (``quant.kernel`` computes them):

- *Candles seen.* A symbol's state moves on its own candles only, so every horizon and every warm-up counts candles that
  were seen, not hours. A missing candle gives a row of NaN and leaves the state alone; after more than ``MAX_GAP_BARS``
  missing candles in a row the symbol starts again from nothing.
- *Bad candles are missing candles*: a price that is not finite and positive, a high or low on the wrong side of open or
  close or more than ``MAX_JUMP``-fold away from the close, a volume that is negative or not finite.
- *Another asset.* A close more than ``MAX_JUMP``-fold away from the one before restarts the symbol.
- *Zero volume* is a fact, not a gap: the turnover of that candle is 0 and enters the statistics as log(1 + 0).
- *Not computable is NaN, never 0*: warm-up, a range of zero (body, wicks), no movement (RSI, Bollinger position),
  no turnover (money flow), a market of fewer than ``MIN_MARKET_SYMBOLS`` symbols.
- *Nothing poisons for ever.* Averages are exponential, so an outlier is forgotten at a known rate; the one windowed sum
  (Bollinger) is recomputed from its window each time the window has gone round once.
- *EW(x, span)* is the exponential mean with weight 2 / (span + 1), *Wilder(x, n)* the one with weight 1 / n; both start
  as the plain mean of what was seen until that weights less. Their warm-up ends when the start weighs less than 0.1 %.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

# Part of every schema hash: raise it when the kernel computes anything differently.
KERNEL_VERSION = 1
MAX_GAP_BARS = 48
MAX_JUMP = 1000.0
MIN_MARKET_SYMBOLS = 3

_START_WEIGHT = 1e-3


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One feature. ``warmup`` is the number of the symbol's first candle on which it is defined."""

    name: str
    formula: str
    source: str
    warmup: int
    unit: str
    market_wide: bool = False


def _settled(weight: float) -> int:
    return math.ceil(math.log(_START_WEIGHT) / math.log1p(-weight))


def _span(span: int) -> int:
    return _settled(2.0 / (span + 1.0))


def _wilder(periods: int) -> int:
    return _settled(1.0 / periods)


_WILDER = "Wilder, New Concepts in Technical Trading Systems, 1978"
_APPEL = "Appel, Technical Analysis: Power Tools, 2005"
_BOLLINGER = "Bollinger on Bollinger Bands, 2001"
_DONCHIAN = "Donchian channel"
_RISKMETRICS = "RiskMetrics, Technical Document, 1996"
_CHANDE = "Chande and Kroll, The New Technical Trader, 1994 (Aroon)"
_SHARPE = "Sharpe, single-index model, 1963"
_MOMENTUM = "Jegadeesh and Titman, 1993"
_RETURN = "log return"
_SHAPE = "candle shape"
_CALENDAR = "seasonality"
_PERPETUAL = "perpetual funding"


def _log_return(candles: int) -> FeatureSpec:
    return FeatureSpec(f"return_{candles}", f"ln(close / close[-{candles}])", _RETURN, candles + 1, "log return")


FEATURES: tuple[FeatureSpec, ...] = (
    *(_log_return(candles) for candles in (1, 4, 12, 24, 72, 168)),
    FeatureSpec("ema_ratio", "EW(close, 12) / EW(close, 48) - 1", "EMA cross", _span(48), "fraction"),
    FeatureSpec("ema_ratio_long", "EW(close, 48) / EW(close, 168) - 1", "EMA cross", _span(168), "fraction"),
    FeatureSpec(
        "macd_hist",
        "(macd - EW(macd, 9)) / ATR14, macd = EW(close, 12) - EW(close, 26)",
        _APPEL,
        _span(26) + _span(9),
        "ATR",
    ),
    FeatureSpec("rsi_14", "100 Wilder(gain, 14) / Wilder(gain + loss, 14)", _WILDER, _wilder(14) + 1, "0..100"),
    FeatureSpec("atr_pct", "Wilder(true range, 14) / close", _WILDER, _wilder(14) + 1, "fraction"),
    FeatureSpec("adx_14", "Wilder(100 |DI+ - DI-| / (DI+ + DI-), 14)", _WILDER, 2 * _wilder(14) + 1, "0..100"),
    FeatureSpec("di_difference_14", "DI+ - DI-", _WILDER, _wilder(14) + 1, "-100..100"),
    FeatureSpec("bollinger_width_20", "4 std(close, 20) / mean(close, 20)", _BOLLINGER, 20, "fraction"),
    FeatureSpec(
        "bollinger_position_20", "(close - mean(close, 20)) / (4 std(close, 20)) + 0.5", _BOLLINGER, 20, "0..1 inside"
    ),
    FeatureSpec("volatility_24", "sqrt(EW(return_1^2, 24))", _RISKMETRICS, _span(24) + 1, "log return per bar"),
    FeatureSpec("volatility_168", "sqrt(EW(return_1^2, 168))", _RISKMETRICS, _span(168) + 1, "log return per bar"),
    FeatureSpec("volatility_ratio", "volatility_24 / volatility_168", _RISKMETRICS, _span(168) + 1, "ratio"),
    FeatureSpec(
        "range_volatility_24",
        "sqrt(EW(ln(high / low)^2, 24) / (4 ln 2))",
        "Parkinson, 1980",
        _span(24),
        "log return per bar",
    ),
    FeatureSpec(
        "efficiency_24",
        "EW(return_1, 24) / EW(|return_1|, 24)",
        "Kaufman, Smarter Trading, 1995",
        _span(24) + 1,
        "-1..1",
    ),
    FeatureSpec(
        "autocorrelation_48",
        "EW(return_1 return_1[-1], 48) / EW(return_1^2, 48)",
        "Lo and MacKinlay, 1988",
        _span(48) + 2,
        "about -1..1",
    ),
    *(
        FeatureSpec(
            f"volume_zscore_{span}",
            f"(v - EW(v, {span})[-1]) / std of the same, v = ln(1 + close volume)",
            "volume surprise",
            _span(span) + 1,
            "standard deviations",
        )
        for span in (24, 168)
    ),
    FeatureSpec(
        "money_flow_24",
        "EW(u close volume, 24) / EW(close volume, 24), u = (2 close - high - low) / (high - low)",
        "Chaikin money flow",
        _span(24),
        "-1..1",
    ),
    *(
        FeatureSpec(name, f"(close - min(low, {n})) / (max(high, {n}) - min(low, {n}))", _DONCHIAN, n, "0..1")
        for name, n in (("donchian_position", 24), ("donchian_position_168", 168))
    ),
    FeatureSpec("donchian_width_24", "(max(high, 24) - min(low, 24)) / close", _DONCHIAN, 24, "fraction"),
    FeatureSpec("bars_since_high_168", "candles since max(high, 168) / 168", _CHANDE, 168, "0..1"),
    FeatureSpec("bars_since_low_168", "candles since min(low, 168) / 168", _CHANDE, 168, "0..1"),
    FeatureSpec("candle_body", "(close - open) / (high - low)", _SHAPE, 1, "-1..1"),
    FeatureSpec("upper_wick", "(high - max(open, close)) / (high - low)", _SHAPE, 1, "0..1"),
    FeatureSpec("range_atr", "(high - low) / ATR14", _SHAPE, _wilder(14) + 1, "ATR"),
    FeatureSpec("hour_sin", "sin(2 pi time of day)", _CALENDAR, 1, "-1..1"),
    FeatureSpec("hour_cos", "cos(2 pi time of day)", _CALENDAR, 1, "-1..1"),
    FeatureSpec("weekday_sin", "sin(2 pi time of week)", _CALENDAR, 1, "-1..1"),
    FeatureSpec("weekday_cos", "cos(2 pi time of week)", _CALENDAR, 1, "-1..1"),
    FeatureSpec("funding_rate", "the newest rate that was due (NaN before the first)", _PERPETUAL, 1, "fraction"),
    FeatureSpec(
        "funding_mean_168",
        "EW(funding due in a candle, 168); its warm-up counts from the first rate",
        _PERPETUAL,
        _span(168),
        "fraction per bar",
    ),
    # From here on a feature of one symbol depends on the others. The market's return is the mean over the symbols that
    # have this candle and the one before, each bounded to +-0.5. Its warm-up counts bars of the market.
    FeatureSpec("market_return_1", "mean of return_1 over the market", _SHARPE, 1, "log return", market_wide=True),
    FeatureSpec("market_return_24", "sum of market_return_1 over 24 bars", _SHARPE, 24, "log return", market_wide=True),
    FeatureSpec(
        "market_volatility_24",
        "sqrt(EW(market_return_1^2, 24))",
        _RISKMETRICS,
        _span(24),
        "log return per bar",
        market_wide=True,
    ),
    FeatureSpec(
        "market_breadth",
        "share of settled symbols whose close is above their EW(close, 48)[-1]",
        "breadth",
        1,
        "0..1",
        market_wide=True,
    ),
    FeatureSpec(
        "beta_168",
        "EW(return_1 market_return_1, 168) / EW(market_return_1^2, 168)",
        _SHARPE,
        _span(168),
        "ratio",
        market_wide=True,
    ),
    FeatureSpec(
        "residual_return_1",
        "return_1 - beta_168[-1] market_return_1",
        _SHARPE,
        _span(168) + 1,
        "log return",
        market_wide=True,
    ),
    FeatureSpec(
        "residual_return_24",
        "return_24 - beta_168[-1] (market's return over the same 24 candles)",
        _SHARPE,
        _span(168) + 1,
        "log return",
        market_wide=True,
    ),
    *(
        FeatureSpec(
            f"{name}_rank",
            f"(rank of {name} among the symbols that have it - 1) / (their number - 1), ties share their mean rank",
            _MOMENTUM,
            warmup,
            "0..1",
            market_wide=True,
        )
        for name, warmup in (("return_24", 25), ("volatility_24", _span(24) + 1), ("volume_zscore_24", _span(24) + 1))
    ),
)

_N_OWN = sum(not spec.market_wide for spec in FEATURES)


@dataclass(frozen=True)
class FeatureSchema:
    """The features of a model in column order.

    ``market_wide=True`` adds the features that compare a symbol with the others (multi_symbol training); without them
    the features of a symbol never depend on which other symbols are in the panel (single_symbol training).
    """

    market_wide: bool = True

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The features, in the order of the columns."""
        return FEATURES if self.market_wide else FEATURES[:_N_OWN]

    @property
    def names(self) -> tuple[str, ...]:
        """The column names."""
        return tuple(spec.name for spec in self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def index(self, name: str) -> int:
        """Return the column of a feature. Raises ValueError for a name that this schema has not."""
        try:
            return _positions(self.market_wide)[name]
        except KeyError:
            choices = ", ".join(self.names)
            raise ValueError(f"feature {name!r} is not in the schema; use one of: {choices}") from None

    @property
    def warmup(self) -> int:
        """The number of candles after which every feature is defined."""
        return max(spec.warmup for spec in self.specs)

    @cached_property
    def hash(self) -> str:
        """The sha256 (hex) of all that decides what a feature column means."""
        declared = {
            "kernel_version": KERNEL_VERSION,
            "rules": [MAX_GAP_BARS, MAX_JUMP, MIN_MARKET_SYMBOLS],
            "features": [asdict(spec) for spec in self.specs],
        }
        return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=2)
def _positions(market_wide: bool) -> dict[str, int]:
    return {name: position for position, name in enumerate(FeatureSchema(market_wide=market_wide).names)}

"""The features once more, in plain Python, one symbol and one candle after the other: what the kernels must equal.

This is the kernel as it was before it stepped several symbols in one instruction (KERNEL_VERSION 1), uncompiled. It is
here to be compared with, to the bit; it changes only together with KERNEL_VERSION.
"""

# mypy: ignore-errors
import math

import numpy as np

from quant.panel import Panel
from quant.schema import MAX_GAP_BARS, MAX_JUMP, MIN_MARKET_SYMBOLS, FeatureSchema

# --- columns of the output, in the order of quant.schema.FEATURES ---
RETURN_1, RETURN_4, RETURN_12, RETURN_24, RETURN_72, RETURN_168 = range(6)
EMA_RATIO, EMA_RATIO_LONG, MACD_HIST, RSI_14, ATR_PCT, ADX_14, DI_DIFFERENCE_14 = range(6, 13)
BOLLINGER_WIDTH_20, BOLLINGER_POSITION_20 = range(13, 15)
VOLATILITY_24, VOLATILITY_168, VOLATILITY_RATIO, RANGE_VOLATILITY_24 = range(15, 19)
EFFICIENCY_24, AUTOCORRELATION_48 = range(19, 21)
VOLUME_ZSCORE_24, VOLUME_ZSCORE_168, MONEY_FLOW_24 = range(21, 24)
DONCHIAN_POSITION, DONCHIAN_POSITION_168, DONCHIAN_WIDTH_24 = range(24, 27)
BARS_SINCE_HIGH_168, BARS_SINCE_LOW_168 = range(27, 29)
CANDLE_BODY, UPPER_WICK, RANGE_ATR = range(29, 32)
HOUR_SIN, HOUR_COS, WEEKDAY_SIN, WEEKDAY_COS = range(32, 36)
FUNDING_RATE, FUNDING_MEAN_168 = range(36, 38)
MARKET_RETURN_1, MARKET_RETURN_24, MARKET_VOLATILITY_24, MARKET_BREADTH = range(38, 42)
BETA_168, RESIDUAL_RETURN_1, RESIDUAL_RETURN_24 = range(42, 45)
RETURN_24_RANK, VOLATILITY_24_RANK, VOLUME_ZSCORE_24_RANK = range(45, 48)
RANKED = (RETURN_24, VOLATILITY_24, VOLUME_ZSCORE_24)  # their ranks are the last columns, in this order

# --- a symbol's averages (float64) ---
_CLOSE, _HIGH, _LOW, _LOG_CLOSE, _RETURN = range(5)
_EMA_12, _EMA_26, _EMA_48, _EMA_168, _MACD_SIGNAL = range(5, 10)
_GAIN, _LOSS, _ATR, _PLUS, _MINUS, _ADX = range(10, 16)
_SQUARE_24, _SQUARE_48, _SQUARE_168, _RANGE_SQUARE, _DRIFT, _PATH, _LAGGED = range(16, 23)
_VOLUME_24, _VOLUME_24_VARIANCE, _VOLUME_168, _VOLUME_168_VARIANCE, _FLOW, _TURNOVER = range(23, 29)
_ANCHOR_INVERSE, _DEVIATION, _DEVIATION_SQUARE = range(29, 32)
_FUNDING, _FUNDING_MEAN, _MARKET_PRODUCT, _MARKET_SQUARE = range(32, 36)
_HIGH_168, _LOW_168, _HIGH_24, _LOW_24 = range(36, 44, 2)  # the highest of the newest block, and its candle
_RING = 168
_BAND = 20
_DAY = 24
_CLOSES = 44
_LOGS = _CLOSES + _BAND
_HIGHS_168 = _LOGS + _RING
_LOWS_168 = _HIGHS_168 + 2 * _RING
_HIGHS_24 = _LOWS_168 + 2 * _RING
_LOWS_24 = _HIGHS_24 + 2 * _DAY
_LEVELS = _LOWS_24 + 2 * _DAY
N_VALUES = _LEVELS + _DAY

# --- a symbol's counters (int64) ---
_SEEN, _GAP, _FUNDED, _MARKET_SEEN = range(4)
N_COUNTERS = 4

# --- the market's state: floats, then integers (a level, two counters, a ring of levels) ---
_M_SQUARE = 0
N_MARKET_VALUES = 1
_M_LEVEL, _M_SEEN, _M_GAP, _M_LEVELS = range(4)
N_MARKET_COUNTERS = _M_LEVELS + _DAY

# --- weights of the exponential means ---
_A_9, _A_12, _A_24, _A_26 = 2 / 10, 2 / 13, 2 / 25, 2 / 27
_A_48, _A_168, _A_WILDER = 2 / 49, 2 / 169, 1 / 14

_MAX_LOG_JUMP = math.log(MAX_JUMP)
_MAX_MARKET_RETURN = 0.5
_MAX_TURNOVER = 1e18
_SETTLED_EMA_48 = 48
_STILL = 1e-9  # a relative deviation below this is rounding, not movement
_PER_RING, _PER_BAND = 1.0 / _RING, 1.0 / _BAND
_PARKINSON = 1.0 / (4.0 * math.log(2.0))
_DAY_MS, _WEEK_MS = 86_400_000, 604_800_000
_MONDAY_MS = 345_600_000  # 1970-01-05, the first Monday
# The market's mean is a sum of integers, because a sum of floats depends on the order of the symbols.
_FIXED_POINT = 2.0**40
# Scratch rows per symbol.
_S_LOG_CLOSE, _S_RETURN, _S_LOG_RANGE, _S_LOG_TURNOVER, _S_TURNOVER = range(5)
N_SCRATCH = 5
_MISSING, _FRESH, _LINKED = 0, 1, 2  # no candle; a candle; a candle that follows the one of the bar before


def _mean(mean, value, weight):
    return mean + weight * (value - mean)


def _back(slot, n):
    """The slot of the ring that was filled ``n`` candles before this one."""
    return slot - n if slot >= n else slot - n + _RING


def _prepare(values, counters, open_, high, low, close, volume, scratch, status):
    """Judge every candle by the rules, restart symbols after long gaps and jumps, and take the logarithms."""
    for s in range(close.shape[0]):
        o, h, l, c, v = open_[s], high[s], low[s], close[s], volume[s]
        body_low, body_high = min(o, c), max(o, c)
        # Every comparison with NaN is false, so a missing candle fails here too.
        good = (
            l > 0.0
            and l <= body_low
            and h >= body_high
            and l * MAX_JUMP >= c
            and h <= c * MAX_JUMP
            and h < np.inf
            and v >= 0.0
            and v < np.inf
        )
        if not good:
            status[s] = _MISSING
            if counters[s, _SEEN] > 0:
                counters[s, _GAP] += 1
                if counters[s, _GAP] > MAX_GAP_BARS:
                    values[s, :] = 0.0
                    counters[s, :] = 0
            continue
        log_close = math.log(c)
        change = log_close - values[s, _LOG_CLOSE]
        if counters[s, _SEEN] > 0 and abs(change) > _MAX_LOG_JUMP:
            values[s, :] = 0.0
            counters[s, :] = 0
        status[s] = _LINKED if counters[s, _SEEN] > 0 and counters[s, _GAP] == 0 else _FRESH
        counters[s, _GAP] = 0
        turnover = min(v * c, _MAX_TURNOVER)
        scratch[_S_LOG_CLOSE, s] = log_close
        scratch[_S_RETURN, s] = change
        scratch[_S_LOG_RANGE, s] = math.log(h / l)
        scratch[_S_LOG_TURNOVER, s] = math.log(1.0 + turnover)
        scratch[_S_TURNOVER, s] = turnover


def _market(values, counters, close, scratch, status, market, market_counters, warmup, row):
    """Advance the market by one bar, write its features to ``row``, and return its return (NaN if there is none)."""
    total = np.int64(0)
    members = 0
    settled = 0
    above = 0
    for s in range(close.shape[0]):
        if status[s] != _LINKED:
            continue
        bounded = min(max(scratch[_S_RETURN, s], -_MAX_MARKET_RETURN), _MAX_MARKET_RETURN)
        total += np.int64(bounded * _FIXED_POINT)
        members += 1
        if counters[s, _SEEN] >= _SETTLED_EMA_48:
            settled += 1
            if close[s] > values[s, _EMA_48]:
                above += 1
    row[:] = np.nan
    if members < MIN_MARKET_SYMBOLS:
        market_counters[_M_GAP] += 1
        if market_counters[_M_GAP] > MAX_GAP_BARS:
            # The level goes on: symbols hold differences of it. Only the market's own warm-up starts again.
            market[:] = 0.0
            market_counters[_M_SEEN] = 0
        return np.nan
    market_counters[_M_GAP] = 0
    change = total // members
    value = change / _FIXED_POINT
    seen = market_counters[_M_SEEN]
    # The ring holds the level before each of the last 24 bars, this one included.
    market_counters[_M_LEVELS + seen % _DAY] = market_counters[_M_LEVEL]
    market_counters[_M_LEVEL] += change
    seen += 1
    market_counters[_M_SEEN] = seen
    market[_M_SQUARE] = _mean(market[_M_SQUARE], value * value, max(1.0 / seen, _A_24))
    row[0] = value
    if seen >= _DAY:
        row[1] = (market_counters[_M_LEVEL] - market_counters[_M_LEVELS + seen % _DAY]) / _FIXED_POINT
    if seen >= warmup[MARKET_VOLATILITY_24]:
        row[2] = math.sqrt(market[_M_SQUARE])
    if settled >= MIN_MARKET_SYMBOLS:
        row[3] = above / settled
    return value


def _close_block(values, s, ring, span):
    """Turn a full ring of (value, candle) into the highest from each slot to the end; the newer one of equals."""
    for i in range(span - 2, -1, -1):
        if values[s, ring + 2 * i] <= values[s, ring + 2 * i + 2]:
            values[s, ring + 2 * i] = values[s, ring + 2 * i + 2]
            values[s, ring + 2 * i + 1] = values[s, ring + 2 * i + 3]


def _highest(values, s, at, ring, span, k, slot, value):
    """Take candle ``k`` in, and return the highest of the newest ``span`` values and its candle (the newer of equals).

    Candles come in blocks of ``span``. A window is the end of one block, whose highest values are known since the block
    was full, and the begin of the next, whose highest is carried on (van Herk, Gil and Werman): exact, two comparisons
    a candle whatever the prices do, and none that the processor has to guess.
    """
    if slot == 0:
        if k > 0:
            _close_block(values, s, ring, span)
        values[s, at] = value
        values[s, at + 1] = k
    best = values[s, at]
    best_at = values[s, at + 1]
    newer = value >= best
    best = value if newer else best
    best_at = float(k) if newer else best_at
    values[s, at] = best
    values[s, at + 1] = best_at
    values[s, ring + 2 * slot] = value
    values[s, ring + 2 * slot + 1] = k
    if k >= span and slot < span - 1:
        older = values[s, ring + 2 * slot + 2]
        older_at = values[s, ring + 2 * slot + 3]
        kept = older > best
        best = older if kept else best
        best_at = older_at if kept else best_at
    return best, best_at


def _channel(values, s, k, slot, h, l, c, per_close, out):
    """Donchian channels over 24 and 168 candles. The lower side is the highest of the negated lows."""
    day = k % _DAY
    high, _ = _highest(values, s, _HIGH_24, _HIGHS_24, _DAY, k, day, h)
    low, _ = _highest(values, s, _LOW_24, _LOWS_24, _DAY, k, day, -l)
    width = high + low
    out[s, DONCHIAN_WIDTH_24] = width * per_close
    if width > 0.0:
        out[s, DONCHIAN_POSITION] = (c + low) / width
    high, high_at = _highest(values, s, _HIGH_168, _HIGHS_168, _RING, k, slot, h)
    low, low_at = _highest(values, s, _LOW_168, _LOWS_168, _RING, k, slot, -l)
    width = high + low
    if width > 0.0:
        out[s, DONCHIAN_POSITION_168] = (c + low) / width
    out[s, BARS_SINCE_HIGH_168] = (k - high_at) * _PER_RING
    out[s, BARS_SINCE_LOW_168] = (k - low_at) * _PER_RING


def _bands(values, s, k, c, per_close, out):
    """Bollinger bands from running sums of deviations from an anchor price.

    Each time the ring has gone round, the newest close becomes the anchor and the sums are taken again from the ring:
    rounding cannot pile up, and what an outlier left behind is gone one round after it left the window.
    """
    slot = k % _BAND
    if slot == 0:
        values[s, _CLOSES] = c
        values[s, _ANCHOR_INVERSE] = per_close
        total = 0.0
        square = 0.0
        for i in range(min(k + 1, _BAND)):
            deviation = values[s, _CLOSES + i] * values[s, _ANCHOR_INVERSE] - 1.0
            total += deviation
            square += deviation * deviation
        values[s, _DEVIATION] = total
        values[s, _DEVIATION_SQUARE] = square
    else:
        if k >= _BAND:
            old = values[s, _CLOSES + slot] * values[s, _ANCHOR_INVERSE] - 1.0
            values[s, _DEVIATION] -= old
            values[s, _DEVIATION_SQUARE] -= old * old
        new = c * values[s, _ANCHOR_INVERSE] - 1.0
        values[s, _CLOSES + slot] = c
        values[s, _DEVIATION] += new
        values[s, _DEVIATION_SQUARE] += new * new
    if k < _BAND - 1:
        return
    mean = values[s, _DEVIATION] * _PER_BAND
    variance = values[s, _DEVIATION_SQUARE] * _PER_BAND - mean * mean
    middle = 1.0 + mean
    deviation = math.sqrt(max(variance, 0.0))
    if deviation > _STILL * middle:
        width = 4.0 * deviation
        out[s, BOLLINGER_WIDTH_20] = width / middle
        out[s, BOLLINGER_POSITION_20] = (c * values[s, _ANCHOR_INVERSE] - middle) / width + 0.5
    else:
        out[s, BOLLINGER_WIDTH_20] = 0.0


def _volume(values, s, at, value, weight, out, column):
    """Write the z-score of ``value`` against the state before it, then advance that state."""
    delta = value - values[s, at]
    deviation = math.sqrt(values[s, at + 1])
    if deviation > _STILL:
        out[s, column] = delta / deviation
    values[s, at] += weight * delta
    values[s, at + 1] = (1.0 - weight) * (values[s, at + 1] + weight * delta * delta)


def _movement(values, s, w0, h, l, c, per_close, change, out):
    """Features of changes from candle to candle; ``w0`` is 1 / the number of changes seen."""
    wilder = max(w0, _A_WILDER)
    move = c - values[s, _CLOSE]
    values[s, _GAIN] = _mean(values[s, _GAIN], max(move, 0.0), wilder)
    values[s, _LOSS] = _mean(values[s, _LOSS], max(-move, 0.0), wilder)
    moved = values[s, _GAIN] + values[s, _LOSS]
    if moved > _STILL * c:
        out[s, RSI_14] = 100.0 * values[s, _GAIN] / moved

    values[s, _ATR] = _mean(values[s, _ATR], max(h, values[s, _CLOSE]) - min(l, values[s, _CLOSE]), wilder)
    out[s, ATR_PCT] = values[s, _ATR] * per_close
    up = h - values[s, _HIGH]
    down = values[s, _LOW] - l
    values[s, _PLUS] = _mean(values[s, _PLUS], up if up > down and up > 0.0 else 0.0, wilder)
    values[s, _MINUS] = _mean(values[s, _MINUS], down if down > up and down > 0.0 else 0.0, wilder)
    if values[s, _ATR] > _STILL * c:
        per_atr = 1.0 / values[s, _ATR]
        out[s, RANGE_ATR] = (h - l) * per_atr
        out[s, MACD_HIST] = (values[s, _EMA_12] - values[s, _EMA_26] - values[s, _MACD_SIGNAL]) * per_atr
        out[s, DI_DIFFERENCE_14] = 100.0 * (values[s, _PLUS] - values[s, _MINUS]) * per_atr
        directed = values[s, _PLUS] + values[s, _MINUS]
        if directed > 0.0:
            values[s, _ADX] = _mean(
                values[s, _ADX], 100.0 * abs(values[s, _PLUS] - values[s, _MINUS]) / directed, wilder
            )
        out[s, ADX_14] = values[s, _ADX]

    square = change * change
    values[s, _SQUARE_24] = _mean(values[s, _SQUARE_24], square, max(w0, _A_24))
    values[s, _SQUARE_48] = _mean(values[s, _SQUARE_48], square, max(w0, _A_48))
    values[s, _SQUARE_168] = _mean(values[s, _SQUARE_168], square, max(w0, _A_168))
    values[s, _DRIFT] = _mean(values[s, _DRIFT], change, max(w0, _A_24))
    values[s, _PATH] = _mean(values[s, _PATH], abs(change), max(w0, _A_24))
    values[s, _LAGGED] = _mean(values[s, _LAGGED], change * values[s, _RETURN], max(w0, _A_48))
    values[s, _RETURN] = change
    out[s, RETURN_1] = change
    out[s, VOLATILITY_24] = math.sqrt(values[s, _SQUARE_24])
    out[s, VOLATILITY_168] = math.sqrt(values[s, _SQUARE_168])
    if values[s, _PATH] > _STILL:
        out[s, VOLATILITY_RATIO] = math.sqrt(values[s, _SQUARE_24] / values[s, _SQUARE_168])
        out[s, EFFICIENCY_24] = values[s, _DRIFT] / values[s, _PATH]
        out[s, AUTOCORRELATION_48] = values[s, _LAGGED] / values[s, _SQUARE_48]


def _residuals(values, counters, s, k, linked, change, level, market_return, warmup, out):
    """Beta and what the market does not explain. The ring of levels gives the market over the symbol's own candles."""
    slot = _LEVELS + k % _DAY
    level_before = values[s, slot]
    values[s, slot] = level
    has_market = market_return == market_return
    ready = has_market and values[s, _MARKET_SQUARE] > 0.0 and counters[s, _MARKET_SEEN] >= warmup[BETA_168]
    if ready and k > 0:
        beta = values[s, _MARKET_PRODUCT] / values[s, _MARKET_SQUARE]
        if linked:
            out[s, RESIDUAL_RETURN_1] = change - beta * market_return
        if k >= _DAY:
            out[s, RESIDUAL_RETURN_24] = out[s, RETURN_24] - beta * ((level - level_before) / _FIXED_POINT)
    if linked and has_market:
        counters[s, _MARKET_SEEN] += 1
        weight = max(1.0 / counters[s, _MARKET_SEEN], _A_168)
        values[s, _MARKET_PRODUCT] = _mean(values[s, _MARKET_PRODUCT], change * market_return, weight)
        values[s, _MARKET_SQUARE] = _mean(values[s, _MARKET_SQUARE], market_return * market_return, weight)
    if has_market and values[s, _MARKET_SQUARE] > 0.0 and counters[s, _MARKET_SEEN] >= warmup[BETA_168]:
        out[s, BETA_168] = values[s, _MARKET_PRODUCT] / values[s, _MARKET_SQUARE]


def _symbol(values, counters, s, k, o, h, l, c, funding, log_close, change, log_range, log_turnover, turnover, out):
    """Advance one symbol by one good candle and write the features that depend on it alone."""
    w1 = 1.0 / (k + 1)
    slot = k % _RING
    per_close = 1.0 / c
    values[s, _EMA_12] = _mean(values[s, _EMA_12], c, max(w1, _A_12))
    values[s, _EMA_26] = _mean(values[s, _EMA_26], c, max(w1, _A_26))
    values[s, _EMA_48] = _mean(values[s, _EMA_48], c, max(w1, _A_48))
    values[s, _EMA_168] = _mean(values[s, _EMA_168], c, max(w1, _A_168))
    values[s, _MACD_SIGNAL] = _mean(values[s, _MACD_SIGNAL], values[s, _EMA_12] - values[s, _EMA_26], max(w1, _A_9))
    out[s, EMA_RATIO] = values[s, _EMA_12] / values[s, _EMA_48] - 1.0
    out[s, EMA_RATIO_LONG] = values[s, _EMA_48] / values[s, _EMA_168] - 1.0

    if k > 0:
        _movement(values, s, 1.0 / k, h, l, c, per_close, change, out)
        if k >= 4:
            out[s, RETURN_4] = log_close - values[s, _LOGS + _back(slot, 4)]
        if k >= 12:
            out[s, RETURN_12] = log_close - values[s, _LOGS + _back(slot, 12)]
        if k >= 24:
            out[s, RETURN_24] = log_close - values[s, _LOGS + _back(slot, 24)]
        if k >= 72:
            out[s, RETURN_72] = log_close - values[s, _LOGS + _back(slot, 72)]
        if k >= _RING:
            out[s, RETURN_168] = log_close - values[s, _LOGS + slot]
    values[s, _LOGS + slot] = log_close
    values[s, _CLOSE] = c
    values[s, _HIGH] = h
    values[s, _LOW] = l
    values[s, _LOG_CLOSE] = log_close

    _bands(values, s, k, c, per_close, out)
    values[s, _RANGE_SQUARE] = _mean(values[s, _RANGE_SQUARE], log_range * log_range, max(w1, _A_24))
    out[s, RANGE_VOLATILITY_24] = math.sqrt(values[s, _RANGE_SQUARE] * _PARKINSON)
    _volume(values, s, _VOLUME_24, log_turnover, max(w1, _A_24), out, VOLUME_ZSCORE_24)
    _volume(values, s, _VOLUME_168, log_turnover, max(w1, _A_168), out, VOLUME_ZSCORE_168)
    span = h - l
    pressure = 0.0
    if span > 0.0:
        inverse = 1.0 / span
        pressure = (2.0 * c - h - l) * inverse
        out[s, CANDLE_BODY] = (c - o) * inverse
        out[s, UPPER_WICK] = (h - max(o, c)) * inverse
    values[s, _FLOW] = _mean(values[s, _FLOW], pressure * turnover, max(w1, _A_24))
    values[s, _TURNOVER] = _mean(values[s, _TURNOVER], turnover, max(w1, _A_24))
    if values[s, _TURNOVER] > 0.0:
        out[s, MONEY_FLOW_24] = values[s, _FLOW] / values[s, _TURNOVER]

    _channel(values, s, k, slot, h, l, c, per_close, out)
    if counters[s, _FUNDED] > 0 or funding != 0.0:
        counters[s, _FUNDED] += 1
        if funding != 0.0:
            values[s, _FUNDING] = funding
        values[s, _FUNDING_MEAN] = _mean(values[s, _FUNDING_MEAN], funding, max(1.0 / counters[s, _FUNDED], _A_168))
        out[s, FUNDING_RATE] = values[s, _FUNDING]
    counters[s, _SEEN] = k + 1


def step_rows(
    values, counters, market, market_counters, warmup, time_ms, open_, high, low, close, volume, funding, out,
    scratch, status,
):  # fmt: skip
    """Advance the state by one bar and write float32 [S, F] to ``out``; F tells whether market features are wanted."""
    market_wide = out.shape[1] > MARKET_RETURN_1
    longest = 0
    for f in range(FUNDING_RATE):
        longest = max(longest, warmup[f])
    day = 2.0 * math.pi * (time_ms % _DAY_MS) / _DAY_MS
    week = 2.0 * math.pi * ((time_ms - _MONDAY_MS) % _WEEK_MS) / _WEEK_MS
    hour_sin, hour_cos, weekday_sin, weekday_cos = math.sin(day), math.cos(day), math.sin(week), math.cos(week)
    _prepare(values, counters, open_, high, low, close, volume, scratch, status)
    market_row = np.empty(4, dtype=np.float64)
    market_return = np.nan
    if market_wide:
        market_return = _market(values, counters, close, scratch, status, market, market_counters, warmup, market_row)
    level = float(market_counters[_M_LEVEL])
    for s in range(close.shape[0]):
        for f in range(out.shape[1]):
            out[s, f] = np.nan
        if status[s] == _MISSING:
            continue
        k = counters[s, _SEEN]  # the number of candles before this one, and so this candle's number
        change = scratch[_S_RETURN, s]
        _symbol(
            values, counters, s, k, open_[s], high[s], low[s], close[s], funding[s], scratch[_S_LOG_CLOSE, s], change,
            scratch[_S_LOG_RANGE, s], scratch[_S_LOG_TURNOVER, s], scratch[_S_TURNOVER, s], out,
        )  # fmt: skip
        if market_wide:
            linked = status[s] == _LINKED
            _residuals(values, counters, s, k, linked, change, level, market_return, warmup, out)
            out[s, MARKET_RETURN_1] = market_row[0]
            out[s, MARKET_RETURN_24] = market_row[1]
            out[s, MARKET_VOLATILITY_24] = market_row[2]
            out[s, MARKET_BREADTH] = market_row[3]
        if k + 1 < longest:
            for f in range(FUNDING_RATE):
                if k + 1 < warmup[f]:
                    out[s, f] = np.nan
        if counters[s, _FUNDED] >= warmup[FUNDING_MEAN_168]:
            out[s, FUNDING_MEAN_168] = values[s, _FUNDING_MEAN]
        out[s, HOUR_SIN] = hour_sin
        out[s, HOUR_COS] = hour_cos
        out[s, WEEKDAY_SIN] = weekday_sin
        out[s, WEEKDAY_COS] = weekday_cos


def features_of(panel: Panel) -> np.ndarray:
    """Return all features of ``panel``, float32 [T, S, F]."""
    schema, n = FeatureSchema(), panel.n_symbols
    values, counters = np.zeros((n, N_VALUES)), np.zeros((n, N_COUNTERS), dtype=np.int64)
    market, market_counters = np.zeros(N_MARKET_VALUES), np.zeros(N_MARKET_COUNTERS, dtype=np.int64)
    warmup = [spec.warmup for spec in schema.specs]
    scratch, status = np.empty((N_SCRATCH, n)), np.empty(n, dtype=np.int8)
    out = np.empty((panel.n_times, n, len(schema)), dtype=np.float32)
    with np.errstate(all="ignore"):
        for t in range(panel.n_times):
            step_rows(
                values, counters, market, market_counters, warmup, int(panel.open_time[t]), panel.open[t],
                panel.high[t], panel.low[t], panel.close[t], panel.volume[t], panel.funding[t], out[t], scratch, status,
            )  # fmt: skip
            _rank(out[t])
    return out


def _rank(row: np.ndarray) -> None:
    for position, source in enumerate(RANKED):
        known = np.flatnonzero(~np.isnan(row[:, source]))
        if len(known) < MIN_MARKET_SYMBOLS:
            continue
        values = row[known, source]
        below = (values[None, :] < values[:, None]).sum(1)
        ties = (values[None, :] == values[:, None]).sum(1)
        row[known, RETURN_24_RANK + position] = (2 * below + ties - 1) * (0.5 / (len(known) - 1))

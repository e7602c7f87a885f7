"""The compiled step over a symbol's own candles: features out, the state advanced in place.

``advance`` takes one bar or many, live and in training alike, so features are equal to the bit (I13).
``quant.market_kernel`` adds what compares a symbol with the others. ``quant.schema`` holds the rules and the formulas;
a test compares the column numbers below with its names.

Symbols are stepped in blocks of ``LANES``, number by number of the state: the compiler then divides for several symbols
in one instruction, and a block's state stays in the processor's cache for many bars. What looks back at earlier
candles, whose places differ from symbol to symbol, is done one symbol after the other. No fastmath: the compiler must
not reorder sums. Numba's cache notices changes of this file only, so nothing here is imported but the schema's rules.
"""

# numba infers the types of compiled functions.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
import math

import numpy as np
from numba import njit

from quant.schema import MAX_GAP_BARS, MAX_JUMP

LANES = 8  # float64 in a line of the processor's cache

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
N_OWN = 38

# --- rows of a block, each of LANES numbers; a name is the place of its row's first number ---
_RING, _BAND, _DAY = 168, 20, 24


def _rows(first, count):
    return range(first * LANES, (first + count) * LANES, LANES)


# The bar at work: its features (rows 0 to N_OWN), its candle, what `_look_back` found.
_PRESENT, _LINKED, _CHANGE, _SIDE, _HIGH_NOW, _LOW_NOW, _CLOSE_NOW, _LOG_NOW = _rows(N_OWN, 8)
_TOP_24, _BOTTOM_24, _TOP_168, _BOTTOM_168, _TOP_AT, _BOTTOM_AT = _rows(46, 6)
# The state: counters and averages, then rings of the last candles. All zero means that nothing was seen.
_SEEN, _GAP, _FUNDED, _PER_SEEN = _rows(52, 4)
_CLOSE, _HIGH, _LOW, _LOG_CLOSE, _RETURN = _rows(56, 5)
_EMA_12, _EMA_26, _EMA_48, _EMA_168, _MACD_SIGNAL = _rows(61, 5)
_GAIN, _LOSS, _ATR, _PLUS, _MINUS, _ADX = _rows(66, 6)
_SQUARE_24, _SQUARE_48, _SQUARE_168, _RANGE_SQUARE, _DRIFT, _PATH, _LAGGED = _rows(72, 7)
_VOLUME_24, _VARIANCE_24, _VOLUME_168, _VARIANCE_168, _FLOW, _TURNOVER = _rows(79, 6)
_ANCHOR_INVERSE, _DEVIATION, _DEVIATION_SQUARE, _FUNDING, _FUNDING_MEAN = _rows(85, 5)
_BEST_HIGH_24, _BEST_LOW_24, _BEST_HIGH_168, _BEST_HIGH_AT, _BEST_LOW_168, _BEST_LOW_AT = _rows(90, 6)
_CLOSES = 96 * LANES
_LOGS = _CLOSES + _BAND * LANES
_HIGHS_24 = _LOGS + _RING * LANES
_LOWS_24 = _HIGHS_24 + _DAY * LANES
_HIGHS_168 = _LOWS_24 + _DAY * LANES
_LOWS_168 = _HIGHS_168 + 2 * _RING * LANES
N_NUMBERS = _LOWS_168 + 2 * _RING * LANES

# --- rows of a judged candle of a block ---
_GOOD, _C_OPEN, _C_HIGH, _C_LOW, _C_CLOSE, _C_FUNDING = _rows(0, 6)
_C_LOG, _C_LOG_RANGE, _C_LOG_TURNOVER, _C_TURNOVER = _rows(6, 4)
N_CANDLE = 10 * LANES

# --- what the market's kernel is told of each symbol and bar: the candle's number (-1: none), the log return since
# the bar before (NaN: no candle there), and on which side of its settled average the close is (0: not settled) ---
NUMBER, LINKED_RETURN, SIDE_OF_AVERAGE = range(3)
N_NOTES = 3
RANKED = (RETURN_24, VOLATILITY_24, VOLUME_ZSCORE_24)
N_RANKED = len(RANKED)

# --- weights of the exponential means ---
_A_9, _A_12, _A_24, _A_26 = 2 / 10, 2 / 13, 2 / 25, 2 / 27
_A_48, _A_168, _A_WILDER = 2 / 49, 2 / 169, 1 / 14

_MAX_LOG_JUMP = math.log(MAX_JUMP)
_MAX_TURNOVER = 1e18
_SETTLED_EMA_48 = 48
_STILL = 1e-9  # a relative deviation below this is rounding, not movement
_PER_RING, _PER_BAND = 1.0 / _RING, 1.0 / _BAND
_PARKINSON = 1.0 / (4.0 * math.log(2.0))
_DAY_MS, _WEEK_MS = 86_400_000, 604_800_000
_MONDAY_MS = 345_600_000  # 1970-01-05, the first Monday


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _mean(mean, value, weight):
    return mean + weight * (value - mean)


@njit(cache=True, nogil=True, error_model="numpy")
def _judge(begin, until, open_, high, low, close, volume, funding, candles):
    """Judge every candle of the blocks by the rules, take the logarithms, and lay the candles out in blocks."""
    n_times, n_symbols = close.shape
    for t in range(n_times):
        for b in range(begin, until):
            candle = candles[b, t]
            first = b * LANES
            for i in range(LANES):
                candle[_GOOD + i] = 0.0
            for i in range(min(LANES, n_symbols - first)):
                s = first + i
                o, h, l, c, v = open_[t, s], high[t, s], low[t, s], close[t, s], volume[t, s]
                # Every comparison with NaN is false, so a missing candle fails here too.
                if not (
                    l > 0.0
                    and l <= min(o, c)
                    and h >= max(o, c)
                    and l * MAX_JUMP >= c
                    and h <= c * MAX_JUMP
                    and h < np.inf
                    and v >= 0.0
                    and v < np.inf
                ):
                    continue
                turnover = min(v * c, _MAX_TURNOVER)
                candle[_GOOD + i] = 1.0
                candle[_C_OPEN + i] = o
                candle[_C_HIGH + i] = h
                candle[_C_LOW + i] = l
                candle[_C_CLOSE + i] = c
                candle[_C_FUNDING + i] = funding[t, s]
                candle[_C_LOG + i] = math.log(c)
                candle[_C_LOG_RANGE + i] = math.log(h / l)
                candle[_C_LOG_TURNOVER + i] = math.log(1.0 + turnover)
                candle[_C_TURNOVER + i] = turnover


@njit(cache=True, nogil=True, error_model="numpy")
def _restart(w, candle):
    """Let the symbols forget all that have a long gap or a jump behind them."""
    for i in range(LANES):
        if candle[_GOOD + i] > 0.0:
            again = w[_SEEN + i] > 0.0 and abs(candle[_C_LOG + i] - w[_LOG_CLOSE + i]) > _MAX_LOG_JUMP
        else:
            w[_GAP + i] += 1.0 if w[_SEEN + i] > 0.0 else 0.0
            again = w[_GAP + i] > MAX_GAP_BARS
        if again:
            for row in range(_SEEN, N_NUMBERS, LANES):
                w[row + i] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _take(w, candle):
    """Take the candle in and advance the averages of prices.

    A missing candle repeats the last one and weighs nothing, so it leaves every average as it is.
    """
    for i in range(LANES):
        p, k = candle[_GOOD + i], w[_SEEN + i]
        good = p > 0.0
        h = candle[_C_HIGH + i] if good else w[_HIGH + i]
        l = candle[_C_LOW + i] if good else w[_LOW + i]
        c = candle[_C_CLOSE + i] if good else w[_CLOSE + i]
        log_close = candle[_C_LOG + i] if good else w[_LOG_CLOSE + i]
        change = log_close - w[_LOG_CLOSE + i]
        w[_PRESENT + i] = p
        w[_LINKED + i] = p if k > 0.0 and w[_GAP + i] == 0.0 else 0.0
        w[_GAP + i] = 0.0 if good else w[_GAP + i]
        w[_HIGH_NOW + i] = h
        w[_LOW_NOW + i] = l
        w[_CLOSE_NOW + i] = c
        w[_LOG_NOW + i] = log_close
        w[_CHANGE + i] = (change if k > 0.0 else 0.0) if good else w[_RETURN + i]
        w1 = 1.0 / (k + 1.0)
        settled = k >= _SETTLED_EMA_48
        above = 1.0 if c > w[_EMA_48 + i] else -1.0
        ema_12 = _mean(w[_EMA_12 + i], c, p * max(w1, _A_12))
        ema_26 = _mean(w[_EMA_26 + i], c, p * max(w1, _A_26))
        ema_48 = _mean(w[_EMA_48 + i], c, p * max(w1, _A_48))
        ema_168 = _mean(w[_EMA_168 + i], c, p * max(w1, _A_168))
        w[_EMA_12 + i] = ema_12
        w[_EMA_26 + i] = ema_26
        w[_EMA_48 + i] = ema_48
        w[_EMA_168 + i] = ema_168
        w[_MACD_SIGNAL + i] = _mean(w[_MACD_SIGNAL + i], ema_12 - ema_26, p * max(w1, _A_9))
        w[LANES * EMA_RATIO + i] = ema_12 / ema_48 - 1.0
        w[LANES * EMA_RATIO_LONG + i] = ema_48 / ema_168 - 1.0
        w[_SIDE + i] = above if settled else 0.0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _lag(w, i, slot, candles):
    """The log return over the last ``candles``, of which the ring holds the logarithms."""
    back = slot - candles if slot >= candles else slot - candles + _RING
    return w[_LOG_NOW + i] - w[_LOGS + LANES * back + i]


@njit(cache=True, nogil=True, error_model="numpy")
def _close_day(w, i, ring):
    """Turn a full ring of values into the highest from each slot to the end."""
    best = -np.inf
    for at in range(ring + LANES * (_DAY - 1) + i, ring - 1, -LANES):
        best = max(best, w[at])
        w[at] = best


@njit(cache=True, nogil=True, error_model="numpy")
def _close_block(w, i, ring):
    """Turn a full ring of (value, candle) into the highest from each slot to the end; the newer one of equals."""
    best, best_at = -np.inf, 0.0
    for at in range(ring + 2 * LANES * (_RING - 1) + i, ring - 1, -2 * LANES):
        value, value_at = w[at], w[at + LANES]
        higher = value > best
        best = value if higher else best
        best_at = value_at if higher else best_at
        w[at] = best
        w[at + LANES] = best_at


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _highest_of_day(w, i, carried, ring, k, slot, value, found):
    """As `_highest`, over 24 candles and without the candle's number."""
    if slot == 0:
        if k > 0:
            _close_day(w, i, ring)
        w[carried + i] = value
    best = max(w[carried + i], value)
    w[carried + i] = best
    at = ring + LANES * slot + i
    w[at] = value
    if k >= _DAY and slot < _DAY - 1:
        best = max(best, w[at + LANES])
    w[found + i] = best


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _highest(w, i, carried, ring, k, slot, value, found, found_at):
    """Take candle ``k`` in, and note the highest of the newest 168 values and its candle (the newer of equals).

    Candles come in blocks of 168. A window is the end of one block, whose highest values are known since the block
    was full, and the begin of the next, whose highest is carried on (van Herk, Gil and Werman): exact, two comparisons
    a candle whatever the prices do, and none that the processor has to guess.
    """
    if slot == 0:
        if k > 0:
            _close_block(w, i, ring)
        w[carried + i] = value
        w[carried + LANES + i] = k
    best = w[carried + i]
    best_at = w[carried + LANES + i]
    newer = value >= best
    best = value if newer else best
    best_at = float(k) if newer else best_at
    w[carried + i] = best
    w[carried + LANES + i] = best_at
    at = ring + 2 * LANES * slot + i
    w[at] = value
    w[at + LANES] = k
    if k >= _RING and slot < _RING - 1:
        older = w[at + 2 * LANES]
        older_at = w[at + 3 * LANES]
        kept = older > best
        best = older if kept else best
        best_at = older_at if kept else best_at
    w[found + i] = best
    w[found_at + i] = best_at


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _deviations(w, i, k):
    """Advance the running sums of the closes' deviations from an anchor price, for the Bollinger bands.

    Each time the ring has gone round, the newest close becomes the anchor and the sums are taken again from the ring:
    rounding cannot pile up, and what an outlier left behind is gone one round after it left the window.
    """
    slot = k % _BAND
    c = w[_CLOSE_NOW + i]
    if slot == 0:
        w[_CLOSES + i] = c
        w[_ANCHOR_INVERSE + i] = 1.0 / c
        total = 0.0
        square = 0.0
        for past in range(min(k + 1, _BAND)):
            deviation = w[_CLOSES + LANES * past + i] * w[_ANCHOR_INVERSE + i] - 1.0
            total += deviation
            square += deviation * deviation
        w[_DEVIATION + i] = total
        w[_DEVIATION_SQUARE + i] = square
        return
    if k >= _BAND:
        old = w[_CLOSES + LANES * slot + i] * w[_ANCHOR_INVERSE + i] - 1.0
        w[_DEVIATION + i] -= old
        w[_DEVIATION_SQUARE + i] -= old * old
    new = c * w[_ANCHOR_INVERSE + i] - 1.0
    w[_CLOSES + LANES * slot + i] = c
    w[_DEVIATION + i] += new
    w[_DEVIATION_SQUARE + i] += new * new


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _look_back(w, i):
    """Do what needs earlier candles of a symbol: its rings. Too short a history is left to the warm-up."""
    k = np.int64(w[_SEEN + i])  # the number of candles before this one, and so this candle's number
    slot = k % _RING
    w[LANES * RETURN_4 + i] = _lag(w, i, slot, 4)
    w[LANES * RETURN_12 + i] = _lag(w, i, slot, 12)
    w[LANES * RETURN_24 + i] = _lag(w, i, slot, 24)
    w[LANES * RETURN_72 + i] = _lag(w, i, slot, 72)
    w[LANES * RETURN_168 + i] = _lag(w, i, slot, 168)
    w[_LOGS + LANES * slot + i] = w[_LOG_NOW + i]
    _deviations(w, i, k)
    # The lower side of a channel is the highest of the negated lows.
    day, high, low = k % _DAY, w[_HIGH_NOW + i], -w[_LOW_NOW + i]
    _highest_of_day(w, i, _BEST_HIGH_24, _HIGHS_24, k, day, high, _TOP_24)
    _highest_of_day(w, i, _BEST_LOW_24, _LOWS_24, k, day, low, _BOTTOM_24)
    _highest(w, i, _BEST_HIGH_168, _HIGHS_168, k, slot, high, _TOP_168, _TOP_AT)
    _highest(w, i, _BEST_LOW_168, _LOWS_168, k, slot, low, _BOTTOM_168, _BOTTOM_AT)


@njit(cache=True, nogil=True, error_model="numpy")
def _move(w):
    """Advance what is made of changes from candle to candle, with weights that count the changes seen."""
    for i in range(LANES):
        k = w[_SEEN + i]
        h, l, c, change = w[_HIGH_NOW + i], w[_LOW_NOW + i], w[_CLOSE_NOW + i], w[_CHANGE + i]
        moving = w[_PRESENT + i] if k > 0.0 else 0.0
        w0 = w[_PER_SEEN + i]
        wilder = moving * max(w0, _A_WILDER)
        w24, w48, w168 = moving * max(w0, _A_24), moving * max(w0, _A_48), moving * max(w0, _A_168)

        close = w[_CLOSE + i]
        step = c - close
        gain = _mean(w[_GAIN + i], max(step, 0.0), wilder)
        loss = _mean(w[_LOSS + i], max(-step, 0.0), wilder)
        w[_GAIN + i] = gain
        w[_LOSS + i] = loss
        still = _STILL * c
        rsi = 100.0 * gain / (gain + loss)
        w[LANES * RSI_14 + i] = rsi if gain + loss > still else np.nan

        atr = _mean(w[_ATR + i], max(h, close) - min(l, close), wilder)
        w[_ATR + i] = atr
        w[LANES * ATR_PCT + i] = atr * (1.0 / c)
        up = h - w[_HIGH + i]
        down = w[_LOW + i] - l
        plus = _mean(w[_PLUS + i], up if up > down and up > 0.0 else 0.0, wilder)
        minus = _mean(w[_MINUS + i], down if down > up and down > 0.0 else 0.0, wilder)
        w[_PLUS + i] = plus
        w[_MINUS + i] = minus
        moves = atr > still
        per_atr = 1.0 / atr
        directed = plus + minus
        difference = plus - minus
        adx = w[_ADX + i]
        newer = _mean(adx, 100.0 * abs(difference) / directed, wilder)
        adx = newer if moves and directed > 0.0 and moving > 0.0 else adx
        w[_ADX + i] = adx
        macd = w[_EMA_12 + i] - w[_EMA_26 + i] - w[_MACD_SIGNAL + i]
        w[LANES * RANGE_ATR + i] = (h - l) * per_atr if moves else np.nan
        w[LANES * MACD_HIST + i] = macd * per_atr if moves else np.nan
        w[LANES * DI_DIFFERENCE_14 + i] = 100.0 * difference * per_atr if moves else np.nan
        w[LANES * ADX_14 + i] = adx if moves else np.nan

        square = change * change
        square_24 = _mean(w[_SQUARE_24 + i], square, w24)
        square_48 = _mean(w[_SQUARE_48 + i], square, w48)
        square_168 = _mean(w[_SQUARE_168 + i], square, w168)
        drift = _mean(w[_DRIFT + i], change, w24)
        path = _mean(w[_PATH + i], abs(change), w24)
        lagged = _mean(w[_LAGGED + i], change * w[_RETURN + i], w48)
        w[_SQUARE_24 + i] = square_24
        w[_SQUARE_48 + i] = square_48
        w[_SQUARE_168 + i] = square_168
        w[_DRIFT + i] = drift
        w[_PATH + i] = path
        w[_LAGGED + i] = lagged
        w[_RETURN + i] = change
        w[LANES * RETURN_1 + i] = change
        w[LANES * VOLATILITY_24 + i] = math.sqrt(square_24)
        w[LANES * VOLATILITY_168 + i] = math.sqrt(square_168)
        walked = path > _STILL
        ratio, efficiency, correlation = math.sqrt(square_24 / square_168), drift / path, lagged / square_48
        w[LANES * VOLATILITY_RATIO + i] = ratio if walked else np.nan
        w[LANES * EFFICIENCY_24 + i] = efficiency if walked else np.nan
        w[LANES * AUTOCORRELATION_48 + i] = correlation if walked else np.nan
        w[_CLOSE + i] = c
        w[_HIGH + i] = h
        w[_LOW + i] = l
        w[_LOG_CLOSE + i] = w[_LOG_NOW + i]


@njit(cache=True, nogil=True, error_model="numpy")
def _shape(w, candle):
    """Bands, volumes, candle shape, channels and funding. Last: it counts the candle."""
    for i in range(LANES):
        h, l, c, p, k = w[_HIGH_NOW + i], w[_LOW_NOW + i], w[_CLOSE_NOW + i], w[_PRESENT + i], w[_SEEN + i]
        good = p > 0.0
        o = candle[_C_OPEN + i] if good else c
        log_range = candle[_C_LOG_RANGE + i] if good else 0.0
        volume = candle[_C_LOG_TURNOVER + i] if good else 0.0
        turnover = candle[_C_TURNOVER + i] if good else 0.0
        rate = candle[_C_FUNDING + i] if good else 0.0
        w1 = 1.0 / (k + 1.0)
        w24, w168 = p * max(w1, _A_24), p * max(w1, _A_168)

        average = w[_DEVIATION + i] * _PER_BAND
        variance = w[_DEVIATION_SQUARE + i] * _PER_BAND - average * average
        middle = 1.0 + average
        deviation = math.sqrt(max(variance, 0.0))
        width = 4.0 * deviation
        wide = deviation > _STILL * middle
        share, position = width / middle, (c * w[_ANCHOR_INVERSE + i] - middle) / width + 0.5
        w[LANES * BOLLINGER_WIDTH_20 + i] = share if wide else 0.0
        w[LANES * BOLLINGER_POSITION_20 + i] = position if wide else np.nan

        range_square = _mean(w[_RANGE_SQUARE + i], log_range * log_range, w24)
        w[_RANGE_SQUARE + i] = range_square
        w[LANES * RANGE_VOLATILITY_24 + i] = math.sqrt(range_square * _PARKINSON)
        # A z-score is taken against the state before the candle, which then advances.
        delta = volume - w[_VOLUME_24 + i]
        deviation = math.sqrt(w[_VARIANCE_24 + i])
        score = delta / deviation
        w[LANES * VOLUME_ZSCORE_24 + i] = score if deviation > _STILL else np.nan
        w[_VOLUME_24 + i] += w24 * delta
        w[_VARIANCE_24 + i] = (1.0 - w24) * (w[_VARIANCE_24 + i] + w24 * delta * delta)
        delta = volume - w[_VOLUME_168 + i]
        deviation = math.sqrt(w[_VARIANCE_168 + i])
        score = delta / deviation
        w[LANES * VOLUME_ZSCORE_168 + i] = score if deviation > _STILL else np.nan
        w[_VOLUME_168 + i] += w168 * delta
        w[_VARIANCE_168 + i] = (1.0 - w168) * (w[_VARIANCE_168 + i] + w168 * delta * delta)

        span = h - l
        spans = span > 0.0
        inverse = 1.0 / span
        pressure, body, wick = (2.0 * c - h - l) * inverse, (c - o) * inverse, (h - max(o, c)) * inverse
        pressure = pressure if spans else 0.0
        w[LANES * CANDLE_BODY + i] = body if spans else np.nan
        w[LANES * UPPER_WICK + i] = wick if spans else np.nan
        flow = _mean(w[_FLOW + i], pressure * turnover, w24)
        mean_turnover = _mean(w[_TURNOVER + i], turnover, w24)
        w[_FLOW + i] = flow
        w[_TURNOVER + i] = mean_turnover
        money_flow = flow / mean_turnover
        w[LANES * MONEY_FLOW_24 + i] = money_flow if mean_turnover > 0.0 else np.nan

        width, low = w[_TOP_24 + i] + w[_BOTTOM_24 + i], w[_BOTTOM_24 + i]
        position = (c + low) / width
        w[LANES * DONCHIAN_WIDTH_24 + i] = width * (1.0 / c)
        w[LANES * DONCHIAN_POSITION + i] = position if width > 0.0 else np.nan
        width, low = w[_TOP_168 + i] + w[_BOTTOM_168 + i], w[_BOTTOM_168 + i]
        position = (c + low) / width
        w[LANES * DONCHIAN_POSITION_168 + i] = position if width > 0.0 else np.nan
        w[LANES * BARS_SINCE_HIGH_168 + i] = (k - w[_TOP_AT + i]) * _PER_RING
        w[LANES * BARS_SINCE_LOW_168 + i] = (k - w[_BOTTOM_AT + i]) * _PER_RING

        funded, old_mean = w[_FUNDED + i], w[_FUNDING_MEAN + i]
        paying = p > 0.0 and (funded > 0.0 or rate != 0.0)
        funded = funded + 1.0 if paying else funded
        newest = rate if rate != 0.0 else w[_FUNDING + i]
        new_mean = _mean(old_mean, rate, max(1.0 / funded, _A_168))
        w[_FUNDED + i] = funded
        w[_FUNDING + i] = newest
        w[_FUNDING_MEAN + i] = new_mean if paying else old_mean
        w[LANES * FUNDING_RATE + i] = newest if paying else np.nan
        w[LANES * FUNDING_MEAN_168 + i] = w[_FUNDING_MEAN + i]
        w[_PER_SEEN + i] = w1 if p > 0.0 else w[_PER_SEEN + i]
        w[_SEEN + i] = k + p


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _write(w, i, warmup, longest, calendar, out):
    """Write the features float32 [F] of a symbol that has its candle."""
    for f in range(N_OWN):
        out[f] = w[LANES * f + i]
    for f in range(4):
        out[HOUR_SIN + f] = calendar[f]
    seen = w[_SEEN + i]
    if seen < longest:
        for f in range(FUNDING_RATE):
            if seen < warmup[f]:
                out[f] = np.nan
    if w[_FUNDED + i] < warmup[FUNDING_MEAN_168]:
        out[FUNDING_MEAN_168] = np.nan


@njit(cache=True, nogil=True, error_model="numpy")
def advance(
    begin, until, blocks, warmup, times_ms, open_, high, low, close, volume, funding, out, candles, notes, ranked
):
    """Step through float64 [T, S] candles and write the own features of float32 [T, S, F]; the other columns are NaN.

    Only the symbols of the blocks ``begin <= b < until``: no block touches what another one reads or writes.
    ``candles`` float64 [B, T, N_CANDLE] is room to work in. ``notes`` float64 [T, N_NOTES, S] and ``ranked`` float32
    [T, N_RANKED, S], the features of RANKED, are what `quant.market_kernel` goes on with. All may have more bars.
    """
    n_times, n_symbols = close.shape
    longest = 0
    for f in range(FUNDING_RATE):
        longest = max(longest, warmup[f])
    calendar = np.empty((n_times, 4), dtype=np.float32)
    for t in range(n_times):
        day = 2.0 * math.pi * (times_ms[t] % _DAY_MS) / _DAY_MS
        week = 2.0 * math.pi * ((times_ms[t] - _MONDAY_MS) % _WEEK_MS) / _WEEK_MS
        calendar[t, 0], calendar[t, 1] = math.sin(day), math.cos(day)
        calendar[t, 2], calendar[t, 3] = math.sin(week), math.cos(week)
    _judge(begin, until, open_, high, low, close, volume, funding, candles)
    for b in range(begin, until):
        w = blocks[b]
        first = b * LANES
        lanes = min(LANES, n_symbols - first)
        for t in range(n_times):
            candle = candles[b, t]
            _restart(w, candle)
            _take(w, candle)
            for i in range(lanes):
                if w[_PRESENT + i] > 0.0:
                    _look_back(w, i)
            _move(w)
            _shape(w, candle)
            for i in range(lanes):
                s = first + i
                present = w[_PRESENT + i] > 0.0
                if present:
                    _write(w, i, warmup, longest, calendar[t], out[t, s])
                    for f in range(N_OWN, out.shape[2]):
                        out[t, s, f] = np.nan
                else:
                    for f in range(out.shape[2]):
                        out[t, s, f] = np.nan
                notes[t, NUMBER, s] = w[_SEEN + i] - 1.0 if present else -1.0
                notes[t, LINKED_RETURN, s] = w[_CHANGE + i] if w[_LINKED + i] > 0.0 else np.nan
                notes[t, SIDE_OF_AVERAGE, s] = w[_SIDE + i]
                for r, source in enumerate(RANKED):
                    ranked[t, r, s] = out[t, s, source]

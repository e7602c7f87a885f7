"""The compiled loops that compare symbols: the market's own features, what it explains of each symbol, and ranks.

They go on from what ``quant.kernel`` notes of each bar. Ranks follow from finished rows alone; between ``pack_keys``
and ``write_ranks`` NumPy sorts, which is several times faster than a compiled sort here. Numba's cache notices changes
of this file only: columns of the output are counted from the first that is the market's.
"""

# numba infers the types of compiled functions.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
import math

import numpy as np
from numba import njit

from quant.schema import MAX_GAP_BARS, MIN_MARKET_SYMBOLS

LANES = 8  # as in quant.kernel

# --- columns, counted from the first of the market's ---
MARKET_RETURN_1, MARKET_RETURN_24, MARKET_VOLATILITY_24, MARKET_BREADTH = range(4)
BETA_168, RESIDUAL_RETURN_1, RESIDUAL_RETURN_24 = range(4, 7)
RANKS = 7  # the first of the ranks, in the order of ``ranked``
N_RANKS = 3

# --- what is noted of each symbol and bar, as in quant.kernel ---
NOTES = _NUMBER, _LINKED_RETURN, _SIDE_OF_AVERAGE = tuple(range(3))
RANKED_RETURN_24 = 0  # in ``ranked``

# --- rows of a block of LANES symbols: a bar's numbers, then the state ---
_DAY = 24


def _rows(first, count):
    return range(first * LANES, (first + count) * LANES, LANES)


_K, _CHANGE, _LONG_RETURN, _LEVEL_BEFORE, _BETA, _RESIDUAL, _RESIDUAL_24 = _rows(0, 7)
_SEEN, _PRODUCT, _SQUARE = _rows(7, 3)
_LEVELS = 10 * LANES
N_NUMBERS = _LEVELS + _DAY * LANES

# --- the market's state: floats, then integers (a level, two counters, a ring of levels) ---
_M_SQUARE = 0
N_MARKET_VALUES = 1
_M_LEVEL, _M_SEEN, _M_GAP, _M_LEVELS = range(4)
N_MARKET_COUNTERS = _M_LEVELS + _DAY
# What the market's bar gives to the symbols, beside its four features.
_M_RETURN, _M_LEVEL_NOW = 4, 5

_A_24, _A_168 = 2 / 25, 2 / 169
_MAX_MARKET_RETURN = 0.5
# The market's mean is a sum of integers, because a sum of floats depends on the order of the symbols.
_FIXED_POINT = 2.0**40
_NO_RANK = 0xFFFFFFFF  # sorts after every number


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _mean(mean, value, weight):
    return mean + weight * (value - mean)


@njit(cache=True, nogil=True, error_model="numpy")
def _market(market, market_counters, warmup, first, notes, row):
    """Advance the market by one bar; write its features, its return (NaN if there is none) and its level to ``row``."""
    total = np.int64(0)
    members = 0
    settled = 0
    above = 0
    for s in range(notes.shape[1]):
        change = notes[_LINKED_RETURN, s]
        if change != change:
            continue
        total += np.int64(min(max(change, -_MAX_MARKET_RETURN), _MAX_MARKET_RETURN) * _FIXED_POINT)
        members += 1
        settled += notes[_SIDE_OF_AVERAGE, s] != 0.0
        above += notes[_SIDE_OF_AVERAGE, s] > 0.0
    row[:] = np.nan
    row[_M_LEVEL_NOW] = market_counters[_M_LEVEL]
    if members < MIN_MARKET_SYMBOLS:
        market_counters[_M_GAP] += 1
        if market_counters[_M_GAP] > MAX_GAP_BARS:
            # The level goes on: symbols hold differences of it. Only the market's own warm-up starts again.
            market[:] = 0.0
            market_counters[_M_SEEN] = 0
        return
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
    row[_M_RETURN] = row[MARKET_RETURN_1] = value
    row[_M_LEVEL_NOW] = market_counters[_M_LEVEL]
    if seen >= _DAY:
        row[MARKET_RETURN_24] = (market_counters[_M_LEVEL] - market_counters[_M_LEVELS + seen % _DAY]) / _FIXED_POINT
    if seen >= warmup[first + MARKET_VOLATILITY_24]:
        row[MARKET_VOLATILITY_24] = math.sqrt(market[_M_SQUARE])
    if settled >= MIN_MARKET_SYMBOLS:
        row[MARKET_BREADTH] = above / settled


@njit(cache=True, nogil=True, error_model="numpy")
def _explain(w, market_return, level, warm):
    """Beta and what the market does not explain, of a block at one bar."""
    has_market = market_return == market_return
    for i in range(LANES):
        k, change = w[_K + i], w[_CHANGE + i]
        linked = change == change
        again = k == 0.0  # a symbol that starts again forgets
        seen = 0.0 if again else w[_SEEN + i]
        product = 0.0 if again else w[_PRODUCT + i]
        square = 0.0 if again else w[_SQUARE + i]
        ready = has_market and square > 0.0 and seen >= warm
        beta = product / square
        residual = change - beta * market_return
        residual_24 = w[_LONG_RETURN + i] - beta * ((level - w[_LEVEL_BEFORE + i]) / _FIXED_POINT)
        w[_RESIDUAL + i] = residual if ready and linked else np.nan
        w[_RESIDUAL_24 + i] = residual_24 if ready and k >= _DAY else np.nan
        moves = linked and has_market
        seen = seen + 1.0 if moves else seen
        weight = max(1.0 / seen, _A_168)
        newer = _mean(product, change * market_return, weight)
        product = newer if moves else product
        newer = _mean(square, market_return * market_return, weight)
        square = newer if moves else square
        w[_SEEN + i] = seen
        w[_PRODUCT + i] = product
        w[_SQUARE + i] = square
        beta = product / square
        w[_BETA + i] = beta if has_market and square > 0.0 and seen >= warm else np.nan


@njit(cache=True, nogil=True, error_model="numpy")
def compare(blocks, market, market_counters, warmup, first, notes, ranked, out):
    """Advance the market and write its columns (``first`` and on) but the ranks to float32 [T, S, F].

    ``notes`` float64 [T, 3, S] and ``ranked`` float32 [T, 3, S] are those of `quant.kernel.advance`.
    """
    n_times, n_symbols = out.shape[:2]
    bars = np.empty((n_times, 6))
    for t in range(n_times):
        _market(market, market_counters, warmup, first, notes[t], bars[t])
    warm = float(warmup[first + BETA_168])
    for b in range(blocks.shape[0]):
        w = blocks[b]
        lanes = min(LANES, n_symbols - b * LANES)
        for t in range(n_times):
            level = bars[t, _M_LEVEL_NOW]
            for i in range(lanes):
                s = b * LANES + i
                k = notes[t, _NUMBER, s]
                w[_K + i] = k
                w[_CHANGE + i] = notes[t, _LINKED_RETURN, s]
                w[_LONG_RETURN + i] = ranked[t, RANKED_RETURN_24, s]
                if k >= 0.0:
                    # The ring of levels gives the market over the symbol's own candles.
                    at = _LEVELS + LANES * (np.int64(k) % _DAY) + i
                    w[_LEVEL_BEFORE + i] = w[at]
                    w[at] = level
            _explain(w, bars[t, _M_RETURN], level, warm)
            for i in range(lanes):
                if w[_K + i] >= 0.0:
                    row = out[t, b * LANES + i, first:]
                    for f in range(4):
                        row[f] = bars[t, f]
                    row[BETA_168] = w[_BETA + i]
                    row[RESIDUAL_RETURN_1] = w[_RESIDUAL + i]
                    row[RESIDUAL_RETURN_24] = w[_RESIDUAL_24 + i]


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _ordered(value, bits):
    """The bits of a float32 as a number that sorts as the floats do: -0.0 and 0.0 are equal, NaN is the last."""
    if value != value:
        return np.uint64(_NO_RANK)
    b = np.uint64(bits) if value != 0.0 else np.uint64(0)
    return b ^ np.uint64(0xFFFFFFFF) if b & np.uint64(0x80000000) else b | np.uint64(0x80000000)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _low_bits(n_symbols):
    """As many low bits as a symbol's number needs."""
    mask = np.uint64(1)
    while mask + np.uint64(1) < np.uint64(n_symbols):
        mask = mask << np.uint64(1) | np.uint64(1)
    return mask


@njit(cache=True, nogil=True, error_model="numpy")
def pack_keys(ranked, keys):
    """Fill ``keys`` uint32 [T, N_RANKS, S] of ``ranked`` float32 [T, N_RANKS, S]: the high bits of the value, the
    symbol in the low ones.

    Half as wide as value and symbol side by side, which NumPy sorts several times faster; ``write_ranks`` puts in order
    what differs in the low bits only.
    """
    bits = ranked.view(np.uint32)
    low = _low_bits(ranked.shape[2])
    for t in range(ranked.shape[0]):
        for r in range(N_RANKS):
            for s in range(ranked.shape[2]):
                keys[t, r, s] = (_ordered(ranked[t, r, s], bits[t, r, s]) & ~low) | np.uint64(s)


@njit(cache=True, nogil=True, error_model="numpy")
def write_ranks(ranked, keys, first, out):
    """Write percentile ranks from sorted ``keys``: ties share their mean rank, and NaN has none."""
    bits = ranked.view(np.uint32)
    n_symbols = ranked.shape[2]
    low = _low_bits(n_symbols)
    row = np.empty(n_symbols, dtype=np.uint64)
    for t in range(ranked.shape[0]):
        for r in range(N_RANKS):
            n = 0
            for i in range(n_symbols):
                s = np.uint64(keys[t, r, i]) & low
                b = _ordered(ranked[t, r, np.int64(s)], bits[t, r, np.int64(s)])
                if b == np.uint64(_NO_RANK):
                    break
                whole = b << np.uint64(32) | s
                while n > 0 and row[n - 1] > whole:
                    row[n] = row[n - 1]
                    n -= 1
                row[n] = whole
                n = i + 1
            if n < MIN_MARKET_SYMBOLS:
                continue
            scale = 0.5 / (n - 1)
            i = 0
            while i < n:
                j = i
                while j + 1 < n and row[j + 1] >> np.uint64(32) == row[i] >> np.uint64(32):
                    j += 1
                for tied in range(i, j + 1):
                    out[t, np.int64(row[tied] & np.uint64(0xFFFFFFFF)), first + RANKS + r] = (i + j) * scale
                i = j + 1

"""The compiled loops behind ``quant.labels``, which says what they compute."""

# numba infers the types of compiled functions.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import numpy as np
from numba import njit

from quant.labels import STOP, TARGET, TIME


def warm_cache() -> None:
    """Compile the loops and store them on disk."""
    grid = np.full((2, 1), np.nan)
    side = np.zeros((2, 1), dtype=np.int8)
    n32, n8, n64 = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int8), np.empty(0)
    for atr in (grid, grid.astype(np.float32)):
        due = funding_due(grid)
        walk(0, 1, grid, grid, grid, grid, grid, due, side, atr, 2.0, 1.5, 1, 0.0, 0.0, n32, n32, n8, n32, n64, n8, n8)
    weigh(np.empty(0, dtype=np.intp), n32, n32, n32, 0, n64)


@njit(cache=True, nogil=True, error_model="numpy")
def funding_due(funding):
    """Per row, the first row from it on in which any symbol has funding (the number of rows if there is none)."""
    n_times, n_symbols = funding.shape
    due = np.full(n_times + 2, n_times, dtype=np.int64)
    for t in range(n_times - 1, -1, -1):
        due[t] = due[t + 1]
        for s in range(n_symbols):
            if funding[t, s] != 0.0:
                due[t] = t
                break
    return due


@njit(cache=True, nogil=True, error_model="numpy")
def walk(
    begin, until, open_, high, low, close, funding, next_due, side, atr_pct, profit_take, stop_loss, horizon, cost,
    target_cost, t_index, s_index, sides, t1_index, net_return, label, touch,
):  # fmt: skip
    """Walk the path of each sample that is decided in the rows ``begin <= t < until``; return how many were written.

    ``next_due`` is that of `funding_due`.
    """
    n_symbols = side.shape[1]
    count = 0
    # Row by row: neighbouring symbols share cache lines, and the rows of one horizon stay in the cache.
    for t in range(begin, until):
        for s in range(n_symbols):
            if side[t, s] == 0:
                continue
            direction = 1.0 if side[t, s] > 0 else -1.0
            entry = close[t, s]
            width = entry * atr_pct[t, s]
            last = close[t + horizon, s]
            if not (width > 0.0 and last == last):
                continue
            target = entry + direction * profit_take * width
            stop = entry - direction * stop_loss * width
            end = t + horizon
            price = last
            reached = TIME
            # As `quant.fills`: at the target a resting order fills, which a bar that only touches it does not. NaN
            # compares false: a missing candle touches nothing.
            if direction > 0.0:
                for j in range(t + 1, t + horizon + 1):
                    if low[j, s] <= stop:
                        price, reached, end = min(stop, open_[j, s]), STOP, j
                        break
                    if high[j, s] > target:
                        price, reached, end = target, TARGET, j
                        break
            else:
                for j in range(t + 1, t + horizon + 1):
                    if high[j, s] >= stop:
                        price, reached, end = max(stop, open_[j, s]), STOP, j
                        break
                    if low[j, s] < target:
                        price, reached, end = target, TARGET, j
                        break
            ratio = price / entry
            paid = 0.0
            due = next_due[t + 2]
            while due <= end:
                if funding[due, s] != 0.0:
                    mark = open_[due, s]
                    before = due
                    while (
                        mark != mark
                    ):  # the candle is missing: the last price before it counts, at the latest the entry
                        before -= 1
                        mark = close[before, s]
                    paid += direction * funding[due, s] * mark / entry
                due = next_due[due + 1]
            leaving = target_cost if reached == TARGET else cost
            net = direction * (ratio - 1.0) - cost - leaving * ratio - paid
            t_index[count] = t
            s_index[count] = s
            sides[count] = 1 if direction > 0.0 else -1
            t1_index[count] = end
            net_return[count] = net
            label[count] = 1 if net > 0.0 else 0
            touch[count] = reached
            count += 1
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(order, s_index, t_index, t1_index, n_times, weights):
    """Average uniqueness, one symbol after the other; ``order`` lists the samples by symbol."""
    alive = np.zeros(n_times + 2, dtype=np.int64)
    inverse_sum = np.zeros(n_times + 2, dtype=np.float64)
    begin = 0
    while begin < len(order):
        end = begin
        symbol = s_index[order[begin]]
        alive[:] = 0
        while end < len(order) and s_index[order[end]] == symbol:
            alive[t_index[order[end]] + 1] += 1
            alive[t1_index[order[end]] + 1] -= 1
            end += 1
        now = 0
        total = 0.0
        for t in range(n_times):
            now += alive[t]
            if now > 0:
                total += 1.0 / now
            inverse_sum[t + 1] = total
        for i in range(begin, end):
            first, last = t_index[order[i]] + 1, t1_index[order[i]]
            weights[order[i]] = (inverse_sum[last + 1] - inverse_sum[first]) / (last - first + 1)
        begin = end

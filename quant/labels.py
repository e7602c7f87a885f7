"""Triple-barrier labels with costs, and sample weights by uniqueness.

Source: López de Prado, Advances in Financial Machine Learning, 2018: ch. 3.2-3.4 (barriers), 4.2-4.4 (uniqueness).

A trade enters at the close of its decision bar t and lives on the bars after it. Barriers are multiples of ATR:

- the target is filled at its price, also when the bar opened beyond it (no gift is counted);
- the stop is filled at the worse of stop and open, so a jump over it costs what it would have cost;
- a bar that touches both counts as the stop, because candles do not tell which came first;
- the vertical barrier closes the trade at the close of bar t + horizon.

Costs are fee, half the spread and slippage, on the notional of both sides. Funding is charged for every rate that
becomes due while the position is open: rates of the bars t + 2 .. exit, as bar t + 1 opens at the very moment of entry.
A missing candle touches nothing. A sample is dropped when its decision bar or the bar of its vertical barrier is
missing or not in the data yet; dropping it only when no barrier was touched would favour quick touches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from quant.label_spec import LabelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.panel import Panel

TARGET, STOP, TIME = 1, -1, 0


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """n samples ordered by decision bar, then symbol.

    ``t_index``, ``s_index``, ``t1_index`` int32 (decision bar, symbol, bar of the exit), ``side`` int8,
    ``net_return`` float64 (fraction of the entry's notional after costs and funding, positive = profit whatever the
    side), ``label`` int8 (1 iff net_return > 0), ``touch`` int8 (1 target, -1 stop, 0 time).
    """

    t_index: NDArray[np.int32]
    s_index: NDArray[np.int32]
    side: NDArray[np.int8]
    t1_index: NDArray[np.int32]
    net_return: NDArray[np.float64]
    label: NDArray[np.int8]
    touch: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.t_index)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Labels:
        """Return the samples at ``index``."""
        return Labels(*(getattr(self, field.name)[index] for field in fields(self)))


def triple_barrier(panel: Panel, side: NDArray[np.int8], atr_pct: NDArray[np.floating[Any]], spec: LabelSpec) -> Labels:
    """Label every (bar, symbol) that has a side.

    ``side`` int8[T, S] and ``atr_pct`` float[T, S] (ATR / close at the decision bar) belong to ``panel``. A sample
    without a positive ATR is dropped. Raises ValueError for shapes that differ.
    """
    shape = (panel.n_times, panel.n_symbols)
    for name, array in (("side", side), ("atr_pct", atr_pct)):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; it must be the panel's (times, symbols) = {shape}")
    n_most = int(np.count_nonzero(side))
    columns = Labels(
        t_index=np.empty(n_most, dtype=np.int32),
        s_index=np.empty(n_most, dtype=np.int32),
        side=np.empty(n_most, dtype=np.int8),
        t1_index=np.empty(n_most, dtype=np.int32),
        net_return=np.empty(n_most, dtype=np.float64),
        label=np.empty(n_most, dtype=np.int8),
        touch=np.empty(n_most, dtype=np.int8),
    )
    count = _walk(
        panel.open, panel.high, panel.low, panel.close, panel.funding, side, atr_pct,
        float(spec.profit_take), float(spec.stop_loss), int(spec.horizon), spec.cost_per_side,
        columns.t_index, columns.s_index, columns.side, columns.t1_index, columns.net_return, columns.label,
        columns.touch,
    )  # fmt: skip
    return Labels(*(getattr(columns, field.name)[:count] for field in fields(columns)))


def uniqueness_weights(labels: Labels, n_times: int) -> NDArray[np.float64]:
    """Return each sample's average uniqueness in (0, 1], float64[n].

    A sample lives on the bars t + 1 .. t1. Its uniqueness in a bar is 1 / the number of samples of the same symbol that
    live in that bar; its weight is the mean over its bars (López de Prado, snippets 4.1 and 4.2).
    """
    order = np.argsort(labels.s_index, kind="stable")
    weights = np.empty(len(labels), dtype=np.float64)
    _weigh(order, labels.s_index, labels.t_index, labels.t1_index, n_times, weights)
    return weights


def warm_cache() -> None:
    """Compile the label kernels and store them on disk."""
    grid = np.full((2, 1), np.nan)
    side = np.zeros((2, 1), dtype=np.int8)
    n32, n8, n64 = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int8), np.empty(0)
    for atr in (grid, grid.astype(np.float32)):
        _walk(grid, grid, grid, grid, grid, side, atr, 2.0, 1.5, 1, 0.0, n32, n32, n8, n32, n64, n8, n8)
    _weigh(np.empty(0, dtype=np.intp), n32, n32, n32, 0, n64)


@njit(cache=True, nogil=True, error_model="numpy")
def _walk(  # type: ignore[no-untyped-def]  # numba infers the types
    open_, high, low, close, funding, side, atr_pct, profit_take, stop_loss, horizon, cost,
    t_index, s_index, sides, t1_index, net_return, label, touch,
):  # fmt: skip
    """Walk each sample's path; return the number of samples written."""
    n_times, n_symbols = side.shape
    count = 0
    # Row by row: neighbouring symbols share cache lines, and the rows of one horizon stay in the cache.
    for t in range(n_times - horizon):
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
            for j in range(t + 1, t + horizon + 1):
                # NaN compares false: a missing candle touches nothing.
                if direction > 0.0:
                    stopped = low[j, s] <= stop
                    won = high[j, s] >= target
                else:
                    stopped = high[j, s] >= stop
                    won = low[j, s] <= target
                if stopped:
                    price = min(stop, open_[j, s]) if direction > 0.0 else max(stop, open_[j, s])
                    reached = STOP
                    end = j
                    break
                if won:
                    price = target
                    reached = TARGET
                    end = j
                    break
            ratio = price / entry
            paid = 0.0
            mark = entry
            for j in range(t + 1, end + 1):
                if j > t + 1 and funding[j, s] != 0.0:
                    due = open_[j, s]
                    paid += direction * funding[j, s] * (due if due == due else mark) / entry
                if close[j, s] == close[j, s]:
                    mark = close[j, s]
            net = direction * (ratio - 1.0) - cost * (1.0 + ratio) - paid
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
def _weigh(order, s_index, t_index, t1_index, n_times, weights):  # type: ignore[no-untyped-def]  # numba infers them
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

"""Triple-barrier labels with costs, and sample weights by uniqueness.

Source: López de Prado, Advances in Financial Machine Learning, 2018: ch. 3.2-3.4 (barriers), 4.2-4.4 (uniqueness).

A trade enters at the close of its decision bar t and lives on the bars after it: t + 1 is the first in which stop and
target can fill, as in `quant.simulation` and for the orders that the bot rests at the exchange. Barriers are multiples
of ATR, and fill as `quant.fills` says:

- the target is reached when a bar trades *through* it, and filled at its price, also when the bar opened beyond it;
- the stop is filled at the worse of stop and open, so a jump over it costs what it would have cost;
- a bar that reaches both counts as the stop, because candles do not tell which came first;
- the vertical barrier closes the trade at the close of bar t + horizon.

Costs are fee, half the spread and slippage on the notional of each side; a fill at the target, which is a resting limit
order, pays the maker's fee only. Funding is charged for every rate that becomes due while the position is open: rates
of the bars t + 2 .. exit, as bar t + 1 opens at the very moment of entry.
A missing candle touches nothing. A sample is dropped when its decision bar or the bar of its vertical barrier is
missing or not in the data yet; dropping it only when no barrier was touched would favour quick touches.

Web code may import this module: the compiled loops are imported when they are first used.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from quant.label_spec import VERSION, LabelSpec

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

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Labels:
        """Return the samples at ``index``."""
        return Labels(*(getattr(self, field.name)[index] for field in fields(self)))


def triple_barrier(
    panel: Panel,
    side: NDArray[np.int8],
    atr_pct: NDArray[np.floating[Any]],
    spec: LabelSpec,
    *,
    threads: int = 1,
) -> Labels:
    """Label every (bar, symbol) that has a side.

    ``side`` int8[T, S] and ``atr_pct`` float[T, S] (ATR / close at the decision bar) belong to ``panel``. A sample
    without a positive ATR is dropped. Each of the ``threads`` walks a part of the bars. Raises ValueError for shapes
    that differ, and for rules of another version.
    """
    if spec.version != VERSION:
        raise ValueError(f"label version is {spec.version}; this program labels by version {VERSION}: train anew")
    shape = (panel.n_times, panel.n_symbols)
    for name, array in (("side", side), ("atr_pct", atr_pct)):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; it must be the panel's (times, symbols) = {shape}")
    decided = max(0, panel.n_times - spec.horizon)
    bounds = [decided * part // threads for part in range(threads + 1)]
    most = [int(np.count_nonzero(side[begin:until])) for begin, until in pairwise(bounds)]
    room = [0, *accumulate(most)]
    columns = Labels(
        t_index=np.empty(room[-1], dtype=np.int32),
        s_index=np.empty(room[-1], dtype=np.int32),
        side=np.empty(room[-1], dtype=np.int8),
        t1_index=np.empty(room[-1], dtype=np.int32),
        net_return=np.empty(room[-1], dtype=np.float64),
        label=np.empty(room[-1], dtype=np.int8),
        touch=np.empty(room[-1], dtype=np.int8),
    )
    from quant import label_kernel

    due = label_kernel.funding_due(panel.funding)

    def walk(part: int) -> int:
        mine = columns.take(slice(room[part], room[part + 1]))
        count: int = label_kernel.walk(
            bounds[part], bounds[part + 1], panel.open, panel.high, panel.low, panel.close, panel.funding, due, side,
            atr_pct, float(spec.profit_take), float(spec.stop_loss), int(spec.horizon), spec.cost_per_side,
            spec.target_cost, mine.t_index, mine.s_index, mine.side, mine.t1_index, mine.net_return, mine.label,
            mine.touch,
        )  # fmt: skip
        return count

    with ThreadPoolExecutor(max_workers=threads) as pool:
        counts = list(pool.map(walk, range(threads)))
    if counts[:-1] == most[:-1]:  # no part but the last has room left, so there is no hole
        return columns.take(slice(room[-2] + counts[-1]))
    written = [np.arange(first, first + count) for first, count in zip(room, counts, strict=False)]
    return columns.take(np.concatenate(written))


def uniqueness_weights(labels: Labels, n_times: int) -> NDArray[np.float64]:
    """Return each sample's average uniqueness in (0, 1], float64[n].

    A sample lives on the bars t + 1 .. t1. Its uniqueness in a bar is 1 / the number of samples of the same symbol that
    live in that bar; its weight is the mean over its bars (López de Prado, snippets 4.1 and 4.2).
    """
    from quant import label_kernel

    order = np.argsort(labels.s_index, kind="stable")
    weights = np.empty(len(labels), dtype=np.float64)
    label_kernel.weigh(order, labels.s_index, labels.t_index, labels.t1_index, n_times, weights)
    return weights

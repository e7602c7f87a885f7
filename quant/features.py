"""Features of all symbols, one bar at a time: the same compiled step live and in training (I13).

The bot replays the stored candles once at its start and then calls ``step`` once per closed bar; training calls
``replay``, which loops over the very same step. Both must begin at the same candle, the model's ``data_start``: the
state remembers everything. ``quant.schema`` says what each column is and when it is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from quant import kernel, label_kernel
from quant.schema import FeatureSchema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.panel import Panel


# Values per round of step and rank: what the step wrote is still in the cache when it is ranked.
_CHUNK_VALUES = 2**17


@dataclass(slots=True, eq=False)
class FeatureState:
    """All that the step remembers: ``values`` float64[S, K] and ``counters`` int64[S, C] per symbol, and the market."""

    schema: FeatureSchema
    values: NDArray[np.float64]
    counters: NDArray[np.int64]
    market: NDArray[np.float64]
    market_counters: NDArray[np.int64]
    warmup: NDArray[np.int64]
    last_open_ms: int | None = None
    step_ms: int | None = None

    @classmethod
    def create(cls, schema: FeatureSchema, n_symbols: int, *, step_ms: int | None = None) -> FeatureState:
        """Return the state before the first bar. With ``step_ms``, leaving a bar out is an error at the next step."""
        return cls(
            schema=schema,
            values=np.zeros((n_symbols, kernel.N_VALUES)),
            counters=np.zeros((n_symbols, kernel.N_COUNTERS), dtype=np.int64),
            market=np.zeros(kernel.N_MARKET_VALUES),
            market_counters=np.zeros(kernel.N_MARKET_COUNTERS, dtype=np.int64),
            warmup=np.array([spec.warmup for spec in schema.specs], dtype=np.int64),
            step_ms=step_ms,
        )

    @property
    def n_symbols(self) -> int:
        """The number of symbols."""
        return len(self.values)

    def copy(self) -> FeatureState:
        """Return an independent copy, so that a step can be tried and thrown away."""
        return replace(
            self,
            values=self.values.copy(),
            counters=self.counters.copy(),
            market=self.market.copy(),
            market_counters=self.market_counters.copy(),
        )


def step(
    state: FeatureState,
    *,
    open_time_ms: int,
    open: NDArray[np.float64],  # noqa: A002 - the field's name; a PanelRow unpacks into these
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    close: NDArray[np.float64],
    volume: NDArray[np.float64],
    funding: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Advance ``state`` in place by one closed bar and return its features, float32 [S, F].

    Inputs are float64 [S]; a missing candle is NaN; ``funding`` is 0.0 where none was due. Bars must come in order, one
    step apart: a bar in which every candle is missing is stepped, too. Raises ValueError otherwise, before any change.
    """
    columns = [np.ascontiguousarray(each, dtype=np.float64) for each in (open, high, low, close, volume, funding)]
    for name, column in zip(("open", "high", "low", "close", "volume", "funding"), columns, strict=True):
        if column.shape != (state.n_symbols,):
            raise ValueError(
                f"{name} has shape {column.shape}, but the state holds {state.n_symbols} symbols: "
                "pass one value per symbol in the order of the state"
            )
    _check_next(state, open_time_ms)
    out = np.empty((state.n_symbols, len(state.schema)), dtype=np.float32)
    kernel.step_rows(*_arrays(state), open_time_ms, *columns, out, *_scratch(state.n_symbols))
    _rank(state.schema, out[np.newaxis])
    state.last_open_ms = open_time_ms
    return out


def replay(state: FeatureState, panel: Panel, *, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Step through every bar of ``panel`` and return float32 [T, S, F]; ``state`` is then ready for the next bar.

    ``out`` receives the result when given (C order, e.g. a memory map). Raises ValueError for a panel whose symbols or
    first bar do not fit the state.
    """
    shape = (panel.n_times, panel.n_symbols, len(state.schema))
    if panel.n_symbols != state.n_symbols:
        raise ValueError(
            f"the panel has {panel.n_symbols} symbols and the state {state.n_symbols}: create the state for this panel"
        )
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}; it must be float32 {shape} in C order")
    if panel.n_times == 0:
        return out
    if state.step_ms not in (None, panel.step_ms):
        raise ValueError(f"the panel's step is {panel.step_ms} ms and the state's {state.step_ms}: use one timeframe")
    _check_next(state, int(panel.open_time[0]))
    scratch = _scratch(state.n_symbols)
    rows = max(1, _CHUNK_VALUES // (out[0].size + 1))
    for start in range(0, panel.n_times, rows):
        part = slice(start, start + rows)
        kernel.replay_rows(
            *_arrays(state),
            panel.open_time[part],
            panel.open[part],
            panel.high[part],
            panel.low[part],
            panel.close[part],
            panel.volume[part],
            panel.funding[part],
            out[part],
            *scratch,
        )
        _rank(state.schema, out[part])
    state.step_ms = panel.step_ms
    state.last_open_ms = int(panel.open_time[-1])
    return out


def warm_cache() -> None:
    """Compile the kernels and store them on disk, so that no first decision waits for a compiler."""
    schema = FeatureSchema()
    grid, out = np.full((1, 3), np.nan), np.empty((1, 3, len(schema)), dtype=np.float32)
    state = FeatureState.create(schema, 3)
    step(state, open_time_ms=0, **dict.fromkeys(("open", "high", "low", "close", "volume", "funding"), grid[0]))
    times = np.zeros(1, dtype=np.int64)
    kernel.replay_rows(*_arrays(state), times, grid, grid, grid, grid, grid, grid, out, *_scratch(3))
    label_kernel.warm_cache()


def _rank(schema: FeatureSchema, features: NDArray[np.float32]) -> None:
    """Write the cross-sectional ranks into finished rows [T, S, F]."""
    if not schema.market_wide:
        return
    keys = np.empty((features.shape[0], len(kernel.RANKED), features.shape[1]), dtype=np.uint32)
    kernel.pack_keys(features, keys)
    keys.sort(axis=-1)
    kernel.write_ranks(keys, features)


def _check_next(state: FeatureState, open_time_ms: int) -> None:
    if state.last_open_ms is None:
        return
    if open_time_ms <= state.last_open_ms:
        raise ValueError(
            f"bar {open_time_ms} is not after the last bar {state.last_open_ms}: each bar is stepped once, in order"
        )
    if state.step_ms is not None and open_time_ms != state.last_open_ms + state.step_ms:
        raise ValueError(
            f"bar {open_time_ms} does not follow {state.last_open_ms} by {state.step_ms} ms: "
            "step the bars between, with NaN for the candles that are missing"
        )


def _arrays(state: FeatureState) -> tuple[NDArray[np.generic], ...]:
    return (state.values, state.counters, state.market, state.market_counters, state.warmup)


def _scratch(n_symbols: int) -> tuple[NDArray[np.generic], ...]:
    return (np.empty((kernel.N_SCRATCH, n_symbols)), np.empty(n_symbols, dtype=np.int8))

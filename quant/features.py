"""Features of all symbols, one bar at a time: the same compiled step live and in training (I13).

The bot replays the stored candles once at its start and then calls ``step`` once per closed bar; training calls
``replay``, the very same functions over many bars. Both must begin at the same candle, the model's ``data_start``: the
state remembers everything. ``quant.schema`` says what each column is and when it is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quant import kernel, label_kernel, market_kernel
from quant.schema import FeatureSchema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.panel import Panel


# Bars that are stepped at once: a block's state is read once for them, and what they wrote is still in the cache when
# it is compared and ranked.
_CHUNK_BARS = 64


@dataclass(slots=True, eq=False)
class FeatureState:
    """All that the step remembers: of the symbols, in blocks of them, float64 [B, K] each, and of the market.

    ``blocks`` holds a symbol's own candles, ``links`` what it has to do with the market; the kernels say what is where.
    """

    schema: FeatureSchema
    n_symbols: int
    blocks: NDArray[np.float64]
    links: NDArray[np.float64]
    market: NDArray[np.float64]
    market_counters: NDArray[np.int64]
    warmup: NDArray[np.int64]
    last_open_ms: int | None = None
    step_ms: int | None = None

    @classmethod
    def create(cls, schema: FeatureSchema, n_symbols: int, *, step_ms: int | None = None) -> FeatureState:
        """Return the state before the first bar. With ``step_ms``, leaving a bar out is an error at the next step."""
        n_blocks = -(-n_symbols // kernel.LANES)
        return cls(
            schema=schema,
            n_symbols=n_symbols,
            blocks=np.zeros((n_blocks, kernel.N_NUMBERS)),
            links=np.zeros((n_blocks if schema.market_wide else 0, market_kernel.N_NUMBERS)),
            market=np.zeros(market_kernel.N_MARKET_VALUES),
            market_counters=np.zeros(market_kernel.N_MARKET_COUNTERS, dtype=np.int64),
            warmup=np.array([spec.warmup for spec in schema.specs], dtype=np.int64),
            step_ms=step_ms,
        )

    def copy(self) -> FeatureState:
        """Return an independent copy, so that a step can be tried and thrown away."""
        return replace(
            self,
            blocks=self.blocks.copy(),
            links=self.links.copy(),
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
    candles = [column[np.newaxis] for column in columns]
    scratch = _Scratch.create(state, 1)
    _step_symbols(state, scratch, np.array([open_time_ms]), candles, out=out[np.newaxis])
    _compare_symbols(state, scratch, out=out[np.newaxis])
    state.last_open_ms = open_time_ms
    return out


def replay(
    state: FeatureState, panel: Panel, *, out: NDArray[np.float32] | None = None, threads: int = 1
) -> NDArray[np.float32]:
    """Step through every bar of ``panel`` and return float32 [T, S, F]; ``state`` is then ready for the next bar.

    ``out`` receives the result when given (C order, e.g. a memory map). Each of the ``threads`` steps some of the
    symbols, and one compares them; the result is the same to the bit. Raises ValueError for a panel whose symbols or
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
    values = (panel.open, panel.high, panel.low, panel.close, panel.volume, panel.funding)
    scratch = _Scratch.create(state, min(_CHUNK_BARS, panel.n_times))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for start in range(0, panel.n_times, _CHUNK_BARS):
            part = slice(start, start + _CHUNK_BARS)
            candles = [each[part] for each in values]
            _step_symbols(state, scratch, panel.open_time[part], candles, out=out[part], pool=pool, threads=threads)
            _compare_symbols(state, scratch, out=out[part])
    state.step_ms = panel.step_ms
    state.last_open_ms = int(panel.open_time[-1])
    return out


def warm_cache() -> None:
    """Compile the kernels and store them on disk, so that no first decision waits for a compiler."""
    schema = FeatureSchema()
    nothing = np.full(3, np.nan)
    state = FeatureState.create(schema, 3)
    step(state, open_time_ms=0, **dict.fromkeys(("open", "high", "low", "close", "volume", "funding"), nothing))
    label_kernel.warm_cache()


class _Scratch(NamedTuple):
    """What a round of bars is worked out in, kept for the next round; the kernels say what each holds."""

    candles: NDArray[np.float64]
    notes: NDArray[np.float64]
    ranked: NDArray[np.float32]
    keys: NDArray[np.uint32]

    @classmethod
    def create(cls, state: FeatureState, n_times: int) -> _Scratch:
        ranked = (n_times, kernel.N_RANKED, state.n_symbols)
        return cls(
            candles=np.empty((len(state.blocks), n_times, kernel.N_CANDLE)),
            notes=np.empty((n_times, kernel.N_NOTES, state.n_symbols)),
            ranked=np.empty(ranked, dtype=np.float32),
            keys=np.empty(ranked, dtype=np.uint32),
        )


def _step_symbols(
    state: FeatureState,
    scratch: _Scratch,
    times_ms: NDArray[np.int64],
    candles: Sequence[NDArray[np.float64]],
    *,
    out: NDArray[np.float32],
    pool: ThreadPoolExecutor | None = None,
    threads: int = 1,
) -> None:
    """Step each symbol through open, high, low, close, volume and funding float64 [T, S]: its own features, to ``out``.

    What `_compare_symbols` needs of them is left in ``scratch``. Each of the ``threads`` of ``pool`` steps some blocks.
    """

    def step_blocks(begin: int, until: int) -> None:
        kernel.advance(
            begin, until, state.blocks, state.warmup, times_ms, *candles, out, scratch.candles, scratch.notes,
            scratch.ranked,
        )  # fmt: skip

    n_blocks = len(state.blocks)
    if pool is None or threads == 1:
        step_blocks(0, n_blocks)
        return
    bounds = [n_blocks * thread // threads for thread in range(threads + 1)]
    list(pool.map(step_blocks, bounds[:-1], bounds[1:]))  # a list: so that an error of one of them is raised


def _compare_symbols(state: FeatureState, scratch: _Scratch, *, out: NDArray[np.float32]) -> None:
    """Advance the market over the bars that were stepped last with ``scratch``, and write its features to ``out``."""
    if not state.schema.market_wide:
        return
    first, rows = kernel.N_OWN, len(out)
    notes, ranked, keys = scratch.notes[:rows], scratch.ranked[:rows], scratch.keys[:rows]
    market_kernel.compare(state.links, state.market, state.market_counters, state.warmup, first, notes, ranked, out)
    market_kernel.pack_keys(ranked, keys)
    keys.sort(axis=-1)
    market_kernel.write_ranks(ranked, keys, first, out)


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

"""Candles of many symbols on one regular grid of time: rows are bars, columns are symbols."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quant.candles import CandleError
from quant.timeframes import floor_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from quant.candles import Candles

_PRICES_AND_VOLUME = ("open", "high", "low", "close", "volume")
_VALUES = (*_PRICES_AND_VOLUME, "funding")
# Eight float64 are one cache line: filling a block of columns at a time writes whole lines instead of touching each
# line once per symbol.
_BLOCK = 16


class PanelRow(NamedTuple):
    """One bar of every symbol; the fields are the keyword arguments of ``quant.features.step``."""

    open_time_ms: int
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    funding: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Candles and funding of S symbols over T bars.

    ``open_time`` is int64[T] in ms with a constant step; the others are float64[T, S] in C order. A missing candle is
    NaN in open, high, low, close and volume. ``funding`` is the rate (a fraction) that became due at or after a bar's
    open and before its close: 0.0 where none did, never NaN. A bar's funding is therefore known when the bar closes.
    """

    symbols: tuple[str, ...]
    step_ms: int
    open_time: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    funding: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.step_ms <= 0:
            raise ValueError(f"step_ms is {self.step_ms}; it must be above zero: pass timeframe_ms(timeframe)")
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError(f"symbols {self.symbols} repeat; each symbol is one column: drop the duplicates")
        if np.any(np.diff(self.open_time) != self.step_ms):
            raise ValueError(f"open_time is no grid of {self.step_ms} ms; build panels with Panel.from_candles")
        shape = (len(self.open_time), len(self.symbols))
        for name in _VALUES:
            column = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if column.shape != shape:
                raise ValueError(f"{name} has shape {column.shape}; it must be (times, symbols) = {shape}")
            object.__setattr__(self, name, column)

    @property
    def n_times(self) -> int:
        """The number of bars."""
        return len(self.open_time)

    @property
    def n_symbols(self) -> int:
        """The number of symbols."""
        return len(self.symbols)

    @classmethod
    def from_candles(
        cls,
        candles: Mapping[str, Candles],
        step_ms: int,
        *,
        funding: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]] | None = None,
        symbols: Sequence[str] | None = None,
    ) -> Panel:
        """Lay candles on the grid that starts at the earliest candle of any of the symbols and ends at the latest.

        ``funding`` maps a symbol to (times in ms, rates). ``symbols`` selects and orders the columns (default: the
        keys, sorted); one without candles is a column of NaN. Raises CandleError for a candle that is not on the grid.
        """
        chosen = tuple(sorted(candles)) if symbols is None else tuple(symbols)
        present = [candles[symbol] for symbol in chosen if symbol in candles and len(candles[symbol])]
        first = min((int(each.open_time.min()) for each in present), default=0)
        last = max((int(each.open_time.max()) for each in present), default=-step_ms)
        start = floor_ms(first, step_ms)
        shape = ((last - start) // step_ms + 1, len(chosen))
        rows = [_rows(symbol, candles.get(symbol), start, step_ms) for symbol in chosen]
        columns = {
            name: _fill(
                shape, rows, [getattr(candles[s], name) if len(r) else None for s, r in zip(chosen, rows, strict=True)]
            )
            for name in _PRICES_AND_VOLUME
        }
        return cls(
            symbols=chosen,
            step_ms=step_ms,
            open_time=start + step_ms * np.arange(shape[0], dtype=np.int64),
            funding=_lay_funding(shape, chosen, funding or {}, start, step_ms),
            **columns,
        )

    def row(self, index: int) -> PanelRow:
        """Return bar ``index`` as views of shape [S]."""
        return PanelRow(int(self.open_time[index]), *(getattr(self, name)[index] for name in _VALUES))

    def rows(self, start: int, stop: int) -> Panel:
        """Return the bars ``start <= index < stop`` (views)."""
        return Panel(
            symbols=self.symbols,
            step_ms=self.step_ms,
            open_time=self.open_time[start:stop],
            **{name: getattr(self, name)[start:stop] for name in _VALUES},
        )

    def until(self, time_ms: int) -> Panel:
        """Return the bars that are closed at ``time_ms``, that is ``open_time + step_ms <= time_ms`` (views)."""
        return self.rows(0, int(np.searchsorted(self.open_time, time_ms - self.step_ms, side="right")))

    def select(self, symbols: Sequence[str]) -> Panel:
        """Return the columns of ``symbols``, in that order, on the same grid (a copy)."""
        index = [self.symbols.index(symbol) for symbol in symbols]
        return Panel(
            symbols=tuple(symbols),
            step_ms=self.step_ms,
            open_time=self.open_time,
            **{name: getattr(self, name)[:, index] for name in _VALUES},
        )

    def content_hash(self) -> str:
        """Return the sha256 (hex) of symbols, grid and every value; equal data gives equal hashes on every host."""
        digest = hashlib.sha256()
        digest.update(repr((self.symbols, self.step_ms, self.open_time.shape)).encode())
        digest.update(np.ascontiguousarray(self.open_time, dtype="<i8").data)
        for name in _VALUES:
            digest.update(np.ascontiguousarray(getattr(self, name), dtype="<f8").data)
        return digest.hexdigest()


def _rows(symbol: str, candles: Candles | None, start: int, step_ms: int) -> NDArray[np.int64]:
    if candles is None:
        return np.empty(0, dtype=np.int64)
    rows, rest = np.divmod(candles.open_time - start, step_ms)
    if rest.any():
        bad = int(candles.open_time[np.argmax(rest != 0)])
        raise CandleError(
            f"{symbol}: open_time {bad} is not a multiple of the step ({step_ms} ms): check the timeframe"
        )
    return rows


def _fill(
    shape: tuple[int, int], rows: list[NDArray[np.int64]], columns: list[NDArray[np.float64] | None]
) -> NDArray[np.float64]:
    filled = np.empty(shape, dtype=np.float64)
    block = np.empty((_BLOCK, shape[0]), dtype=np.float64)
    for begin in range(0, shape[1], _BLOCK):
        width = min(_BLOCK, shape[1] - begin)
        block[:width] = np.nan
        for offset in range(width):
            column = columns[begin + offset]
            if column is not None:
                block[offset, rows[begin + offset]] = column
        filled[:, begin : begin + width] = block[:width].T
    return filled


def _lay_funding(
    shape: tuple[int, int],
    symbols: tuple[str, ...],
    funding: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    start: int,
    step_ms: int,
) -> NDArray[np.float64]:
    laid = np.zeros(shape, dtype=np.float64)
    for index, symbol in enumerate(symbols):
        if symbol not in funding:
            continue
        times, rates = np.asarray(funding[symbol][0], dtype=np.int64), np.asarray(funding[symbol][1], dtype=np.float64)
        rows = (times - start) // step_ms
        usable = (rows >= 0) & (rows < shape[0]) & np.isfinite(rates)
        # Several payments can fall into one long bar: they add up.
        np.add.at(laid[:, index], rows[usable], rates[usable])
    return laid

"""Candles of one symbol as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quant.timeframes import from_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_PRICES = ("open", "high", "low", "close")
_COLUMNS = (*_PRICES, "volume")


class CandleError(ValueError):
    """Candles break a rule; the message names the row, the value, the rule and the fix."""


@dataclass(frozen=True, slots=True, eq=False)
class Candles:
    """Candles of one symbol in time order, shape [n]: ``open_time`` int64 ms, prices in quote, volume in base units."""

    open_time: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "open_time", np.ascontiguousarray(self.open_time, dtype=np.int64))
        for name in _COLUMNS:
            column = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if column.shape != self.open_time.shape:
                raise CandleError(
                    f"{name} has shape {column.shape} and open_time {self.open_time.shape}; "
                    "all columns must have one value per candle: pass columns of one table"
                )
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.open_time)

    @classmethod
    def empty(cls) -> Candles:
        """Return no candles."""
        nothing = np.empty(0, dtype=np.float64)
        return cls(np.empty(0, dtype=np.int64), nothing, nothing, nothing, nothing, nothing)

    def take(self, index: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Candles:
        """Return the candles at ``index`` (a slice gives views, not copies)."""
        return Candles(self.open_time[index], *(getattr(self, name)[index] for name in _COLUMNS))

    def between(self, start_ms: int, end_ms: int) -> Candles:
        """Return the candles with ``start_ms <= open_time < end_ms``. The candles must be sorted."""
        first, last = np.searchsorted(self.open_time, [start_ms, end_ms], side="left")
        return self.take(slice(int(first), int(last)))

    @classmethod
    def concat(cls, parts: Iterable[Candles]) -> Candles:
        """Merge in time order; where two parts hold the same candle, the one from the later part is kept."""
        pieces = [part for part in parts if len(part)]
        if not pieces:
            return cls.empty()
        merged = cls(
            np.concatenate([piece.open_time for piece in pieces]),
            *(np.concatenate([getattr(piece, name) for piece in pieces]) for name in _COLUMNS),
        )
        steps = np.diff(merged.open_time)
        if np.all(steps > 0):
            return merged
        order = np.argsort(merged.open_time, kind="stable")
        sorted_time = merged.open_time[order]
        is_last = np.append(sorted_time[1:] != sorted_time[:-1], True)
        return merged.take(order[is_last])

    def validate(self, step_ms: int) -> None:
        """Check every candle. Raises CandleError naming the first bad row, its value, the rule and the fix."""
        for name in _COLUMNS:
            column = getattr(self, name)
            self._require(np.isfinite(column), name, "must be a finite number")
            if name == "volume":
                self._require(column >= 0, name, "must not be negative")
            else:
                self._require(column > 0, name, "must be above zero")
        self._require(self.low <= np.minimum(self.open, self.close), "low", "must not be above open or close")
        self._require(self.high >= np.maximum(self.open, self.close), "high", "must not be below open or close")
        self._require(self.open_time % step_ms == 0, "open_time", f"must be a multiple of the step ({step_ms} ms)")
        ascending = np.ones(len(self), dtype=np.bool_)
        ascending[1:] = np.diff(self.open_time) > 0
        self._require(ascending, "open_time", "must be later than the candle before", fix="sort and drop duplicates")

    def _require(
        self, is_good: NDArray[np.bool_], name: str, rule: str, *, fix: str = "fetch this candle again"
    ) -> None:
        if is_good.all():
            return
        row = int(np.argmin(is_good))
        at = from_ms(int(self.open_time[row])).isoformat()
        raise CandleError(f"candle {row} at {at}: {name} is {getattr(self, name)[row]}; it {rule}: {fix}")

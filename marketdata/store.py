"""The candle store: closed candles and funding of every market, on disk, for many readers and one writer.

    <root>/<market>/<timeframe>/<YYYY-MM>.parquet, recent.parquet
    <root>/<market>/funding/<YYYY-MM>.parquet, recent.parquet

`root` is a folder or, for several hosts, a prefix of a bucket (`marketdata.places`).
Readers never lock. There is one writer at a time: the caller holds a lease and passes its check as `guard`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marketdata.monthly import MonthFiles
from marketdata.places import Folder, Place
from marketdata.series_file import Columns
from quant.candles import CandleError, Candles
from quant.panel import Panel
from quant.timeframes import timeframe_ms

CANDLE_COLUMNS = ("open_time", "open", "high", "low", "close", "volume")
FUNDING_COLUMNS = ("time", "rate")
FundingSeries = tuple[NDArray[np.int64], NDArray[np.float64]]
"""(time in ms int64[n], rate as a fraction float64[n]), sorted by time."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def _no_guard() -> None:
    """For callers that are alone by construction (tests, a one-off import)."""


class CandleStore:
    """Reads and writes below `root`, which need not exist yet."""

    def __init__(self, root: Path | Place) -> None:
        self.root = root
        self._place: Place = Folder(root) if isinstance(root, Path) else root

    def write(
        self, market: str, timeframe: str, candles: Mapping[str, Candles], *, guard: Callable[[], None] = _no_guard
    ) -> int:
        """Merge closed candles in; a candle that is stored already is replaced. Returns the number of files changed.

        Everything is validated before anything is written: `CandleError` means the store is unchanged. `guard` is
        called before each rename and stops the write by raising (a lost lease).
        """
        step_ms = timeframe_ms(timeframe)
        files = self._files(market, timeframe, CANDLE_COLUMNS)
        _validate_all(candles, step_ms)
        return files.write({symbol: _columns(series) for symbol, series in candles.items() if len(series)}, guard)

    def read(
        self,
        market: str,
        timeframe: str,
        *,
        symbols: Iterable[str] | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> dict[str, Candles]:
        """Candles with since <= open time < until, sorted by symbol. A symbol without any is left out."""
        timeframe_ms(timeframe)
        files = self._files(market, timeframe, CANDLE_COLUMNS)
        return {
            symbol: Candles(*columns) for symbol, columns in files.read(_frozen(symbols), since_ms, until_ms).items()
        }

    def read_panel(
        self,
        market: str,
        timeframe: str,
        *,
        symbols: Iterable[str] | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Panel:
        """Candles and funding as one panel.

        Features must begin where a training began (I13): `since_ms` is its start, or the model's `data_start`. With
        `symbols`, the panel has exactly these columns, in this order, also for a symbol without candles.
        """
        wanted = None if symbols is None else tuple(symbols)
        candles = self.read(market, timeframe, symbols=wanted, since_ms=since_ms, until_ms=until_ms)
        funding = self.read_funding(market, symbols=candles, since_ms=since_ms, until_ms=until_ms)
        return Panel.from_candles(candles, timeframe_ms(timeframe), funding=funding, symbols=wanted)

    def last_open_times(self, market: str, timeframe: str) -> dict[str, int]:
        """Open time of the newest stored candle per symbol. Reads footers only."""
        timeframe_ms(timeframe)
        return self._files(market, timeframe, CANDLE_COLUMNS).last_times()

    def write_funding(
        self, market: str, funding: Mapping[str, FundingSeries], *, guard: Callable[[], None] = _no_guard
    ) -> int:
        """Merge funding payments in, as `write` does. Raises ValueError if a series is unsorted or not finite."""
        for symbol, (times, rates) in funding.items():
            _check_funding(symbol, times, rates)
        series: dict[str, Columns] = {
            symbol: (times.astype(np.int64), rates.astype(np.float64))
            for symbol, (times, rates) in funding.items()
            if len(times)
        }
        return self._files(market, "funding", FUNDING_COLUMNS).write(series, guard)

    def read_funding(
        self,
        market: str,
        *,
        symbols: Iterable[str] | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> dict[str, FundingSeries]:
        """Funding payments with since <= time < until, sorted by symbol, ready for `Panel.from_candles`."""
        files = self._files(market, "funding", FUNDING_COLUMNS)
        return {
            symbol: (columns[0], columns[1])
            for symbol, columns in files.read(_frozen(symbols), since_ms, until_ms).items()
        }

    def last_funding_times(self, market: str, *, symbols: Iterable[str] | None = None) -> dict[str, int]:
        """Time of the newest stored funding payment per symbol; older months are opened for those of `symbols` only."""
        return self._files(market, "funding", FUNDING_COLUMNS).last_times(_frozen(symbols))

    def _files(self, market: str, folder: str, names: tuple[str, ...]) -> MonthFiles:
        if not _SAFE_NAME.fullmatch(market):
            raise ValueError(f"market={market!r} cannot be a folder name; use letters, digits, '_' and '-' only")
        return MonthFiles(self._place / market / folder, names)


def _frozen(symbols: Iterable[str] | None) -> frozenset[str] | None:
    return None if symbols is None else frozenset(symbols)


def _validate_all(candles: Mapping[str, Candles], step_ms: int) -> None:
    """`Candles.validate` for all at once: an append is one candle of each of many symbols. Names the symbol."""
    filled = [series for series in candles.values() if len(series)]
    if not filled:
        return
    time, opened, high, low, close, volume = (
        np.concatenate(columns) for columns in zip(*map(_columns, filled), strict=True)
    )
    is_first = np.zeros(len(time), dtype=np.bool_)
    is_first[np.cumsum([0, *(len(series) for series in filled[:-1])])] = True
    is_good = (low > 0) & (low <= opened) & (low <= close) & (high >= opened) & (high >= close) & (volume >= 0)
    is_good &= np.isfinite(high) & np.isfinite(volume) & (time % step_ms == 0)
    is_good[1:] &= (np.diff(time) > 0) | is_first[1:]
    if is_good.all():
        return
    for symbol, series in candles.items():
        try:
            series.validate(step_ms)
        except CandleError as error:
            raise CandleError(f"{symbol}: {error}") from error


def _columns(candles: Candles) -> Columns:
    return (candles.open_time, candles.open, candles.high, candles.low, candles.close, candles.volume)


def _check_funding(symbol: str, times: NDArray[np.int64], rates: NDArray[np.float64]) -> None:
    if len(times) != len(rates):
        raise ValueError(f"funding of {symbol}: {len(times)} times, {len(rates)} rates; give one rate per time")
    if len(times) > 1 and not (np.diff(times) > 0).all():
        row = int(np.flatnonzero(np.diff(times) <= 0)[0]) + 1
        raise ValueError(f"funding of {symbol}: time {times[row]} in row {row} does not ascend; sort, drop duplicates")
    if not np.isfinite(rates).all():
        row = int(np.flatnonzero(~np.isfinite(rates))[0])
        raise ValueError(f"funding of {symbol}: rate {rates[row]} in row {row} is not finite; leave the row out")

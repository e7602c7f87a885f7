"""A folder of Parquet files with real candles: `<market>/<timeframe | funding>/<SYMBOL>.parquet`.

Only reads, lazily, one file at a time. Knows nothing of time: `exchanges.replay` decides what is visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exchanges.errors import ConfigurationError, MarketDataError
from quant.candles import Candles
from quant.timeframes import TIMEFRAMES

_QUOTES = ("USDT", "USDC", "FDUSD", "BUSD", "TUSD", "USD", "BTC", "ETH", "EUR")
_CANDLE_COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
_FUNDING_COLUMNS = ("timestamp", "funding_rate")
_FUNDING = "funding"


@dataclass(frozen=True, slots=True)
class ArchiveSymbol:
    """A symbol of an archive. `stem` is the name of its files."""

    symbol: str
    base: str
    quote: str
    is_spot: bool
    stem: str


class Archive:
    """One market of an archive. Raises ConfigurationError, naming what exists, if there is nothing to read."""

    def __init__(self, root: Path, market: str) -> None:
        self._folder = Path(root) / market
        if not Path(root).is_dir():
            raise ConfigurationError(
                f"CANDLE_ARCHIVE={root} is not a folder; set it to the folder that holds "
                "<market>/<timeframe>/<SYMBOL>.parquet"
            )
        if not market or not self._folder.is_dir():
            found = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
            raise ConfigurationError(
                f"EXCHANGE_MARKET={market!r} is not in the archive {root}; "
                f"choose one of: {', '.join(found) or 'nothing'}"
            )
        self.market = market
        self._files: dict[str, dict[str, Path]] = {}
        self.symbols: dict[str, ArchiveSymbol] = {}
        for folder in (*TIMEFRAMES, _FUNDING):
            for path in sorted((self._folder / folder).glob("*.parquet")):
                known = parse_stem(path.stem, market)
                if folder != _FUNDING:
                    self.symbols[known.symbol] = known
                self._files.setdefault(folder, {})[known.symbol] = path
        if not self.symbols:
            raise ConfigurationError(
                f"the archive folder {self._folder} holds no candles; it needs <timeframe>/<SYMBOL>.parquet with a "
                f"timeframe of {', '.join(TIMEFRAMES)}"
            )
        self._candles: dict[tuple[str, str], Candles] = {}
        self._funding: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}

    def timeframes(self, symbol: str | None = None) -> tuple[str, ...]:
        """Timeframes with a file (of that symbol), finest first."""
        return tuple(
            name for name in TIMEFRAMES if name in self._files and (symbol is None or symbol in self._files[name])
        )

    @property
    def has_funding(self) -> bool:
        return _FUNDING in self._files

    def candles(self, symbol: str, timeframe: str) -> Candles:
        """Everything in the file. Read-only arrays, kept in memory."""
        key = (symbol, timeframe)
        if key not in self._candles:
            times, *prices = self._read(symbol, self._files[timeframe][symbol], _CANDLE_COLUMNS)
            self._candles[key] = Candles(times.astype(np.int64, copy=False), *prices)
        return self._candles[key]

    def span(self, symbol: str, timeframe: str) -> tuple[int, int] | None:
        """Open times of the first and last candle, None without candles: from the file's footer where it has them.

        Raises MarketDataError for a file that is cut off or lacks a column.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._files[timeframe][symbol]
        try:
            with pq.ParquetFile(path) as file:
                footer, names = file.metadata, file.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(symbol, path, error) from error
        _require_columns(symbol, path, names, _CANDLE_COLUMNS)
        column = names.index("timestamp")
        groups = [footer.row_group(row).column(column).statistics for row in range(footer.num_row_groups)]
        if all(group is not None and group.has_min_max for group in groups):
            bounds = [(int(group.min), int(group.max)) for group in groups]
            return (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else None
        times = self.candles(symbol, timeframe).open_time
        return (int(times[0]), int(times[-1])) if len(times) else None

    def funding(self, symbol: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(times, rates) of the file; empty if there is none."""
        if symbol not in self._funding:
            path = self._files.get(_FUNDING, {}).get(symbol)
            if path is None:
                self._funding[symbol] = (np.empty(0, dtype=np.int64), np.empty(0))
            else:
                times, rates = self._read(symbol, path, _FUNDING_COLUMNS)
                self._funding[symbol] = (times.astype(np.int64), rates)
        return self._funding[symbol]

    def _read(self, symbol: str, path: Path, names: tuple[str, ...]) -> list[NDArray[np.float64]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                table = file.read(columns=list(names))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(symbol, path, error) from error
        _require_columns(symbol, path, table.column_names, names)
        columns = [table.column(name).to_numpy() for name in names]
        for name, column in zip(names, columns, strict=True):
            if column.dtype.kind not in "iuf" or (name == "timestamp" and column.dtype.kind == "f"):
                raise MarketDataError(
                    symbol,
                    f"{path}: column {name} holds {column.dtype}; it must hold "
                    f"{'whole numbers (ms since 1970)' if name == 'timestamp' else 'numbers'}, none missing",
                )
        steps = np.diff(columns[0])
        if len(steps) and not (steps > 0).all():
            row = int(np.flatnonzero(steps <= 0)[0]) + 1
            raise MarketDataError(symbol, f"{path}: timestamp {columns[0][row]} in row {row} does not ascend; sort it")
        for column in columns:
            column.flags.writeable = False  # callers get views of what is kept here
        return columns


def _unreadable(symbol: str, path: Path, error: Exception) -> MarketDataError:
    return MarketDataError(symbol, f"{path} cannot be read ({error}); restore the file from its source")


def _require_columns(symbol: str, path: Path, present: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in present]
    if missing:
        raise MarketDataError(symbol, f"{path} lacks the columns {', '.join(missing)}; it needs {', '.join(names)}")


def parse_stem(stem: str, market: str) -> ArchiveSymbol:
    """`BTCUSDT` -> `BTC/USDT` in a spot market, else the perpetual `BTC/USDT:USDT`."""
    is_spot = market.endswith("spot")
    for quote in _QUOTES:
        base = stem.removesuffix(quote)
        if base and base != stem:
            symbol = f"{base}/{quote}" if is_spot else f"{base}/{quote}:{quote}"
            return ArchiveSymbol(symbol=symbol, base=base, quote=quote, is_spot=is_spot, stem=stem)
    raise ConfigurationError(
        f"the archive of {market} holds {stem}.parquet, whose name ends in none of the quote currencies "
        f"{', '.join(_QUOTES)}; name files like BTCUSDT.parquet"
    )

"""One Parquet file of many time series: its layout, how it is written, and how it is read.

A file is sorted by (symbol, time). How many rows each symbol has stands in the footer, so a reader never decodes the
symbol column, and the newest times are known without reading data. Float columns are byte-stream-split + LZ4 (30 bytes
a candle), time and symbol are dictionaries, every page carries a CRC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marketdata.errors import BucketError, StoreError
from marketdata.places import Place

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Columns = tuple[NDArray[Any], ...]
"""(time int64[n], value float64[n], ...): one series, sorted by time, times unique."""

_LAYOUT_KEY = b"layout"
_ROW_GROUP_ROWS = 65_536  # ~90 symbols of hourly candles: one symbol's page reads 1/6 of a month of 500
_CODEC = "lz4"
"""Real candles: half of zstd's CPU to write (57 against 115 ns a row) and to read (25, 56), for 4.5 % more bytes. Files
say their codec, so older ones in zstd stay readable."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The footer's own table of contents: rows and last time per symbol, in file order."""

    symbols: tuple[str, ...]
    counts: tuple[int, ...]
    last_times: tuple[int, ...]

    def to_json(self) -> bytes:
        return json.dumps(
            {"symbols": self.symbols, "counts": self.counts, "last_times": self.last_times}, separators=(",", ":")
        ).encode()

    def groups(self) -> list[tuple[int, int]]:
        """(first, last) symbol of each row group: as many whole symbols as begin within one group's rows."""
        bounds: list[tuple[int, int]] = []
        first = rows = 0
        for index, count in enumerate(self.counts):
            rows += count
            if rows >= _ROW_GROUP_ROWS or index == len(self.counts) - 1:
                bounds.append((first, index + 1))
                first, rows = index + 1, 0
        return bounds

    @classmethod
    def from_json(cls, text: bytes) -> Layout:
        raw = json.loads(text)
        return cls(tuple(raw["symbols"]), tuple(raw["counts"]), tuple(raw["last_times"]))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of many series in one block per column, sorted by (symbol, time): for small files that are often written.

    `symbols` are sorted and unique, `counts` int64[symbols] says how many rows each has. Views: copy to keep.
    """

    symbols: tuple[str, ...]
    counts: NDArray[np.int64]
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def ends(self) -> NDArray[np.int64]:
        """The row after each symbol's last one."""
        return self.counts.cumsum()

    @classmethod
    def of(cls, series: Mapping[str, Columns]) -> Rows:
        """Put series together; there is at least one."""
        ordered = sorted(series)
        counts = np.array([len(series[symbol][0]) for symbol in ordered], dtype=np.int64)
        return cls(
            tuple(ordered),
            counts,
            tuple(np.concatenate(parts) for parts in zip(*(series[symbol] for symbol in ordered), strict=True)),
        )

    def series(self) -> Iterator[tuple[str, Columns]]:
        """(symbol, columns), one after the other."""
        for symbol, end, count in zip(self.symbols, self.ends.tolist(), self.counts.tolist(), strict=True):
            yield symbol, tuple(column[end - count : end] for column in self.columns)

    def chosen(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows for which `keep` bool[rows] is true."""
        if keep.all():
            return self
        owner = np.repeat(np.arange(len(self.symbols)), self.counts)
        counts = np.bincount(owner[keep], minlength=len(self.symbols))
        symbols = tuple(symbol for symbol, count in zip(self.symbols, counts.tolist(), strict=True) if count)
        return Rows(symbols, counts[counts > 0], tuple(column[keep] for column in self.columns))

    def followed_by(self, later: Rows) -> Rows:
        """All rows of both; each symbol's own come first."""
        symbols = sorted({*self.symbols, *later.symbols})
        number = {symbol: i for i, symbol in enumerate(symbols)}
        owner = np.concatenate([np.repeat([number[s] for s in part.symbols], part.counts) for part in (self, later)])
        order = np.argsort(owner, kind="stable")
        return Rows(
            tuple(symbols),
            np.bincount(owner, minlength=len(symbols)),
            tuple(np.concatenate(both)[order] for both in zip(self.columns, later.columns, strict=True)),
        )


@dataclass(frozen=True)
class SeriesFile:
    """An open file whose footer was checked."""

    path: Place
    version: object
    file: pq.ParquetFile
    layout: Layout
    names: tuple[str, ...]

    @cached_property
    def rows(self) -> int:
        return sum(self.layout.counts)

    @cached_property
    def last_times(self) -> dict[str, int]:
        """Newest time of each symbol."""
        return dict(zip(self.layout.symbols, self.layout.last_times, strict=True))

    def counts(self, symbols: frozenset[str] | None = None) -> dict[str, int]:
        """Rows of each wanted symbol (None: of all)."""
        rows = zip(self.layout.symbols, self.layout.counts, strict=True)
        return {symbol: count for symbol, count in rows if symbols is None or symbol in symbols}

    def pieces(
        self, symbols: frozenset[str] | None = None, since_ms: int | None = None
    ) -> Iterator[tuple[str, Columns]]:
        """(symbol, columns) of the wanted symbols that have rows from `since_ms` on, with all their rows.

        Reads only the row groups that hold such a symbol. Views: copy to keep.
        """
        for number, (first, last) in enumerate(self.layout.groups()):
            wanted = [
                (symbols is None or symbol in symbols) and (since_ms is None or newest >= since_ms)
                for symbol, newest in zip(
                    self.layout.symbols[first:last], self.layout.last_times[first:last], strict=True
                )
            ]
            if not any(wanted):
                continue
            columns = self._columns([number])
            start = 0
            for index, is_wanted in enumerate(wanted, first):
                end = start + self.layout.counts[index]
                if is_wanted:
                    yield self.layout.symbols[index], tuple(column[start:end] for column in columns)
                start = end

    def all_rows(self) -> Rows:
        """Everything at once."""
        counts = np.array(self.layout.counts, dtype=np.int64)
        return Rows(self.layout.symbols, counts, self._columns(range(self.file.num_row_groups)))

    def _columns(self, groups: Iterable[int]) -> Columns:
        import pyarrow as pa

        try:
            table = self.file.read_row_groups(list(groups), columns=list(self.names))
        except BucketError as error:
            raise StoreError.unreachable(self.path, error) from error
        except (pa.ArrowException, OSError) as error:
            raise StoreError.unreadable(self.path, error) from error
        return tuple(table.column(name).to_numpy() for name in self.names)


def open_series(stack: ExitStack, place: Place, name: str, names: tuple[str, ...]) -> SeriesFile | None:
    """Open a file for as long as `stack` lives, and check its footer. None: there is no such file.

    Raises StoreError for a file that is torn, rotten or not ours. A file that is replaced later is read as it was, or
    (in a bucket) its reads raise ReplacedMeanwhile.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = place / name
    try:
        stored = place.find(name)
        if stored is None:
            return None
        # A file's pages are read as they are needed; an object's in few large requests.
        file = stack.enter_context(
            pq.ParquetFile(
                stored.source, page_checksum_verification=True, pre_buffer=not isinstance(stored.source, Path)
            )
        )
    except BucketError as error:
        raise StoreError.unreachable(path, error) from error
    except (pa.ArrowException, OSError) as error:
        raise StoreError.unreadable(path, error) from error
    text = (file.schema_arrow.metadata or {}).get(_LAYOUT_KEY)
    if text is None or tuple(file.schema_arrow.names) != ("symbol", *names):
        raise StoreError.unreadable(path, ValueError("it was not written by this program"))
    layout = Layout.from_json(text)
    rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    if rows != [sum(layout.counts[first:last]) for first, last in layout.groups()]:
        raise StoreError.unreadable(path, ValueError("its footer does not fit its rows"))
    return SeriesFile(path, stored.version, file, layout, names)


def write_series(file: IO[bytes], names: Sequence[str], series: Mapping[str, Sequence[Columns]]) -> None:
    """Write the parts of each series one after the other. `names` are the column names, the first is the time."""
    ordered = sorted(series)
    layout = Layout(
        tuple(ordered),
        tuple(sum(len(part[0]) for part in series[symbol]) for symbol in ordered),
        tuple(int(series[symbol][-1][0][-1]) for symbol in ordered),
    )

    def columns(first: int, last: int) -> Columns:
        parts = [part for symbol in ordered[first:last] for part in series[symbol]]
        return tuple(np.concatenate([part[i] for part in parts]) for i in range(len(names)))

    _write(file, names, layout, columns)


def write_rows(file: IO[bytes], names: Sequence[str], rows: Rows) -> None:
    """Write what is in one block already; there is at least one row."""
    ends = rows.ends
    layout = Layout(rows.symbols, tuple(rows.counts.tolist()), tuple(rows.columns[0][ends - 1].tolist()))
    bounds = [0, *ends.tolist()]
    _write(
        file, names, layout, lambda first, last: tuple(column[bounds[first] : bounds[last]] for column in rows.columns)
    )


def _write(file: IO[bytes], names: Sequence[str], layout: Layout, columns: Callable[[int, int], Columns]) -> None:
    """Write what `columns` gives of the symbols from `first` to before `last`.

    Row groups hold whole symbols, so that a reader finds each series in one piece, without a copy.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.dictionary(pa.int32(), pa.string()), pa.int64(), *[pa.float64()] * (len(names) - 1)]
    schema = pa.schema(zip(("symbol", *names), types, strict=True), metadata={_LAYOUT_KEY: layout.to_json()})
    with pq.ParquetWriter(
        file,
        schema,
        compression=_CODEC,
        use_dictionary=["symbol", names[0]],
        use_byte_stream_split=list(names[1:]),
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for first, last in layout.groups():
            symbols = layout.symbols[first:last]
            codes = np.repeat(np.arange(len(symbols), dtype=np.int32), layout.counts[first:last])
            arrays = [pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(symbols, pa.string()))]
            arrays += map(pa.array, columns(first, last))
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=max(len(codes), 1))

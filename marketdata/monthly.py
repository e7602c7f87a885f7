"""Month files: many time series in one Parquet file per calendar month, and one small file of the newest rows.

    <YYYY-MM>.parquet   all rows of a month
    recent.parquet      rows of the newest month that are newer than those of its file

Why this layout (measured, reference/performance.md): all symbols of a month in one file reads 3 x faster than a file
per symbol and appends 100 x cheaper, and a rename is the only write that a reader without locks never sees half done.
But one more row per symbol must not cost as much as all rows of the month: where a month is large, it goes into the
recent file, and when that is full, all of it into the month's file (a *fold*).

**The month file wins.** A row of the recent file counts while it is newer than its symbol's last row in the month file.
So a fold is one replacement, of the month's file: in the same moment the rows of the recent file count no more, and
they stay until the next append replaces them. Nothing is ever removed, and whoever is killed leaves the one or the
other. Before a newer month is begun, the recent rows of the one before are folded.

Readers open the recent file first, then list the months, then open them from the newest to the oldest: whatever a fold
makes disappear from the recent file after that is in a month that is opened later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from marketdata.errors import BucketError, StoreError
from marketdata.places import Place, ReplacedMeanwhile
from marketdata.series_file import Columns, Rows, SeriesFile, open_series, write_rows, write_series
from quant.timeframes import DAY_MS

RECENT = "recent.parquet"
"""Whoever copies a store that is written to must copy this file before the months."""
RECENT_ROWS = 12_000
"""Of the recent file at most: a day of 500 symbols, 1h. A month of fewer rows is cheap enough to be written anew."""
_SUFFIX = ".parquet"
_TRIES = 5
"""Of a read or a merge that a writer came between: with one writer at a time, the second succeeds."""
_NEVER, _FOR_EVER = -(2**62), 2**62
"""In ms: before and after any time of a candle."""
_T = TypeVar("_T")


def month_of(time_ms: int) -> str:
    """`2024-05` for a time in May 2024 UTC: the stem of the month's file."""
    return _month_of_day(time_ms // DAY_MS)


@lru_cache(maxsize=16_384)
def _month_of_day(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m")


@lru_cache(maxsize=1_024)
def month_bounds(stem: str) -> tuple[int, int]:
    """[start, end) of a month in ms. Raises ValueError if `stem` is not `YYYY-MM`."""
    year, month = int(stem[:4]), int(stem[5:7])
    start = datetime(year, month, 1, tzinfo=UTC)
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return int(start.timestamp() * 1000), int(end.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class _Recent:
    """The recent file. All of its rows are of one month."""

    stem: str
    file: SeriesFile


@dataclass(frozen=True, slots=True)
class _Month:
    """A month: its file (None: it has none), and the recent file if that is of this month."""

    file: SeriesFile | None
    recent: SeriesFile | None

    def counts(self, symbols: frozenset[str] | None) -> dict[str, int]:
        """How many rows `pieces` yields of each wanted symbol, at most."""
        found = {} if self.file is None else self.file.counts(symbols)
        for symbol, count in ({} if self.recent is None else self.recent.counts(symbols)).items():
            found[symbol] = found.get(symbol, 0) + count
        return found

    def last_times(self) -> dict[str, int]:
        """Newest time of each symbol."""
        found = {} if self.recent is None else dict(self.recent.last_times)
        for symbol, time in ({} if self.file is None else self.file.last_times).items():
            found[symbol] = max(time, found.get(symbol, time))
        return found

    def newer(
        self, symbols: frozenset[str] | None = None, since_ms: int | None = None, until_ms: int | None = None
    ) -> Rows | None:
        """The rows of the recent file that count, of wanted symbols with since <= time < until. None: no such row."""
        if self.recent is None:
            return None
        known = {} if self.file is None else self.file.last_times
        if all(known.get(symbol, _NEVER) >= time for symbol, time in self.recent.last_times.items()):
            return None  # all of it was folded
        rows = self.recent.all_rows()
        after = _NEVER if since_ms is None else since_ms - 1
        passed = [
            max(known.get(symbol, _NEVER), after) if symbols is None or symbol in symbols else _FOR_EVER
            for symbol in rows.symbols
        ]
        keep = rows.columns[0] > np.repeat(np.array(passed, dtype=np.int64), rows.counts)
        if until_ms is not None:
            keep &= rows.columns[0] < until_ms
        return rows.chosen(keep) if keep.any() else None


class MonthFiles:
    """The month files of one place. `names` are the column names, the first is the time."""

    def __init__(self, place: Place, names: Sequence[str]) -> None:
        self._place = place
        self._names = tuple(names)

    # ------------------------------------------------------------------ read
    def read(
        self, symbols: frozenset[str] | None = None, since_ms: int | None = None, until_ms: int | None = None
    ) -> dict[str, Columns]:
        """Series with since <= time < until, sorted by symbol; symbols without rows are left out.

        All series are parts of one block per column, filled month by month: nothing is copied twice, and at most one
        month is held besides the result. Files stay open from the count to the copy, so a month that is replaced in
        between changes nothing (in a bucket: begins the read anew).
        """
        return self._again(lambda: self._read(symbols, since_ms, until_ms))

    def _read(self, symbols: frozenset[str] | None, since_ms: int | None, until_ms: int | None) -> dict[str, Columns]:
        with ExitStack() as stack:
            months = list(self._newest_first(stack, since_ms, until_ms))[::-1]
            room: dict[str, int] = {}
            for month in months:
                for symbol, count in month.counts(symbols).items():
                    room[symbol] = room.get(symbol, 0) + count
            ordered = sorted(room)
            starts = dict(zip(ordered, np.cumsum([0, *(room[symbol] for symbol in ordered)]).tolist(), strict=False))
            ends = dict(starts)
            total = sum(room.values())
            block = [np.empty(total, dtype=np.int64 if i == 0 else np.float64) for i in range(len(self._names))]
            for month in months:
                for symbol, columns in () if month.file is None else month.file.pieces(symbols, since_ms):
                    first = 0 if since_ms is None else int(columns[0].searchsorted(since_ms))
                    last = len(columns[0]) if until_ms is None else int(columns[0].searchsorted(until_ms))
                    if first >= last:
                        continue
                    at, ends[symbol] = ends[symbol], ends[symbol] + last - first
                    for target, column in zip(block, columns, strict=True):
                        target[at : ends[symbol]] = column[first:last]
                newer = month.newer(symbols, since_ms, until_ms)
                if newer is not None:
                    _add(newer, block, ends)
        return {
            symbol: tuple(column[starts[symbol] : ends[symbol]] for column in block)
            for symbol in ordered
            if ends[symbol] > starts[symbol]
        }

    def last_times(self, symbols: frozenset[str] | None = None) -> dict[str, int]:
        """Newest stored time per symbol, from the footers alone, back to the month in which the last one is found."""
        return self._again(lambda: self._last_times(symbols))

    def _last_times(self, symbols: frozenset[str] | None) -> dict[str, int]:
        newest: dict[str, int] = {}
        with ExitStack() as stack:
            for month in self._newest_first(stack):
                for symbol, time in month.last_times().items():
                    if symbols is None or symbol in symbols:
                        newest.setdefault(symbol, time)
                if symbols is not None and symbols <= newest.keys():
                    break
        return newest

    def _newest_first(
        self, stack: ExitStack, since_ms: int | None = None, until_ms: int | None = None
    ) -> Iterator[_Month]:
        """The months with times in [since, until), each opened when it is asked for."""
        recent = self._open_recent(stack)
        listed = self._stems()
        for stem in sorted({*listed, *(() if recent is None else (recent.stem,))}, reverse=True):
            if _overlaps(month_bounds(stem), since_ms, until_ms):
                month = self._open_month(stack, stem, recent)
                if month.file is None and stem in listed:  # moved away since
                    raise StoreError.unreadable(self._place / _name(stem), FileNotFoundError("it is gone"))
                yield month

    # ----------------------------------------------------------------- write
    def write(self, series: Mapping[str, Columns], guard: Callable[[], None]) -> int:
        """Merge `series` in; the newer value wins. Returns how many files changed (0: everything was known).

        Every month is complete or untouched, and older months are written before newer ones. `guard` runs before each
        rename, and may raise to stop: months that were replaced before stay, they are whole and true.
        """
        months: dict[str, dict[str, Columns]] = {}
        for symbol, columns in series.items():
            for stem, part in _split_by_month(columns):
                months.setdefault(stem, {})[symbol] = part
        if not months:
            return 0
        guard()
        self._place.prepare()
        return sum(self._again(partial(self._write_month, stem, months[stem], guard)) for stem in sorted(months))

    def _again(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, begun anew when a file that it read was replaced before it was through.

        A writer whose lease is gone ends here, too: `guard` raises when it is called the next time.
        """
        for _ in range(_TRIES):
            try:
                return work()
            except ReplacedMeanwhile as error:
                last = error
            except BucketError as error:
                raise StoreError.unreachable(self._place, error) from error
        raise StoreError(last, f"was replaced {_TRIES} times while it was used", "look who else writes to this store")

    def _write_month(self, stem: str, new: Mapping[str, Columns], guard: Callable[[], None]) -> int:
        """Store rows of one month; returns how many files changed."""
        with ExitStack() as stack:
            recent = self._open_recent(stack)
            changed = 0
            if recent is not None and recent.stem < stem:
                changed += self._merge(recent.stem, self._open_month(stack, recent.stem, recent), {}, guard)
            month = self._open_month(stack, stem, recent)
            if self._is_append(stem, month, new):
                newer, rows = month.newer(), Rows.of(new)
                if newer is not None:
                    rows = newer.followed_by(rows)
                if len(rows) <= RECENT_ROWS:
                    old = None if recent is None else recent.file
                    self._replace(RECENT, old, lambda file: write_rows(file, self._names, rows), guard)
                    return changed + 1
            return changed + self._merge(stem, month, new, guard)

    def _is_append(self, stem: str, month: _Month, new: Mapping[str, Columns]) -> bool:
        """Whether all rows are newer than those of their symbol, in the newest month, and that is a large one."""
        if month.file is None or month.file.rows < RECENT_ROWS or stem < max(self._stems()):
            return False
        last = month.last_times()
        return all(symbol not in last or columns[0][0] > last[symbol] for symbol, columns in new.items())

    def _merge(self, stem: str, month: _Month, new: Mapping[str, Columns], guard: Callable[[], None]) -> int:
        """Write the month's file anew, with the recent rows and the new ones. 0: the new ones are known."""
        merged: dict[str, list[Columns]] = {}
        newer = month.newer()
        for symbol, columns in () if month.file is None else month.file.pieces():
            merged[symbol] = [columns]
        for symbol, columns in () if newer is None else newer.series():
            merged.setdefault(symbol, []).append(columns)
        changed = not new and newer is not None
        for symbol, columns in new.items():
            old = merged.setdefault(symbol, [])
            if not old or columns[0][0] > old[-1][0][-1]:
                old.append(columns)
                changed = True
            else:
                before = old[0] if len(old) == 1 else tuple(map(np.concatenate, zip(*old, strict=True)))
                both = _union(before, columns)
                if any(not np.array_equal(a, b) for a, b in zip(both, before, strict=True)):
                    merged[symbol], changed = [both], True
        if changed:
            self._replace(_name(stem), month.file, lambda file: write_series(file, self._names, merged), guard)
        return int(changed)

    def _replace(
        self, name: str, old: SeriesFile | None, write: Callable[[IO[bytes]], None], guard: Callable[[], None]
    ) -> None:
        self._place.replace(name, write, version=None if old is None else old.version, guard=guard)

    # ----------------------------------------------------------------- files
    def _stems(self) -> list[str]:
        stems = [name.removesuffix(_SUFFIX) for name in self._place.names(_SUFFIX) if name != RECENT]
        for stem in stems:
            try:
                month_bounds(stem)
            except ValueError:
                raise StoreError(
                    self._place / _name(stem), "its name is not YYYY-MM", "move it out of the store"
                ) from None
        return stems

    def _open_recent(self, stack: ExitStack) -> _Recent | None:
        file = open_series(stack, self._place, RECENT, self._names)
        if file is None:
            return None
        stems = {month_of(time) for time in file.layout.last_times}
        if len(stems) != 1:
            raise StoreError.unreadable(file.path, ValueError("its rows are not of one month"))
        return _Recent(stems.pop(), file)

    def _open_month(self, stack: ExitStack, stem: str, recent: _Recent | None) -> _Month:
        file = open_series(stack, self._place, _name(stem), self._names)
        return _Month(file, recent.file if recent is not None and recent.stem == stem else None)


def _name(stem: str) -> str:
    return f"{stem}{_SUFFIX}"


def _overlaps(bounds: tuple[int, int], since_ms: int | None, until_ms: int | None) -> bool:
    return (since_ms is None or bounds[1] > since_ms) and (until_ms is None or bounds[0] < until_ms)


def _add(rows: Rows, block: Sequence[NDArray[Any]], ends: dict[str, int]) -> None:
    """Put rows behind those that each symbol has in `block`, where `ends` says; moves `ends`."""
    at = np.array([ends[symbol] for symbol in rows.symbols], dtype=np.int64)
    place = np.arange(len(rows)) + np.repeat(at - (rows.ends - rows.counts), rows.counts)
    for target, column in zip(block, rows.columns, strict=True):
        target[place] = column
    ends.update(zip(rows.symbols, (at + rows.counts).tolist(), strict=True))


def _split_by_month(columns: Columns) -> Iterator[tuple[str, Columns]]:
    times = columns[0]
    position = 0
    while position < len(times):
        stem = month_of(int(times[position]))
        if position == 0 and times[-1] < month_bounds(stem)[1]:
            yield stem, columns
            return
        end = int(times.searchsorted(month_bounds(stem)[1]))
        yield stem, tuple(column[position:end] for column in columns)
        position = end


def _union(old: Columns, new: Columns) -> Columns:
    """Union by time; where both have a time, `new` wins."""
    kept = ~np.isin(old[0], new[0], assume_unique=True)
    joined = tuple(np.concatenate([a[kept], b]) for a, b in zip(old, new, strict=True))
    order = np.argsort(joined[0], kind="stable")
    return tuple(column[order] for column in joined)

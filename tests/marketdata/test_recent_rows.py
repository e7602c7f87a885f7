"""The recent file: what is appended to a large month is read at once and whole, through folds, kills and month ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from marketdata import monthly
from marketdata.bucket import Bucket
from marketdata.errors import StoreError
from marketdata.monthly import RECENT, MonthFiles
from marketdata.places import TEMPORARY, Folder, Place
from marketdata.store import CandleStore
from tests.marketdata.test_candle_store import COLUMNS, START, LeaseLostError, candles_at, equal, files_of

A, B, C = SYMBOLS = ("A/USDT:USDT", "B/USDT:USDT", "C/USDT:USDT")
ROWS = 40
"""Of the recent file in these tests: thirteen appends to three symbols, then a fold."""
JANUARY = 31 * 24
FIRST = 700
"""Hours in the store when a test begins: the month is large, and ends after 44 more."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monthly, "RECENT_ROWS", ROWS)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that write much and kill no process."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def begun(place: Place | Path, hours: int = FIRST) -> CandleStore:
    store = CandleStore(place)
    store.write("x_um", "1h", {symbol: candles_at(np.arange(hours)) for symbol in SYMBOLS})
    return store


def append(store: CandleStore, hour: int) -> None:
    store.write("x_um", "1h", {symbol: candles_at([hour]) for symbol in SYMBOLS})


def hours_of(found: dict[str, Any]) -> int:
    """How many hours were read; every one is there, for every symbol, with its values."""
    [hours] = {len(series) for series in found.values()}
    assert list(found) == list(SYMBOLS)
    assert all(equal(series, candles_at(np.arange(hours))) for series in found.values())
    return hours


# --- Which file takes what ---


def test_an_append_to_a_large_month_writes_the_recent_file_only_until_that_is_full(tmp_path: Path) -> None:
    store = begun(tmp_path)
    month, recent = tmp_path / "x_um/1h/2024-01.parquet", tmp_path / "x_um/1h" / RECENT
    before = month.read_bytes()
    for hour in range(FIRST, FIRST + 13):
        append(store, hour)
        assert month.read_bytes() == before
        assert hours_of(store.read("x_um", "1h")) == hour + 1
    small_size = recent.stat().st_size
    append(store, FIRST + 13)
    assert month.read_bytes() != before, "folded"
    assert hours_of(store.read("x_um", "1h")) == FIRST + 14
    stale, folded = recent.read_bytes(), month.read_bytes()
    assert len(stale) == small_size, "what was folded stays until the next append"
    append(store, FIRST + 14)
    assert month.read_bytes() == folded
    assert recent.stat().st_size < small_size
    assert hours_of(store.read("x_um", "1h")) == FIRST + 15
    assert sorted(files_of(tmp_path)) == ["x_um/1h/2024-01.parquet", f"x_um/1h/{RECENT}"]


def test_a_small_store_has_months_only(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    for hour in range(ROWS // 3 + 1):
        append(store, hour)
    assert list(files_of(tmp_path)) == ["x_um/1h/2024-01.parquet"]


def test_the_recent_rows_are_folded_before_a_newer_month_begins(tmp_path: Path) -> None:
    store = begun(tmp_path, JANUARY - 2)
    append(store, JANUARY - 2)
    append(store, JANUARY - 1)
    january, february = (tmp_path / f"x_um/1h/2024-0{number}.parquet" for number in (1, 2))
    before, seen = january.read_bytes(), []

    def guard() -> None:
        seen.append((january.read_bytes() != before, february.exists()))

    store.write("x_um", "1h", {A: candles_at([JANUARY])}, guard=guard)
    assert seen == [(False, False), (False, False), (True, False)], "at first, before the fold, before the new month"
    (tmp_path / "x_um/1h" / RECENT).unlink()
    found = store.read("x_um", "1h")
    assert len(found[A]) == JANUARY + 1
    assert len(found[B]) == JANUARY


def test_a_correction_of_a_recent_row_holds_and_the_stale_one_never_returns(place: Place) -> None:
    store = begun(place)
    append(store, FIRST)
    assert store.write("x_um", "1h", {B: candles_at([FIRST], 5)}) == 1
    for hour in range(FIRST + 1, FIRST + 4):
        expected = {symbol: candles_at(np.arange(hour)) for symbol in (A, C)}
        found = store.read("x_um", "1h")
        assert all(equal(found[symbol], expected[symbol]) for symbol in expected)
        assert equal(
            found[B].between(START + FIRST * 3_600_000, START + (FIRST + 1) * 3_600_000), candles_at([FIRST], 5)
        )
        assert store.last_open_times("x_um", "1h") == {s: int(candles_at([hour - 1]).open_time[0]) for s in SYMBOLS}
        append(store, hour)


def test_writing_a_recent_row_again_changes_no_file(place: Place) -> None:
    store = begun(place)
    append(store, FIRST)
    assert store.write("x_um", "1h", {A: candles_at([FIRST - 1, FIRST])}) == 0


def test_a_symbol_that_is_only_in_the_recent_file_is_found(place: Place) -> None:
    store = begun(place)
    assert store.write("x_um", "1h", {"NEW/USDT:USDT": candles_at([5, 6])}) == 1
    assert (place / "x_um" / "1h").names("") == ["2024-01.parquet", RECENT]
    assert list(store.read("x_um", "1h")) == [A, B, C, "NEW/USDT:USDT"]
    assert equal(store.read("x_um", "1h", symbols=["NEW/USDT:USDT"])["NEW/USDT:USDT"], candles_at([5, 6]))


def test_the_newest_of_a_symbol_is_found_behind_stale_recent_rows(tmp_path: Path) -> None:
    store = begun(tmp_path)
    append(store, FIRST)
    store.write("x_um", "1h", {A: candles_at([FIRST, FIRST + 1, FIRST + 2], 1)})
    files = store._files("x_um", "1h", COLUMNS)
    assert files.last_times(frozenset([A])) == {A: int(candles_at([FIRST + 2]).open_time[0])}
    assert files.last_times() == {s: int(candles_at([FIRST + 2 * (s == A)]).open_time[0]) for s in SYMBOLS}


def test_a_torn_or_foreign_recent_file_is_named_and_a_month_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    store = begun(tmp_path)
    append(store, FIRST)
    recent, month = tmp_path / "x_um/1h" / RECENT, tmp_path / "x_um/1h/2024-01.parquet"
    whole = recent.read_bytes()
    recent.write_bytes(whole[:-9])
    with pytest.raises(StoreError, match=r"recent\.parquet: cannot be read .*manage\.py backfill"):
        store.read("x_um", "1h")
    recent.write_bytes(whole)
    month.unlink()
    assert {symbol: len(series) for symbol, series in store.read("x_um", "1h").items()} == dict.fromkeys(SYMBOLS, 1)
    store.write("x_um", "1h", {symbol: candles_at(np.arange(FIRST)) for symbol in SYMBOLS})
    assert hours_of(store.read("x_um", "1h")) == FIRST + 1


def test_reading_one_symbol_of_late_opens_one_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begun(tmp_path)
    append(store, FIRST)
    opened: list[str] = []
    original = MonthFiles._open_month
    monkeypatch.setattr(
        MonthFiles,
        "_open_month",
        lambda self, stack, stem, recent: opened.append(stem) or original(self, stack, stem, recent),
    )
    found = store.read("x_um", "1h", symbols=[A], since_ms=START + FIRST * 3_600_000)
    assert equal(found[A], candles_at([FIRST]))
    assert opened == ["2024-01"]


# --- Any sequence of writes and kills ---


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Deadly:
    """A place whose writer is killed at the replacement that `at` counts, before or after the file appeared."""

    inner: Place
    state: dict[str, Any] = field(default_factory=lambda: {"left": None, "after": False})

    def __truediv__(self, name: str) -> Deadly:
        return Deadly(self.inner / name, self.state)

    def names(self, suffix: str) -> list[str]:
        return self.inner.names(suffix)

    def find(self, name: str) -> Any:
        return self.inner.find(name)

    def prepare(self) -> None:
        self.inner.prepare()

    def replace(
        self, name: str, write: Callable[[IO[bytes]], None], *, version: object, guard: Callable[[], None]
    ) -> None:
        dies = self.state["left"] == 0
        if self.state["left"] is not None:
            self.state["left"] -= 1
        if dies and not self.state["after"]:
            if isinstance(self.inner, Folder):  # a real kill cleans nothing up
                (self.inner.path / f".{name}.1-1{TEMPORARY}").write_bytes(b"half")
            raise Killed
        self.inner.replace(name, write, version=version, guard=guard)
        if dies:
            raise Killed


Model = dict[str, dict[int, int]]
"""Symbol -> hour -> version."""


def stored(store: CandleStore) -> Model:
    found: Model = {}
    for symbol, series in store.read("x_um", "1h").items():
        hours = (series.open_time - START) // 3_600_000
        versions = np.rint((series.open - 100.0 - hours) * 16).astype(int)
        assert (np.diff(hours) > 0).all()
        assert np.array_equal(series.volume, series.open * 10)
        assert np.array_equal(series.close, series.open + 1)
        found[symbol] = dict(zip(hours.tolist(), versions.tolist(), strict=True))
    return found


def with_months(model: Model, rows: Model, months: int) -> Model:
    """The model after the oldest `months` months of `rows` were written."""
    stems = sorted({hour >= JANUARY for series in rows.values() for hour in series})[:months]
    new = {symbol: dict(series) for symbol, series in model.items()}
    for symbol, series in rows.items():
        part = {hour: version for hour, version in series.items() if (hour >= JANUARY) in stems}
        if part:
            new.setdefault(symbol, {}).update(part)
    return new


appends = st.tuples(st.just("append"), st.sets(st.sampled_from(SYMBOLS), min_size=1), st.integers(1, 9))
others = st.tuples(
    st.just("write"), st.sets(st.sampled_from(SYMBOLS), min_size=1), st.integers(660, 800), st.integers(1, 60)
)
kills = st.none() | st.tuples(st.integers(0, 2), st.booleans())


def check_any_sequence(place: Place, steps: list[tuple[Any, Any]], window: tuple[int, int]) -> None:
    deadly = Deadly(place)
    store = begun(deadly, 720)
    model: Model = {symbol: dict.fromkeys(range(720), 0) for symbol in SYMBOLS}
    for version, (step, kill) in enumerate(steps, 1):
        if step[0] == "append":
            first = {symbol: max(model[symbol]) + 1 for symbol in step[1]}
            rows = {symbol: dict.fromkeys(range(at, at + step[2]), version) for symbol, at in first.items()}
        else:
            rows = {symbol: dict.fromkeys(range(step[2], step[2] + step[3]), version) for symbol in step[1]}
        deadly.state |= {"left": None, "after": False} if kill is None else {"left": kill[0], "after": kill[1]}
        allowed = [with_months(model, rows, months) for months in (0, 1, 2)]
        try:
            store.write("x_um", "1h", {symbol: candles_at(list(part), version) for symbol, part in rows.items()})
        except Killed:
            event(f"killed at {kill}")
        else:
            allowed = allowed[-1:]
        event(f"recent: {RECENT in (place / 'x_um' / '1h').names('')}")
        found = stored(store)
        assert found in allowed
        model = found
        assert store.last_open_times("x_um", "1h") == {s: START + max(part) * 3_600_000 for s, part in model.items()}
    low, high = window[0], window[0] + window[1]
    for wanted in ([B], list(SYMBOLS)):
        series = store.read(
            "x_um", "1h", symbols=wanted, since_ms=START + low * 3_600_000, until_ms=START + high * 3_600_000
        )
        counted = {s: sum(low <= hour < high for hour in model[s]) for s in wanted}
        assert {s: len(each) for s, each in series.items()} == {s: n for s, n in counted.items() if n}


sequences = given(
    steps=st.lists(st.tuples(appends | appends | others, kills), min_size=1, max_size=12),
    window=st.tuples(st.integers(650, 800), st.integers(1, 100)),
)


@pytest.mark.usefixtures("unsynced")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@sequences
def test_f24_any_sequence_of_writes_appends_folds_and_kills_reads_as_a_plain_dict(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, Any]], window: tuple[int, int]
) -> None:
    check_any_sequence(Folder(tmp_path_factory.mktemp("store")), steps, window)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@sequences
def test_f24_the_same_in_a_bucket(bucket: Bucket, steps: list[tuple[Any, Any]], window: tuple[int, int]) -> None:
    count = sum(1 for _ in bucket.entries())
    check_any_sequence(bucket / f"example-{count}-{os.urandom(4).hex()}", steps, window)


# --- Two writers, of which one has lost its lease ---


def late_append(store: CandleStore, hour: int, meanwhile: Callable[[], object], *, lost: bool) -> None:
    """Append to A as a process that is frozen right before its file appears."""
    calls: list[int] = []

    def guard() -> None:
        calls.append(1)
        if len(calls) == 2:
            meanwhile()
        if lost and len(calls) > 2:
            raise LeaseLostError

    store.write("x_um", "1h", {A: candles_at([hour])}, guard=guard)


@pytest.fixture(params=["append", "fold", "correction"])
def successor(request: pytest.FixtureRequest) -> Callable[[CandleStore], object]:
    """What another writer does meanwhile."""
    rows = {
        "append": {B: candles_at([FIRST])},
        "fold": {B: candles_at(np.arange(FIRST, FIRST + ROWS))},
        "correction": {B: candles_at(np.arange(FIRST - 5, FIRST + 1))},
    }[request.param]
    return lambda store: store.write("x_um", "1h", rows)


def test_a_writer_that_was_overtaken_loses_nothing_of_either(
    place: Place,
    successor: Callable[[CandleStore], object],
) -> None:
    store = begun(place)
    store.write("x_um", "1h", {A: candles_at([FIRST])})
    late_append(store, FIRST + 1, lambda: successor(CandleStore(place)), lost=False)
    found = store.read("x_um", "1h")
    assert equal(found[A], candles_at(np.arange(FIRST + 2)))
    assert len(found[B]) > FIRST
    assert equal(found[B], candles_at(np.arange(len(found[B]))))


def test_i6_a_zombie_takes_nothing_from_its_successor(
    place: Place,
    successor: Callable[[CandleStore], object],
) -> None:
    store = begun(place)
    store.write("x_um", "1h", {A: candles_at([FIRST])})
    with contextlib.suppress(LeaseLostError):
        late_append(store, FIRST + 1, lambda: successor(CandleStore(place)), lost=True)
    found = store.read("x_um", "1h")
    assert len(found[A]) >= FIRST + 1
    assert equal(found[A], candles_at(np.arange(len(found[A]))))
    assert len(found[B]) > FIRST
    assert equal(found[B], candles_at(np.arange(len(found[B]))))

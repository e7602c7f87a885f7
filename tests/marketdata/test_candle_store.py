"""The candle store: what was written is read, whole, whoever writes, reads or dies meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata import series_file
from marketdata.errors import StoreError
from marketdata.monthly import MonthFiles, month_bounds, month_of
from marketdata.store import CandleStore
from quant.candles import CandleError, Candles
from quant.timeframes import DAY_MS, HOUR_MS

ROOT = Path(__file__).resolve().parents[2]
START = 1_704_067_200_000  # 2024-01-01 UTC
COLUMNS = ("open_time", "open", "high", "low", "close", "volume")


def candles_at(hours: list[int] | np.ndarray, version: int = 0) -> Candles:
    """Candles at START + hours; every value tells its hour and its version."""
    index = np.array(hours, dtype=np.int64)
    base = 100.0 + index + version / 16
    return Candles(START + index * HOUR_MS, base, base + 2, base - 2, base + 1, base * 10)


def equal(a: Candles, b: Candles) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# --- What was written is read ---


@settings(max_examples=40)
@given(
    writes=st.lists(
        st.tuples(
            st.sampled_from(["A/USDT:USDT", "B/USDT:USDT", "C/USDT"]), st.integers(0, 1_500), st.integers(1, 900)
        ),
        min_size=1,
        max_size=6,
    ),
    since=st.integers(0, 2_500),
    length=st.integers(0, 1_500),
)
def test_f24_writes_in_any_order_with_any_overlap_read_as_their_union_and_the_last_wins(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, int, int]], since: int, length: int
) -> None:
    store = CandleStore(tmp_path_factory.mktemp("store"))
    expected: dict[str, Candles] = {}
    for version, (symbol, first, count) in enumerate(writes):
        candles = candles_at(np.arange(first, first + count), version)
        store.write("x_um", "1h", {symbol: candles})
        expected[symbol] = Candles.concat([expected.get(symbol, Candles.empty()), candles])
    found = store.read("x_um", "1h")
    assert list(found) == sorted(expected)
    assert all(equal(found[symbol], expected[symbol]) for symbol in expected)
    assert store.last_open_times("x_um", "1h") == {s: int(c.open_time[-1]) for s, c in expected.items()}
    low, high = START + since * HOUR_MS, START + (since + length) * HOUR_MS
    window = store.read("x_um", "1h", symbols=["B/USDT:USDT", "none"], since_ms=low, until_ms=high)
    part = expected.get("B/USDT:USDT", Candles.empty()).between(low, high)
    assert list(window) == (["B/USDT:USDT"] if len(part) else [])
    assert all(equal(each, part) for each in window.values())


def test_months_that_were_written_with_another_codec_are_read_and_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, symbol = CandleStore(tmp_path), "A/USDT:USDT"
    monkeypatch.setattr(series_file, "_CODEC", "zstd")
    store.write("x_um", "1h", {symbol: candles_at(np.arange(24))})
    (path,) = tmp_path.rglob("*.parquet")
    assert pq.ParquetFile(path).metadata.row_group(0).column(2).compression == "ZSTD"
    monkeypatch.undo()
    store.write("x_um", "1h", {symbol: candles_at(np.arange(24, 30))})
    assert pq.ParquetFile(path).metadata.row_group(0).column(2).compression == "LZ4"
    assert equal(store.read("x_um", "1h")[symbol], candles_at(np.arange(30)))


def test_many_symbols_fill_several_row_groups_and_each_is_found(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    series = {f"S{i:03d}/USDT:USDT": candles_at(np.arange(i % 7, 700), i % 16) for i in range(220)}
    store.write("x_um", "1h", series)
    assert pq.ParquetFile(tmp_path / "x_um" / "1h" / "2024-01.parquet").metadata.num_row_groups == 3
    found = store.read("x_um", "1h")
    assert all(equal(found[symbol], series[symbol]) for symbol in series)
    few = store.read("x_um", "1h", symbols=["S219/USDT:USDT", "S000/USDT:USDT"])
    assert list(few) == ["S000/USDT:USDT", "S219/USDT:USDT"]
    assert all(equal(few[symbol], series[symbol]) for symbol in few)


def test_writing_what_is_known_changes_no_file(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    assert store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(2_000))}) == 3
    before = files_of(tmp_path)
    assert store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(100, 300))}) == 0
    assert files_of(tmp_path) == before


def test_an_append_touches_the_newest_month_only(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(1_000))})
    before = files_of(tmp_path)
    assert store.write("x_um", "1h", {"A/USDT:USDT": candles_at([1_000]), "B/USDT:USDT": candles_at([1_000])}) == 1
    changed = {name for name, data in files_of(tmp_path).items() if before.get(name) != data}
    assert changed == {"x_um/1h/2024-02.parquet"}


def test_the_newest_payments_of_some_symbols_are_found_without_opening_older_months(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CandleStore(tmp_path)
    times = START + np.arange(0, 24 * 100, 8, dtype=np.int64) * HOUR_MS
    store.write_funding("x_um", {"A": (times, np.full(len(times), 1e-4)), "B": (times[:3], np.full(3, 1e-4))})
    every = {"A": int(times[-1]), "B": int(times[2])}
    opened: list[str] = []
    open_month = MonthFiles._open_month

    def counted(files: MonthFiles, stack: Any, stem: str, recent: Any) -> Any:
        opened.append(stem)
        return open_month(files, stack, stem, recent)

    monkeypatch.setattr(MonthFiles, "_open_month", counted)
    assert store.last_funding_times("x_um") == every
    months = sorted(opened)
    assert len(months) == 4
    cases: list[tuple[set[str], list[str]]] = [({"A"}, months[-1:]), ({"A", "B"}, months), ({"B", "C"}, months)]
    for symbols, looked_at in cases:
        opened.clear()
        found = store.last_funding_times("x_um", symbols=symbols)
        assert found == {name: time for name, time in every.items() if name in symbols}
        assert sorted(opened) == looked_at


def test_funding_is_stored_beside_the_candles_and_meets_them_in_the_panel(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(30)), "B/USDT:USDT": candles_at([3, 4, 9])})
    times = START + np.arange(0, 30, 8, dtype=np.int64) * HOUR_MS
    store.write_funding("x_um", {"A/USDT:USDT": (times, np.array([1e-4, -2e-4, 0.0, 3e-4]))})
    assert store.last_funding_times("x_um") == {"A/USDT:USDT": int(times[-1])}
    panel = store.read_panel("x_um", "1h", symbols=["B/USDT:USDT", "A/USDT:USDT"])
    assert panel.symbols == ("B/USDT:USDT", "A/USDT:USDT")
    assert panel.close.shape == (30, 2)
    assert np.isfinite(panel.close[:, 0]).nonzero()[0].tolist() == [3, 4, 9]
    assert panel.funding[[0, 8, 16, 24], 1].tolist() == [1e-4, -2e-4, 0.0, 3e-4]


def test_an_empty_store_reads_as_nothing(tmp_path: Path) -> None:
    store = CandleStore(tmp_path / "not" / "yet")
    assert store.read("x_um", "1h") == {}
    assert store.last_open_times("x_um", "1h") == {}
    assert store.write("x_um", "1h", {"A/USDT:USDT": Candles.empty()}) == 0
    assert not (tmp_path / "not").exists()


def test_months_begin_and_end_in_utc() -> None:
    assert (month_of(START - 1), month_of(START)) == ("2023-12", "2024-01")
    assert month_bounds("2023-12") == (START - 31 * DAY_MS, START)


# --- Refused, and nothing half-written ---


def test_bad_candles_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(10))})
    before = files_of(tmp_path)
    good, bad = candles_at(np.arange(10, 20)), candles_at(np.arange(20))
    bad.high[7] = bad.low[7] - 1
    with pytest.raises(CandleError, match=r"B/USDT:USDT: candle 7 .*high is .*: fetch this candle again"):
        store.write("x_um", "1h", {"A/USDT:USDT": good, "B/USDT:USDT": bad})
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("rows", [[3, 2], [3, 3]])
def test_candles_out_of_order_are_refused(tmp_path: Path, rows: list[int]) -> None:
    with pytest.raises(CandleError, match="must be later than the candle before"):
        CandleStore(tmp_path).write("x_um", "1h", {"A/USDT:USDT": candles_at([1]), "B/USDT:USDT": candles_at(rows)})
    assert files_of(tmp_path) == {}


class LeaseLostError(Exception):
    """What the caller's guard raises."""


def test_a_guard_that_refuses_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """I6: a zombie whose lease is gone writes nothing, and leaves no temporary file."""
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(100))})
    before = files_of(tmp_path)

    def lost() -> None:
        raise LeaseLostError

    with pytest.raises(LeaseLostError):
        store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(50, 150), 3)}, guard=lost)
    assert files_of(tmp_path) == before


def test_the_guard_is_asked_before_each_rename(tmp_path: Path) -> None:
    """A lease that is lost between two months stops the second; the first is whole and true."""
    calls: list[int] = []

    def lost_at_the_third_call() -> None:
        calls.append(len(calls))
        if len(calls) == 3:  # before the work, before January, before February
            raise LeaseLostError

    store = CandleStore(tmp_path)
    with pytest.raises(LeaseLostError):
        store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(1_000))}, guard=lost_at_the_third_call)
    assert list(files_of(tmp_path)) == ["x_um/1h/2024-01.parquet"]
    assert equal(store.read("x_um", "1h")["A/USDT:USDT"], candles_at(np.arange(744)))


@pytest.mark.parametrize("market", ["", "../up", "a/b", ".hidden"])
def test_a_market_that_is_no_folder_name_is_refused(tmp_path: Path, market: str) -> None:
    with pytest.raises(ValueError, match="cannot be a folder name"):
        CandleStore(tmp_path).write(market, "1h", {"A/USDT:USDT": candles_at([1])})


def test_an_unknown_timeframe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timeframe '7m' is not supported"):
        CandleStore(tmp_path).read("x_um", "7m")


@pytest.mark.parametrize(
    "times, rates, message",
    [
        ([0, 0], [0.1, 0.1], "row 1 does not ascend"),
        ([0], [np.nan], "row 0 is not finite"),
        ([0], [], "1 times, 0 rates"),
    ],
)
def test_bad_funding_is_refused(tmp_path: Path, times: list[int], rates: list[float], message: str) -> None:
    series = (np.array(times, dtype=np.int64), np.array(rates, dtype=np.float64))
    with pytest.raises(ValueError, match=f"funding of A/USDT:USDT: .*{message}"):
        CandleStore(tmp_path).write_funding("x_um", {"A/USDT:USDT": series})


# --- Torn, rotten, foreign ---


@pytest.mark.parametrize("sixteenth", range(0, 16, 3))
def test_a_truncated_file_is_an_error_with_its_path_and_a_fix(tmp_path: Path, sixteenth: int) -> None:
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(500))})
    path = tmp_path / "x_um" / "1h" / "2024-01.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * sixteenth // 16])
    with pytest.raises(StoreError, match=r"2024-01\.parquet: cannot be read .*manage\.py backfill"):
        store.read("x_um", "1h")


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(700))})
    path = tmp_path / "x_um" / "1h" / "2024-01.parquet"
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(3)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(StoreError, match="cannot be read"):
        store.read("x_um", "1h")


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    store.write_funding("x_um", {"A/USDT:USDT": (np.array([START]), np.array([0.1]))})
    (tmp_path / "x_um" / "1h").mkdir()
    shutil.copy(tmp_path / "x_um" / "funding" / "2024-01.parquet", tmp_path / "x_um" / "1h" / "2024-01.parquet")
    with pytest.raises(StoreError, match="was not written by this program"):
        store.read("x_um", "1h")


def test_a_file_with_a_strange_name_is_refused(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at([1])})
    (tmp_path / "x_um" / "1h" / "backup.parquet").touch()
    with pytest.raises(StoreError, match=r"backup\.parquet: its name is not YYYY-MM; move it"):
        store.read("x_um", "1h")


# --- Several processes ---


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own, with this project on its path."""
    preamble = "import sys; from pathlib import Path; from marketdata.store import CandleStore; import numpy as np\n"
    preamble += "from tests.marketdata.test_candle_store import candles_at\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_reader_never_sees_a_torn_file_while_another_process_writes(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    symbols = [f"S{i}/USDT:USDT" for i in range(20)]
    store.write("x_um", "1h", {symbol: candles_at(np.arange(500), 0) for symbol in symbols})
    writer = start(
        """
        store = CandleStore(Path(sys.argv[1]))
        for version in range(1, 40):
            series = {f"S{i}/USDT:USDT": candles_at(np.arange(500 + version), version) for i in range(20)}
            store.write("x_um", "1h", series)
        """,
        tmp_path,
    )
    reads, versions = 0, set()
    while writer.poll() is None:
        found = store.read("x_um", "1h")
        seen = {round((float(each.open[0]) - 100.0) * 16) for each in found.values()}
        assert len(seen) == 1, "a read mixes two versions"
        [version] = seen
        assert sorted(found) == sorted(symbols)
        assert all(equal(each, candles_at(np.arange(500 + version), version)) for each in found.values())
        versions.add(version)
        reads += 1
    assert writer.stdout is not None
    writer.stdout.close()
    assert writer.returncode == 0
    assert reads > 10
    assert len(versions) > 3


def test_a_writer_that_is_killed_in_the_middle_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(100))})
    before = files_of(tmp_path)
    writer = start(
        """
        import os, time
        def hang(descriptor):  # the temporary file is complete, the rename has not happened
            print("written", flush=True)
            time.sleep(60)
        os.fsync = hang
        CandleStore(Path(sys.argv[1])).write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(50, 300), 5)})
        """,
        tmp_path,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "written"
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=60)
    writer.stdout.close()
    leftovers = set(files_of(tmp_path)) - set(before)
    assert len(leftovers) == 1
    assert {name: data for name, data in files_of(tmp_path).items() if name in before} == before
    assert equal(store.read("x_um", "1h")["A/USDT:USDT"], candles_at(np.arange(100)))
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at([100])})
    assert set(files_of(tmp_path)) == set(before)


def test_a_read_that_began_before_a_replacement_ends_with_the_old_month(tmp_path: Path) -> None:
    """Counting and copying see the same file, although its name means another one by then."""
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(10))})
    files = store._files("x_um", "1h", COLUMNS)
    original = files._open_month

    def open_and_replace(*arguments: object) -> object:
        month = original(*arguments)  # type: ignore[arg-type]  # passed through
        CandleStore(tmp_path).write("x_um", "1h", {"A/USDT:USDT": candles_at(np.arange(10, 400))})
        return month

    files._open_month = open_and_replace  # type: ignore[assignment, method-assign]
    assert len(files.read()["A/USDT:USDT"][0]) == 10

"""The recent file among processes: readers beside a writer that folds, and writers that are killed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from marketdata.bucket import Bucket
from marketdata.monthly import RECENT
from marketdata.places import Folder, Place
from marketdata.store import CandleStore
from tests.marketdata.test_candle_store import files_of, start
from tests.marketdata.test_recent_rows import FIRST, JANUARY, ROWS, append, begun, hours_of, small, unsynced  # noqa: F401 - a fixture

# --- Readers while a writer folds ---


@dataclass
class Busy:
    """A place in which something happens right before the look or the opening that `at` counts."""

    inner: Place
    at: int
    happens: Callable[[], None]
    state: dict[str, int] = field(default_factory=lambda: {"looks": 0})

    def __truediv__(self, name: str) -> Busy:
        return Busy(self.inner / name, self.at, self.happens, self.state)

    def _look(self) -> None:
        self.state["looks"] += 1
        if self.state["looks"] == self.at:
            self.happens()

    def names(self, suffix: str) -> list[str]:
        self._look()
        return self.inner.names(suffix)

    def find(self, name: str) -> Any:
        self._look()
        return self.inner.find(name)


def check_each_moment(place: Place, first: int, hours: int) -> None:
    """A read is of one moment, wherever between its looks a writer appends that many hours."""
    store = begun(place, min(first, FIRST))
    for hour in range(min(first, FIRST), first):
        append(store, hour)
    came_in = []
    for at in range(1, 6):
        now = hours_of(store.read("x_um", "1h"))

        def work(now: int = now) -> None:
            for hour in range(now, now + hours):
                append(store, hour)

        busy = Busy(place, at, work)
        found = hours_of(CandleStore(busy).read("x_um", "1h"))  # type: ignore[arg-type]  # it reads only
        assert now <= found <= now + hours
        came_in.append(busy.state["looks"] >= at)
    assert came_in[:3] == [True] * 3, "before the recent file, the list, and a month"


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("first", [FIRST, JANUARY - 3, JANUARY + 10])
@pytest.mark.parametrize("hours", [1, 14, 20])
def test_a_read_misses_nothing_whatever_is_appended_and_folded_between_its_looks(
    tmp_path: Path, first: int, hours: int
) -> None:
    check_each_moment(Folder(tmp_path), first, hours)


def test_a_read_of_a_bucket_misses_nothing_between_its_looks(bucket: Bucket) -> None:
    check_each_moment(bucket, JANUARY - 3, 14)


def run_writer(root: Path, hours: int, pause: float = 0.0) -> Any:
    return start(
        f"""
        import time
        from marketdata import monthly
        from tests.marketdata.test_recent_rows import append
        monthly.RECENT_ROWS = {ROWS}
        store = CandleStore(Path(sys.argv[1]))
        first = len(next(iter(store.read("x_um", "1h").values())))
        for hour in range(first, first + {hours}):
            append(store, hour)
            print(hour + 1, flush=True)
            time.sleep({pause})
        """,
        root,
    )


def test_readers_see_no_torn_and_no_missing_candle_while_another_process_appends_and_folds(tmp_path: Path) -> None:
    store = begun(tmp_path)
    writer = run_writer(tmp_path, 120)
    done = [FIRST]
    reading = threading.Thread(target=lambda: done.extend(int(line) for line in writer.stdout))
    reading.start()
    reads, newest = 0, FIRST
    while writer.poll() is None:
        acknowledged = done[-1]
        found = hours_of(store.read("x_um", "1h"))
        assert found >= max(acknowledged, newest)
        newest, reads = found, reads + 1
    reading.join()
    writer.stdout.close()
    assert writer.returncode == 0
    assert hours_of(store.read("x_um", "1h")) == FIRST + 120, "some eight folds, and a month's end"
    assert reads > 20


def test_readers_of_a_bucket_see_no_torn_and_no_missing_candle_while_it_is_folded(bucket: Bucket) -> None:
    store = begun(bucket)
    done = [FIRST]

    def write() -> None:
        for hour in range(FIRST, FIRST + 50):
            append(store, hour)
            done.append(hour + 1)

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while writer.is_alive():
        acknowledged = done[-1]
        assert hours_of(CandleStore(bucket).read("x_um", "1h")) >= acknowledged
        reads += 1
    writer.join()
    assert hours_of(store.read("x_um", "1h")) == FIRST + 50
    assert reads > 5


# --- Killed for real ---


@pytest.mark.parametrize("appends_before", [2, 13], ids=["in an append", "in a fold"])
@pytest.mark.parametrize("sync", [1, 2], ids=["before the rename", "after the rename"])
def test_a_writer_that_is_killed_leaves_a_whole_store(tmp_path: Path, appends_before: int, sync: int) -> None:
    store = begun(tmp_path)
    for hour in range(FIRST, FIRST + appends_before):
        append(store, hour)
    hour = FIRST + appends_before
    writer = start(
        f"""
        import os, time
        from marketdata import monthly
        from tests.marketdata.test_recent_rows import append
        monthly.RECENT_ROWS, calls = {ROWS}, []
        def hang(descriptor):
            calls.append(descriptor)
            if len(calls) == {sync}:
                print("now", flush=True)
                time.sleep(60)
        os.fsync = hang
        append(CandleStore(Path(sys.argv[1])), {hour})
        """,
        tmp_path,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "now"
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=60)
    writer.stdout.close()
    assert hours_of(store.read("x_um", "1h")) == hour + sync - 1
    append(store, hour)
    append(store, hour + 1)
    assert hours_of(store.read("x_um", "1h")) == hour + 2
    assert sorted(files_of(tmp_path)) == ["x_um/1h/2024-01.parquet", f"x_um/1h/{RECENT}"], "no temporary file"


def test_whatever_moment_a_writer_is_killed_at_what_it_had_acknowledged_is_there(tmp_path: Path) -> None:
    store = begun(tmp_path)
    for lines in (3, 14, 1, 27, 16):
        writer = run_writer(tmp_path, 1_000)
        said = [int(writer.stdout.readline()) for _ in range(lines)][-1]
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=60)
        said = max([said, *(int(line) for line in writer.stdout if line.strip())])
        writer.stdout.close()
        assert said <= hours_of(store.read("x_um", "1h")) <= said + 1

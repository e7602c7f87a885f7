"""One suite over every place that files are kept in: a folder, and a bucket of a local S3 server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from marketdata import places
from marketdata.bucket import Bucket, PinnedObject
from marketdata.errors import StoreError
from marketdata.places import BucketAddress, Folder, Place, ReplacedMeanwhile, parse_storage_url
from marketdata.store import CandleStore
from quant.candles import Candles
from tests.marketdata.test_candle_store import LeaseLostError, candles_at, equal

A, B = "A/USDT:USDT", "B/USDT:USDT"


def write_text(text: str) -> Callable[[IO[bytes]], None]:
    return lambda file: file.write(text.encode()) and None


def content(place: Place, name: str) -> bytes | None:
    found = place.find(name)
    if found is None:
        return None
    return found.source.read_bytes() if isinstance(found.source, Path) else found.source.read()


def held() -> None:
    """A guard whose lease holds."""


# --- What a place promises ---


def test_a_place_that_nothing_was_written_to_is_empty(place: Place) -> None:
    assert place.names(".parquet") == []
    assert place.find("2024-01.parquet") is None


def test_what_was_put_is_found_by_name_and_not_below_another_one(place: Place) -> None:
    place.prepare()
    place.replace("b.parquet", write_text("one"), version=None, guard=held)
    place.replace("a.parquet", write_text(""), version=None, guard=held)
    (place / "deeper").prepare()
    (place / "deeper").replace("c.parquet", write_text("three"), version=None, guard=held)
    assert place.names(".parquet") == ["a.parquet", "b.parquet"]
    assert (content(place, "a.parquet"), content(place, "b.parquet")) == (b"", b"one")
    assert (place / "deeper").names(".parquet") == ["c.parquet"]


def test_only_the_file_that_was_read_is_replaced(place: Place) -> None:
    place.prepare()
    place.replace("x", write_text("one"), version=None, guard=held)
    first = place.find("x")
    assert first is not None
    with pytest.raises(ReplacedMeanwhile):
        place.replace("x", write_text("zombie"), version=None, guard=held)
    place.replace("x", write_text("second"), version=first.version, guard=held)
    with pytest.raises(ReplacedMeanwhile):
        place.replace("x", write_text("zombie"), version=first.version, guard=held)
    assert content(place, "x") == b"second"
    assert place.names("") == ["x"], "a refused write leaves nothing"


# --- The store, wherever it is ---


def test_candles_and_funding_read_back_by_symbol_and_time(place: Place) -> None:
    store = CandleStore(place)
    series = {f"S{i:03d}/USDT:USDT": candles_at(np.arange(i % 7, 700), i % 16) for i in range(220)}
    assert store.write("x_um", "1h", series) == 1
    assert store.write("x_um", "1h", {"S007/USDT:USDT": candles_at(np.arange(650, 800), 3)}) == 2
    expected = series | {
        "S007/USDT:USDT": Candles.concat([series["S007/USDT:USDT"], candles_at(np.arange(650, 800), 3)])
    }
    found = store.read("x_um", "1h")
    assert list(found) == sorted(expected)
    assert all(equal(found[symbol], expected[symbol]) for symbol in expected)
    few = store.read("x_um", "1h", symbols=["S219/USDT:USDT", "S007/USDT:USDT"])
    assert all(equal(few[symbol], expected[symbol]) for symbol in few)
    assert len(few) == 2
    assert store.last_open_times("x_um", "1h") == {s: int(c.open_time[-1]) for s, c in expected.items()}
    assert store.write("x_um", "1h", {"S007/USDT:USDT": candles_at(np.arange(650, 800), 3)}) == 0
    times = found[next(iter(found))].open_time[:9:8]
    store.write_funding("x_um", {A: (times, np.array([1e-4, -1e-4]))})
    assert store.last_funding_times("x_um") == {A: int(times[-1])}


def test_a_guard_that_refuses_leaves_everything_as_it_was(place: Place) -> None:
    store = CandleStore(place)
    store.write("x_um", "1h", {A: candles_at(np.arange(100))})

    def lost() -> None:
        raise LeaseLostError

    with pytest.raises(LeaseLostError):
        store.write("x_um", "1h", {A: candles_at(np.arange(50, 150), 3)}, guard=lost)
    assert (place / "x_um" / "1h").names("") == ["2024-01.parquet"]
    assert equal(store.read("x_um", "1h")[A], candles_at(np.arange(100)))


def paused_write(store: CandleStore, *, lost: bool) -> None:
    """Write A's candle 100 as a process that is paused right before its write, while another one writes B's."""
    calls: list[int] = []

    def guard() -> None:
        calls.append(len(calls))
        if len(calls) == 2:  # the month is read and merged, and not yet replaced
            store.write("x_um", "1h", {B: candles_at([100])})
        if lost and len(calls) > 2:
            raise LeaseLostError

    store.write("x_um", "1h", {A: candles_at([100])}, guard=guard)


def test_a_writer_that_another_one_overtook_merges_again_and_loses_nothing(place: Place) -> None:
    store = CandleStore(place)
    store.write("x_um", "1h", {A: candles_at(np.arange(100))})
    paused_write(store, lost=False)
    found = store.read("x_um", "1h")
    assert equal(found[A], candles_at(np.arange(101)))
    assert equal(found[B], candles_at([100]))


def test_i6_a_zombie_that_wakes_after_its_last_look_at_the_lease_overwrites_nothing(place: Place) -> None:
    """The guard let it pass, then it was frozen; the successor's month stays."""
    store = CandleStore(place)
    store.write("x_um", "1h", {A: candles_at(np.arange(100))})
    with pytest.raises(LeaseLostError):
        paused_write(store, lost=True)
    found = store.read("x_um", "1h")
    assert equal(found[A], candles_at(np.arange(100)))
    assert equal(found[B], candles_at([100]))


def test_without_the_condition_the_zombie_would_win(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the two tests before have teeth."""
    store = CandleStore(place)
    store.write("x_um", "1h", {A: candles_at(np.arange(100))})
    monkeypatch.setattr(places, "_version", lambda path: (0, 0, 0) if path.exists() else None)
    monkeypatch.setattr(Folder, "prepare", lambda self: None)  # which would remove the zombie's temporary file
    put = Bucket._put
    monkeypatch.setattr(Bucket, "_put", lambda self, name, body, _: put(self, name, body, {}))
    paused_write(store, lost=True)
    assert B not in store.read("x_um", "1h")


def test_a_successor_takes_the_zombies_temporary_file_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also frozen between the last look and the rename: the first thing that the next writer does fences it."""
    store = CandleStore(tmp_path)
    store.write("x_um", "1h", {A: candles_at(np.arange(100))})
    monkeypatch.setattr(places, "_version", lambda path: (0, 0, 0) if path.exists() else None)
    with pytest.raises(LeaseLostError):
        paused_write(store, lost=True)
    assert equal(store.read("x_um", "1h")[B], candles_at([100]))


def test_two_writers_that_never_leave_each_other_alone_end_with_an_error(place: Place) -> None:
    store = CandleStore(place)
    store.write("x_um", "1h", {A: candles_at([0])})
    hours = iter(range(1, 100))
    inner = CandleStore(place)
    calls: list[int] = []

    def rude() -> None:
        calls.append(1)
        if len(calls) > 1:
            inner.write("x_um", "1h", {B: candles_at([next(hours)])})

    with pytest.raises(StoreError, match=r"2024-01\.parquet.*was replaced 5 times while it was used; look who else"):
        store.write("x_um", "1h", {A: candles_at([1])}, guard=rude)


def test_a_read_during_a_replacement_never_mixes_two_versions(place: Place) -> None:
    """All symbols were written as one version, so whatever is read must be of one."""
    store = CandleStore(place)
    symbols = [f"S{i:02d}/USDT:USDT" for i in range(30)]

    def write(version: int) -> None:
        store.write("x_um", "1h", {symbol: candles_at(np.arange(700), version) for symbol in symbols})

    write(1)
    files = store._files("x_um", "1h", ("open_time", "open", "high", "low", "close", "volume"))
    original, replaced = files._open_month, []

    def open_then_replace(*arguments: Any) -> Any:
        month = original(*arguments)
        if not replaced:
            replaced.append(1)
            write(2)
        return month

    files._open_month = open_then_replace  # type: ignore[method-assign]
    found = files.read()
    versions = {round((float(columns[1][0]) - 100.0) * 16) for columns in found.values()}
    assert len(found) == len(symbols)
    assert versions in ({1}, {2})


def test_files_that_are_not_months_are_refused_wherever_they_are(place: Place) -> None:
    store = CandleStore(place)
    store.write("x_um", "1h", {A: candles_at([1])})
    folder = place / "x_um" / "1h"
    folder.replace("2024-02.parquet", write_text("no parquet"), version=None, guard=held)
    with pytest.raises(StoreError, match=r"2024-02\.parquet.*cannot be read.*backfill"):
        store.read("x_um", "1h")
    folder.replace("notes.parquet", write_text("x"), version=None, guard=held)
    with pytest.raises(StoreError, match=r"notes\.parquet.*its name is not YYYY-MM; move it"):
        store.read("x_um", "1h")


# --- Buckets only ---


def test_a_few_symbols_cost_a_few_small_requests(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CandleStore(bucket)
    noise = np.random.default_rng(3).uniform(size=(220, 700))  # candles that zstd cannot shrink to nothing
    base = candles_at(np.arange(700))
    store.write(
        "x_um", "1h", {f"S{i:03d}/USDT:USDT": dataclasses.replace(base, volume=row) for i, row in enumerate(noise)}
    )
    fetched: list[int] = []
    get = Bucket.get

    def counted(self: Bucket, name: str, **conditions: Any) -> Any:
        body, answer = get(self, name, **conditions)
        fetched.append(len(body))
        return body, answer

    monkeypatch.setattr(Bucket, "get", counted)
    store.last_open_times("x_um", "1h")
    assert len(fetched) == 1, "the newest times stand in the footer"
    fetched.clear()
    store.read("x_um", "1h", symbols=["S000/USDT:USDT"])
    few, requests = sum(fetched), len(fetched)
    fetched.clear()
    store.read("x_um", "1h")
    assert requests <= 3
    assert few < sum(fetched) / 2, "one of three row groups"


def test_an_object_is_read_like_a_file(bucket: Bucket) -> None:
    data = np.random.default_rng(5).bytes(200_000)
    bucket.create("x", data)
    file = PinnedObject(bucket, "x")
    file.open()
    for position, length in ((0, 10), (100_000, 70_000), (199_990, 50), (134_000, 1_000), (200_000, 5)):
        file.seek(position)
        assert file.read(length) == data[position : position + length]
        assert file.tell() == min(position + length, len(data))
    file.seek(0)
    bucket.replace("x", write_text("new"), version=file.etag, guard=held)
    with pytest.raises(ReplacedMeanwhile):
        file.read(10)


def test_an_object_is_created_once(bucket: Bucket) -> None:
    bucket.create("v1-5/model.txt", b"trees")
    with pytest.raises(FileExistsError):
        bucket.create("v1-5/model.txt", b"others")
    assert bucket.read("v1-5/model.txt") == b"trees"
    [entry] = bucket.entries()
    assert (entry.name, entry.size) == ("v1-5/model.txt", 5)
    bucket.delete("v1-5/model.txt")
    bucket.delete("v1-5/model.txt")
    with pytest.raises(FileNotFoundError):
        bucket.read("v1-5/model.txt")


def test_a_server_that_is_gone_is_named_and_no_file_is_blamed(bucket: Bucket) -> None:
    address = dataclasses.replace(bucket.address, endpoint="http://127.0.0.1:1")  # nothing listens there
    store = CandleStore(Bucket(address))
    with pytest.raises(StoreError, match=r"the storage cannot be reached.*STORAGE_URL; it is tried again") as error:
        store.read("x_um", "1h")
    assert "a-secret" not in str(error.value)
    assert "backfill" not in str(error.value)


def test_a_bucket_that_does_not_exist_is_named(bucket: Bucket) -> None:
    store = CandleStore(Bucket(dataclasses.replace(bucket.address, bucket="not-made")))
    with pytest.raises(StoreError, match=r"s3://not-made/.*the storage refuses: NoSuchBucket"):
        store.write("x_um", "1h", {A: candles_at([1])})


# --- The one setting ---


@pytest.mark.parametrize(
    "url, found",
    [
        ("", None),
        ("file:///mnt/shared/bot", Path("/mnt/shared/bot")),
        ("file:///mnt/a%20b", Path("/mnt/a b")),
        ("s3://bucket", BucketAddress("bucket")),
        (
            "s3://bucket/deep/prefix/?endpoint=http://127.0.0.1:5555&region=eu-1",
            BucketAddress("bucket", "deep/prefix", "http://127.0.0.1:5555", "eu-1"),
        ),
    ],
)
def test_a_storage_url_names_a_folder_or_a_bucket(url: str, found: object) -> None:
    assert parse_storage_url(url) == found


@pytest.mark.parametrize(
    "url, rule",
    [
        ("/mnt/shared", "must begin with file:///"),
        ("file://host/folder", "three slashes"),
        ("file:relative", "absolute"),
        ("s3:///prefix", "must name a bucket"),
        ("s3://key:s3cret@bucket/x", "must not hold credentials"),
        ("s3://bucket?endpoint=http://key:s3cret@host", "must not hold credentials"),
        ("s3://bucket?endpoint=host:9000", "must begin with http"),
        ("s3://bucket?regoin=x", "'regoin'; only endpoint and region"),
        ("gs://bucket", "must begin with file:///"),
    ],
)
def test_a_wrong_storage_url_is_refused_with_the_rule_and_without_its_secret(url: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as error:
        parse_storage_url(url)
    assert "s3cret" not in str(error.value)

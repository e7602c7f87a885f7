"""Backups: of one instant while others write, whole or not there, and restored without losing what was there before."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Callable
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from marketdata import monthly
from marketdata.store import CandleStore
from ops_app import alerts, clock, guards, heartbeats, jobs, leases, retention
from ops_app.management.commands.runall import only_copy
from ops_app.models import Alert, Event, Heartbeat, Lease
from quant.candles import Candles
from quant.timeframes import to_ms
from tests.factories import DAY, EPOCH, ArtifactFactory, BotFactory, SymbolFactory
from tests.ops.processes import running, wait_until
from trading_app.venue import ledger_name
from tradingsite import schedules
from tradingsite.backup import job, restoring, snapshots, taking
from tradingsite.backup.errors import BackupError
from tradingsite.backup.manifest import read_manifest
from training_app.models import ModelArtifact

T = TypeVar("T")


# --- one instant ---


class Pair:
    """A database and a ledger that a "bot" writes as ours does: intent, then the exchange's memory, then the answer."""

    def __init__(self, folder: Path) -> None:
        self.rows, self.ledger = folder / "rows.sqlite3", folder / "ledger.sqlite3"
        for path in (self.rows, self.ledger):
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT)")
        self.written = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Pair:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        with (
            closing(sqlite3.connect(self.rows, isolation_level=None, timeout=60)) as rows,
            closing(sqlite3.connect(self.ledger, isolation_level=None, timeout=60)) as ledger,
        ):
            while not self._stop.is_set():
                order = self.written + 1
                rows.execute("INSERT INTO orders VALUES (?, 'sending')", (order,))
                ledger.execute("INSERT INTO orders VALUES (?, 'open')", (order,))
                rows.execute("UPDATE orders SET state = 'acked' WHERE id = ?", (order,))
                self.written = order


def torn(rows: Path, ledger: Path) -> list[str]:
    """Return what no kill of the bot could have left."""
    with closing(sqlite3.connect(rows)) as database:
        states = dict(database.execute("SELECT id, state FROM orders").fetchall())
    with closing(sqlite3.connect(ledger)) as database:
        at_exchange = {order for (order,) in database.execute("SELECT id FROM orders")}
    lost = [f"{order} was acknowledged by nobody" for order, state in states.items() if state == "acked"]
    lost = [text for text in lost if int(text.split()[0]) not in at_exchange]
    return lost + [f"{order} was sent by nobody" for order in at_exchange - states.keys()]


def copies_while_writing(pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch, *, count: int) -> list[str]:
    """Take `count` copies; whoever opens the database last waits for two more orders, if it is allowed any."""

    def open_late() -> snapshots.SqliteSnapshot:
        goal, deadline = pair.written + 2, clock.monotonic() + 0.05
        while pair.written < goal and clock.monotonic() < deadline:
            pass
        return snapshots.SqliteSnapshot(pair.rows)

    monkeypatch.setattr(snapshots, "open_database", open_late)
    found = []
    for number in range(count):
        with snapshots.one_instant([pair.ledger]) as (database, ledgers):
            goal = pair.written + 2
            wait_until(lambda goal=goal: pair.written >= goal, what="the writer, which is not held up by the copy")
            target = folder / str(number)
            target.mkdir()
            ledgers[pair.ledger].copy_to(target / "ledger")
            database.dump(target)
        found += torn(target / snapshots.SQLITE_FILE, target / "ledger")
    return found


def test_database_and_ledger_are_of_one_instant_while_both_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pair(tmp_path) as pair:
        assert copies_while_writing(pair, tmp_path, monkeypatch, count=12) == []


def test_without_the_lock_the_copies_would_be_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_locked", lambda path: nullcontext())
    with Pair(tmp_path) as pair:
        assert copies_while_writing(pair, tmp_path, monkeypatch, count=12) != []


def test_a_ledger_that_stays_busy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "BUSY_SECONDS", 0.05)
    pair = Pair(tmp_path)
    with closing(sqlite3.connect(pair.ledger, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackupError, match=r"ledger.sqlite3 is busy"), snapshots.one_instant([pair.ledger]):
            pytest.fail("a snapshot without the lock")


# --- a whole installation, in a thread with a database of its own ---


class Installation:
    """A DATA_DIR with rows, a ledger, candles and a model; `do` works on it as a process of it would."""

    def __init__(self, wrapper: Callable[[], Any], blocker: Any) -> None:
        self._wrapper, self._blocker = wrapper, blocker

    def do(self, work: Callable[[], T]) -> T:
        result: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            connections["default"] = self._wrapper()
            try:
                with self._blocker.unblock():
                    result.append(work())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test gets it
                errors.append(error)
            finally:
                connections["default"].close()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return result[0]


def fill(root: Path) -> None:
    """Two symbols, a model with files, a month of candles, and a ledger."""
    SymbolFactory(code="AAA/USDT:USDT")
    SymbolFactory(code="BBB/USDT:USDT")
    ArtifactFactory(directory="scope/v1-65537", size=5)
    model = root / "artifacts" / "scope" / "v1-65537"
    model.mkdir(parents=True)
    (model / "model.txt").write_text("trees")
    (model / "manifest.json").write_text("{}")
    unfinished = root / "artifacts" / "scope" / ".tmp-v2-131073"
    unfinished.mkdir()
    (unfinished / "model.txt").write_text("half")
    prices = np.full(24, 100.0)
    times = to_ms(EPOCH - DAY) + np.arange(24, dtype=np.int64) * 3_600_000
    series = Candles(times, *[prices] * 5)
    CandleStore(root / "candles").write("simulated", "1h", {"AAA/USDT:USDT": series, "BBB/USDT:USDT": series})
    (month_of(root).parent / ".2025-06.parquet.1-1.tmp").write_bytes(b"half")
    (root / "ledger").mkdir(exist_ok=True)
    with closing(sqlite3.connect(root / "ledger" / "main.sqlite3")) as ledger:
        ledger.execute("PRAGMA journal_mode=WAL")
        ledger.execute("CREATE TABLE account (cash TEXT)")
        ledger.execute("INSERT INTO account VALUES ('10000')")
        ledger.commit()


def month_of(root: Path) -> Path:
    return root / "candles" / "simulated" / "1h" / "2025-05.parquet"


@pytest.fixture
def places(settings: Any, tmp_path: Path) -> Path:
    root = tmp_path / "var"
    root.mkdir(exist_ok=True)
    settings.DATA_DIR = root
    settings.ARTIFACTS_DIR, settings.CANDLES_DIR, settings.LEDGER_DIR = (
        root / name for name in ("artifacts", "candles", "ledger")
    )
    settings.BACKUP_DIR, settings.STORAGE_BUCKET = "", None
    return root


@pytest.fixture
def installation(data_dir: Path, places: Path, settings: Any, django_db_blocker: Any) -> Installation:
    assert data_dir == places
    options = {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"}
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": data_dir / "db.sqlite3", "OPTIONS": options}
    connections.settings["default"]  # the defaults of a database are filled in at the first use
    defaults = {key: value for key, value in connections.settings["default"].items() if key not in sqlite}
    defaults |= {"USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "CONN_HEALTH_CHECKS": False, "CONN_MAX_AGE": 0}
    made = Installation(lambda: DatabaseWrapper({**defaults, **sqlite}, "default"), django_db_blocker)
    made.do(lambda: fill(places))
    return made


def take(folder: Path) -> Path:
    path, notes = taking.take_backup(folder)
    assert notes == []
    return path


def codes() -> list[str]:
    from coverage_app.models import Symbol

    return sorted(Symbol.objects.values_list("code", flat=True))


def spoil(root: Path) -> None:
    """Change everything after the backup."""
    SymbolFactory(code="NEW/USDT:USDT")
    month_of(root).write_bytes(b"other candles")
    (root / "artifacts" / "scope" / "v1-65537" / "model.txt").write_text("wrong")


def test_a_backup_brings_back_rows_files_and_ledger_and_moves_the_present_ones_aside(
    installation: Installation, places: Path, tmp_path: Path
) -> None:
    candles = month_of(places).read_bytes()
    backup = installation.do(lambda: take(tmp_path / "kept"))
    manifest = read_manifest(backup)
    assert sorted(entry.path for entry in manifest.files) == [
        "artifacts/scope/v1-65537/manifest.json",
        "artifacts/scope/v1-65537/model.txt",
        "candles/simulated/1h/2025-05.parquet",
        "database.sqlite3",
        "ledger/main.sqlite3",
    ], "no unfinished file, no secret"
    assert manifest.counts["coverage_app_symbol"] == 2
    assert {path.stat().st_mode & 0o077 for path in backup.rglob("*")} == {0}, "password hashes are in it"
    installation.do(lambda: leases.acquire("account:x", holder="me", ttl=timedelta(microseconds=1)))
    installation.do(lambda: spoil(places))

    with pytest.raises(BackupError, match=r"there is data already: the database,.*--force"):
        installation.do(lambda: restoring.restore_backup(backup, force=False))
    assert installation.do(codes) == ["AAA/USDT:USDT", "BBB/USDT:USDT", "NEW/USDT:USDT"]

    aside = installation.do(lambda: restoring.restore_backup(backup, force=True))
    assert installation.do(codes) == ["AAA/USDT:USDT", "BBB/USDT:USDT"]
    assert month_of(places).read_bytes() == candles
    assert (places / "artifacts" / "scope" / "v1-65537" / "model.txt").read_text() == "trees"
    with closing(sqlite3.connect(places / "ledger" / "main.sqlite3")) as ledger:
        assert ledger.execute("SELECT cash FROM account").fetchall() == [("10000",)]
    assert len(aside) == 4
    old = next(path for path in aside if "db.sqlite3" in str(path))
    with closing(sqlite3.connect(Path(old) / "db.sqlite3")) as database:
        assert database.execute("SELECT COUNT(*) FROM coverage_app_symbol").fetchone() == (3,)
    assert not list(places.rglob(".restore-*"))
    with running("doctor", data_dir=places) as doctor:
        assert doctor.wait_end(seconds=60) == 0, doctor.log
        assert "PROBLEM" not in doctor.log


def test_no_candle_is_missing_from_a_copy_that_was_taken_while_recent_rows_were_folded(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two files of the copy a whole day is appended, and folded, and more begun."""
    monkeypatch.setattr(monthly, "RECENT_ROWS", 20)
    store, code, begin = CandleStore(places / "candles"), "AAA/USDT:USDT", to_ms(EPOCH - 40 * DAY)

    def write(first: int, count: int) -> None:
        times = begin + np.arange(first, first + count, dtype=np.int64) * 3_600_000
        store.write("simulated", "1h", {code: Candles(times, *[np.full(count, 100.0)] * 5)})

    write(0, 30 * 24)
    write(30 * 24, 1)
    hours = itertools.count(30 * 24 + 1)
    entries = taking._copy_candles(tmp_path / "copy", lambda: [write(next(hours), 1) for _ in range(30)] and None)
    copied = CandleStore(tmp_path / "copy" / "candles").read("simulated", "1h")[code]
    assert len(entries) == 3
    assert len(copied) > 30 * 24
    assert (np.diff(copied.open_time) == 3_600_000).all()
    assert copied.open_time[0] == begin


def test_tokens_only_grow_through_a_restore_and_nobody_waits_for_processes_of_the_past(
    installation: Installation, tmp_path: Path
) -> None:
    def work() -> tuple[int, int]:
        before = leases.acquire("account:x", holder="me", ttl=timedelta(seconds=3600))
        heartbeats.beat("bot:main", "bot")
        assert before is not None
        backup = take(tmp_path)
        after = [leases.release(before), leases.acquire("account:x", holder="it", ttl=timedelta(microseconds=1))][1]
        assert after is not None
        Lease.objects.update(expires_at=None)
        Heartbeat.objects.all().delete()
        restoring.restore_backup(backup, force=True)
        assert not heartbeats.pulses()
        again = leases.acquire("account:x", holder="new", ttl=timedelta(seconds=20))
        assert again is not None, "it need not wait for a lease of the time of the backup"
        return after.token, again.token

    granted, fresh = installation.do(work)
    assert fresh > granted


def test_a_restore_that_is_killed_half_way_leaves_nothing_that_runs_and_is_completed_by_the_next(
    installation: Installation, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = installation.do(lambda: take(tmp_path))
    candles = month_of(places).read_bytes()
    installation.do(lambda: spoil(places))
    (places / ".restore-20200101t000000000000z-artifacts").mkdir()  # what an earlier kill left

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(restoring, "_switch_folders", killed)
        with pytest.raises(KeyboardInterrupt):
            installation.do(lambda: restoring.restore_backup(backup, force=True))
    with pytest.raises(guards.NotMigrated, match="is not migrated"):
        installation.do(guards.require_migrated)
    installation.do(lambda: restoring.restore_backup(backup, force=True))
    assert installation.do(codes) == ["AAA/USDT:USDT", "BBB/USDT:USDT"]
    assert month_of(places).read_bytes() == candles
    assert not list(places.glob(".restore-*"))


def damage(backup: Path, how: str) -> None:
    candles = month_of(backup)
    if how == "changed":
        candles.write_bytes(candles.read_bytes()[:-1] + b"x")
    elif how == "cut off":
        candles.write_bytes(b"candles")
    elif how == "missing":
        candles.unlink()
    elif how == "strange":
        (backup / "stranger").touch()
    elif how == "no manifest":
        (backup / "manifest.json").unlink()
    elif how == "cut manifest":
        (backup / "manifest.json").write_text("{")
    else:
        raw = json.loads((backup / "manifest.json").read_text())
        changes = {
            "other market": {"market": "binance_um"},
            "other database": {"vendor": "postgresql"},
            "newer code": {"migrations": [*raw["migrations"], ["trading_app", "9999_x"]]},
            "other counts": {"counts": {**raw["counts"], "coverage_app_symbol": 3}},
            "other format": {"format": 99},
            "way up": {"files": [*raw["files"], {**raw["files"][0], "path": f"candles/../{raw['files'][0]['path']}"}]},
            "in a bucket": {"elsewhere": {"artifacts": "s3://a/b", "candles": "s3://a/c"}},
        }
        (backup / "manifest.json").write_text(json.dumps({**raw, **changes[how]}))


@pytest.mark.parametrize(
    "how, said",
    [
        ("changed", "2025-05.parquet was changed"),
        ("cut off", "was changed: 7 bytes"),
        ("missing", "cannot be read"),
        ("strange", "stranger is not in the manifest"),
        ("no manifest", "is not a backup"),
        ("cut manifest", "take another backup"),
        ("other market", "belongs to EXCHANGE=simulated EXCHANGE_MARKET=binance_um"),
        ("other database", "holds a postgresql database"),
        ("newer code", "newer code .*trading_app.9999_x"),
        ("other counts", "coverage_app_symbol has 2 rows, 3 were counted"),
        ("other format", "format 99"),
        ("way up", r"candles/\.\./.* leaves the backup's folder"),
        ("in a bucket", "set STORAGE_URL"),
    ],
)
def test_a_backup_that_is_damaged_or_does_not_belong_here_changes_nothing(
    installation: Installation, places: Path, tmp_path: Path, how: str, said: str
) -> None:
    backup = installation.do(lambda: take(tmp_path))
    damage(backup, how)
    before = sorted(places.iterdir())
    with pytest.raises(BackupError, match=said):
        installation.do(lambda: restoring.restore_backup(backup, force=True))
    assert sorted(places.iterdir()) == sorted({*before, places / "runall.lock"})
    assert installation.do(codes) == ["AAA/USDT:USDT", "BBB/USDT:USDT"]


def test_nothing_is_restored_under_a_running_installation(
    installation: Installation, places: Path, tmp_path: Path
) -> None:
    backup = installation.do(lambda: take(tmp_path))
    with only_copy(places / "runall.lock"), pytest.raises(BackupError, match=r"runall is running already"):
        installation.do(lambda: restoring.restore_backup(backup, force=True))
    installation.do(lambda: heartbeats.beat("worker on another host", "worker"))
    with pytest.raises(BackupError, match=r"worker on another host \(pid"):
        installation.do(lambda: restoring.restore_backup(backup, force=True))
    installation.do(lambda: heartbeats.stop("worker on another host"))
    installation.do(lambda: leases.acquire("account:x", holder="a bot", ttl=timedelta(seconds=60)))
    with pytest.raises(BackupError, match=r"lease account:x of a bot"):
        installation.do(lambda: restoring.restore_backup(backup, force=True))


def test_nothing_is_restored_under_a_process_that_starts_while_the_backup_is_checked(
    installation: Installation, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = installation.do(lambda: take(tmp_path))
    check = restoring.check_backup

    def started_meanwhile(folder: Path) -> Any:
        heartbeats.beat("worker on another host", "worker")
        return check(folder)

    monkeypatch.setattr(restoring, "check_backup", started_meanwhile)
    with pytest.raises(BackupError, match=r"worker on another host \(pid"):
        installation.do(lambda: restoring.restore_backup(backup, force=True))
    assert not list(places.glob("*before-restore*"))
    assert not list(places.glob(".restore-*"))


def test_a_backup_that_breaks_off_leaves_nothing_that_looks_like_one(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(taking, "_copy_candles", full)
    with pytest.raises(BackupError, match=r"No space left on device.*free space"):
        installation.do(lambda: take(tmp_path / "kept"))
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_model_without_its_files_is_copied_as_it_is_and_said(
    installation: Installation, places: Path, tmp_path: Path
) -> None:
    (places / "artifacts" / "scope" / "v1-65537" / "model.txt").unlink()
    _, notes = installation.do(lambda: taking.take_backup(tmp_path))
    assert notes == ["model scope/v1-65537: 0 bytes of files where its row says 5; the copy is as broken"]


def test_pruning_waits_for_a_backup_and_a_backup_for_pruning(installation: Installation, tmp_path: Path) -> None:
    def work() -> None:
        with leases.holding(retention.LEASE, ttl=timedelta(minutes=1)):
            assert retention.prune() == ""
            with pytest.raises(BackupError, match=r"pruning, is at work"):
                taking.take_backup(tmp_path)

    installation.do(work)


def test_a_second_backup_in_the_same_second_is_refused_and_leaves_the_first_one_whole(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.real_now()
    monkeypatch.setattr(clock, "real_now", lambda: now)

    def again(_: str) -> None:
        with pytest.raises(BackupError, match="another backup"):
            taking.take_backup(tmp_path)

    path, _ = installation.do(lambda: taking.take_backup(tmp_path, say=again))
    assert installation.do(lambda: restoring.check_backup(path)).files


def test_old_backups_are_removed_and_never_the_last_one(tmp_path: Path) -> None:
    for name in ("20260101T000000Z", "20260102T000000Z", "20260103T000000Z", ".partial-20260104T000000Z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    assert taking.prune_backups(tmp_path, keep=2) == ["20260101T000000Z"]
    assert taking.prune_backups(tmp_path, keep=1) == ["20260102T000000Z"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-20260104T000000Z", "20260103T000000Z"]
    with pytest.raises(BackupError, match="at least one"):
        taking.prune_backups(tmp_path, keep=0)


# --- the commands and the job ---


def test_a_backup_is_taken_and_pruned_while_a_bot_runs_and_is_not_restored_under_it(data_dir: Path) -> None:
    with running("runbot", data_dir=data_dir, BOT_INTERVAL="0.2") as bot:
        with closing(sqlite3.connect(data_dir / "db.sqlite3", timeout=60)) as database:
            wait_until(lambda: database.execute("SELECT 1 FROM ops_app_heartbeat").fetchone(), what="the bot's life")
        with running("backup", "--keep", "1", "--json", data_dir=data_dir) as backup:
            assert backup.wait_end(seconds=60) == 0, backup.log
        facts = json.loads(backup.log.strip().splitlines()[-1])
        assert read_manifest(Path(facts["backup"])).counts["ops_app_heartbeat"] == 1
        assert any(entry.path.startswith("ledger/") for entry in read_manifest(Path(facts["backup"])).files)
        with running("restore", facts["backup"], "--force", data_dir=data_dir) as restore:
            assert restore.wait_end(seconds=60) == 1
            assert "the installation is running: bot:main" in restore.log
        assert bot.process.poll() is None


def test_a_backup_away_from_the_bots_host_says_what_it_lacks(
    installation: Installation, places: Path, tmp_path: Path
) -> None:
    installation.do(lambda: BotFactory(account="simulated:far", started_at=EPOCH))
    _, notes = installation.do(lambda: taking.take_backup(tmp_path / "kept"))
    assert len(notes) == 1
    assert "take the backup where the bot runs" in notes[0]
    with closing(sqlite3.connect(places / "ledger" / ledger_name("simulated:far"))) as ledger:
        ledger.execute("PRAGMA journal_mode=WAL")
    assert installation.do(lambda: taking.take_backup(tmp_path / "again"))[1] == []


def test_the_job_is_there_when_it_is_asked_for(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_jobs", {name: each for name, each in jobs._jobs.items() if name != "backup"})
    settings.BACKUP_INTERVAL_HOURS = 6
    importlib.reload(schedules)
    assert jobs.find("backup").period == timedelta(hours=6)


@pytest.mark.django_db
def test_the_job_says_what_it_did_and_raises_an_alert_when_it_could_not(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(code: int, out: str, err: str) -> None:
        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            asked.append(command[2:])
            return subprocess.CompletedProcess(command, code, out, err)

        monkeypatch.setattr(subprocess, "run", run)

    answer(1, "", "CommandError: the disk is full\n")
    with pytest.raises(BackupError, match=r"the disk is full"):
        job.take_scheduled()
    assert "the disk is full" in Alert.objects.get(key=job.ALERT, resolved_at=None).text
    answer(0, '{"backup": "/b/0", "bytes": 1, "removed": [], "notes": ["the ledger of x"]}', "")
    assert job.take_scheduled().endswith("look: the ledger of x")
    assert Alert.objects.filter(resolved_at=None).exists(), "somebody should look at what it lacks"
    answer(0, 'a log line\n{"backup": "/b/1", "bytes": 1234, "removed": ["x"], "notes": []}\n', "")
    assert job.take_scheduled() == "/b/1: 1,234 bytes, 1 older ones removed"
    assert not alerts.resolve_alert(job.ALERT), "it is resolved already"
    assert asked[-1] == ["backup", str(places / "backups"), "--keep", "7", "--json"]


# --- PostgreSQL ---


@pytest.mark.postgres
def test_postgresql_is_dumped_from_the_snapshot_and_restored_in_one_transaction(
    places: Path, django_db_blocker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg
    from django.db.backends.postgresql.base import DatabaseWrapper as PostgresWrapper

    template = connections.settings["default"]
    name = f"backup_{uuid.uuid4().hex[:12]}"
    server = (
        f"postgres://{template['USER']}:{template['PASSWORD']}@{template['HOST']}:{template['PORT'] or 5432}/postgres"
    )
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f'CREATE DATABASE "{name}"')
        made = Installation(lambda: PostgresWrapper({**template, "NAME": name}, "default"), django_db_blocker)
        try:
            made.do(lambda: call_command("migrate", verbosity=0))
            made.do(lambda: fill(places))
            backup = made.do(lambda: take(tmp_path / "kept"))
            made.do(lambda: spoil(places))
            manifest = read_manifest(backup)
            assert (manifest.vendor, manifest.database_file) == ("postgresql", "database.dump")

            broken = {**json.loads((backup / "manifest.json").read_text())}
            wrong = {**broken, "counts": {**manifest.counts, "coverage_app_symbol": 7}}
            (backup / "manifest.json").write_text(json.dumps(wrong))
            with pytest.raises(BackupError, match="coverage_app_symbol does not have 7 rows"):
                made.do(lambda: restoring.restore_backup(backup, force=True))
            assert len(made.do(codes)) == 3, "the transaction was rolled back"
            assert (places / "artifacts" / "scope" / "v1-65537" / "model.txt").read_text() == "wrong"
            (backup / "manifest.json").write_text(json.dumps(broken))

            aside = made.do(lambda: restoring.restore_backup(backup, force=True))
            assert made.do(codes) == ["AAA/USDT:USDT", "BBB/USDT:USDT"]
            assert (places / "artifacts" / "scope" / "v1-65537" / "model.txt").read_text() == "trees"
            schema = str(aside[0]).split('"')[1]

            def old_rows() -> int:
                with connection.cursor() as cursor:
                    cursor.execute(f'SELECT COUNT(*) FROM "{schema}".coverage_app_symbol')
                    return int(cursor.fetchone()[0])

            assert made.do(old_rows) == 3
            made.do(lambda: SymbolFactory(code="NEXT/USDT:USDT"))  # the sequences go on
            second = made.do(lambda: take(tmp_path / "kept"))
            assert read_manifest(second).counts["coverage_app_symbol"] == 3, "and what was moved aside is not in it"
            made.do(lambda: restoring.restore_backup(second, force=True))
            assert len(made.do(codes)) == 3
            assert made.do(lambda: MigrationRecorder(connection).has_table())
        finally:
            administrator.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.mark.parametrize("missing", ["pg_dump", "psql"])
def test_missing_client_programs_are_named_with_the_fix(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots.shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(BackupError, match=rf"{missing} is not on PATH.*apt install postgresql-client"):
        snapshots.require_programs("pg_dump", "psql")


def test_a_backup_and_a_restore_are_written_down(installation: Installation, tmp_path: Path) -> None:
    backup = installation.do(lambda: take(tmp_path))
    (event,) = installation.do(lambda: list(Event.objects.filter(kind="backup_taken")))
    assert "5 files" in event.text
    said = io.StringIO()
    installation.do(lambda: call_command("restore", str(backup), "--force", stdout=said))
    assert "Restored from" in said.getvalue()
    assert installation.do(lambda: Event.objects.get(kind="restored").text).endswith(f"{backup.name}.")
    assert installation.do(lambda: ModelArtifact.objects.count()) == 1

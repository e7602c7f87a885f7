"""Taking a backup while everything runs, and removing old ones."""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError

from marketdata.monthly import RECENT
from ops_app import clock, journal, leases, retention
from trading_app.venue import ledger_name
from tradingsite.backup.errors import BackupError
from tradingsite.backup.manifest import FileEntry, Manifest, backups_in, copy_file, digest, files_below, sync_folder
from tradingsite.backup.snapshots import Snapshot, SqliteSnapshot, one_instant

LEASE_TTL = dt.timedelta(minutes=30)
PARTIAL, REMOVED = ".partial-", ".removed-"
LEFTOVER_AGE = dt.timedelta(days=1)
SPARE_BYTES = 100_000_000
LEDGERS, ARTIFACTS, CANDLES = "ledger", "artifacts", "candles"
SAY_NOTHING: Callable[[str], None] = lambda text: None  # noqa: E731, ARG005 - a default that is passed on


def default_folder() -> Path:
    """Return where backups are kept: BACKUP_DIR, else `backups` in DATA_DIR."""
    return Path(settings.BACKUP_DIR) if settings.BACKUP_DIR else Path(settings.DATA_DIR) / "backups"


def take_backup(folder: Path, *, say: Callable[[str], None] = SAY_NOTHING) -> tuple[Path, list[str]]:
    """Copy everything to a new folder below `folder`; returns it, and what a person should know of it.

    The new folder appears by one rename, whole and synced. Raises BackupError; then there is no new folder.
    """
    stamp = f"{clock.real_now():%Y%m%dT%H%M%SZ}"
    target, partial = folder / stamp, folder / f"{PARTIAL}{stamp}"
    try:
        with leases.holding(retention.LEASE, ttl=LEASE_TTL) as lease:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_room(folder)
            partial.mkdir(mode=0o700)
            try:  # inside of the lease: a second backup of the same second must not remove the first one's files
                manifest, notes = _fill(partial, lambda: leases.keep(lease), say)
                manifest.write(partial)
                for path in [*(each for each in partial.rglob("*") if each.is_dir()), partial]:
                    sync_folder(path)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            sync_folder(folder)
    except leases.LeaseBusy as error:
        raise BackupError("another backup, or pruning, is at work: try again in a minute") from error
    except leases.LeaseLost as error:
        raise BackupError(f"the copy took longer than {LEASE_TTL}, or the database stood still: {error}") from error
    except (OSError, sqlite3.Error, DatabaseError) as error:
        raise BackupError(f"the copy to {folder} failed: {error}. Check its free space and rights.") from error
    journal.record("backup_taken", f"{target}: {len(manifest.files)} files, {manifest.size:,} bytes", subject="backup")
    return target, notes


def _fill(partial: Path, keep: Callable[[], None], say: Callable[[str], None]) -> tuple[Manifest, list[str]]:
    """Copy all into `partial`: the instant, then what the rows name."""
    shared = elsewhere()
    for name, address in shared.items():
        say(f"{name}: not copied, they are in {address}")
    ledgers = sorted(Path(settings.LEDGER_DIR).glob("*.sqlite3"))
    with one_instant(ledgers) as (database, copies):
        made_at = clock.real_now()
        files = [_copy_ledger(copies[path], path, partial) for path in ledgers]
        say(f"ledgers: {len(files)} files")
        database.dump(partial)
        files.append(FileEntry(database.file_name, *digest(partial / database.file_name)))
        say(f"database: {files[-1].size:,} bytes")
        keep()
        migrations = database.query("SELECT app, name FROM django_migrations ORDER BY app, name")
        counts = {name: int(database.query(f'SELECT COUNT(*) FROM "{name}"')[0][0]) for name in database.tables()}  # noqa: S608 - names come from the database itself
        notes = _missing_ledgers(database, ledgers)
        if not shared:
            artifacts, broken = _copy_artifacts(database, partial, keep)
            files += artifacts
            notes += broken
            say(f"artifacts: {len(artifacts)} files")
    if not shared:
        candles = _copy_candles(partial, keep)
        files += candles
        say(f"candles: {len(candles)} files")
    manifest = Manifest(
        made_at=made_at.isoformat(),
        vendor="sqlite" if isinstance(database, SqliteSnapshot) else "postgresql",
        database_file=database.file_name,
        exchange=settings.EXCHANGE,
        market=settings.EXCHANGE_MARKET,
        migrations=tuple((str(app), str(name)) for app, name in migrations),
        counts=counts,
        files=tuple(files),
        elsewhere=shared,
    )
    return manifest, notes


def elsewhere() -> dict[str, str]:
    """Return what a backup names instead of copying it: what lies in a bucket, which keeps versions by itself."""
    bucket = settings.STORAGE_BUCKET
    return {} if bucket is None else {name: str(bucket / name) for name in (ARTIFACTS, CANDLES)}


def _copy_ledger(snapshot: SqliteSnapshot, path: Path, partial: Path) -> FileEntry:
    (partial / LEDGERS).mkdir(exist_ok=True, mode=0o700)
    name = f"{LEDGERS}/{path.name}"
    snapshot.copy_to(partial / name)
    return FileEntry(name, *digest(partial / name))


def _missing_ledgers(database: Snapshot, ledgers: list[Path]) -> list[str]:
    """Return a note for each bot that has traded and whose ledger is not here: it lies on the bot's own host."""
    here = {path.name for path in ledgers}
    bots = database.query("SELECT name, account FROM trading_app_bot WHERE started_at IS NOT NULL ORDER BY name")
    return [
        f"the ledger of bot {name} is not on this host: take the backup where the bot runs"
        for name, account in bots
        if ledger_name(account) not in here
    ]


def _copy_artifacts(database: Snapshot, partial: Path, keep: Callable[[], None]) -> tuple[list[FileEntry], list[str]]:
    """Copy the directories that the snapshot's rows name; a directory without a row is nobody's."""
    entries: list[FileEntry] = []
    notes: list[str] = []
    rows = database.query("SELECT directory, size, integrity_error FROM training_app_modelartifact ORDER BY directory")
    for directory, size, error in rows:
        source = Path(settings.ARTIFACTS_DIR) / directory
        copied = [
            copy_file(path, partial / ARTIFACTS / directory / path.name, name=f"{ARTIFACTS}/{directory}/{path.name}")
            for path in (files_below(source) if source.is_dir() else ())
        ]
        entries += copied
        found = sum(entry.size for entry in copied if not entry.path.endswith("/manifest.json"))
        if found != size and not error:
            notes.append(f"model {directory}: {found} bytes of files where its row says {size}; the copy is as broken")
        keep()
    return entries, notes


def _copy_candles(partial: Path, keep: Callable[[], None]) -> list[FileEntry]:
    entries = []
    for path in candle_files():
        name = f"{CANDLES}/{path.relative_to(settings.CANDLES_DIR).as_posix()}"
        entries.append(copy_file(path, partial / name, name=name))
        keep()
    return entries


def candle_files() -> list[Path]:
    """Return the files of the store in the order in which they must be copied.

    The recent rows come first: what is folded into a month meanwhile is then in both copies, and not in neither. A name
    with a dot before it is a writer's unfinished file.
    """
    found = [path for path in files_below(Path(settings.CANDLES_DIR)) if not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.name != RECENT)


def _require_room(folder: Path) -> None:
    """Raise BackupError when the copy surely has no room: files as they are, the database uncompressed."""
    places = [settings.LEDGER_DIR, *(() if elsewhere() else (settings.ARTIFACTS_DIR, settings.CANDLES_DIR))]
    need = sum(path.stat().st_size for place in places for path in files_below(Path(place)))
    need += sum(path.stat().st_size for path in Path(settings.DATA_DIR).glob("db.sqlite3*"))
    free = shutil.disk_usage(folder).free
    if free < need + SPARE_BYTES:
        raise BackupError(
            f"{folder} has {free / 1e9:.2f} GB free, the copy needs {need / 1e9:.2f} GB and 0.1 GB to spare: make "
            "room, keep fewer (--keep), or name another folder"
        )


def prune_backups(folder: Path, *, keep: int) -> list[str]:
    """Remove all but the `keep` newest whole backups, and what a killed backup left; returns the names removed."""
    if keep < 1:
        raise BackupError(f"keep is {keep}: at least one backup must stay")
    removed = []
    for path in backups_in(folder)[:-keep]:
        hidden = folder / f"{REMOVED}{path.name}"
        path.rename(hidden)  # whoever is killed while removing leaves nothing that looks whole
        removed.append(path.name)
    oldest = (clock.real_now() - LEFTOVER_AGE).timestamp()
    for path in [*folder.glob(f"{REMOVED}*"), *folder.glob(f"{PARTIAL}*")]:
        if path.name.startswith(REMOVED) or path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)
    return removed


def facts(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return what a machine may want to know of a new backup."""
    return {"backup": str(path), "bytes": sum(each.stat().st_size for each in files_below(path)), "notes": notes}

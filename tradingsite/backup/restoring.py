"""Bringing a backup back: all is checked before anything is changed, and what was there is moved aside, not deleted."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.management.base import CommandError
from django.db import DatabaseError, connection

from ops_app import clock, heartbeats, leases, versions
from ops_app.management.commands.runall import only_copy
from ops_app.models import Lease
from tradingsite.backup.errors import BackupError
from tradingsite.backup.manifest import USUAL, Manifest, copy_file, files_below, read_manifest, sync_folder, verify
from tradingsite.backup.snapshots import ASIDE_SCHEMA, address_of, require_programs, run_program, sqlite_path
from tradingsite.backup.taking import ARTIFACTS, CANDLES, LEDGERS, SAY_NOTHING, elsewhere

TOKENS_SKIPPED, RUNS_SKIPPED = 10_000, 1_000
#: Tokens only grow, also through a restore: what was granted after the backup is never granted again (B1, T2).
#: Processes of the time of the backup are gone: nobody waits for their leases or misses their heartbeats.
FINISH = (
    f"UPDATE ops_app_lease SET token = token + {TOKENS_SKIPPED}, holder = '', expires_at = NULL",  # noqa: S608 - a constant
    "DELETE FROM ops_app_heartbeat",
)
#: Artifacts on shared storage stay when the rows go back: a run must not get the directory of one that is there.
FINISH_ELSEWHERE = (f"UPDATE training_app_trainingscope SET run_seq = run_seq + {RUNS_SKIPPED}",)  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of the backup and where it goes."""

    name: str
    target: Path


def parts() -> list[Part]:
    """Return the folders that a restore replaces: not what is in a bucket."""
    places = ((ARTIFACTS, settings.ARTIFACTS_DIR), (CANDLES, settings.CANDLES_DIR), (LEDGERS, settings.LEDGER_DIR))
    shared = elsewhere()
    return [Part(name, Path(place)) for name, place in places if name not in shared]


def check_backup(folder: Path) -> Manifest:
    """Return the manifest of a backup that is whole and fits these settings and this code. Raises BackupError."""
    manifest = read_manifest(folder)
    if manifest.vendor != connection.vendor:
        raise BackupError(
            f"{folder} holds a {manifest.vendor} database, the settings name {connection.vendor}: "
            "set DATABASE_URL accordingly (empty for SQLite)"
        )
    if (manifest.exchange, manifest.market) != (settings.EXCHANGE, settings.EXCHANGE_MARKET):
        raise BackupError(
            f"{folder} belongs to EXCHANGE={manifest.exchange} EXCHANGE_MARKET={manifest.market}, the settings name "
            f"{settings.EXCHANGE} and {settings.EXCHANGE_MARKET}: set them as they were"
        )
    if manifest.elsewhere.keys() != elsewhere().keys():
        there = ", ".join(manifest.elsewhere.values()) or "the backup's own folders"
        raise BackupError(f"{folder} has its candles and artifacts in {there}: set STORAGE_URL as it was")
    newer = versions.unknown_to_code(manifest.migrations)
    if newer:
        raise BackupError(f"{folder} was made by newer code (it has {newer[0]}): update the code, then restore")
    verify(folder, manifest)
    if manifest.vendor == "sqlite":
        _check_counts(folder / manifest.database_file, manifest)
    else:
        require_programs("pg_restore", "psql")
        run_program(["pg_restore", "--file=/dev/null", str(folder / manifest.database_file)], password="")
    return manifest


def _check_counts(path: Path, manifest: Manifest) -> None:
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
        for name, count in manifest.counts.items():
            (found,) = database.execute(f'SELECT COUNT(*) FROM "{name}"').fetchone()  # noqa: S608 - names of our tables
            if found != count:
                raise BackupError(f"{path}: table {name} has {found} rows, {count} were counted: take another backup")


def require_still() -> None:
    """Raise BackupError while a process of this installation lives: it would write into what is being replaced."""
    try:
        alive = [f"{pulse.name} (pid {pulse.pid} on {pulse.host})" for pulse in heartbeats.pulses() if pulse.alive]
        held = Lease.objects.filter(leases.unexpired()).values_list("name", "holder")
        alive += [f"lease {name} of {holder}" for name, holder in held]
    except DatabaseError:
        return  # no database, or one without tables: nobody can work on it
    if alive:
        raise BackupError(
            f"the installation is running: {', '.join(alive[:5])}. Stop it (Ctrl-C in runall's terminal, on every "
            "host); after a kill wait a minute until its heartbeats and leases have run out"
        )


def existing_data() -> list[str]:
    """Return what a restore would replace: "" of a database without tables and folders without files."""
    found = [str(part.target) for part in parts() if any(files_below(part.target))]
    try:
        with connection.cursor() as cursor:
            if connection.introspection.table_names(cursor):
                found.insert(0, "the database")
    except DatabaseError as error:
        raise BackupError(f"the database cannot be reached: {str(error).strip()}. Check DATABASE_URL.") from error
    return found


def restore_backup(folder: Path, *, force: bool, say: Callable[[str], None] = SAY_NOTHING) -> list[Path | str]:
    """Restore the backup in `folder`; returns where the data that was there before is now.

    Raises BackupError; then nothing was changed, or it was put back.
    """
    with _alone():
        require_still()
        manifest = check_backup(folder)
        say(f"{folder} is whole: {len(manifest.files)} files, {manifest.size:,} bytes")
        found = existing_data()
        if found and not force:
            raise BackupError(
                f"there is data already: {', '.join(found)}. With --force it is moved aside (not deleted) and replaced"
            )
        stamp = f"{clock.real_now():%Y%m%dt%H%M%S%f}z"
        with _staged(folder, manifest, stamp) as staged:
            say("files are staged")
            require_still()  # checking and copying may take minutes, and runall's lock knows this host only
            connection.close()
            if manifest.vendor == "sqlite":
                return _switch_sqlite(staged, stamp)
            aside: list[Path | str] = _switch_postgresql(folder, manifest, stamp)
            return [*aside, *_switch_folders(staged, stamp)]


@contextmanager
def _alone() -> Iterator[None]:
    """Let no runall start here meanwhile."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_copy(Path(settings.DATA_DIR) / "runall.lock"))
        except CommandError as error:
            raise BackupError(f"the installation is running. {error}") from error
        yield


@contextmanager
def _staged(folder: Path, manifest: Manifest, stamp: str) -> Iterator[dict[str, Path]]:
    """Copy the backup's files beside where they belong, so that a rename each puts them in place."""
    staged = {part.name: part.target.with_name(f".restore-{stamp}-{part.target.name}") for part in parts()}
    if manifest.vendor == "sqlite":
        path = sqlite_path()
        staged["database"] = path.with_name(f".restore-{stamp}-{path.name}")
    for path in staged.values():  # of a restore that was killed
        for leftover in path.parent.glob(path.name.replace(stamp, "*", 1)):
            _remove(leftover)
    try:
        for part in parts():
            staged[part.name].mkdir(parents=True)
        for entry in manifest.files:
            top, _, rest = entry.path.partition("/")
            target = staged[top] / rest if rest else staged.get("database")
            if target is not None and copy_file(folder / entry.path, target, name=entry.path, mode=USUAL) != entry:
                raise BackupError(f"{entry.path} changed while it was read: nothing was restored")
        if "database" in staged:
            with closing(sqlite3.connect(staged["database"])) as database, database:
                for statement in _finish(manifest):
                    database.execute(statement)
        yield staged
    except OSError as error:
        raise BackupError(f"the files could not be staged: {error}. Check free space and rights.") from error
    finally:
        for path in staged.values():
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _finish(manifest: Manifest) -> tuple[str, ...]:
    return (*FINISH, *(FINISH_ELSEWHERE if ARTIFACTS in manifest.elsewhere else ()))


def _switch_sqlite(staged: dict[str, Path], stamp: str) -> list[Path | str]:
    """The database goes first and comes last: whoever looks in between finds none, and refuses to start."""
    path = sqlite_path()
    aside: list[Path | str] = []
    old = [each for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))) if each.exists()]
    if old:
        place = path.with_name(f"{path.name}.before-restore-{stamp}")
        place.mkdir(mode=0o700)
        for each in old:
            each.rename(place / each.name)
        aside.append(place)
    aside += _switch_folders(staged, stamp)
    staged["database"].rename(path)
    sync_folder(path.parent)
    return aside


def _switch_folders(staged: dict[str, Path], stamp: str) -> list[Path]:
    aside = []
    for part in parts():
        if part.target.exists():
            if any(files_below(part.target)):
                place = part.target.with_name(f"{part.target.name}.before-restore-{stamp}")
                part.target.rename(place)
                aside.append(place)
            else:
                shutil.rmtree(part.target)
        staged[part.name].rename(part.target)
        sync_folder(part.target.parent)
    return aside


def _switch_postgresql(folder: Path, manifest: Manifest, stamp: str) -> list[Path | str]:
    """In one transaction: move the old tables to a schema of their own, restore, and compare the counts of rows."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        (schema,) = cursor.fetchone()
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1")
        tables = [name for (name,) in cursor.fetchall()]
    address, password = address_of(connection)
    connection.close()
    aside = f"{ASIDE_SCHEMA}{stamp}"
    before = ["SET idle_in_transaction_session_timeout = 0;", "SET lock_timeout = '30s';"]
    if tables:
        before.append(f'CREATE SCHEMA "{aside}";')
        before += [f'ALTER TABLE "{schema}"."{name}" SET SCHEMA "{aside}";' for name in tables]
    after = [f'SET search_path = "{schema}";', *(f"{statement};" for statement in _finish(manifest))]
    changed = {"ops_app_heartbeat"}
    for name, count in manifest.counts.items():
        if name not in changed:
            after.append(
                f'DO $$ BEGIN IF (SELECT COUNT(*) FROM "{name}") <> {count} THEN '  # noqa: S608 - names of our tables
                f"RAISE EXCEPTION '{name} does not have {count} rows'; END IF; END $$;"
            )
    scripts = Path(settings.DATA_DIR) / f".restore-{stamp}-sql"
    scripts.mkdir(mode=0o700)
    try:
        (scripts / "1.sql").write_text("\n".join(before))
        # A file, not a pipe: a pg_restore that fails half-way must not look like the end of the script.
        run_program(
            [
                "pg_restore", "--no-owner", "--no-privileges", f"--file={scripts / '2.sql'}",
                str(folder / manifest.database_file),
            ],
            password="",
        )  # fmt: skip
        (scripts / "3.sql").write_text("\n".join(after))
        run_program(
            [
                "psql", "--no-psqlrc", "--quiet", "--no-password", "--single-transaction", "--set=ON_ERROR_STOP=1",
                "--output=/dev/null", f"--dbname={address}",
                *(f"--file={scripts / f'{step}.sql'}" for step in (1, 2, 3)),
            ],
            password=password,
        )  # fmt: skip
    finally:
        shutil.rmtree(scripts, ignore_errors=True)
    return [f'schema "{aside}" of the database'] if tables else []

"""One instant of the database and of the ledgers, held open while both are copied."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from django.db import connection

from tradingsite.backup.errors import BackupError

BUSY_SECONDS = 20.0
ASIDE_SCHEMA = "before_restore_"
CONNECTION_OPTIONS = (
    "host", "port", "user", "dbname", "service", "passfile", "sslmode", "sslcert", "sslkey", "sslrootcert",
    "connect_timeout",
)  # fmt: skip
SQLITE_FILE, POSTGRESQL_FILE = "database.sqlite3", "database.dump"


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database that exists, without Python's own ideas of transactions."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_SECONDS)


class Snapshot(Protocol):
    """The database as it was at one instant."""

    file_name: str

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query without parameters."""

    def tables(self) -> list[str]:
        """Return the names of all tables."""

    def dump(self, folder: Path) -> None:
        """Write the whole database to `folder / file_name`."""


class SqliteSnapshot:
    """An open read transaction of a file in WAL mode: writers go on, and what is read stays as it was."""

    file_name = SQLITE_FILE

    def __init__(self, path: Path) -> None:
        self._connection = _connect(path)
        try:
            self._connection.execute("BEGIN")
            self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # it begins with a read
        except sqlite3.Error:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()

    def tables(self) -> list[str]:
        names = self.query(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY 1"
        )
        return [name for (name,) in names]

    def dump(self, folder: Path) -> None:
        self.copy_to(folder / self.file_name)

    def copy_to(self, path: Path) -> None:
        """Write one self-contained file (no write-ahead log beside it), and check it. Raises BackupError."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            self._connection.backup(target)  # in one step, from the transaction that is open
            target.execute("PRAGMA journal_mode=DELETE")
            (verdict,) = target.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise BackupError(f"the copy {path.name} is not sound ({verdict}): the database itself may be damaged; "
                              "run `sqlite3 <file> 'PRAGMA integrity_check'` on it")  # fmt: skip
        with path.open("rb") as file:
            os.fsync(file.fileno())


class PostgresSnapshot:
    """A read-only transaction whose snapshot pg_dump uses too."""

    file_name = POSTGRESQL_FILE

    def __init__(self) -> None:
        require_programs("pg_dump")
        self._database = connection.copy()
        with self._database.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")  # pg_dump works meanwhile
            cursor.execute("SELECT pg_export_snapshot()")
            (self._name,) = cursor.fetchone()
        self._address, self._password = address_of(self._database)

    def close(self) -> None:
        self._database.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with self._database.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def tables(self) -> list[str]:
        names = self.query("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1")
        return [name for (name,) in names]

    def dump(self, folder: Path) -> None:
        run_program(
            [
                "pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--no-password",
                f"--exclude-schema={ASIDE_SCHEMA}*", f"--snapshot={self._name}",
                f"--file={folder / self.file_name}", f"--dbname={self._address}",
            ],
            password=self._password,
        )  # fmt: skip
        (folder / self.file_name).chmod(0o600)


def address_of(database: Any) -> tuple[str, str]:
    """Return the connection string of a PostgreSQL database, without its password, and the password.

    Only options that every libpq knows: the client programs may be older than the one that psycopg brings.
    """
    from psycopg.conninfo import make_conninfo

    parameters = database.get_connection_params()
    known = {name: parameters[name] for name in CONNECTION_OPTIONS if parameters.get(name)}
    return make_conninfo("", **known), str(parameters.get("password") or "")


def require_programs(*names: str) -> None:
    """Raise BackupError with the fix unless PostgreSQL's client programs are on PATH."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise BackupError(
            f"{', '.join(missing)} is not on PATH: a copy of PostgreSQL needs its client programs, of the server's "
            "major version or newer. Install them (apt install postgresql-client; brew install libpq) and try again."
        )


def run_program(command: Sequence[str], *, password: str, **options: Any) -> None:
    """Run a client program of PostgreSQL. Raises BackupError with what it said last."""
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        said = " ".join(done.stderr.strip().splitlines()[-3:]) or "nothing"
        raise BackupError(f"{command[0]} failed with exit code {done.returncode}; it said: {said}")


def sqlite_path() -> Path:
    """Return the file of the SQLite database. Raises BackupError for one in memory."""
    name = str(connection.settings_dict["NAME"])
    if ":memory:" in name or "mode=memory" in name:
        raise BackupError("the database is in memory: there is no file to copy")
    return Path(name)


def open_database() -> SqliteSnapshot | PostgresSnapshot:
    return PostgresSnapshot() if connection.vendor == "postgresql" else SqliteSnapshot(sqlite_path())


@contextmanager
def one_instant(ledgers: Sequence[Path]) -> Iterator[tuple[Snapshot, dict[Path, SqliteSnapshot]]]:
    """Yield snapshots of the database and of each ledger, all of one instant: no ledger changes in between."""
    with ExitStack() as open_files:
        with ExitStack() as locks:
            for path in ledgers:
                locks.enter_context(_locked(path))
            copies = {path: open_files.enter_context(closing(SqliteSnapshot(path))) for path in ledgers}
            database = open_files.enter_context(closing(open_database()))
        yield database, copies


@contextmanager
def _locked(ledger: Path) -> Iterator[None]:
    """Keep everybody else from writing to the ledger; a bot that wants to waits (up to 20 s) and then goes on."""
    with closing(_connect(ledger)) as lock:
        try:
            lock.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise BackupError(f"ledger {ledger.name} is busy ({error}): try again in a minute") from error
        try:
            yield
        finally:
            lock.execute("ROLLBACK")

"""A database and a data folder that are made for one command and thrown away after it: for the soak and the hammer.

Settings are read once per process, so the command becomes another process that finds its own ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import CommandError

from ops_app.process import manage_command, on_stop, spawn

INSIDE = "OWN_DATABASE_OF"


def is_own(command: str) -> bool:
    """Tell whether this process is the one that `restart_on_own_database(command, ...)` started."""
    return os.environ.get(INSIDE) == command


def restart_on_own_database(command: str, environment: Mapping[str, str], *, beside: bool = False) -> NoReturn:
    """Run this command line again on an empty, temporary database, and end with its exit code.

    `beside`: where DATABASE_URL names PostgreSQL, a database on the same server (its user must be allowed to create
    one); otherwise SQLite in a temporary folder. Raises CommandError when no database can be made.
    """
    url = settings.OPTIONS["DATABASE_URL"] if beside else ""
    with tempfile.TemporaryDirectory(prefix=f"{command}-") as folder, new_database(command, url) as own_url:
        own = {
            **os.environ,
            INSIDE: command,
            "DATA_DIR": folder,
            "DATABASE_URL": own_url,
            "REDIS_URL": "",
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "error"),
            **environment,
        }
        for name in ("DATABASE_URL_FILE", "REDIS_URL_FILE"):
            own.pop(name, None)
        sys.stdout.flush()
        child = spawn(manage_command(*sys.argv[1:]), environment=own)
        with on_stop(child.terminate):
            code = _wait(child)
    sys.exit(code if code >= 0 else 128 - code)  # 128 + signal, as a shell says it


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def new_database(command: str, url: str) -> Iterator[str]:
    """Give the address of a new database beside that of `url` and drop it afterwards; no `url`: nothing to make.

    `command` is part of its name. Raises CommandError when it cannot be made.
    """
    if not url:
        yield ""
        return
    import psycopg  # an optional extra

    parts = urlsplit(url)
    name = f"{parts.path.strip('/')[:40]}_{command}_{os.getpid()}"
    try:
        server = psycopg.connect(url, autocommit=True)
        server.execute(f'CREATE DATABASE "{name}"')
    except psycopg.Error as error:
        raise CommandError(
            f"{command} needs a database of its own beside {parts.path.strip('/')}, which cannot be made: "
            f"{str(error).strip()}. Allow it (ALTER ROLE ... CREATEDB), or leave DATABASE_URL empty for SQLite."
        ) from error
    server.close()
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(url, autocommit=True) as again:
            again.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

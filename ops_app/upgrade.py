"""Migrating the database: one process at a time, on one host or on many.

What excludes the others is a lock that ends with its owner: a file on this host, and on PostgreSQL an advisory lock of
the session on all hosts. It must work before the first table exists, and a lease could not be renewed inside of a long
migration on SQLite. Under it the lease MIGRATIONS is taken as soon as its table is there: people see who migrates,
programs that start meanwhile say so, and its token counts the upgrades.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import connection

from ops_app import leases
from ops_app.models import Lease

MIGRATIONS = "migrations"
LEASE_TTL = timedelta(hours=1)
ADVISORY_LOCK = 7_402_116_001  # any number that nothing else in this database uses

_depth = 0


@contextmanager
def alone() -> Iterator[None]:
    """Let one process set up or migrate at a time; waits for the other. May be nested."""
    global _depth
    if _depth:
        yield
        return
    with (Path(settings.DATA_DIR) / "setup.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, also when it is killed
        _depth += 1
        try:
            if connection.vendor != "postgresql":
                yield
                return
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = 0")  # the other one may take minutes
                cursor.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
                cursor.execute("RESET lock_timeout")
            try:
                yield
            finally:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_unlock(%s)", [ADVISORY_LOCK])
        finally:
            _depth -= 1


@contextmanager
def migrating() -> Iterator[None]:
    """Be the one that migrates, with the lease as its sign for the others."""
    with alone():
        lease = _sign()
        try:
            yield
        finally:
            if lease is not None:
                leases.release(lease)


def _sign() -> leases.LeaseToken | None:
    """Take the lease; None before its table exists. Whoever holds it still was killed: the lock above proves it."""
    with connection.cursor() as cursor:
        if Lease._meta.db_table not in connection.introspection.table_names(cursor):
            return None
    holder = leases.holder_name(MIGRATIONS)
    lease = leases.acquire(MIGRATIONS, holder=holder, ttl=LEASE_TTL)
    if lease is None:
        dead = Lease.objects.get(name=MIGRATIONS)
        leases.release(leases.LeaseToken(dead.name, dead.holder, dead.token, LEASE_TTL, deadline=0.0))
        lease = leases.acquire(MIGRATIONS, holder=holder, ttl=LEASE_TTL)
    return lease


def under_way() -> str:
    """Return who is migrating at this moment, "" for nobody. For a database whose tables may be missing."""
    with connection.cursor() as cursor:
        if Lease._meta.db_table not in connection.introspection.table_names(cursor):
            return ""
    held = Lease.objects.filter(leases.unexpired(), name=MIGRATIONS)
    return held.values_list("holder", flat=True).first() or ""

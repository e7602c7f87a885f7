"""What this app asks: the host, the database, the queue, time, and whether the processes live."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError, connection

from ops_app import clock, guards, heartbeats
from ops_app.doctor import Finding, check, ok, problem, warning
from ops_app.leases import expired, unexpired
from ops_app.models import Lease, MarketClock
from ops_app.process import has_parent_death_signal

OLDEST_PYTHON = (3, 11)
LEAST_FREE, ENOUGH_FREE = 200_000_000, 2_000_000_000
WORST_SKEW, BAD_SKEW = timedelta(seconds=30), timedelta(seconds=2)
RUNALL = "python3 run.py"


@check("python")
def python() -> Finding:
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return problem(text, f"Use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer.")
    return ok(text)


@check("database")
def database() -> Iterator[Finding]:
    try:
        missing = guards.unapplied_migrations()
    except DatabaseError as error:
        yield problem(
            f"cannot be reached: {str(error).strip().splitlines()[0]}",
            "Start the server or mend DATABASE_URL (or the rights of DATA_DIR).",
        )
        return
    except guards.CodeOutdated as error:
        yield problem("it was migrated by newer code than this", str(error))
        return
    if missing:
        yield problem(f"{len(missing)} migrations are missing, the first is {missing[0]}", f"Run: {guards.SETUP}")
    else:
        yield ok(f"{connection.vendor}, migrated")
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode")
            (mode,) = cursor.fetchone()
        if mode in ("wal", "memory"):  # a database in memory has no file to write ahead of
            yield ok(f"journal mode {mode}")
        else:
            yield problem(
                f"journal_mode is {mode}, not wal",
                "Put DATA_DIR on a local disk: SQLite cannot use its write-ahead log on network file systems.",
            )


@check("indexes", needs_tables=True)
def indexes() -> Iterator[Finding]:
    wanted = {"django_q_schedule": "ops_schedule_name", "django_q_ormq": "ops_ormq_key_lock"}
    with connection.cursor() as cursor:
        lost = [
            (table, index)
            for table, index in wanted.items()
            if index not in connection.introspection.get_constraints(cursor, table)
        ]
    for table, index in lost:
        yield problem(
            f"{table} has lost its index {index} (an upgrade of django-q2 can do that)",
            f"Write it again: the statement is in ops_app/migrations/0002_queue_indexes.py; {index} is its name.",
        )
    if not lost:
        yield ok("the queue has its two indexes")


@check("queue", needs_tables=True)
def broker() -> Finding:
    from django_q.brokers import get_broker

    try:
        reached = get_broker(settings.LIGHT_QUEUE)
        reached.ping()
        waiting = {name: get_broker(name).queue_size() for name in (settings.LIGHT_QUEUE, settings.TRAINING_QUEUE)}
    except Exception as error:  # noqa: BLE001 - each broker has errors of its own, and all mean the same
        return problem(
            f"the broker cannot be reached: {type(error).__name__}",
            "Start Redis, or unset REDIS_URL to use the database.",
        )
    text = f"{reached.info()}, waiting: " + ", ".join(f"{name} {count}" for name, count in waiting.items())
    if max(waiting.values()) > 100:
        return warning(text, "More is asked for than is done: are the workers running? Raise QUEUE_WORKERS.")
    return ok(text)


@check("clock")
def host_clock() -> Finding:
    try:
        skew = clock.database_time() - clock.real_now()
    except DatabaseError:
        return problem("the database's time cannot be read", "Mend the database first.")
    text = f"the database's clock differs by {skew.total_seconds():+.2f} s from this host's"
    if abs(skew) > WORST_SKEW:
        return problem(text, "Switch time synchronisation on (timedatectl set-ntp true) on both.")
    if abs(skew) > BAD_SKEW:
        return warning(text, "Leases use the database's clock and are safe; synchronise the clocks for readable times.")
    return ok(text)


@check("market clock", needs_tables=True)
def market_clock() -> Finding:
    row = MarketClock.objects.first()
    if row is None:
        if settings.EXCHANGE in ("paper", "live"):
            return ok("market time is real time")
        return problem("there is no market clock", f"Run: {guards.SETUP}")
    if row.market != settings.EXCHANGE_MARKET:
        return problem(
            f"the database belongs to the market {row.market}, the settings name {settings.EXCHANGE_MARKET}",
            "Use another DATA_DIR or DATABASE_URL, or set EXCHANGE_MARKET back.",
        )
    return ok(f"{clock.market_now():%Y-%m-%d %H:%M} UTC on {row.market}, {row.speed:g} x real time")


@check("disk")
def disk() -> Finding:
    usage = shutil.disk_usage(settings.DATA_DIR)
    text = f"{usage.free / 1e9:.1f} GB free in {settings.DATA_DIR}"
    if not os.access(settings.DATA_DIR, os.W_OK):
        return problem(f"{settings.DATA_DIR} cannot be written to", "Mend its owner or rights, or set DATA_DIR.")
    if usage.free < LEAST_FREE:
        return problem(text, "Make room now: the database stops when the disk is full.")
    if usage.free < ENOUGH_FREE:
        return warning(text, "Make room soon.")
    return ok(text)


@check("secrets")
def secret_files() -> Iterator[Finding]:
    paths = [Path(settings.DATA_DIR) / name for name in ("secret_key", "admin_password")]
    open_to_others = [path for path in paths if path.exists() and path.stat().st_mode & 0o077]
    for path in open_to_others:
        yield problem(f"{path} can be read by others", f"Run: chmod 600 {path}")
    if not open_to_others:
        yield ok("the files that hold secrets are for their owner only")


@check("lightgbm")
def lightgbm() -> Finding:
    # In a process of its own: this one may fork later, and LightGBM must not be in it (Q5).
    tried = subprocess.run(
        [sys.executable, "-c", "import lightgbm; print(lightgbm.__version__)"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if tried.returncode == 0:
        return ok(f"{tried.stdout.strip()}")
    last = (tried.stderr.strip().splitlines() or ["no message"])[-1]
    fix = "Run: brew install libomp" if sys.platform == "darwin" else "Run: apt install libgomp1 (the OpenMP library)"
    return problem(f"cannot be loaded: {last}", fix)


@check("processes")
def parent_death() -> Finding:
    if has_parent_death_signal():
        return ok("the kernel ends children with their parent (PR_SET_PDEATHSIG)")
    return warning(
        f"{sys.platform} has no PR_SET_PDEATHSIG: after `kill -9` of a parent, worker processes notice within a "
        "second, but a training or the bot may go on until its lease runs out",
        "Nothing on a laptop; run production on Linux.",
    )


@check("leases", needs_tables=True)
def leases() -> Iterator[Finding]:
    late = Lease.objects.filter(expired(since=timedelta(minutes=5))).order_by("name")
    for lease in late:
        yield warning(
            f"{lease.name} was not given back by {lease.holder} (ran out at {lease.expires_at:%Y-%m-%d %H:%M} UTC)",
            "It was killed. Nothing to do: whoever needs the lease takes it over.",
        )
    held = Lease.objects.filter(unexpired()).count()
    yield ok(f"{held} held")


@check("heartbeats", needs_tables=True)
def beats() -> Iterator[Finding]:
    found = heartbeats.pulses()
    if not found:
        yield warning("nothing runs", f"Start it: {RUNALL}")
        return
    for pulse in found:
        if pulse.alive:
            yield ok(f"{pulse.name} lives (pid {pulse.pid} on {pulse.host})")
        else:
            yield problem(
                f"{pulse.name} on {pulse.host} has been silent for {pulse.age.total_seconds():.0f} s",
                f"Look at its log, then start it again ({RUNALL}).",
            )

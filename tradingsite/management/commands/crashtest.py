"""`manage.py crashtest`: kill everything, again and again, and see whether it comes back and what broke."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from tradingsite.crashtest.strikes import WHOLE, WORKERS_ONLY, Plan, Strike

INNER = "CRASHTEST_INNER"
ALL, QWORKER = "all", "qworker"
KEYS = "django_q:*"


class Command(BaseCommand):
    help = (
        "Start a real installation on a database of its own that is thrown away; kill -9, freeze, stop its processes "
        "in random order; measure how long each takes to work again. Exits 1 if something was slower than --limit, "
        "left a process behind, was lost, or broke an invariant."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        length = parser.add_mutually_exclusive_group()
        length.add_argument("--minutes", type=float, default=None, help="how long to strike (default 10)")
        length.add_argument("--kills", type=int, default=None, help="number of strikes instead of a time")
        parser.add_argument(
            "--only", choices=(ALL, QWORKER), default=ALL, help="all: runall; qworker: two worker clusters alone"
        )
        parser.add_argument(
            "--kind",
            action="append",
            metavar="NAME",
            help="only strikes of this name, like 'kill bot main'; repeatable",
        )
        parser.add_argument("--seed", type=int, default=1, help="seed of the strikes (default %(default)s)")
        parser.add_argument("--limit", type=float, default=10.0, help="seconds within which all must work again")
        parser.add_argument("--symbols", type=int, default=6, help="symbols of the market (default %(default)s)")
        parser.add_argument("--pause", type=float, default=3.0, help="most seconds between two strikes")
        parser.add_argument("--redis", default="", metavar="URL", help="broker: a Redis database without our keys")
        parser.add_argument("--database", default="", metavar="URL", help="an empty PostgreSQL database")
        parser.add_argument("--json", action="store_true", help="print one JSON object, and the strikes to stderr")

    def handle(self, **options: Any) -> None:
        if os.environ.get(INNER) != "1":
            self._restart_on_an_own_database(options)
        if connection.introspection.table_names():
            raise CommandError("--database is not empty: the test fills it. Give it a database of its own.")
        logging.getLogger("django-q").setLevel(logging.WARNING)
        call_command("setup", "--skip-files", stdout=sys.stderr)
        try:
            self._run(options)
        finally:
            forget_keys(settings.REDIS_URL)

    def _run(self, options: dict[str, Any]) -> None:
        from tradingsite.crashtest.driver import CrashTest, NotStartedError, settings_of
        from tradingsite.crashtest.installation import WholeInstallation, WorkersOnly
        from tradingsite.crashtest.report import CrashReport

        said = Path(settings.DATA_DIR) / "said.log"
        only_workers = options["only"] == QWORKER
        minutes = options["minutes"] or (None if options["kills"] else 10.0)
        strikes = chosen(WORKERS_ONLY if only_workers else WHOLE, options["kind"])
        names = ("only", "seed", "limit", "kills", "kind")
        test = CrashTest(
            installation=WorkersOnly(said) if only_workers else WholeInstallation(said),
            plan=Plan(strikes, seed=options["seed"]),
            report=CrashReport(settings_of({**{name: options[name] for name in names}, "minutes": minutes})),
            limit=options["limit"],
            seconds=None if minutes is None else minutes * 60,
            strikes=options["kills"],
            pause=(min(0.5, options["pause"]), options["pause"]),
            say=self.stderr.write if options["json"] else self.stdout.write,
        )
        try:
            report = test.run()
        except NotStartedError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(json.dumps(report.to_dict(), indent=1))
        if not report.ok:
            sys.exit(1)

    def _restart_on_an_own_database(self, options: dict[str, Any]) -> None:
        """Settings are read once per process: become a process whose data folder is temporary."""
        if options["redis"] and keys(options["redis"]):
            raise CommandError("--redis holds messages of another installation: give it a database of its own.")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with tempfile.TemporaryDirectory(prefix="crashtest-", ignore_cleanup_errors=True) as folder:
            environment = {
                **os.environ,
                INNER: "1",
                "DATA_DIR": folder,
                "DATABASE_URL": options["database"],
                "REDIS_URL": options["redis"],
                "EXCHANGE": "simulated",
                "EXCHANGE_MARKET": "",
                "WEB_BIND": f"127.0.0.1:{port}",
                "WEB_WORKERS": "1",  # with a second one that answers, nobody would notice that the first is away
                "QUEUE_WORKERS": "2",
                "TRAINING_WORKERS": "2",  # one may train while the other is asked whether it works
                "SIM_SYMBOLS": str(options["symbols"]),
                "SIM_SPEED": "120",
                "UNIVERSE_MAX_SYMBOLS": str(options["symbols"] + 50),
                "HISTORY_TARGET_DAYS": "180",
                "TRAIN_TREES": "150",
                "TRAIN_THREADS": "1",
                "TRAIN_MIN_INTERVAL_HOURS": "0.1",
                "TRAIN_MAX_ATTEMPTS": "20",  # each kill costs one
                "TRAIN_LEASE_SECONDS": "10",
                "LOG_LEVEL": "info",
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
            }
            sys.stdout.flush()
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)


def chosen(strikes: list[Strike], names: list[str] | None) -> list[Strike]:
    """Return one strike of each of these names; None: all, those that matter more than once. Raises CommandError."""
    known = {strike.name for strike in strikes}
    unknown = sorted(set(names or ()) - known)
    if unknown:
        raise CommandError(f"--kind {unknown[0]!r} is none of: {', '.join(sorted(known))}")
    return strikes if names is None else [strike for strike in dict.fromkeys(strikes) if strike.name in names]


def keys(url: str) -> list[bytes]:
    """Return django-q2's keys in a Redis database."""
    from redis import Redis

    with Redis.from_url(url) as client:
        return list(client.scan_iter(KEYS))


def forget_keys(url: str) -> None:
    """Delete what the test left in its Redis database."""
    if not url:
        return
    from redis import Redis

    with Redis.from_url(url) as client:
        found = list(client.scan_iter(KEYS))
        if found:
            client.delete(*found)

"""Bring the database and the files to the state that the code needs: idempotent, and quick when nothing is to do."""

from __future__ import annotations

import fcntl
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection

from ops_app import clock, plugins, setup_steps

ADVISORY_LOCK = 7_402_116_001  # any number that nothing else in this database uses


@contextmanager
def alone() -> Iterator[None]:
    """Let one set-up work at a time, on this host by a file and on all hosts by PostgreSQL: a lease needs its table."""
    with (Path(settings.DATA_DIR) / "setup.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, also when it is killed
        if connection.vendor != "postgresql":
            yield
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
        try:
            yield
        finally:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [ADVISORY_LOCK])


class Command(BaseCommand):
    help = "Make tables, the first user, roles, the market's clock, schedules, the bot and compiled files. Repeatable."
    requires_system_checks = ["ops"]

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--skip-files", action="store_true", help="The database only: compile nothing, copy nothing."
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        began = clock.monotonic()
        done = 0
        try:
            with alone():
                plugins.load("setup_steps")
                for step in setup_steps.registered():
                    if options["skip_files"] and step.order >= setup_steps.FILES:
                        continue
                    result = step.run()
                    if result:
                        done += 1
                        self.stdout.write(f"  {step.name}: {result}")
                        self.stdout.flush()
        except DatabaseError as error:
            raise CommandError(
                f"The database refused: {str(error).strip().splitlines()[0]}. Check DATABASE_URL (or the rights and "
                "the free space of DATA_DIR), then run this again: what is done already is kept."
            ) from error
        seconds = clock.monotonic() - began
        self.stdout.write(f"Set-up done in {seconds:.1f} s." if done else "Set-up: nothing to do.")

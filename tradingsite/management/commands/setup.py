"""Bring the database and the files to the state that the code needs: idempotent, and quick when nothing is to do."""

from __future__ import annotations

import fcntl
import importlib
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection
from django.utils.module_loading import module_has_submodule

from ops_app import clock, setup_steps

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


def load_steps() -> list[setup_steps.SetupStep]:
    """Import `<app>/setup_steps.py` of every app and return all steps in order."""
    for config in apps.get_app_configs():
        if config.name != setup_steps.__name__.partition(".")[0] and module_has_submodule(config.module, "setup_steps"):
            importlib.import_module(f"{config.name}.setup_steps")
    return setup_steps.registered()


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
                for step in load_steps():
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

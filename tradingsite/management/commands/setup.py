"""Bring the database and the files to the state that the code needs: idempotent, and quick when nothing is to do."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from ops_app import clock, plugins, setup_steps, upgrade


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
            with upgrade.alone():
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

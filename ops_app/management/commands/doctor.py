"""Look at everything that can be wrong, and say what to do."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from ops_app import doctor, guards, plugins

MARKS = {doctor.Level.OK: "ok     ", doctor.Level.WARNING: "WARNING", doctor.Level.PROBLEM: "PROBLEM"}


class Command(BaseCommand):
    help = "Check the host, the database, the queue, the clocks and the processes. Exit code 1: there is a problem."
    requires_system_checks: list[str] = []  # it must run when things are broken

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="For machines.")

    def handle(self, *_args: Any, **options: Any) -> None:
        plugins.load("doctor_checks")
        found = doctor.examine(migrated=self.is_migrated())
        if options["json"]:
            document = [
                {"check": name, "level": item.level, "text": item.text, "fix": item.fix} for name, item in found
            ]
            self.stdout.write(json.dumps(document, indent=1))
        else:
            for name, item in found:
                self.stdout.write(f"{MARKS[item.level]} {name}: {item.text}")
                if item.fix:
                    self.stdout.write(f"        -> {item.fix}")
        problems, warnings = (
            sum(item.level is level for _, item in found) for level in (doctor.Level.PROBLEM, doctor.Level.WARNING)
        )
        if not options["json"]:
            self.stdout.write(f"{problems} problems, {warnings} warnings." if problems + warnings else "All well.")
        if problems:
            sys.exit(1)

    def is_migrated(self) -> bool:
        try:
            guards.require_migrated()
        except guards.NotMigrated:
            return False
        return True

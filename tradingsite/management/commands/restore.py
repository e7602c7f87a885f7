"""`manage.py restore`: bring a backup back."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ops_app import guards, journal
from tradingsite.backup import restoring
from tradingsite.backup.errors import BackupError


class Command(BaseCommand):
    help = (
        "Replace database, ledgers, artifacts and candles by those of a backup, after checking all of it. Refused "
        "while the installation runs. What was there before is moved aside, not deleted. Secrets are not in a backup: "
        "this installation's own stay, or new ones are made."
    )
    requires_system_checks = ["ops"]

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", help="The folder of one backup, as `backup` printed it.")
        parser.add_argument("--force", action="store_true", help="Move data that is there aside, and replace it.")
        parser.add_argument("--check", action="store_true", help="Only check the backup; change nothing.")

    def handle(self, *_args: Any, **options: Any) -> None:
        folder = Path(options["folder"]).resolve()
        try:
            if options["check"]:
                manifest = restoring.check_backup(folder)
                self.stdout.write(f"{folder} is whole: {len(manifest.files)} files, {manifest.size:,} bytes")
                return
            aside = restoring.restore_backup(
                folder, force=options["force"], say=lambda text: self.stdout.write(f"  {text}")
            )
        except BackupError as error:
            raise CommandError(str(error)) from error
        for place in aside:
            self.stdout.write(f"  what was there before: {place}")
        missing = guards.unapplied_migrations()
        if not missing:
            journal.record("restored", f"Everything is as it was in the backup {folder}.", subject="backup")
        after = f" It is of older code: run {guards.SETUP} first." if missing else ""
        self.stdout.write(f"Restored from {folder}.{after} Look with `doctor`, then start: python3 run.py")

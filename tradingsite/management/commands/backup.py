"""`manage.py backup`: a consistent copy of everything, while it runs."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ops_app.guards import require_migrated
from tradingsite.backup import taking
from tradingsite.backup.errors import BackupError


class Command(BaseCommand):
    help = (
        "Copy database, ledgers, artifacts and candles to a new folder, consistently, while web, workers and bot run. "
        "Secrets (secret_key, admin_password, .env) are not copied: keep them elsewhere; with a new secret key people "
        "log in again, nothing else is lost. `restore` brings it back."
    )
    requires_system_checks = ["ops"]

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "folder", nargs="?", default="", help="Where backups are kept. Default: BACKUP_DIR, else DATA_DIR/backups."
        )
        parser.add_argument("--keep", type=int, default=0, help="Remove all but this many newest ones afterwards.")
        parser.add_argument("--json", action="store_true", help="One JSON object instead of lines.")

    def handle(self, *_args: Any, **options: Any) -> None:
        require_migrated()
        if options["keep"] < 0:
            raise CommandError(f"--keep is {options['keep']}: give how many backups stay, 1 or more (0: all)")
        folder = Path(options["folder"] or taking.default_folder()).resolve()
        say = taking.SAY_NOTHING if options["json"] else lambda text: self.stdout.write(f"  {text}")
        try:
            path, notes = taking.take_backup(folder, say=say)
            removed = taking.prune_backups(folder, keep=options["keep"]) if options["keep"] else []
        except BackupError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps({**taking.facts(path, notes), "removed": removed}))
            return
        for note in notes:
            self.stdout.write(f"  look: {note}")
        self.stdout.write(f"{path}" + (f" ({len(removed)} older ones removed)" if removed else ""))

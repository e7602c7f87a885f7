"""Django's `migrate`, one process at a time on all hosts, and refused when the code is older than the database."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import migrate
from django.db import DEFAULT_DB_ALIAS

from ops_app import guards, upgrade


class Command(migrate.Command):
    help = (
        "Bring the database's tables to this code's version. Waits for another process that does so; exit code 78: "
        "this code is older than the database. `setup` does this and more."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["database"] != DEFAULT_DB_ALIAS:
            super().handle(*args, **options)
            return
        with upgrade.migrating():
            guards.unapplied_migrations()  # raises CodeOutdated
            super().handle(*args, **options)

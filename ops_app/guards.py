"""What a program checks before it starts, with a message that says what to do."""

from __future__ import annotations

from django.core.management.base import CommandError
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

SETUP = "python3 run.py manage setup"


class NotMigrated(CommandError):  # noqa: N818 - it names the state of the database
    """The database is missing, unreachable, or of another version of the code."""


def unapplied_migrations() -> list[str]:
    """Return the migrations that the database lacks, like `ops_app.0001_initial`."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, backwards in plan if not backwards]


def require_migrated() -> None:
    """Raise NotMigrated with the fix unless the database can be reached and has every table."""
    try:
        missing = unapplied_migrations()
    except DatabaseError as error:
        raise NotMigrated(
            f"The database cannot be used: {str(error).strip().splitlines()[0]}. Check DATABASE_URL (or DATA_DIR) and "
            "that the server runs, then try again."
        ) from error
    if missing:
        raise NotMigrated(
            f"The database is not migrated ({len(missing)} migrations are missing, the first is {missing[0]}). "
            f"Run: {SETUP}"
        )

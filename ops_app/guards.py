"""What a program checks before it starts, with a message that says what to do."""

from __future__ import annotations

from django.core.management.base import CommandError
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from ops_app import upgrade, versions

SETUP = "python3 run.py manage setup"


class NotMigrated(CommandError):  # noqa: N818 - it names the state of the database
    """The database is missing, unreachable, or of another version of the code."""


class CodeOutdated(NotMigrated):
    """The database was migrated by newer code: exit code 78, which no supervisor should answer with a restart."""

    def __init__(self, text: str) -> None:
        super().__init__(text, returncode=versions.OUTDATED)


def unapplied_migrations() -> list[str]:
    """Return the migrations that the database lacks, like `ops_app.0001_initial`.

    Raises CodeOutdated when the database has some that this code does not know.
    """
    executor = MigrationExecutor(connection)
    outdated = versions.why_outdated(versions.unknown_to_code(executor.loader.applied_migrations, executor.loader))
    if outdated:
        raise CodeOutdated(outdated)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, backwards in plan if not backwards]


def require_migrated() -> None:
    """Raise NotMigrated with the fix unless the database can be reached and is of this code's version.

    CodeOutdated, which is one, means that the code is the older of the two.
    """
    try:
        missing = unapplied_migrations()
        migrating = upgrade.under_way() if missing else ""
    except DatabaseError as error:
        raise NotMigrated(
            f"The database cannot be used: {str(error).strip().splitlines()[0]}. Check DATABASE_URL (or DATA_DIR) and "
            "that the server runs, then try again."
        ) from error
    if migrating:
        raise NotMigrated(f"The database is being migrated by {migrating} at this moment. Start again when it is done.")
    if missing:
        raise NotMigrated(
            f"The database is not migrated ({len(missing)} migrations are missing, the first is {missing[0]}). "
            f"Run: {SETUP}"
        )

"""Which schema the code knows and which the database has: code that is older than its database must not work on it.

The database's own record of applied migrations (`django_migrations`) is the truth. A process reads all of it at its
start, and its newest row every few seconds: whoever migrates, from whatever host and by whatever command, is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import structlog
from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Max

from ops_app import clock

log = structlog.get_logger(__name__)

OUTDATED = 78  # EX_CONFIG
"""Exit code of a process whose code is older than the database: starting it again cannot help, so nobody does."""
LOOK_SECONDS = 5.0

Migration = tuple[str, str]


def our_apps() -> frozenset[str]:
    """Return the labels of this project's apps; a library may drop and squash its migrations as it likes."""
    return frozenset(config.label for config in apps.get_app_configs() if Path(config.path).parent == settings.BASE_DIR)


def unknown_to_code(applied: Iterable[Migration], loader: MigrationLoader | None = None) -> list[str]:
    """Return which of the `applied` migrations (app, name) this code does not know, like `ops_app.0007_x`."""
    known = (loader or MigrationLoader(None)).disk_migrations.keys()
    ours = our_apps()
    return sorted(f"{app}.{name}" for app, name in applied if app in ours and (app, name) not in known)


def why_outdated(unknown: list[str]) -> str:
    """Return the sentence for a person, "" when nothing is unknown."""
    if not unknown:
        return ""
    return (
        f"This code is older than the database, which was migrated to {unknown[-1]}. Update the code on this host "
        "(git pull), run: python3 run.py manage setup, then start again. Nothing was changed."
    )


class Watch:
    """Looks, every few seconds, whether somebody migrated the database while this process works (1 small query)."""

    def __init__(self) -> None:
        self._newest: int | None = None  # the first look is a whole one: the start-up check was a moment ago
        self._looked_at = float("-inf")
        self.reason = ""

    def outdated(self) -> bool:
        """Tell whether the code is older than the database by now; `reason` says why. Cheap: call it all the time."""
        if self.reason or clock.monotonic() < self._looked_at + LOOK_SECONDS:
            return bool(self.reason)
        self._looked_at = clock.monotonic()
        try:
            newest = newest_record()
            if newest == self._newest:
                return False
            self.reason = why_outdated(unknown_to_code(MigrationRecorder(connection).applied_migrations()))
            self._newest = newest
        except DatabaseError:  # whoever cannot reach the database cannot write to it either
            log.warning("schema_version_not_read", exc_info=True)
        if self.reason:
            log.critical("code_is_older_than_the_database", reason=self.reason)
        return bool(self.reason)


def newest_record() -> int:
    """Return the number of the newest row in the database's record of migrations."""
    newest = MigrationRecorder(connection).migration_qs.aggregate(newest=Max("id"))["newest"]
    return int(newest or 0)

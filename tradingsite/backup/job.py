"""The backup that is taken by itself: in a process of its own, and with an alert when it fails."""

from __future__ import annotations

import json
import subprocess

from django.conf import settings

from ops_app import alerts
from ops_app.choices import Severity
from ops_app.process import manage_command
from tradingsite.backup.errors import BackupError
from tradingsite.backup.taking import default_folder

ALERT = "backup"
SECONDS = 840.0
"""Less than what the queue gives a task: a backup that needs longer is cron's work (`manage.py backup`)."""


def take_scheduled() -> str:
    """Take a backup and prune old ones; returns what was done. Raises BackupError, after raising the alert."""
    folder = default_folder().resolve()
    command = manage_command("backup", str(folder), "--keep", str(settings.BACKUP_KEEP), "--json")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        if done.returncode != 0:
            raise BackupError(" ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}")
        facts = json.loads(done.stdout.strip().splitlines()[-1])
    except (BackupError, subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        text = f"No backup was taken to {folder}: {error}. The older ones stay. Mend it, then: manage.py backup"
        alerts.raise_alert(ALERT, text, Severity.CRITICAL)
        raise BackupError(text) from error
    notes = "".join(f"; look: {note}" for note in facts["notes"])
    if notes:
        alerts.raise_alert(ALERT, f"The backup {facts['backup']} lacks something{notes}.", Severity.WARNING)
    else:
        alerts.resolve_alert(ALERT)
    return f"{facts['backup']}: {facts['bytes']:,} bytes, {len(facts['removed'])} older ones removed{notes}"

"""What can go wrong with a backup; every text names the fix."""

from __future__ import annotations


class BackupError(Exception):
    """The copy could not be made, is not whole, or may not be restored here."""

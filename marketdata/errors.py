"""Errors of the market data layer."""

from __future__ import annotations

from pathlib import Path


class StoreError(Exception):
    """A file of the candle store cannot be used. Says which, why, and what to do."""

    def __init__(self, path: Path, reason: str, fix: str) -> None:
        super().__init__(f"{path}: {reason}; {fix}")
        self.path = path
        self.reason = reason
        self.fix = fix

    @classmethod
    def unreadable(cls, path: Path, error: Exception) -> StoreError:
        """The file is torn, rotten or foreign: only fetching the month again helps."""
        return cls(
            path,
            f"cannot be read ({type(error).__name__}: {error})",
            "move the file away and run `manage.py backfill`, which fetches the month again",
        )

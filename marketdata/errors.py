"""Errors of the market data layer."""

from __future__ import annotations


class BucketError(OSError):
    """The storage server cannot be reached or refuses. What is stored there is not in doubt."""


class StoreError(Exception):
    """A file of the candle store cannot be used. Says which (a path or an address), why, and what to do."""

    def __init__(self, path: object, reason: str, fix: str) -> None:
        super().__init__(f"{path}: {reason}; {fix}")
        self.path = path
        self.reason = reason
        self.fix = fix

    @classmethod
    def unreadable(cls, path: object, error: Exception) -> StoreError:
        """The file is torn, rotten or foreign: only fetching the month again helps."""
        return cls(
            path,
            f"cannot be read ({type(error).__name__}: {error})",
            "move the file away and run `manage.py backfill`, which fetches the month again",
        )

    @classmethod
    def unreachable(cls, path: object, error: BucketError) -> StoreError:
        """The storage does not answer: nothing is lost, and nothing must be moved away."""
        return cls(path, str(error), "look at the storage server and STORAGE_URL; it is tried again by itself")

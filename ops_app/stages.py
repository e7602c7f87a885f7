"""How far the first minutes have come: each app adds lines that `runall` shows, read from the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One line: what is known now, whether this stage is over, and the share done (0..1) if it can be told."""

    text: str
    done: bool = False
    share: float | None = None


_readers: dict[str, tuple[int, Callable[[], Stage]]] = {}


def register(name: str, read: Callable[[], Stage], *, order: int) -> None:
    """Add a line; `read` is called every second or two, so it asks one or two cheap questions."""
    _readers[name] = (order, read)


def read_all() -> list[tuple[str, Stage]]:
    """Return every line in order."""
    ordered = sorted(_readers.items(), key=lambda item: (item[1][0], item[0]))
    return [(name, read()) for name, (_, read) in ordered]

"""What `manage.py setup` does, in order: each app adds its own steps, so that no app knows the others.

A step is idempotent and quick when nothing is to do. It returns what it did, "" for nothing, and raises CommandError
with the fix when a person has to decide. An app's steps are in `<app>/setup_steps.py`, which calls `register`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Step = Callable[[], str]

DATABASE, ROWS, FILES = 10, 50, 90


@dataclass(frozen=True)
class SetupStep:
    order: int
    name: str
    run: Step


_steps: dict[str, SetupStep] = {}


def register(name: str, run: Step, *, order: int = ROWS) -> None:
    """Add a step; steps of the same order run by name. Raises ValueError for a name that is taken."""
    step = SetupStep(order=order, name=name, run=run)
    if _steps.setdefault(name, step) != step:
        raise ValueError(f"set-up step {name!r} is registered twice")


def registered() -> list[SetupStep]:
    """Return the steps in the order in which they run."""
    return sorted(_steps.values(), key=lambda step: (step.order, step.name))

"""What `manage.py doctor` asks: each app adds checks; each answer is ok, or says what to do.

A check is `() -> Finding` (or several). It asks, and never changes anything. One that fails is itself a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import structlog

log = structlog.get_logger(__name__)


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What was found, and the next step when it is not ok."""

    level: Level
    text: str
    fix: str = ""


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def warning(text: str, fix: str) -> Finding:
    return Finding(Level.WARNING, text, fix)


def problem(text: str, fix: str) -> Finding:
    return Finding(Level.PROBLEM, text, fix)


Check = Callable[[], Finding | Iterable[Finding]]
_checks: dict[str, tuple[bool, Check]] = {}


def check(name: str, *, needs_tables: bool = False) -> Callable[[Check], Check]:
    """Register the decorated function under `name`; `needs_tables`: only asked when the database is migrated."""

    def register(function: Check) -> Check:
        _checks[name] = (needs_tables, function)
        return function

    return register


def examine(*, migrated: bool) -> list[tuple[str, Finding]]:
    """Ask every check in the order of registration; return name and finding."""
    found: list[tuple[str, Finding]] = []
    for name, (needs_tables, function) in _checks.items():
        if needs_tables and not migrated:
            continue
        try:
            answer = function()
            findings = [answer] if isinstance(answer, Finding) else list(answer)
        except Exception as error:
            log.exception("doctor_check_failed", check=name)
            findings = [problem(f"could not be checked: {type(error).__name__}: {error}", "See the error above.")]
        found += [(name, finding) for finding in findings]
    return found

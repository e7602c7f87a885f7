"""docs/design.md lists every invariant with the tests that prove it, and the list and the tests agree.

In that file an invariant is a table row `| I7 | what holds | `tests/.../test_x.py::test_name`, ... |`.
"""

from __future__ import annotations

import ast
import re

from tests.conventions import walker

DOCUMENT = walker.ROOT / "docs" / "design.md"
INVARIANTS = tuple(f"I{number}" for number in range(1, 23))
ROW = re.compile(r"^\|\s*(?P<name>I\d+)\s*\|(?P<rest>.*)\|\s*$", re.MULTILINE)
REFERENCE = re.compile(r"`(?P<path>tests/[\w/]+\.py)::(?P<test>\w+)`")
NAMED_AFTER = re.compile(r"test_(?P<name>i\d+)_")


def documented() -> dict[str, set[tuple[str, str]]]:
    """Return invariant -> {(file, test)} of the document."""
    rows: dict[str, set[tuple[str, str]]] = {}
    for row in ROW.finditer(DOCUMENT.read_text(encoding="utf-8")):
        found = {(reference["path"], reference["test"]) for reference in REFERENCE.finditer(row["rest"])}
        rows.setdefault(row["name"], set()).update(found)
    return rows


def existing() -> set[tuple[str, str]]:
    """Return (file, function) of every test."""
    return {
        (walker.name_of(path), node.name)
        for path in walker.project_files()
        if path.is_relative_to(walker.ROOT / "tests") and path.name.startswith("test_")
        for node in ast.walk(walker.tree(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_invariant_is_documented_with_a_test() -> None:
    rows = documented()
    assert [name for name in INVARIANTS if not rows.get(name)] == []


def test_every_documented_test_exists() -> None:
    referenced = {reference for references in documented().values() for reference in references}
    assert sorted(referenced - existing()) == []


def test_every_test_named_after_an_invariant_is_documented_under_it() -> None:
    rows = documented()
    missing = [
        f"{path}::{test} under {match['name'].upper()}"
        for path, test in sorted(existing())
        if (match := NAMED_AFTER.match(test)) and (path, test) not in rows.get(match["name"].upper(), set())
    ]
    assert missing == []

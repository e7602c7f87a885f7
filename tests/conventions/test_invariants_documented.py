"""The tables in docs/ list every invariant with the tests that prove it, and the lists and the tests agree.

In such a file an invariant is a table row `| I7 | what holds | `tests/.../test_x.py::test_name`, ... |`. The tables are
written by scripts/list_invariant_tests.py.
"""

from __future__ import annotations

import ast
import re

import pytest

from scripts import list_invariant_tests
from tests.conventions import walker

#: document -> the invariants that it must list.
INVARIANTS = {
    "docs/design.md": tuple(f"I{number}" for number in range(1, 23)),
    "docs/locks.md": tuple(
        f"{letter}{number}"
        for letter, last in (("T", 15), ("B", 6), ("S", 3), ("Q", 5))
        for number in range(1, last + 1)
    ),
}
ROW = re.compile(r"^\|\s*(?P<name>[A-Z]\d+)\s*\|(?P<rest>.*)\|\s*$", re.MULTILINE)
REFERENCE = re.compile(r"`(?P<path>tests/[\w/]+\.py)::(?P<test>\w+)`")
NAMED_AFTER = re.compile(r"_(?P<name>[itbsq]\d+)(?=_)")
documents = pytest.mark.parametrize("document", INVARIANTS)


def documented(document: str) -> dict[str, set[tuple[str, str]]]:
    """Return invariant -> {(file, test)} of the document."""
    rows: dict[str, set[tuple[str, str]]] = {}
    for row in ROW.finditer((walker.ROOT / document).read_text(encoding="utf-8")):
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


@documents
def test_every_invariant_is_documented_with_a_test(document: str) -> None:
    rows = documented(document)
    assert [name for name in INVARIANTS[document] if not rows.get(name)] == []


@documents
def test_every_documented_test_exists(document: str) -> None:
    referenced = {reference for references in documented(document).values() for reference in references}
    assert sorted(referenced - existing()) == []


@documents
def test_every_test_named_after_an_invariant_is_documented_under_it(document: str) -> None:
    rows = documented(document)
    missing = [
        f"{path}::{test} under {name}"
        for path, test in sorted(existing())
        for name in (match["name"].upper() for match in NAMED_AFTER.finditer(test))
        if name in INVARIANTS[document] and (path, test) not in rows.get(name, set())
    ]
    assert missing == []


@documents
def test_the_table_is_what_the_script_writes(document: str) -> None:
    text = (walker.ROOT / document).read_text(encoding="utf-8")
    letters = "".join(sorted({name[0] for name in INVARIANTS[document]}))
    assert sorted(list_invariant_tests.DOCUMENTS[document]) == sorted(letters)
    assert list_invariant_tests.rewritten(text, letters) == text, "run scripts/list_invariant_tests.py"

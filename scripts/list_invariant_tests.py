"""Rewrite the third column of the invariants' table in docs/design.md from the tests that are named after them.

    .venv/bin/python scripts/list_invariant_tests.py

A test `test_i7_...` belongs to I7; one `test_f31_i10_...` to I10 as well. A test checks that the table is up to date.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "design.md"
ROW = re.compile(r"^\| (?P<name>I\d+) \| (?P<text>[^|]*) \|[^\n]*\|$", re.MULTILINE)
NUMBERS = re.compile(r"(?<=_)i(\d+)(?=_)")


def tests_by_invariant() -> dict[str, list[str]]:
    """Return invariant -> references like tests/x/test_y.py::test_i7_z, in the order of files and names."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in NUMBERS.findall(node.name.split("test", 1)[1]):
                    found[f"I{number}"].append(f"{path.relative_to(ROOT)}::{node.name}")
    return {name: sorted(set(references)) for name, references in found.items()}


def rewritten(document: str) -> str:
    """Return the document with the third column of every invariant's row renewed."""
    found = tests_by_invariant()

    def row(match: re.Match[str]) -> str:
        references = ", ".join(f"`{reference}`" for reference in found.get(match["name"], ()))
        return f"| {match['name']} | {match['text']} | {references} |"

    return ROW.sub(row, document)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

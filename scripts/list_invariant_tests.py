"""Rewrite the third column of the tables of invariants, in docs/, from the tests that are named after them.

    .venv/bin/python scripts/list_invariant_tests.py

A test `test_i7_...` belongs to I7; one `test_i7_t10_...` to T10 as well. A test checks that the tables are up to date.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: document -> letters of the invariants in its table.
DOCUMENTS = {"docs/design.md": "I", "docs/locks.md": "TBSQ"}
ROW = re.compile(r"^\| (?P<name>[A-Z]\d+) \| (?P<text>[^|]*) \|[^\n]*\|$", re.MULTILINE)
NAMES = re.compile(r"(?<=_)([a-z]\d+)(?=_)")
LEADING = re.compile(r"test(?:_[a-z]\d+)*_")


def tests_by_invariant() -> dict[str, list[str]]:
    """Return invariant -> references like tests/x/test_y.py::test_i7_z, in the order of files and names."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for name in named_after(node.name):
                    found[name].append(f"{path.relative_to(ROOT)}::{node.name}")
    return {name: sorted(set(references)) for name, references in found.items()}


def named_after(test: str) -> list[str]:
    """Return the invariants at the beginning of a test's name: test_f31_i10_x -> F31, I10."""
    leading = LEADING.match(test)
    return [] if leading is None else [name.upper() for name in NAMES.findall(leading[0])]


def rewritten(document: str, letters: str) -> str:
    """Return the document with the third column renewed in every row of an invariant with one of the letters."""
    found = tests_by_invariant()

    def row(match: re.Match[str]) -> str:
        if match["name"][0] not in letters:
            return match[0]
        references = ", ".join(f"`{reference}`" for reference in found.get(match["name"], ()))
        return f"| {match['name']} | {match['text']} | {references} |"

    return ROW.sub(row, document)


if __name__ == "__main__":
    for document, letters in DOCUMENTS.items():
        path = ROOT / document
        path.write_text(rewritten(path.read_text(encoding="utf-8"), letters), encoding="utf-8")

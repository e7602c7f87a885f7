"""Rewrite the last column of the tables of docs/faults.md from the tests that are named after the cards.

    .venv/bin/python -m scripts.list_faults

A test `test_f07_...` belongs to card F07; one `test_f03_r10_...` to R10 as well. A card without a test is `open`. A
test checks that the tables are up to date and that no card is open.
"""

from __future__ import annotations

import re

from scripts.list_invariant_tests import ROOT, tests_by_invariant

DOCUMENT = ROOT / "docs/faults.md"
OPEN = "open"
ROW = re.compile(r"^\| (?P<card>[FR]\d+) \| (?P<fault>[^|]*) \| (?P<behaviour>[^|]*) \|[^\n]*\|$", re.MULTILINE)


def rewritten(document: str) -> str:
    """Return the document with the last column renewed in every row of a card."""
    found = tests_by_invariant()

    def row(match: re.Match[str]) -> str:
        references = ", ".join(f"`{reference}`" for reference in found.get(match["card"], ())) or OPEN
        return f"| {match['card']} | {match['fault']} | {match['behaviour']} | {references} |"

    return ROW.sub(row, document)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

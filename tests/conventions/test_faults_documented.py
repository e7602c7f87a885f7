"""docs/faults.md lists every fault card with the tests that show it, and is what the tests say."""

from __future__ import annotations

from scripts import list_faults
from scripts.list_invariant_tests import named_after

CARDS = [*(f"F{number:02}" for number in range(1, 43)), "R8", "R9", "R10"]


def rows() -> dict[str, str]:
    """Return card -> its whole row."""
    text = list_faults.DOCUMENT.read_text(encoding="utf-8")
    return {match["card"]: match[0] for match in list_faults.ROW.finditer(text)}


def test_every_card_is_there_once_and_in_its_order() -> None:
    text = list_faults.DOCUMENT.read_text(encoding="utf-8")
    assert [match["card"] for match in list_faults.ROW.finditer(text)] == CARDS


def test_no_card_is_open() -> None:
    assert [card for card, row in rows().items() if row.endswith(f"| {list_faults.OPEN} |")] == []


def test_the_list_is_what_the_script_writes() -> None:
    text = list_faults.DOCUMENT.read_text(encoding="utf-8")
    assert list_faults.rewritten(text) == text, "run scripts/list_faults.py"


def test_a_card_without_a_test_is_open() -> None:
    assert list_faults.rewritten("| F99 | a fault | what the bot does | old |") == (
        "| F99 | a fault | what the bot does | open |"
    )


def test_a_test_may_show_several_cards() -> None:
    assert named_after("test_f01_f02_r9_i16_a_bot_killed_around_a_send") == ["F01", "F02", "R9", "I16"]

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.outcomes import Outcome
from quant.reasons import code_of, details_of, reason


def test_numbers_times_and_words_are_written_in_one_way() -> None:
    assert reason("KILL_SWITCH") == "KILL_SWITCH"
    assert reason("BELOW_THRESHOLD", probability=np.float32(0.512345), threshold=0.56) == (
        "BELOW_THRESHOLD: probability=0.5123, threshold=0.56"
    )
    assert reason("SHORT_HISTORY", days=np.int64(12), recheck_at_ms=0) == (
        "SHORT_HISTORY: days=12, recheck_at=1970-01-01T00:00Z"
    )
    assert reason("X", at=datetime(2025, 1, 2, 3, 4, tzinfo=UTC), open=True, none=None, size=Decimal("1E-7")) == (
        "X: at=2025-01-02T03:04Z, open=true, none=none, size=0.0000001"
    )
    assert reason("X", outcome=Outcome.HOLD, wait_ms=1500) == "X: outcome=HOLD, wait_ms=1500"


@pytest.mark.parametrize("code", ["", "short history", "Short", "1X", "A:B"])
def test_a_code_that_could_not_be_parsed_back_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="UPPER_SNAKE_CASE"):
        reason(code)


@given(
    st.from_regex(r"[A-Z][A-Z0-9_]*", fullmatch=True),
    st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text(max_size=20), max_size=4),
)
def test_every_reason_is_one_line_and_can_be_taken_apart_again(code: str, details: dict[str, str]) -> None:
    text = reason(code, **details)
    assert code_of(text) == code
    assert list(details_of(text)) == list(details)
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "something went wrong", "Error: x"])
def test_free_text_has_no_code_and_no_details(text: str) -> None:
    assert code_of(text) == ""
    assert details_of(text) == {}

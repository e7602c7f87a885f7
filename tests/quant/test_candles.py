from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.candles import CandleError, Candles

STEP = 3_600_000


def make(times: list[int], price: float = 1.0) -> Candles:
    column = np.full(len(times), price)
    return Candles(np.array(times, dtype=np.int64) * STEP, column, column, column, column, column)


hours = st.lists(st.integers(0, 30), max_size=20)


@given(st.lists(hours, max_size=4))
def test_f24_concat_sorts_and_keeps_the_last_write_of_each_candle(parts: list[list[int]]) -> None:
    expected: dict[int, float] = {}
    pieces = []
    for price, times in enumerate(parts, start=1):
        pieces.append(make(times, float(price)))
        expected.update(dict.fromkeys(times, float(price)))
    merged = Candles.concat(pieces)
    assert merged.open_time.tolist() == [time * STEP for time in sorted(expected)]
    assert merged.close.tolist() == [expected[time] for time in sorted(expected)]


@given(st.sets(st.integers(0, 50)), st.integers(0, 60), st.integers(0, 60))
def test_between_takes_the_start_and_leaves_the_end(times: set[int], start: int, end: int) -> None:
    chosen = make(sorted(times)).between(start * STEP, end * STEP)
    assert chosen.open_time.tolist() == [time * STEP for time in sorted(times) if start <= time < end]


def test_good_candles_are_valid_and_so_are_none() -> None:
    make([0, 1, 5]).validate(STEP)
    Candles.empty().validate(STEP)
    assert len(Candles.empty()) == 0


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("open", np.nan, r"candle 1 at 1970-01-01T01:00:00.*open is nan; it must be a finite number: fetch"),
        ("close", 0.0, "close is 0.0; it must be above zero"),
        ("volume", -1.0, "volume is -1.0; it must not be negative"),
        ("volume", np.inf, "volume is inf; it must be a finite number"),
        ("low", 1.5, "low is 1.5; it must not be above open or close"),
        ("high", 0.5, "high is 0.5; it must not be below open or close"),
        ("open_time", STEP + 1, "must be a multiple of the step"),
        ("open_time", 0, "must be later than the candle before: sort and drop duplicates"),
        ("open_time", 2 * STEP, "candle 2 .* must be later"),
    ],
)
def test_a_broken_candle_is_named_with_its_value_rule_and_fix(name: str, value: Any, message: str) -> None:
    good = make([0, 1, 2])
    column = getattr(good, name).copy()
    column[1] = value
    with pytest.raises(CandleError, match=message):
        dataclasses.replace(good, **{name: column}).validate(STEP)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(CandleError, match=r"volume has shape \(1,\)"):
        dataclasses.replace(make([0, 1]), volume=np.ones(1))

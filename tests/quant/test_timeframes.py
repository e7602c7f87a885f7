from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.timeframes import DAY_MS, TIMEFRAMES, floor_ms, from_ms, last_closed_open_ms, timeframe_ms, to_ms

times = st.integers(min_value=0, max_value=4_000_000_000_000)
steps = st.sampled_from(sorted(TIMEFRAMES.values()))


def test_an_unknown_timeframe_is_named_together_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'7h' is not supported; use one of: 1m, .*1h"):
        timeframe_ms("7h")


def test_every_timeframe_divides_a_day_so_that_grids_start_at_midnight() -> None:
    assert timeframe_ms("1h") == 3_600_000
    assert all(DAY_MS % step == 0 for step in TIMEFRAMES.values())


@given(times, steps)
def test_the_last_closed_candle_is_closed_and_the_next_one_is_not(now_ms: int, step_ms: int) -> None:
    open_ms = last_closed_open_ms(now_ms, step_ms)
    assert open_ms % step_ms == 0
    assert open_ms + step_ms <= now_ms < open_ms + 2 * step_ms
    assert floor_ms(now_ms, step_ms) == open_ms + step_ms


@given(times)
def test_datetimes_and_milliseconds_convert_without_loss(time_ms: int) -> None:
    moment = from_ms(time_ms)
    assert to_ms(moment) == time_ms
    assert to_ms(moment.astimezone(timezone(timedelta(hours=5, minutes=30)))) == time_ms


def test_a_naive_datetime_and_an_empty_step_are_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        to_ms(datetime(2025, 1, 1))
    with pytest.raises(ValueError, match="must have a length"):
        floor_ms(1, 0)
    assert to_ms(datetime(1970, 1, 2, tzinfo=UTC)) == DAY_MS

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.sizing import SizingSpec, bet_confidence, position_notional
from quant.timeframes import DAY_MS, HOUR_MS

SPEC = SizingSpec()
GOOD = {"equity": 10_000.0, "probability": 0.7, "threshold": 0.5, "volatility": 0.01, "guard": 1.0}


def notional(**changes: float) -> float:
    bar_ms = int(changes.pop("bar_ms", HOUR_MS))
    return position_notional(**(GOOD | changes), bar_ms=bar_ms, spec=SPEC)


def test_a_full_size_position_moves_the_target_per_day() -> None:
    size = position_notional(
        equity=10_000.0,
        probability=1.0,
        threshold=0.5,
        volatility=0.02,
        bar_ms=DAY_MS,
        guard=1.0,
        spec=SizingSpec(daily_volatility_target=0.01),
    )
    assert size * 0.02 == pytest.approx(10_000.0 * 0.01)


def test_the_size_does_not_depend_on_the_timeframe_that_measures_the_same_volatility() -> None:
    hourly = notional(volatility=0.01)
    four_hourly = notional(volatility=0.02, bar_ms=4 * HOUR_MS)
    assert hourly == pytest.approx(four_hourly)


def test_twice_the_volatility_is_half_the_size() -> None:
    assert notional(volatility=0.02) == pytest.approx(notional() / 2)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99), st.floats(0.01, 1))
def test_confidence_rises_with_the_probability_within_its_bounds(
    first: float, second: float, threshold: float, floor: float
) -> None:
    low, high = sorted((first, second))
    confidences = [bet_confidence(probability=p, threshold=threshold, min_confidence=floor) for p in (low, high)]
    assert floor <= confidences[0] <= confidences[1] + 1e-12 <= 1.0 + 1e-9


def test_a_probability_at_the_threshold_gets_the_least_confidence() -> None:
    assert bet_confidence(probability=0.6, threshold=0.6, min_confidence=0.3) == 0.3


@given(st.sampled_from(sorted(GOOD)), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_f42_no_size_comes_from_a_value_that_is_not_a_number(name: str, value: float) -> None:
    assert notional(**{name: value}) == 0.0


@pytest.mark.parametrize("changes", [{"equity": 0.0}, {"equity": -1.0}, {"volatility": 0.0}, {"guard": 0.0}])
def test_nothing_to_size_by_is_no_position(changes: dict[str, float]) -> None:
    assert notional(**changes) == 0.0


def test_the_guard_scales_the_size_and_never_raises_it() -> None:
    assert notional(guard=0.5) == pytest.approx(notional() / 2)
    assert notional(guard=3.0) == notional()


@pytest.mark.parametrize("changes", [{"daily_volatility_target": 0.0}, {"min_confidence": 0.0}, {"min_confidence": 2}])
def test_a_wrong_sizing_setting_is_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SizingSpec(**changes)

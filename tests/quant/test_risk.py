from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.reasons import code_of
from quant.risk import RiskLimits, check_entry, daily_loss_breached, drawdown_breached, entry_headroom

LIMITS = RiskLimits()
money = st.floats(0, 1e6)


def check(**changes: float) -> str:
    arguments = {"notional": 500.0, "equity": 10_000.0, "exposure": 0.0, "open_positions": 0} | changes
    return code_of(check_entry(**arguments, limits=LIMITS) or "")


@pytest.mark.parametrize(
    "changes, code",
    [
        ({}, ""),
        ({"notional": 1_000.0}, ""),
        ({"notional": 1_001.0}, "MAX_POSITION"),
        ({"notional": 9.0}, "TOO_SMALL"),
        ({"exposure": 9_500.0}, ""),
        ({"exposure": 9_501.0}, "MAX_EXPOSURE"),
        ({"exposure": 20_000.0}, "MAX_LEVERAGE"),
        ({"open_positions": 10}, "MAX_OPEN_POSITIONS"),
        ({"equity": 0.0}, "NO_EQUITY"),
        ({"equity": -5.0}, "NO_EQUITY"),
        ({"equity": math.nan}, "NO_EQUITY"),
        ({"notional": math.nan}, "MAX_LEVERAGE"),
        ({"exposure": math.nan}, "MAX_LEVERAGE"),
    ],
)
def test_an_entry_is_refused_by_the_limit_it_breaks(changes: dict[str, float], code: str) -> None:
    assert check(**changes) == code


@given(money, money)
def test_the_headroom_is_allowed_and_a_little_more_is_not(equity: float, exposure: float) -> None:
    room = entry_headroom(equity=equity, exposure=exposure, limits=LIMITS)
    assert room >= 0
    arguments = {"equity": equity, "exposure": exposure, "open_positions": 0, "limits": LIMITS}
    if room >= LIMITS.min_notional:
        assert check_entry(notional=room, **arguments) is None
        assert check_entry(notional=room * 1.001 + 1, **arguments) is not None


@pytest.mark.parametrize("equity, breached", [(9_701.0, False), (9_700.0, True), (5_000.0, True), (math.nan, True)])
def test_the_daily_loss_is_breached_at_its_limit_and_when_unknown(equity: float, breached: bool) -> None:
    text = daily_loss_breached(equity=equity, day_start_equity=10_000.0, limits=LIMITS)
    assert (text is not None) == breached
    assert text is None or code_of(text) == "DAILY_LOSS"


@pytest.mark.parametrize("equity, peak, breached", [(8_501, 1e4, False), (8_500, 1e4, True), (1.0, 0.0, True)])
def test_the_drawdown_is_breached_at_its_limit_and_when_unknown(equity: float, peak: float, breached: bool) -> None:
    text = drawdown_breached(equity=equity, peak_equity=peak, limits=LIMITS)
    assert (text is not None) == breached
    assert text is None or code_of(text) == "DRAWDOWN"


@pytest.mark.parametrize("name", ["max_leverage", "max_open_positions", "daily_loss_fraction", "min_notional"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_limit_that_is_not_positive_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        RiskLimits(**{name: value})


@pytest.mark.parametrize("name", ["daily_loss_fraction", "max_drawdown_fraction"])
def test_a_loss_limit_of_everything_is_no_limit(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RiskLimits(**{name: 1.0})

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.reasons import code_of
from quant.risk import (
    TAKEN_COOLDOWN_MS,
    CorrelatedBook,
    RiskLimits,
    check_correlated,
    check_entry,
    cooldown_end_ms,
    daily_loss_breached,
    drawdown_breached,
    entry_headroom,
)
from quant.timeframes import HOUR_MS

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


# ------------------------------------------------------------- cooldown
@pytest.mark.parametrize(
    "cause, bars, ends",
    [
        ("STOP: price=98.5", 4, 14),
        ("STOP: close=98, stop=98.5", 1, 11),  # that of the stop itself
        ("STOP_MISSING: symbol=A, refused=2", 4, 14),
        ("STOP: price=98.5", 0, None),
        ("TARGET: price=102", 4, None),
        ("TIME_BARRIER: bars=24", 4, None),
        ("EXTERNAL: closed at the exchange by an order that is not ours", 4, None),
        ("LIQUIDATION: price=50, by=exchange", 0, 34),
        ("ADL: price=101, by=exchange", 4, 34),
        ("VANISHED: the exchange had no such position any more", 48, 58),
        ("", 4, None),
    ],
)
@pytest.mark.parametrize("late_ms", [0, 1, HOUR_MS - 1])
def test_a_cooldown_lasts_whole_bars_from_that_of_the_close_on(
    cause: str, bars: int, ends: int | None, late_ms: int
) -> None:
    limits = RiskLimits(cooldown_bars=bars)
    until = cooldown_end_ms(cause=cause, closed_ms=10 * HOUR_MS + late_ms, bar_ms=HOUR_MS, limits=limits)
    assert until == (0 if ends is None else ends * HOUR_MS)


def test_a_day_of_cooldown_is_never_shorter_than_a_day() -> None:
    odd_bar = 7 * HOUR_MS
    until = cooldown_end_ms(cause="ADL: price=1", closed_ms=odd_bar - 1, bar_ms=odd_bar, limits=RiskLimits())
    decided = until + odd_bar
    assert until % odd_bar == 0
    assert decided - (odd_bar - 1) >= TAKEN_COOLDOWN_MS


@pytest.mark.parametrize("bars", [-1, 1001, 10**8])
def test_a_cooldown_may_be_off_but_neither_negative_nor_endless(bars: int) -> None:
    with pytest.raises(ValueError, match=f"cooldown_bars is {bars}"):
        RiskLimits(cooldown_bars=bars)


# ------------------------------------------------------------- correlated exposure
held = st.lists(st.tuples(st.sampled_from([-1, 1]), st.floats(0, 1e5)), max_size=12)
sides = st.sampled_from([-1, 1])


def book_of(positions: list[tuple[int, float]], *, unsided: float = 0.0) -> CorrelatedBook:
    book = CorrelatedBook(unsided=unsided)
    for side, notional in positions:
        book.add(side=side, notional=notional)
    return book


@given(held, st.floats(0, 1e5))
def test_the_correlated_exposure_is_never_above_the_gross_one(
    positions: list[tuple[int, float]], unsided: float
) -> None:
    gross = sum(notional for _, notional in positions) + unsided
    assert book_of(positions, unsided=unsided).exposure() <= gross * (1 + 1e-9)


@given(held, st.randoms(use_true_random=False))
def test_the_correlated_exposure_knows_neither_order_nor_direction(
    positions: list[tuple[int, float]], shuffler: random.Random
) -> None:
    exposure = book_of(positions).exposure()
    shuffled = list(positions)
    shuffler.shuffle(shuffled)
    assert book_of(shuffled).exposure() == pytest.approx(exposure)
    assert book_of([(-side, notional) for side, notional in positions]).exposure() == pytest.approx(exposure)


@given(held, st.floats(0, 1e5))
def test_whatever_side_an_unsided_order_turns_out_to_have_it_was_counted_in_full(
    positions: list[tuple[int, float]], notional: float
) -> None:
    known = book_of(positions, unsided=notional).exposure()
    for side in (-1, 1):
        assert book_of(positions).exposure(side=side, notional=notional) <= known * (1 + 1e-9)


@given(held, sides, st.floats(1.0, 1e6), st.floats(0.1, 3.0))
def test_the_correlated_headroom_is_allowed_and_a_little_more_is_not(
    positions: list[tuple[int, float]], side: int, equity: float, limit: float
) -> None:
    limits = RiskLimits(max_correlated_fraction=limit, max_leverage=limit)
    book = book_of(positions)
    room = book.headroom(side=side, equity=equity, limits=limits)
    assert room >= 0
    arguments = {"book": book, "side": side, "equity": equity, "limits": limits}
    if room >= 1.0 and check_correlated(notional=0.0, **arguments) is None:
        assert check_correlated(notional=room * (1 - 1e-6), **arguments) is None
        assert code_of(check_correlated(notional=room * 1.001 + 1, **arguments) or "") == "CORRELATED_EXPOSURE"


@pytest.mark.parametrize("wrong", ["net", "squares", "unsided", "notional", "equity"])
def test_f42_an_exposure_that_is_not_a_number_refuses_the_entry(wrong: str) -> None:
    book = book_of([(1, 500.0)])
    values = {"notional": 100.0, "equity": 10_000.0}
    if wrong in values:
        values[wrong] = math.nan
    else:
        setattr(book, wrong, math.nan)
    refusal = check_correlated(book=book, side=1, limits=LIMITS, **values)
    assert code_of(refusal or "") == "CORRELATED_EXPOSURE"
    if wrong != "notional":
        assert book.headroom(side=1, equity=values["equity"], limits=LIMITS) == 0.0


def test_ten_longs_are_one_bet_and_a_hedged_book_is_a_small_one() -> None:
    longs = book_of([(1, 100.0)] * 10)
    assert longs.exposure() == pytest.approx(math.sqrt(0.1 * 100_000 + 0.9 * 1_000_000))
    assert longs.exposure() / 1_000 == pytest.approx(0.954, abs=1e-3)
    hedged = book_of([(1, 100.0), (-1, 100.0)] * 5)
    assert hedged.exposure() == pytest.approx(math.sqrt(0.6 * 100_000)), "calm times hedge least"

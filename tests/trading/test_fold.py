"""A position is the fold of its fills, an order the fold of what the venue shows of it."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading_app.choices import ORDER_TRANSITIONS, TERMINAL_ORDER_STATES, OrderState
from trading_app.exceptions import OrderStateError
from trading_app.fold import Folded, FoldFill, fold
from trading_app.order_machine import (
    Absent,
    Event,
    Gone,
    Picture,
    Refused,
    Seen,
    Sent,
    Traded,
    Unanswered,
    step,
)

fills = st.builds(
    FoldFill,
    trade_id=st.sampled_from([f"t{n}" for n in range(12)]),
    side=st.sampled_from(["buy", "sell"]),
    quantity=st.decimals("0.001", "50", places=3),
    price=st.decimals("0.5", "900", places=2),
    fee=st.decimals("-1", "1", places=4),
    time_ms=st.integers(1, 5),
    kind=st.sampled_from(["trade", "trade", "trade", "funding", "adjustment"]),
)
ledgers = st.lists(fills, max_size=12, unique_by=lambda fill: fill.trade_id)


def one(side: str, quantity: str, price: str, *, at: int, fee: str = "0", kind: str = "trade") -> FoldFill:
    return FoldFill(f"{side}{at}", side, Decimal(quantity), Decimal(price), Decimal(fee), at, kind)


@given(ledger=ledgers, seed=st.integers(0, 1000), copies=st.integers(0, 8))
def test_f09_f10_i17_any_permutation_and_duplication_of_fills_gives_the_same_position(ledger, seed, copies):
    shuffler = random.Random(seed)
    noisy = [*ledger, *(shuffler.choice(ledger) for _ in range(copies if ledger else 0))]
    shuffler.shuffle(noisy)
    assert fold(noisy) == fold(ledger)


def split(fill: FoldFill, share: Decimal) -> list[FoldFill]:
    """One execution as two, as a venue publishes what met two resting orders."""
    first = (fill.quantity * share).quantize(Decimal("0.001"))
    if not 0 < first < fill.quantity:
        return [fill]
    return [
        replace(fill, trade_id=f"{fill.trade_id}.0", quantity=first),
        replace(fill, trade_id=f"{fill.trade_id}.1", quantity=fill.quantity - first, fee=Decimal(0)),
    ]


@given(ledger=ledgers, share=st.decimals("0", "1", places=2), seed=st.integers(0, 1000))
def test_f10_i17_fills_that_arrive_split_and_in_any_order_give_the_same_position_and_cash(ledger, share, seed):
    parts = [part for fill in ledger for part in (split(fill, share) if fill.kind != "funding" else [fill])]
    random.Random(seed).shuffle(parts)
    whole, pieces = fold(ledger), fold(parts)
    assert pieces.quantity == whole.quantity
    assert pieces.fees == whole.fees
    for name in ("entry_price", "realised_pnl"):
        assert abs(getattr(pieces, name) - getattr(whole, name)) < Decimal("1e-15")


# --- orders

QUANTITY = Decimal(10)
PLACED_ANYHOW = sorted(set(OrderState) - {OrderState.INTENT, OrderState.FILLED})


@st.composite
def histories(draw):
    """What a venue does to one order: executions, and perhaps an end; and every picture of it, taken at any time."""
    sizes = draw(st.lists(st.decimals("0.5", "4", places=1), max_size=4))
    ended = draw(st.sampled_from([None, "cancelled", "expired", "filled"]))
    if ended == "filled" and sum(sizes) < QUANTITY:
        ended = "cancelled"
    totals = [Decimal(0), *itertools.accumulate(sizes)]
    trades: list[Event] = [Traded(f"t{number}", size) for number, size in enumerate(sizes)]
    pictures: list[Event] = [Seen("open", total, QUANTITY) for total in totals if total < QUANTITY]
    if ended is not None:
        pictures.append(Seen(ended, totals[-1], QUANTITY))
    return trades, pictures


@given(history=histories(), start=st.sampled_from(PLACED_ANYHOW), seed=st.integers(0, 10_000), copies=st.integers(0, 5))
def test_f09_f10_f11_evidence_in_any_order_any_number_and_any_parts_makes_the_same_order(history, start, seed, copies):
    """Also from a state that an earlier answer had made and the evidence contradicts (F12)."""
    trades, pictures = history
    shuffler = random.Random(seed)
    noisy = [*trades, *pictures, *(shuffler.choice([*trades, *pictures]) for _ in range(copies))]
    outcomes = set()
    for _ in range(3):
        shuffler.shuffle(noisy)
        picture = Picture(QUANTITY, start)
        for event in noisy:
            picture = step(picture, event)
        outcomes.add((picture.state, picture.filled))
    whole = Picture(QUANTITY, start)
    total = sum((trade.quantity for trade in trades), Decimal(0))
    for event in [*pictures, Traded("all", total)] if trades else pictures:
        whole = step(whole, event)
    outcomes.add((whole.state, whole.filled))
    assert len(outcomes) == 1
    ((state, filled),) = outcomes
    assert filled == total, "an order that was cancelled keeps its fills (F11)"
    assert (state == OrderState.FILLED) == (total >= QUANTITY)
    if pictures[-1].status != "open" and start not in (OrderState.CANCELLED, OrderState.EXPIRED):
        assert state in TERMINAL_ORDER_STATES


@pytest.mark.parametrize(
    "ended", [OrderState.CANCELLED, OrderState.EXPIRED, OrderState.REJECTED, OrderState.NOT_PLACED]
)
def test_f11_f12_a_fill_after_the_end_counts_and_a_complete_one_fills_the_order(ended):
    late = step(Picture(QUANTITY, OrderState(ended)), Traded("late", Decimal(4)))
    assert late.filled == 4
    assert late.state == (OrderState.MISSING if ended in ("rejected", "not_placed") else ended)
    assert step(late, Traded("rest", Decimal(6))).state == OrderState.FILLED


@pytest.mark.parametrize(
    "event, after",
    [
        (Sent(), OrderState.SENDING), (Refused(), OrderState.REJECTED), (Unanswered(), OrderState.UNKNOWN),
        (Absent(), OrderState.NOT_PLACED), (Gone(), OrderState.MISSING),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", OrderState)
def test_i16_an_answer_that_the_table_does_not_have_is_an_error(before, event, after):
    if after in ORDER_TRANSITIONS[before]:
        assert step(Picture(QUANTITY, before), event).state == after
    else:
        with pytest.raises(OrderStateError, match="ORDER_TRANSITIONS"):
            step(Picture(QUANTITY, before), event)


def test_f03_no_answer_and_no_time_out_is_an_end_that_refuses_evidence():
    for state in set(OrderState) - {OrderState.INTENT, OrderState.FILLED}:
        assert OrderState.FILLED in ORDER_TRANSITIONS[state]
    assert OrderState.UNKNOWN not in TERMINAL_ORDER_STATES


@given(ledger=ledgers)
def test_quantity_is_the_signed_sum_and_cash_is_conserved(ledger):
    folded = fold(ledger)
    assert folded.quantity == sum((fill.signed_quantity for fill in ledger), Decimal(0))
    assert folded.fees == sum((fill.fee for fill in ledger), Decimal(0))
    cash = -sum((fill.signed_quantity * fill.price for fill in ledger), Decimal(0))
    assert abs(folded.realised_pnl - folded.quantity * folded.entry_price - cash) < Decimal("1e-15")


@given(ledger=ledgers)
def test_what_was_ever_open_has_a_positive_entry_price_also_when_it_is_flat(ledger):
    folded = fold(ledger)
    assert (folded.entry_price > 0) == any(fill.signed_quantity for fill in ledger)


@pytest.mark.parametrize(
    "ledger, expected",
    [
        ([], Folded()),
        (
            [one("buy", "2", "100", at=1, fee="0.1"), one("sell", "1", "110", at=2, fee="0.1")],
            Folded(Decimal(1), Decimal(100), Decimal(10), Decimal("0.2"), 1, 2),
        ),
        (
            [one("buy", "1", "100", at=1), one("sell", "3", "110", at=2)],
            Folded(Decimal(-2), Decimal(110), Decimal(10), Decimal(0), 1, 2),
        ),
        (
            [
                one("sell", "2", "50", at=1),
                one("buy", "2", "40", at=2),
                one("buy", "9", "1", at=3, fee="4", kind="funding"),
            ],
            Folded(Decimal(0), Decimal(50), Decimal(20), Decimal(4), 1, 3),
        ),
    ],
    ids=["nothing", "partly closed", "turned over", "funding moves cash only"],
)
def test_fold_of_known_ledgers(ledger, expected):
    assert fold(ledger) == expected

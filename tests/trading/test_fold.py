"""A position is the fold of its fills."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading_app.fold import Folded, FoldFill, fold

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
def test_i17_any_permutation_and_duplication_of_fills_gives_the_same_position(ledger, seed, copies):
    shuffler = random.Random(seed)
    noisy = [*ledger, *(shuffler.choice(ledger) for _ in range(copies if ledger else 0))]
    shuffler.shuffle(noisy)
    assert fold(noisy) == fold(ledger)


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

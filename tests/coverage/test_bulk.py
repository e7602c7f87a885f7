"""`ops_app.bulk`: one statement for any number of rows, with every value as the ORM would have stored it."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coverage_app.models import Symbol
from ops_app import bulk
from tests.factories import EPOCH, SymbolFactory

pytestmark = pytest.mark.django_db

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
TIMES = st.none() | st.datetimes(
    min_value=dt.datetime(2001, 1, 1), max_value=dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC)
)
PRICES = st.none() | st.decimals(Decimal("1e-12"), Decimal("1e9"), places=15)
VALUES = st.fixed_dictionaries(
    {
        "universe_reason": TEXTS,
        "in_universe": st.booleans(),
        "listed_at": TIMES,
        "volume_24h": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
        "candle_count": st.integers(0, 2**31 - 1),
        "tick_size": PRICES,
    }
)


def stored(symbol: Symbol, names: Any) -> dict[str, Any]:
    return Symbol.objects.filter(pk=symbol.pk).values(*names).get()


@given(values=VALUES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_come_back_as_the_orm_would_store_them(values: dict[str, Any]) -> None:
    Symbol.objects.all().delete()
    by_orm = SymbolFactory(**values)
    bulk.insert_rows([SymbolFactory.build(code="INSERTED", **values)])
    by_update = SymbolFactory()
    assert bulk.update_rows(Symbol, {by_update.pk: values}, fields=tuple(values)) == 1
    expected = stored(by_orm, values)
    assert stored(Symbol.objects.get(code="INSERTED"), values) == expected
    assert stored(by_update, values) == expected


def test_rows_that_exist_are_left_out() -> None:
    SymbolFactory(code="A", volume_24h=1.0)
    rows = [SymbolFactory.build(code="A", volume_24h=2.0), SymbolFactory.build(code="B")]
    assert bulk.insert_rows(rows) == 1
    assert Symbol.objects.get(code="A").volume_24h == 1.0


def test_a_row_that_changed_meanwhile_is_left_alone() -> None:
    same, changed = SymbolFactory(next_evaluation_at=EPOCH), SymbolFactory(next_evaluation_at=None)
    rows = {symbol.pk: {"candle_count": 1} for symbol in (same, changed)}
    assert bulk.update_rows(Symbol, rows, fields=["candle_count"], unless_changed={"next_evaluation_at": EPOCH}) == 1
    assert bulk.update_rows(Symbol, rows, fields=["candle_count"], unless_changed={"next_evaluation_at": None}) == 1
    assert set(Symbol.objects.values_list("candle_count", flat=True)) == {1}


def test_any_number_of_rows_is_one_statement(django_assert_num_queries: Any) -> None:
    rows = [SymbolFactory.build() for _ in range(1_500)]
    with django_assert_num_queries(1):
        assert bulk.insert_rows(rows) == 1_500
    ids = list(Symbol.objects.values_list("pk", flat=True))
    with django_assert_num_queries(1):
        assert bulk.update_rows(Symbol, {pk: {"candle_count": pk} for pk in ids}, fields=["candle_count"]) == 1_500
    with django_assert_num_queries(1):
        assert Symbol.objects.filter(pk__in=bulk.among(ids)).count() == 1_500


def test_nothing_costs_nothing(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert bulk.insert_rows([]) == 0
        assert bulk.update_rows(Symbol, {}, fields=["candle_count"]) == 0
    assert not Symbol.objects.filter(pk__in=bulk.among([])).exists()

"""Many rows in one statement: what differs travels as one JSON parameter, which the database joins as a table.

`bulk_create` and `bulk_update` split by SQLite's limit of 999 parameters (90 rows a statement) and build CASE
expressions that cost more than the work. Here the number of statements does not grow with the number of rows. A value
that is the same in every row is a parameter of its own, and equal values are converted once: of 8,000 new rows Django's
conversion costs more than the database does.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from django.db import connection, models
from django.db.models.expressions import RawSQL

PLAIN = {
    "AutoField": int, "BigAutoField": int, "ForeignKey": int, "IntegerField": int, "BigIntegerField": int,
    "PositiveIntegerField": int, "PositiveSmallIntegerField": int, "FloatField": float, "BooleanField": bool,
    "CharField": str, "TextField": str,
}  # fmt: skip
"""Types that these fields store as they are."""


def insert_rows(instances: Iterable[models.Model]) -> int:
    """Insert `instances` (all of one model); returns how many were new.

    A row that breaks a uniqueness rule is left out: another process was first. The instances get no primary key.
    """
    rows = list(instances)
    if not rows:
        return 0
    model = type(rows[0])
    return _insert(model, {field: [field.pre_save(row, add=True) for row in rows] for field in _insertable(model)})


def insert_columns(model: type[models.Model], columns: Mapping[str, Sequence[Any]], **shared: Any) -> int:
    """Insert rows that never were objects, {field: one value for each row}; returns how many were new.

    As `insert_rows`, at a third of its cost. `shared` fields are the same in every row; those not named take their
    default. Foreign keys are named like symbol_id. Raises ValueError for a name that is no field.
    """
    count = len(next(iter(columns.values())))
    if not count:
        return 0
    fields = {field.attname: field for field in _insertable(model)}
    if unknown := (columns.keys() | shared.keys()) - fields.keys():
        raise ValueError(f"{model.__name__} has no fields {sorted(unknown)}; foreign keys are named like symbol_id")
    values = {}
    for name, field in fields.items():
        same = columns.get(name) is None
        values[field] = [shared.get(name, field.get_default())] * count if same else columns[name]
    return _insert(model, values)


def update_rows(
    model: type[models.Model],
    rows: Mapping[int, Mapping[str, Any]],
    *,
    fields: Sequence[str],
    unless_changed: Mapping[str, Any] | None = None,
) -> int:
    """Set `fields` of each row, {primary key: {field: value}}; returns how many rows there were.

    `unless_changed` {field: value} leaves a row alone that another process has changed meanwhile (compare-and-set).
    PostgreSQL locks the rows by primary key, one after the other: two processes may wait for each other, never both.
    """
    if not rows:
        return 0
    meta = model._meta
    key: Any = meta.pk
    targets: list[Any] = [meta.get_field(name) for name in fields]
    source = _Source({key: list(rows), **{f: [values[f.name] for values in rows.values()] for f in targets}}, key)
    table, pk = _quoted(meta.db_table), _quoted(key.column)
    before, tables = "", source.table()
    if connection.vendor == "postgresql":
        # One table of rows and their locks: two of them, joined, would be compared each row with each.
        before = (
            f"WITH locked AS MATERIALIZED (SELECT r.value FROM {table} JOIN {tables} "  # noqa: S608
            f"ON {table}.{pk} = {source.value(key)} ORDER BY {table}.{pk} FOR NO KEY UPDATE OF {table}) "
        )
        tables = "locked AS r"
    assignments = ", ".join(f"{_quoted(field.column)} = {source.value(field)}" for field in targets)
    parameters = source.parameters if before else [*source.parameters[1:], source.parameters[0]]
    conditions = [f"{table}.{pk} = {source.value(key)}"]
    for name, expected in (unless_changed or {}).items():
        field: Any = meta.get_field(name)
        column = f"{table}.{_quoted(field.column)}"
        conditions.append(f"{column} IS NULL" if expected is None else f"{column} = %s")
        parameters += [] if expected is None else [_converter(field)(expected)]
    # Names come from the models, values are parameters.
    statement = f"UPDATE {table} SET {assignments} FROM {tables} WHERE {' AND '.join(conditions)}"  # noqa: S608
    return _execute(before + statement, parameters)


def among(ids: Iterable[int]) -> RawSQL:
    """Return ids as one parameter, for `filter(pk__in=among(ids))`: 10,000 single ones cost Django 0.2 s."""
    value = "SELECT value FROM json_each(%s)"
    if connection.vendor != "sqlite":
        value = "SELECT value::bigint FROM jsonb_array_elements_text(%s::jsonb)"
    return RawSQL(value, [json.dumps(list(ids))])  # noqa: S611 - a constant text, the ids are a parameter


class _Source:
    """Rows as a table `r` of JSON arrays, without the values that all rows share: those are parameters.

    `parameters` grow in the order in which `table` and `value` are called, which must be that of the statement.
    """

    def __init__(self, columns: Mapping[Any, Sequence[Any]], key: Any = None) -> None:
        self.parameters: list[Any] = []
        self._shared: dict[Any, Any] = {}
        self._places: dict[Any, int] = {}
        varying: list[list[Any]] = []
        for field, values in columns.items():
            convert, plain = _converter(field), PLAIN.get(field.get_internal_type())
            stored = [value if value is None or type(value) is plain else convert(value) for value in values]
            first = stored[0]
            if field is not key and first == first and stored.count(first) == len(stored):  # NaN must not pass
                self._shared[field] = first
            else:
                self._places[field] = len(varying)
                varying.append(stored)
        count = len(next(iter(columns.values())))
        self._payload = json.dumps(list(zip(*varying, strict=True)) if varying else [[]] * count, allow_nan=False)

    def table(self) -> str:
        self.parameters.append(self._payload)
        return "json_each(%s) AS r" if connection.vendor == "sqlite" else "jsonb_array_elements(%s::jsonb) AS r(value)"

    def value(self, field: Any) -> str:
        # Without its length: an explicit cast to varchar(40) would cut a longer text in silence.
        kind = (field.rel_db_type(connection) if field.primary_key else field.db_type(connection)).partition("(")[0]
        if field in self._shared:
            self.parameters.append(self._shared[field])
            return "%s" if connection.vendor == "sqlite" else f"%s::{kind}"
        place = self._places[field]
        if connection.vendor == "sqlite":
            return f"json_extract(r.value, '$[{place}]')"
        return f"(r.value->>{place})::{kind}"


def _converter(field: Any) -> Callable[[Any], Any]:
    """Return what turns this field's values into what the database stores and JSON can say; equal ones only once."""
    known: dict[Any, Any] = {}

    def convert(value: Any) -> Any:
        if value not in known:
            stored = field.get_db_prep_save(value, connection)
            # str() of a datetime or Decimal is what PostgreSQL reads back exactly; SQLite's were texts already.
            known[value] = str(stored) if isinstance(stored, (dt.date, dt.time, Decimal)) else stored
        return known[value]

    return convert


def _insertable(model: type[models.Model]) -> list[Any]:
    return [field for field in model._meta.concrete_fields if not isinstance(field, models.AutoField)]


def _insert(model: type[models.Model], columns: Mapping[Any, Sequence[Any]]) -> int:
    source = _Source(columns)
    names = ", ".join(_quoted(field.column) for field in columns)
    values = ", ".join(source.value(field) for field in columns)
    # WHERE true: without it SQLite takes ON for a join's condition. Names come from the models, values are parameters.
    return _execute(
        f"INSERT INTO {_quoted(model._meta.db_table)} ({names}) SELECT {values} FROM {source.table()} "  # noqa: S608
        "WHERE true ON CONFLICT DO NOTHING",
        source.parameters,
    )


def _quoted(name: str) -> str:
    return connection.ops.quote_name(name)


def _execute(sql: str, parameters: list[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.rowcount

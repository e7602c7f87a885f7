"""Many rows in one statement: the values travel as one JSON parameter, which the database joins as a table.

`bulk_create` and `bulk_update` split by SQLite's limit of 999 parameters (90 rows a statement) and build CASE
expressions that cost more than the work. Here the number of statements does not grow with the number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import connection, models
from django.db.models.expressions import RawSQL


def insert_rows(instances: Iterable[models.Model]) -> int:
    """Insert `instances` (all of one model); returns how many were new.

    A row that breaks a uniqueness rule is left out: another process was first. The instances get no primary key.
    """
    rows = list(instances)
    if not rows:
        return 0
    meta = rows[0]._meta
    fields = [field for field in meta.concrete_fields if not isinstance(field, models.AutoField)]
    payload = [{_column(field): _prepared(field, field.pre_save(row, add=True)) for field in fields} for row in rows]
    columns = ", ".join(_quoted(_column(field)) for field in fields)
    values = ", ".join(_value(field) for field in fields)
    # WHERE true: without it SQLite takes ON for a join's condition. Names come from the models, values are parameters.
    return _execute(
        f"INSERT INTO {_quoted(meta.db_table)} ({columns}) SELECT {values} FROM {_source(fields)} "  # noqa: S608
        "WHERE true ON CONFLICT DO NOTHING",
        [_dumped(payload)],
    )


def update_rows(
    model: type[models.Model],
    rows: Mapping[int, Mapping[str, Any]],
    *,
    fields: Sequence[str],
    unless_changed: Mapping[str, Any] | None = None,
) -> int:
    """Set `fields` of each row, {primary key: {field: value}}; returns how many rows there were.

    `unless_changed` {field: value} leaves a row alone that another process has changed meanwhile (compare-and-set).
    """
    if not rows:
        return 0
    meta = model._meta
    key = meta.get_field(meta.pk.name) if meta.pk is not None else meta.get_field("id")
    targets = [meta.get_field(name) for name in fields]
    payload = [
        {_column(key): pk, **{_column(field): _prepared(field, values[field.name]) for field in targets}}
        for pk, values in rows.items()
    ]
    table = _quoted(meta.db_table)
    assignments = ", ".join(f"{_quoted(_column(field))} = {_value(field)}" for field in targets)
    conditions = [f"{table}.{_quoted(_column(key))} = {_value(key)}"]
    parameters: list[Any] = [_dumped(payload)]
    for name, expected in (unless_changed or {}).items():
        field = meta.get_field(name)
        column = f"{table}.{_quoted(_column(field))}"
        conditions.append(f"{column} IS NULL" if expected is None else f"{column} = %s")
        parameters += [] if expected is None else [_prepared(field, expected)]
    where = " AND ".join(conditions)
    # Names come from the models, values are parameters.
    return _execute(
        f"UPDATE {table} SET {assignments} FROM {_source([key, *targets])} WHERE {where}",  # noqa: S608
        parameters,
    )


def among(ids: Iterable[int]) -> RawSQL:
    """Return ids as one parameter, for `filter(pk__in=among(ids))`: 10,000 single ones cost Django 0.2 s."""
    value = "SELECT value FROM json_each(%s)"
    if connection.vendor != "sqlite":
        value = "SELECT value::bigint FROM jsonb_array_elements_text(%s::jsonb)"
    return RawSQL(value, [json.dumps(list(ids))])  # noqa: S611 - a constant text, the ids are a parameter


def _source(fields: Sequence[Any]) -> str:
    if connection.vendor == "sqlite":
        return "json_each(%s) AS r"
    typed = ", ".join(
        f"{_quoted(f.column)} {f.rel_db_type(connection) if f.primary_key else f.db_type(connection)}" for f in fields
    )
    return f"jsonb_to_recordset(%s::jsonb) AS r({typed})"


def _value(field: Any) -> str:
    if connection.vendor == "sqlite":
        return f"json_extract(r.value, '$.{field.column}')"
    return f"r.{_quoted(field.column)}"


def _column(field: Any) -> str:
    return str(field.column)


def _prepared(field: Any, value: Any) -> Any:
    return field.get_db_prep_save(value, connection)


def _dumped(payload: list[dict[str, Any]]) -> str:
    # str() of a datetime or Decimal is what PostgreSQL reads back exactly; SQLite's were texts already.
    return json.dumps(payload, default=str, allow_nan=False)


def _quoted(name: str) -> str:
    return connection.ops.quote_name(name)


def _execute(sql: str, parameters: list[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.rowcount

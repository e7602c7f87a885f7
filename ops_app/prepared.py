"""Reads that happen on every pass, compiled once per process: Django needs ten times longer to write such SQL than
SQLite needs to answer it.

    _due = Prepared(lambda market, *, now: Symbol.objects.of_market(market).due_for_ingest(now=now))
    _due.exists(settings.EXCHANGE_MARKET, now=clock.market_now())

Positional arguments become part of the text, once for each value. Keyword arguments are the times, which differ at each
call: a datetime, or what `clock.database_now()` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

from django.db import connection
from django.db.models import Expression, QuerySet, Value
from django.db.models.sql import UpdateQuery
from django.db.models.sql.compiler import SQLCompiler

Time = datetime | Expression
MARKERS = datetime(1901, 2, 3, 4, 5, 6, 700_001, tzinfo=UTC), datetime(1911, 12, 13, 14, 15, 16, 170_001, tzinfo=UTC)
"""Stand for the times while a query is compiled; nothing in this database is that old."""

MOST_TEXTS = 200
"""Texts that a query keeps: a key that never comes again, like a lease's token, must not fill the memory."""


class PreparationError(RuntimeError):
    """A query cannot be compiled once for all times: its text or other parameters depend on them."""


class Answer(Enum):
    """What is asked of a query."""

    EXISTS = "exists"
    ROWS = "rows"
    OBJECTS = "objects"
    UPDATE = "update"


class _Compiled(NamedTuple):
    sql: str
    parameters: tuple[Any, ...]
    places: tuple[tuple[int, str], ...]  # index of a parameter, name of the time that belongs there
    convert: Callable[[list[Any]], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class _Shape:
    """A query before it knows its times: what it asks for, and which of its times the database tells itself."""

    answer: Answer
    vendor: str
    key: tuple[Hashable, ...]
    names: tuple[str, ...]


class Prepared:
    """A query of the default database. `build(*key, **times)` returns its queryset, and is called twice for each key.

    Raises PreparationError for one whose SQL depends on its times in any other way than through their values.
    """

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build
        self._compiled: dict[_Shape, _Compiled] = {}

    def exists(self, *key: Hashable, **times: Time) -> bool:
        """Return whether the query has a row (1 query)."""
        return bool(self._run(Answer.EXISTS, key, times))

    def rows(self, *key: Hashable, **times: Time) -> list[tuple[Any, ...]]:
        """Return the rows of the query, which names its columns with `values_list` (1 query)."""
        return self._run(Answer.ROWS, key, times)

    def objects(self, *key: Hashable, **times: Time) -> list[Any]:
        """Return the rows of the query as objects of its model (1 query); it must ask for nothing but its columns."""
        return self._run(Answer.OBJECTS, key, times)

    def update(self, *key: Hashable, **times: Time) -> int:
        """Write to the rows of the query, and return to how many; `build` returns it with a dict of what is written."""
        compiled, parameters = self._ready(Answer.UPDATE, key, times)
        with connection.cursor() as cursor:
            cursor.execute(compiled.sql, parameters)
            return int(cursor.rowcount)

    def _run(self, answer: Answer, key: tuple[Hashable, ...], times: dict[str, Time]) -> list[Any]:
        compiled, parameters = self._ready(answer, key, times)
        with connection.cursor() as cursor:
            cursor.execute(compiled.sql, parameters)
            return compiled.convert(cursor.fetchall())

    def _ready(self, answer: Answer, key: tuple[Hashable, ...], times: dict[str, Time]) -> tuple[_Compiled, list[Any]]:
        values = {}
        for name, time in times.items():
            value = time.value if isinstance(time, Value) else time  # a simulated clock's Value is a time like others
            if isinstance(value, datetime):
                values[name] = value
        shape = _Shape(answer, connection.vendor, key, tuple(values))
        compiled = self._compiled.get(shape)
        if compiled is None:
            compiled = self._compile(shape, times)
            if len(self._compiled) >= MOST_TEXTS:
                self._compiled.clear()
            self._compiled[shape] = compiled
        parameters = list(compiled.parameters)
        for index, name in compiled.places:
            parameters[index] = connection.ops.adapt_datetimefield_value(values[name])
        return compiled, parameters

    def _compile(self, shape: _Shape, times: dict[str, Time]) -> _Compiled:
        """Compile it with two sets of markers; what differs between the two are the places of the times."""
        first, second = (self._with_markers(shape, times, marker) for marker in MARKERS)
        if first.sql != second.sql or len(first.parameters) != len(second.parameters):
            raise PreparationError(f"the text of this query depends on its times: {first.sql}")
        pairs = enumerate(zip(first.parameters, second.parameters, strict=True))
        differ = {index for index, (one, other) in pairs if one != other}
        if differ != {index for index, _ in first.places} or first.places != second.places:
            raise PreparationError(f"a parameter of this query is computed from its times: {first.sql}")
        lacking = set(shape.names) - {name for _, name in first.places}
        if lacking:
            raise PreparationError(f"this query does not use {', '.join(sorted(lacking))}: {first.sql}")
        return first

    def _with_markers(self, shape: _Shape, times: dict[str, Time], marker: datetime) -> _Compiled:
        markers = {name: marker + timedelta(days=number) for number, name in enumerate(shape.names)}
        stand_ins = {name: _like(times[name], value) for name, value in markers.items()}
        built = self._build(*shape.key, **{**times, **stand_ins})
        queryset, written = built if shape.answer is Answer.UPDATE else (built, None)
        if queryset.db != connection.alias:
            raise PreparationError(f"this query goes to the database {queryset.db!r}, not to {connection.alias!r}")
        query = queryset.query.exists() if shape.answer is Answer.EXISTS else queryset.query
        if written is not None:
            query = queryset.query.chain(UpdateQuery)
            query.add_update_values(written)
        compiler = query.get_compiler(connection=connection)
        sql, parameters = compiler.as_sql()
        named: dict[Any, str] = {
            connection.ops.adapt_datetimefield_value(value): name for name, value in markers.items()
        }
        places = tuple(
            (index, named[parameter])
            for index, parameter in enumerate(parameters)
            if isinstance(parameter, Hashable) and parameter in named
        )
        return _Compiled(sql, tuple(parameters), places, _converter(shape, queryset, compiler))


def _converter(shape: _Shape, queryset: QuerySet[Any, Any], compiler: SQLCompiler) -> Callable[[list[Any]], list[Any]]:
    """Return what makes Python's values, or objects, of the database's rows."""
    if shape.answer is Answer.UPDATE:
        return list
    converters = compiler.get_converters([column for column, *_ in compiler.select])

    def rows(fetched: list[Any]) -> list[Any]:
        converted: Iterator[Any] = compiler.apply_converters(fetched, converters) if converters else iter(fetched)
        return [tuple(row) for row in converted]

    if shape.answer is not Answer.OBJECTS:
        return rows
    model, names = queryset.model, [field.attname for field in queryset.model._meta.concrete_fields]
    selected = [getattr(column, "target", None) for column, *_ in compiler.select]
    if queryset.query.values_select or selected != list(model._meta.concrete_fields):
        raise PreparationError(f"this query asks for something else than the columns of {model.__name__}")
    return lambda fetched: [model.from_db(connection.alias, names, row) for row in rows(fetched)]


def _like(time: Time, value: datetime) -> Time:
    return Value(value, output_field=time.output_field) if isinstance(time, Value) else value

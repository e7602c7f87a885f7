"""The evaluation of the symbols' coverage: all due, nothing new; and all due, four fifths of them with a new block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.db import connection, models, transaction

from coverage_app.models import Block, Symbol
from coverage_app.services import evaluate_due
from coverage_app.services.evaluation import COLUMNS
from ops_app import clock
from ops_app.models import Event
from tradingsite.bench import worlds
from tradingsite.bench.measure import QUERIES, SECONDS, Figure, Scale, cpu_seconds, expect, queries

SIZES = (100, 1_000, 10_000)
BYTES_PER_CANDLE = 0
FEW = 100
GOAL_UNCHANGED, GOAL_CHANGED, GOAL_QUERIES = 0.1, 1.0, 12
BROKEN_SHARE = 0.8


def run(scale: Scale) -> Iterator[Figure]:
    with clock.simulated(worlds.NOW):
        at_few = _statements(Scale(symbols=min(FEW, scale.symbols)))
        here = _statements(scale)
        for what in here:
            yield Figure(
                name=f"coverage.{what}.queries", symbols=scale.symbols, value=here[what], unit=QUERIES,
                limit=at_few[what], versus=f"the same with {FEW} symbols", goal=GOAL_QUERIES,
            )  # fmt: skip
        yield Figure(
            name="coverage.unchanged", symbols=scale.symbols, unit=SECONDS, goal=GOAL_UNCHANGED,
            value=cpu_seconds(lambda: _evaluate(scale), before=_make_due),
            limit=cpu_seconds(_read_and_claim), versus="read the columns, write the next times",
        )  # fmt: skip
        changed = cpu_seconds(lambda: _evaluate(scale), before=lambda: _break(scale))
        written = {model: _rows(model) for model in (Block, Event)}
        expect(len(written[Block]) == _broken(scale), f"{len(written[Block])} blocks were opened")

        def least() -> None:
            _read_and_claim()
            with transaction.atomic():
                for model, rows in written.items():
                    _insert(model, rows)
                transaction.set_rollback(True)

        yield Figure(
            name="coverage.opened", symbols=scale.symbols, unit=SECONDS, goal=GOAL_CHANGED, value=changed,
            limit=cpu_seconds(least, before=_forget), versus="read the columns, write next times, blocks and journal",
        )  # fmt: skip


def _statements(scale: Scale) -> dict[str, int]:
    """Statements of a pass that opens blocks, one that finds them as they are, and one that closes them."""
    worlds.fill_symbols(scale)
    _break(scale)
    opened = queries(lambda: _evaluate(scale))
    _make_due()
    unchanged = queries(lambda: _evaluate(scale))
    Symbol.objects.update(candle_count=models.F("expected_count"))
    _make_due()
    closed = queries(lambda: _evaluate(scale))
    expect(not Block.objects.open().exists(), "blocks are still open")
    return {"unchanged": unchanged, "opened": opened, "closed": closed}


def _evaluate(scale: Scale) -> None:
    report = evaluate_due()
    expect(report.evaluated == scale.symbols, f"{report.evaluated} of {scale.symbols} symbols were evaluated")


def _make_due() -> None:
    Symbol.objects.update(next_evaluation_at=worlds.NOW)


def _broken(scale: Scale) -> int:
    return int(BROKEN_SHARE * scale.symbols)


def _forget() -> None:
    worlds.empty(Block, Event)


def _break(scale: Scale) -> None:
    _forget()
    _make_due()
    chosen = Symbol.objects.filter(code__lt=f"C{_broken(scale):05d}")
    chosen.update(candle_count=models.F("expected_count") / 2)


def _read_and_claim() -> None:
    read = Symbol.objects.filter(market=settings.EXCHANGE_MARKET).values_list(*COLUMNS)
    sql, parameters = read.query.sql_with_params()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        cursor.fetchall()
        Symbol.objects.update(next_evaluation_at=worlds.NOW, last_evaluated_at=worlds.NOW)


def _rows(model: type[models.Model]) -> list[tuple[Any, ...]]:
    names = ", ".join(f'"{field.column}"' for field in model._meta.concrete_fields)
    with connection.cursor() as cursor:
        cursor.execute(f'SELECT {names} FROM "{model._meta.db_table}"')  # noqa: S608 - names come from the models
        return cursor.fetchall()


def _insert(model: type[models.Model], rows: list[tuple[Any, ...]]) -> None:
    fields = model._meta.concrete_fields
    names = ", ".join(f'"{field.column}"' for field in fields)
    places = ", ".join(["%s"] * len(fields))
    with connection.cursor() as cursor:
        cursor.executemany(f'INSERT INTO "{model._meta.db_table}" ({names}) VALUES ({places})', rows)  # noqa: S608 - as above

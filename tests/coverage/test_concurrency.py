"""Ingest and evaluation write to the same rows at the same time: they wait for each other, and never both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from coverage_app import services
from coverage_app.models import Block, Symbol
from ops_app import bulk
from ops_app.clock import SimulatedClock
from tests.factories import EPOCH, HOUR, SymbolFactory

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

PATIENCE = 60.0


class Worker(threading.Thread):
    """Does one thing on a connection of its own, and keeps its error."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work, self.error = work, None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except Exception as error:  # noqa: BLE001 - the test's thread looks at it
            self.error = error
        finally:
            connection.close()


def waiting() -> int:
    """How many statements of this database wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")  # a transaction would see the same picture again and again
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(cursor.fetchone()[0])


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def figures(ids: list[int]) -> Callable[[], Any]:
    """What an ingest writes, its rows in this order."""
    return lambda: bulk.update_rows(Symbol, {pk: {"candle_count": pk} for pk in ids}, fields=["candle_count"])


def due_times(ids: list[int]) -> Callable[[], Any]:
    """What an evaluation and a person write."""

    def write() -> None:
        with transaction.atomic():
            Symbol.objects.filter(pk__in=ids).locked().update(next_evaluation_at=EPOCH)

    return write


@pytest.mark.parametrize("second", [figures, due_times])
def test_rows_are_locked_in_one_order_whatever_the_order_of_the_work(second: Any) -> None:
    ids = sorted(symbol.pk for symbol in SymbolFactory.create_batch(3))
    with transaction.atomic():
        Symbol.objects.select_for_update().get(pk=ids[1])
        # Locked as given, the first would hold the last row now, the second the first one: each the other's next.
        one = Worker(figures(ids[::-1]))
        wait_until(lambda: waiting() == 1)
        two = Worker(second(ids))
        wait_until(lambda: waiting() == 2)
        with transaction.atomic():
            free = Symbol.objects.select_for_update(skip_locked=True).filter(pk__in=ids).values_list("pk", flat=True)
            assert set(free) == {ids[1], ids[2]}, "who waits for the second row holds the first, and not the third"
    for worker in (one, two):
        worker.join(PATIENCE)
        assert not worker.is_alive()
        assert worker.error is None
    assert set(Symbol.objects.values_list("candle_count", flat=True)) == set(ids)


def test_evaluations_and_ingests_at_the_same_time_all_come_through(sim: SimulatedClock) -> None:
    bulk.insert_rows(SymbolFactory.build(next_evaluation_at=EPOCH, candle_count=10_000) for _ in range(300))
    ids = list(Symbol.objects.order_by("-code").values_list("pk", flat=True))

    def evaluate() -> None:
        for _ in range(5):
            services.evaluate_due()

    def ingest() -> None:
        for count in range(5):
            bulk.update_rows(Symbol, {pk: {"candle_count": 10_000 + count} for pk in ids}, fields=["candle_count"])
            services.hasten(ids, now=EPOCH + HOUR)  # due again, so that each pass finds work

    workers = [Worker(work) for work in (evaluate, ingest, evaluate, ingest)]
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()
    assert [worker.error for worker in workers] == [None] * 4
    services.evaluate_due()
    assert Block.objects.open().count() == 300

"""A read that is compiled once must answer as the queryset itself does, at every time, and refuse what it cannot do."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db.models import F, Q, QuerySet
from pytest_django import DjangoAssertNumQueries

from ops_app import clock
from ops_app.models import Alert, Heartbeat, JobRun
from ops_app.prepared import MOST_TEXTS, PreparationError, Prepared

pytestmark = pytest.mark.django_db
NOON = dt.datetime(2026, 3, 4, 12, 0, tzinfo=dt.UTC)
AGE = dt.timedelta(seconds=60)
LATER = dt.timedelta(microseconds=123_456)


def started_before(now: Any) -> QuerySet[JobRun]:
    return JobRun.objects.filter(started_at__lte=now).order_by("slot")


def stale(database_now: Any) -> QuerySet[Heartbeat]:
    return Heartbeat.objects.filter(Q(pid=None) | Q(beat_at__lt=database_now - AGE)).order_by("name")


@pytest.fixture
def runs() -> None:
    JobRun.objects.bulk_create(
        JobRun(job="a", slot=hour, started_at=NOON + hour * dt.timedelta(hours=1), seconds=hour / 2)
        for hour in range(4)
    )


@pytest.mark.usefixtures("runs")
def test_rows_and_existence_are_those_of_the_queryset_at_every_time() -> None:
    query = Prepared(lambda *, now: started_before(now).values_list("slot", "started_at", "seconds", "finished_at"))
    for hours in (-1, 0, 1.5, 9):
        for step in (dt.timedelta(0), LATER):
            now = NOON + hours * dt.timedelta(hours=1) + step
            expected = started_before(now).values_list("slot", "started_at", "seconds", "finished_at")
            assert query.rows(now=now) == list(expected)
            assert query.exists(now=now) == expected.exists()
    assert query.rows(now=NOON)[0][1] == NOON, "converted as the field is: aware"


@pytest.mark.usefixtures("runs")
def test_each_key_has_a_text_of_its_own_and_is_built_only_once(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    built: list[tuple[str, int]] = []

    def build(job: str, limit: int, *, now: Any) -> QuerySet[JobRun]:
        built.append((job, limit))
        return started_before(now).filter(job=job).values_list("slot")[:limit]

    query = Prepared(build)
    with django_assert_num_queries(4):
        assert query.rows("a", 2, now=NOON + 9 * AGE * 60) == [(0,), (1,)]
        assert query.rows("a", 1, now=NOON + 9 * AGE * 60) == [(0,)]
        assert query.rows("a", 2, now=NOON) == [(0,)]
        assert query.rows("b", 2, now=NOON) == []
    assert set(built) == {("a", 2), ("a", 1), ("b", 2)}
    assert len(built) == 6, "twice for each key, however often it is asked"


@pytest.mark.parametrize("simulate", [True, False])
def test_the_databases_time_is_a_value_of_a_simulated_clock_and_the_databases_own_otherwise(simulate: bool) -> None:
    query = Prepared(lambda *, database_now: stale(database_now).values_list("name"))
    told = Prepared(
        lambda *, database_now: Heartbeat.objects.annotate(now=database_now).order_by("name").values_list("name", "now")
    )

    def look() -> list[str]:
        assert query.exists(database_now=clock.database_now()) == stale(clock.database_now()).exists()
        names = [name for (name,) in query.rows(database_now=clock.database_now())]
        assert names == list(stale(clock.database_now()).values_list("name", flat=True))
        return names

    if not simulate:
        Heartbeat.objects.create(name="now", kind="t", beat_at=clock.database_now(), pid=1)
        Heartbeat.objects.create(name="old", kind="t", beat_at=clock.database_now() - 2 * AGE, pid=1)
        assert look() == ["old"]
        assert abs(told.rows(database_now=clock.database_now())[0][1] - clock.database_time()) < AGE
        return
    with clock.simulated(NOON) as simulated:
        Heartbeat.objects.create(name="now", kind="t", beat_at=clock.database_now(), pid=1)
        assert look() == []
        simulated.advance(AGE + LATER)
        assert look() == ["now"]
        assert told.rows(database_now=clock.database_now()) == [("now", NOON + AGE + LATER)]


@pytest.mark.usefixtures("runs")
def test_objects_are_those_of_the_queryset_and_refused_when_it_asks_for_more() -> None:
    query = Prepared(lambda *, now: started_before(now))
    for now in (NOON, NOON + 9 * AGE * 60):
        expected = list(started_before(now))
        assert query.objects(now=now) == expected
        assert [(run.started_at, run.seconds, run.result) for run in query.objects(now=now)] == [
            (run.started_at, run.seconds, run.result) for run in expected
        ]
    with pytest.raises(PreparationError, match="something else than the columns of JobRun"):
        Prepared(lambda *, now: started_before(now).values_list("slot")).objects(now=NOON)
    with pytest.raises(PreparationError, match="something else than the columns of JobRun"):
        Prepared(lambda *, now: started_before(now).annotate(twice=F("slot") * 2)).objects(now=NOON)
    with pytest.raises(PreparationError, match="something else than the columns of JobRun"):
        Prepared(lambda *, now: started_before(now).defer("result")).objects(now=NOON)


@pytest.mark.usefixtures("runs")
def test_an_update_writes_what_the_queryset_would_and_says_to_how_many(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    query = Prepared(
        lambda job, least, *, now, ended: (
            started_before(now).filter(job=job, slot__gte=least),
            {"finished_at": ended, "seconds": F("seconds") + 1, "result": "done"},
        )
    )
    for minutes, expected in ((0, 0), (60, 1), (180, 3)):
        now = NOON + minutes * AGE + LATER
        with django_assert_num_queries(1):
            assert query.update("a", 1, now=now, ended=now + AGE) == expected
    ended = NOON + 180 * AGE + LATER + AGE
    assert list(JobRun.objects.order_by("slot").values_list("finished_at", "seconds", "result")) == [
        (None, 0.0, ""), (ended, 2.5, "done"), (ended, 2.0, "done"), (ended, 2.5, "done"),
    ]  # fmt: skip
    assert query.update("b", 0, now=NOON, ended=NOON) == 0


def test_a_text_that_depends_on_the_time_is_refused() -> None:
    def build(*, now: dt.datetime) -> QuerySet[JobRun]:
        return JobRun.objects.filter(finished_at=None) if now.year < 1905 else JobRun.objects.filter(seconds=None)

    with pytest.raises(PreparationError, match="text of this query depends"):
        Prepared(lambda *, now: build(now=now)).exists(now=NOON)


def test_a_parameter_that_is_computed_from_the_time_is_refused() -> None:
    with pytest.raises(PreparationError, match="computed from its times"):
        Prepared(lambda *, now: started_before(now).filter(slot__lt=now.year)).exists(now=NOON)
    with pytest.raises(PreparationError, match="computed from its times"):
        Prepared(lambda *, now: started_before(now - AGE)).exists(now=NOON)


def test_a_time_that_is_not_used_is_refused() -> None:
    with pytest.raises(PreparationError, match="does not use now"):
        Prepared(lambda *, now: JobRun.objects.filter(seconds=F("slot"))).exists(now=NOON)


def test_a_query_without_times_and_a_pattern_with_a_percent_sign_work() -> None:
    query = Prepared(lambda: Alert.objects.filter(key__startswith="100%_", resolved_at__isnull=True))
    assert not query.exists()
    Alert.objects.create(created_at=NOON, key="100%_sure", text="")
    assert query.exists()


def test_keys_that_never_come_again_do_not_fill_the_memory() -> None:
    query = Prepared(lambda slot: JobRun.objects.filter(slot=slot))
    for slot in range(MOST_TEXTS + 5):
        assert not query.exists(slot)
    assert len(query._compiled) <= MOST_TEXTS

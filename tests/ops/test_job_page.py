"""The page of the periodic jobs: what each last did, how long it took, when it is next, and a button."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client

from ops_app import clock, job_states, jobs, queue
from ops_app.models import Event, JobRun
from tradingsite import setup_steps

pytestmark = pytest.mark.django_db

PAGE, RUN_NOW = "/admin/ops_app/jobrun/", "/admin/ops_app/jobrun/run-now/"
START = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


@pytest.fixture
def browse() -> Callable[[str], Client]:
    """Return a logged-in browser of a person with the role."""
    setup_steps.create_groups()

    def log_in(role: str) -> Client:
        user = get_user_model().objects.create_user(role, is_staff=True)
        user.groups.add(Group.objects.get(name=role))
        client = Client()
        client.force_login(user)
        return client

    return log_in


def test_every_job_is_shown_with_its_last_result_duration_and_next_time(
    browse: Callable[[str], Client], django_assert_max_num_queries: Callable
) -> None:
    with clock.simulated(START):
        jobs.seed_schedules()
        for slot, fields in enumerate([{"result": "older"}, {"result": "5 alerts sent"}]):
            JobRun.objects.create(
                job="ops.alerts", slot=slot, started_at=START, finished_at=START, seconds=1.25, **fields
            )
        JobRun.objects.create(
            job="plan",
            slot=1,
            started_at=START,
            finished_at=START,
            seconds=0.5,
            error="Traceback\nValueError: too few\n",
        )
        JobRun.objects.create(job="evaluate", slot=1, started_at=START)
        JobRun.objects.create(job="universe", slot=1, started_at=START - timedelta(days=1))
        states = {state.job.name: state for state in job_states.job_states()}
        assert set(states) == {job.name for job in jobs.registered()}
        seen = {name: (states[name].verdict, states[name].text) for name in ("ops.alerts", "plan")}
        assert seen == {"ops.alerts": ("ok", "5 alerts sent"), "plan": ("failed", "ValueError: too few")}
        assert [states[name].verdict for name in ("evaluate", "universe", "ops.prune")] == [
            "running",
            "broken off",
            "never",
        ]
        assert all(state.next_at is not None and state.next_at > START for state in states.values())
        with django_assert_max_num_queries(3):
            job_states.job_states()
    page = browse("viewer").get(PAGE).content.decode()
    for job in jobs.registered():
        assert job.name in page
        assert job.help in page.replace("&#x27;", "'")
    for text in ("5 alerts sent", "ValueError: too few", "1.25", "2026-01-01 12:01", "0:01:00"):
        assert text in page
    assert "Run now" not in page, "a viewer only sees"


def test_an_operator_runs_a_job_now_although_its_slot_is_taken(
    browse: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr("ops_app.watch.prune", lambda: ran.append("x") or "done")
    jobs.run_job("ops.prune")
    jobs.run_job("ops.prune")
    assert ran == ["x"], "the slot is taken"
    client = browse("operator")
    assert "Run now" in client.get(PAGE).content.decode()
    with queue.capture() as messages:
        answer = client.post(RUN_NOW, {"job": "ops.prune"}, follow=True)
    assert "A worker was asked to run ops.prune" in answer.content.decode()
    (message,) = messages
    for _ in range(2):  # delivered twice
        jobs.run_job(*message.args)  # type: ignore[arg-type]  # a name and a number
    assert ran == ["x", "x"]
    event = Event.objects.get(kind="job_asked_for")
    assert (event.user.username if event.user else "", event.subject) == ("operator", "job:ops.prune")


@pytest.mark.parametrize("method", ["get", "post"])
def test_i22_nobody_else_runs_a_job_by_the_page(browse: Callable[[str], Client], method: str) -> None:
    who: dict[str, Any] = {"viewer": browse("viewer"), "stranger": Client()}
    with queue.capture() as messages:
        for client in who.values():
            assert getattr(client, method)(RUN_NOW, {"job": "ops.prune"}).status_code in (302, 403, 405)
    assert messages == []
    assert not Event.objects.filter(kind="job_asked_for").exists()


def test_a_job_that_does_not_exist_is_named(browse: Callable[[str], Client]) -> None:
    answer = browse("operator").post(RUN_NOW, {"job": "no such job"}, follow=True).content.decode()
    assert "is not registered; there are: " in answer

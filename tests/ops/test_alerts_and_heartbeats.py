"""The outbox of alerts, the journal, and who is alive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction

from ops_app import alerts, clock, heartbeats, journal, watch
from ops_app.choices import AlertState, Severity
from ops_app.models import Alert, Event, Heartbeat, JobRun

START = datetime(2026, 1, 1, tzinfo=UTC)
pytestmark = pytest.mark.django_db


def test_an_alert_is_raised_once_until_it_is_resolved() -> None:
    assert alerts.raise_alert("kill_switch:main", "Drawdown 21 %.") is not None
    assert alerts.raise_alert("kill_switch:main", "Drawdown 22 %.") is None
    assert alerts.resolve_alert("kill_switch:main")
    assert not alerts.resolve_alert("kill_switch:main")
    assert alerts.raise_alert("kill_switch:main", "Drawdown 23 %.") is not None
    assert Alert.objects.count() == 2


def test_two_that_raise_the_same_alert_at_once_leave_one_and_break_no_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alerts.raise_alert("x", "first")
    monkeypatch.setattr(alerts.Alert.objects, "filter", lambda **_: Alert.objects.none(), raising=True)
    with transaction.atomic():
        assert alerts.raise_alert("x", "second") is None
        monkeypatch.undo()
        assert Alert.objects.get().text == "first"


def test_f41_a_channel_that_is_down_delays_an_alert_and_nothing_else(settings) -> None:
    sent: list[str] = []

    def down(title: str, body: str) -> bool:
        raise ConnectionError("https://user:secret@example.org refused")

    with clock.simulated(START) as sim:
        alerts.raise_alert("a", "The bot is silent.", Severity.CRITICAL)
        assert alerts.send_pending(notify=down) == "0 sent, 1 failed"
        assert alerts.send_pending(notify=down) == "", "it waits before it tries again"
        sim.advance(timedelta(seconds=30))
        assert alerts.send_pending(notify=lambda title, body: bool(sent.append(title + body) or True)) == (
            "1 sent, 0 failed"
        )
        assert alerts.send_pending(notify=down) == ""
    alert = Alert.objects.get()
    assert (alert.state, alert.attempts, alert.error) == (AlertState.SENT, 2, "")
    assert sent == ["[critical] Trading botThe bot is silent."]


def test_f41_an_alert_is_given_up_after_ten_attempts_and_its_error_holds_no_secret() -> None:
    def down(title: str, body: str) -> bool:
        raise ConnectionError("https://user:secret@example.org refused")

    with clock.simulated(START) as sim:
        alerts.raise_alert("a", "text")
        for _ in range(20):
            alerts.send_pending(notify=down)
            sim.advance(timedelta(hours=1))
    alert = Alert.objects.get()
    assert (alert.state, alert.attempts, alert.error) == (AlertState.FAILED, alerts.MAX_ATTEMPTS, "ConnectionError")


def test_f41_the_attempt_is_counted_before_it_is_made() -> None:
    """Whoever is killed while sending has used up an attempt: no alert is sent for ever."""
    seen: list[int] = []
    alerts.raise_alert("a", "text")
    alerts.send_pending(notify=lambda title, body: bool(seen.append(Alert.objects.get().attempts) or True))
    assert seen == [1]


def test_an_alert_that_another_process_is_sending_is_left_to_it() -> None:
    alert = alerts.raise_alert("a", "text")
    assert alert is not None

    def other(title: str, body: str) -> bool:
        assert alerts.send_pending(notify=lambda *_: pytest.fail("sent twice")) == ""
        return True

    assert alerts.send_pending(notify=other) == "1 sent, 0 failed"


def test_without_urls_alerts_are_shown_only(settings) -> None:
    settings.ALERT_URLS = ()
    alerts.raise_alert("a", "text")
    assert "ALERT_URLS" in alerts.send_pending()
    assert Alert.objects.get().state == AlertState.SHOWN
    assert alerts.send_pending() == ""


def test_back_off_doubles_up_to_an_hour() -> None:
    assert [alerts.back_off(attempt).total_seconds() for attempt in (1, 2, 3, 8, 100)] == [30, 60, 120, 3600, 3600]


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise on Python 3.11
def test_apprise_is_asked_with_the_text(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import apprise

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        apprise.Apprise, "notify", lambda self, title, body: bool(asked.append((title, body)) or len(self) == 1)
    )
    settings.ALERT_URLS = ("json://127.0.0.1:9/", "not a url")
    alerts.raise_alert("a", "text")
    assert alerts.send_pending() == "1 sent, 0 failed"
    assert asked == [("[warning] Trading bot", "text")]


# --- heartbeats ---


def test_a_process_is_dead_when_it_is_silent_for_longer_than_its_ttl_on_the_database_clock() -> None:
    with clock.simulated(START) as sim:
        heartbeats.beat("bot main", "bot", 20, {"tick": 1})
        heartbeats.beat("worker", "worker", 60)
        sim.advance(timedelta(seconds=21))
        assert [pulse.name for pulse in heartbeats.dead()] == ["bot main"]
        assert [pulse.alive for pulse in heartbeats.pulses(kind="worker")] == [True]
        heartbeats.beat("bot main", "bot", 20)
        assert heartbeats.dead() == []
        heartbeats.stop("bot main")
        assert [pulse.name for pulse in heartbeats.pulses()] == ["worker"]


def test_a_beat_is_one_query(django_assert_num_queries) -> None:
    heartbeats.beat("bot", "bot", 20)
    with django_assert_num_queries(1):
        heartbeats.beat("bot", "bot", 20, {"tick": 2})
    assert Heartbeat.objects.get().detail == {"tick": 2}


def test_a_silent_process_is_reported_once_and_resolved_when_it_is_back() -> None:
    with clock.simulated(START) as sim:
        heartbeats.beat("bot main", "bot", 20)
        sim.advance(timedelta(seconds=60))
        assert watch.watch_heartbeats() == "1 raised, 0 resolved"
        assert watch.watch_heartbeats() == ""
        heartbeats.beat("bot main", "bot", 20)
        assert watch.watch_heartbeats() == "0 raised, 1 resolved"
    assert "silent for 60 s" in Alert.objects.get().text


# --- journal ---


def test_i21_the_journal_says_who_did_what_when() -> None:
    user = get_user_model().objects.create_user("ada")
    with clock.simulated(START):
        journal.record("unblocked", "MANUAL lifted", subject="symbol:BTC/USDT:USDT", user=user)
    event = Event.objects.get()
    assert (event.kind, event.subject, event.user, event.created_at, event.recorded_at) == (
        "unblocked",
        "symbol:BTC/USDT:USDT",
        user,
        START,
        START,
    )


def test_i21_pruning_deletes_what_explains_nothing_and_keeps_the_journal() -> None:
    with clock.simulated(START) as sim:
        JobRun.objects.create(job="a", slot=1, started_at=START)
        JobRun.objects.create(job="a", slot=2, started_at=START)
        journal.record("x", "y")
        alerts.raise_alert("a", "text")
        assert watch.prune() == ""
        sim.advance(timedelta(days=400))
        assert "1 job runs" in watch.prune()
    assert JobRun.objects.get().slot == 2, "the last run of a job is what its page shows"
    assert (JobRun.objects.count(), Event.objects.count(), Alert.objects.count()) == (1, 1, 1)

"""Each system check fires on the setting that it is for, and only then."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from ops_app import checks
from tradingsite.settings import redis_address

RULE = "retry > timeout * (2 + ceil((queue_limit + bulk - 1) / workers))"


def ids(messages: list[Any]) -> set[str]:
    return {message.id for message in messages}


def queue_ids(settings: Any, *, alternative: bool = False, **changes: object) -> set[str]:
    changed = deepcopy(settings.Q_CLUSTER)
    (changed["ALT_CLUSTERS"]["training"] if alternative else changed).update(changes)
    settings.Q_CLUSTER = changed
    return ids(checks.check_queues(None))


def test_the_settings_of_this_project_pass_every_check() -> None:
    assert checks.check_queues(None) == checks.check_database(None) == checks.check_site(None) == []


@pytest.mark.parametrize(
    "timeout,workers,queue_limit,bulk,bound",
    [(300, 2, 2, 1, 900), (3600, 1, 1, 1, 10_800), (5, 1, 4, 1, 30), (10, 4, 1, 8, 40)],
)
def test_the_bound_of_retry_is_the_measured_rule(
    timeout: int, workers: int, queue_limit: int, bulk: int, bound: float
) -> None:
    cluster = {"timeout": timeout, "workers": workers, "queue_limit": queue_limit, "bulk": bulk}
    assert checks.least_retry(cluster) == bound, RULE
    allowed = {**cluster, "retry": bound + 1, "catch_up": False, "max_attempts": 1, "ack_failures": True}
    assert list(checks.check_cluster("a", {**allowed, "save_limit": 0})) == []
    assert ids(list(checks.check_cluster("a", {**allowed, "save_limit": 0, "retry": bound}))) == {"ops.E001"}


def test_a_cluster_without_a_time_out_can_have_no_retry_that_is_long_enough(settings) -> None:
    assert queue_ids(settings, timeout=None) == {"ops.E001"}


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"retry": 60}, {"ops.E001"}),
        ({"guard_cycle": 0.3}, {"ops.E002"}),
        ({"catch_up": True}, {"ops.E003"}),
        ({"max_attempts": 0}, {"ops.E004"}),
        ({"ack_failures": False}, {"ops.E004"}),
        ({"save_limit": 250}, {"ops.E005"}),
        ({"scheduler": False}, {"ops.E007"}),
        ({"sync": True}, {"ops.E012"}),
    ],
)
def test_a_setting_that_would_bring_an_old_bug_back_is_refused(
    settings, changes: dict[str, object], expected: set[str]
) -> None:
    assert queue_ids(settings, **changes) == expected


def test_the_training_cluster_is_checked_too(settings) -> None:
    assert queue_ids(settings, alternative=True, scheduler=True) == {"ops.E007"}


def test_a_training_may_not_be_longer_than_its_queue_allows(settings) -> None:
    settings.TRAIN_TIMEOUT_MINUTES = 100.0
    assert "ops.E008" in ids(checks.check_queues(None))


def test_a_queue_without_a_cluster_is_refused(settings) -> None:
    changed = deepcopy(settings.Q_CLUSTER)
    del changed["ALT_CLUSTERS"]["training"]
    settings.Q_CLUSTER = changed
    assert "ops.E006" in ids(checks.check_queues(None))


SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"},
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {**SQLITE["OPTIONS"], "transaction_mode": "DEFERRED"},  # type: ignore[dict-item]  # a test's table
        {**SQLITE["OPTIONS"], "init_command": ""},  # type: ignore[dict-item]  # a test's table
        {**SQLITE["OPTIONS"], "timeout": 1},  # type: ignore[dict-item]  # a test's table
    ],
)
def test_sqlite_without_wal_immediate_or_patience_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings, options: dict[str, object]
) -> None:
    monkeypatch.setitem(settings.DATABASES, "default", SQLITE)
    assert checks.check_database(None) == []
    monkeypatch.setitem(settings.DATABASES, "default", {**SQLITE, "OPTIONS": options})
    assert ids(checks.check_database(None)) == {"ops.E009"}


PATIENT = {
    "options": "-c lock_timeout=5s -c idle_in_transaction_session_timeout=30s",
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
}


def postgresql(monkeypatch: pytest.MonkeyPatch, settings: Any, options: dict[str, Any], **changes: Any) -> set[str]:
    config = {"ENGINE": "django.db.backends.postgresql", "OPTIONS": options, **changes}
    monkeypatch.setitem(settings.DATABASES, "default", config)
    return ids(checks.check_database(None))


def test_postgresql_with_a_pool_and_atomic_requests_are_refused(monkeypatch: pytest.MonkeyPatch, settings) -> None:
    assert postgresql(monkeypatch, settings, PATIENT) == set()
    changed = postgresql(monkeypatch, settings, {**PATIENT, "pool": True}, ATOMIC_REQUESTS=True)
    assert changed == {"ops.E010", "ops.E011"}


@pytest.mark.parametrize("name", checks.POSTGRESQL_PATIENCE)
def test_postgresql_that_would_be_waited_for_for_ever_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings, name: str
) -> None:
    options = {key: value for key, value in PATIENT.items() if key != name}
    options["options"] = str(options["options"]).replace(name, "work_mem")
    assert postgresql(monkeypatch, settings, options) == {"ops.E015"}
    (message,) = checks.check_database(None)
    assert f"without {name}" in message.msg


@pytest.mark.parametrize(
    "broker,expected",
    [
        ({"orm": "default"}, set()),
        ({"orm": "other"}, {"ops.E013"}),
        ({}, {"ops.E013"}),
        ({"orm": "default", "redis": redis_address("redis://a/0")}, {"ops.E013"}),
        ({"orm": "default", "sqs": {}}, {"ops.E013"}),
        ({"redis": redis_address("redis://a:6379/0")}, set()),
        ({"redis": redis_address("redis://a:6379/0?socket_timeout=3")}, set()),
        ({"redis": redis_address("unix:///run/redis.sock?db=0")}, set()),
        ({"redis": "redis://a:6379/0"}, {"ops.E014"}),
        ({"redis": {"host": "a", "socket_timeout": 10}}, {"ops.E014"}),
    ],
)
def test_only_a_broker_that_was_tested_and_that_is_not_waited_for_for_ever_is_allowed(
    settings, broker: dict[str, Any], expected: set[str]
) -> None:
    rest = {key: value for key, value in settings.Q_CLUSTER.items() if key not in ("orm", "redis")}
    settings.Q_CLUSTER = {**rest, **broker}
    assert ids(checks.check_queues(None)) == expected


def test_the_patience_with_redis_may_be_set_in_its_url() -> None:
    assert "socket_timeout=3&" in redis_address("redis://a:6379/0?socket_timeout=3")
    assert redis_address("redis://u:p@a:6379/0").startswith("redis://u:p@a:6379/0?socket_timeout=10&")


@pytest.mark.parametrize("bind,expected", [("0.0.0.0:8000", {"ops.W001"}), ("127.0.0.1:8000", set())])
def test_debug_pages_on_an_address_that_others_reach_are_warned_of(settings, bind: str, expected: set[str]) -> None:
    settings.DEBUG, settings.WEB_BIND = True, bind
    assert ids(checks.check_site(None)) == expected

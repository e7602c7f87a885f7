"""Upgrades: one process migrates, however many start at once, and old code does not work on a newer database."""

from __future__ import annotations

import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from ops_app import clock, cluster, doctor_checks, guards, leases, upgrade, versions
from ops_app.models import Heartbeat, Lease
from ops_app.supervisor import Program, Supervisor
from tests.ops.processes import running, wait_until

FUTURE = ("trading_app", "9999_from_newer_code")
RECORD = (
    "INSERT INTO django_migrations (app, name, applied) VALUES ('trading_app', '9999_from_newer_code', '2026-01-01')"
)


def migrate_to_the_future() -> None:
    MigrationRecorder(connection).record_applied(*FUTURE)


# --- one process migrates ---


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A new, empty database on the server of DATABASE_URL."""
    import psycopg
    from django.conf import settings

    config = settings.DATABASES["default"]
    server = f"postgres://{config['USER']}:{config['PASSWORD']}@{config['HOST']}:{config['PORT'] or 5432}"
    name = f"upgrade_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as administrator:
        administrator.execute(f'CREATE DATABASE "{name}"')
        yield f"{server}/{name}"
        administrator.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def applied(log: str) -> int:
    return log.count("Applying ")


def test_two_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    with running("migrate", "auth", data_dir=tmp_path) as one, running("migrate", "auth", data_dir=tmp_path) as other:
        assert (one.wait_end(seconds=60), other.wait_end(seconds=60)) == (0, 0), one.log + other.log
        assert sorted([applied(one.log) > 0, applied(other.log) > 0]) == [False, True], one.log + other.log
        assert "No migrations to apply" in one.log + other.log


@pytest.mark.postgres
def test_two_hosts_that_start_at_once_migrate_once_and_old_code_stops(tmp_path: Path, postgres_url: str) -> None:
    folders = [tmp_path / name for name in ("host-a", "host-b")]  # no file is shared: the database must decide
    for folder in folders:
        folder.mkdir()
    one_host, other_host = (
        running("setup", "--skip-files", data_dir=folder, DATABASE_URL=postgres_url) for folder in folders
    )
    with one_host as one, other_host as other:
        assert (one.wait_end(seconds=120), other.wait_end(seconds=120)) == (0, 0), one.log + other.log
        assert (one.log + other.log).count("migrations applied") == 1
    with running("runbot", data_dir=folders[0], DATABASE_URL=postgres_url, BOT_INTERVAL="0.2") as bot:
        import psycopg

        with psycopg.connect(postgres_url, autocommit=True) as database:
            wait_until(lambda: database.execute("SELECT 1 FROM ops_app_heartbeat").fetchone(), what="the bot's life")
            database.execute(RECORD)
        assert bot.wait_end(seconds=30) == versions.OUTDATED, bot.log


@pytest.mark.django_db
def test_the_lease_of_a_killed_migration_is_taken_over_at_once_and_each_upgrade_counts() -> None:
    with upgrade.migrating():
        first = Lease.objects.get(name=upgrade.MIGRATIONS)
        assert upgrade.under_way() == first.holder
    assert upgrade.under_way() == ""
    killed = leases.acquire(upgrade.MIGRATIONS, holder="migrations@elsewhere:1:0", ttl=upgrade.LEASE_TTL)
    assert killed is not None
    with upgrade.migrating():
        assert Lease.objects.get(name=upgrade.MIGRATIONS).token > killed.token > first.token


@pytest.mark.django_db
def test_a_program_that_starts_during_a_migration_says_who_migrates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "unapplied_migrations", lambda: ["ops_app.0009_next"])
    with upgrade.migrating(), pytest.raises(guards.NotMigrated, match=r"being migrated by migrations@.*Start again"):
        guards.require_migrated()
    with pytest.raises(guards.NotMigrated, match=r"ops_app.0009_next.*manage setup"):
        guards.require_migrated()


# --- old code ---


@pytest.mark.django_db
@pytest.mark.parametrize("command", [("migrate",), ("setup", "--skip-files"), ("backup",)])
def test_old_code_is_refused_by_every_door_with_the_fix(command: tuple[str, ...]) -> None:
    guards.require_migrated()
    migrate_to_the_future()
    with pytest.raises(guards.CodeOutdated, match=r"older than the database.*trading_app.9999.*git pull") as refused:
        call_command(*command)
    assert refused.value.returncode == versions.OUTDATED
    assert [finding.level for finding in doctor_checks.database()] == ["problem"]


@pytest.mark.django_db
def test_a_migration_of_a_library_that_this_code_does_not_know_is_its_own_affair() -> None:
    MigrationRecorder(connection).record_applied("django_q", "0000_squashed_away")
    guards.require_migrated()


@pytest.mark.django_db
def test_a_process_at_work_notices_a_migration_by_one_small_query(django_assert_num_queries: Callable) -> None:
    with clock.simulated(clock.real_now()) as sim:
        watch = versions.Watch()
        assert not watch.outdated()
        with django_assert_num_queries(0):
            assert not watch.outdated()
        sim.sleep(versions.LOOK_SECONDS)
        with django_assert_num_queries(1):
            assert not watch.outdated()
        migrate_to_the_future()
        assert not watch.outdated(), "it looks every few seconds only"
        sim.sleep(versions.LOOK_SECONDS)
        assert watch.outdated()
        assert "trading_app.9999_from_newer_code" in watch.reason


@pytest.mark.django_db
def test_a_newer_migration_of_the_same_code_stops_nobody() -> None:
    with clock.simulated(clock.real_now()) as sim:
        watch = versions.Watch()
        assert not watch.outdated()
        known = MigrationRecorder(connection).migration_qs.filter(app="trading_app").first()
        assert known is not None
        MigrationRecorder(connection).record_unapplied(known.app, known.name)
        MigrationRecorder(connection).record_applied(known.app, known.name)
        sim.sleep(versions.LOOK_SECONDS)
        assert not watch.outdated()


@pytest.mark.django_db
def test_an_outdated_cluster_stops_saying_that_it_lives_and_ends_with_78() -> None:
    main = cluster.Cluster(queue="light", name="worker light@here")
    migrate_to_the_future()
    main.sweep(first=False)
    assert not Heartbeat.objects.exists()

    class Alive:
        def is_alive(self) -> bool:
            return True

    assert main._watch(Alive(), None) == versions.OUTDATED


def test_a_bot_with_older_code_stops_at_work_and_no_program_of_it_starts_again(data_dir: Path) -> None:
    with (
        running("runbot", data_dir=data_dir, BOT_INTERVAL="0.2") as bot,
        closing(sqlite3.connect(data_dir / "db.sqlite3", timeout=60)) as database,
    ):
        wait_until(lambda: database.execute("SELECT 1 FROM ops_app_heartbeat").fetchone(), what="the bot's life")
        with database:
            database.execute(RECORD)
        assert bot.wait_end(seconds=30) == versions.OUTDATED, bot.log
        assert "This code is older than the database" in bot.log
        left = database.execute("SELECT holder FROM ops_app_lease WHERE name LIKE 'account:%'").fetchall()
        assert left == [("",)], "the account is given back: the newer bot need not wait"
    with running("runall", data_dir=data_dir, WEB_BIND="127.0.0.1:9") as all_of_it:
        assert all_of_it.wait_end(seconds=30) == versions.OUTDATED
        assert "Traceback" not in all_of_it.log


def test_a_supervisor_does_not_start_again_what_ended_because_its_code_is_old(tmp_path: Path) -> None:
    said: list[str] = []
    code = f"import sys; sys.exit({versions.OUTDATED})"
    supervisor = Supervisor(
        [Program(name="old", command=[sys.executable, "-c", code])], log_dir=tmp_path, say=said.append
    )
    try:

        def ended() -> bool:
            supervisor.look()
            return supervisor.outdated

        wait_until(ended, what="the end of the program")
        assert "exit code 78; starting it again cannot help" in said[0]
    finally:
        supervisor.stop()

"""What is told to a person in trouble, to a monitor, and on the admin's pages."""

from __future__ import annotations

import io
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test import RequestFactory
from prometheus_client.parser import text_string_to_metric_families

from ops_app import clock, doctor, doctor_checks, heartbeats, leases, market_clock, metrics
from ops_app.doctor import Level
from ops_app.models import JobRun, MarketClock
from ops_app.pages import ReadOnlyAdmin
from tests.ops.processes import running

START = datetime(2026, 1, 1, tzinfo=UTC)


def levels(findings: object) -> list[Level]:
    return [finding.level for finding in findings]  # type: ignore[attr-defined]  # an iterable of findings


# --- doctor ---


@pytest.mark.django_db
def test_the_doctor_finds_a_prepared_database_well_and_says_how_to_start(settings, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path
    market_clock.ensure()
    output = io.StringIO()
    call_command("doctor", "--json", stdout=output)
    found = {(row["check"], row["level"]) for row in json.loads(output.getvalue())}
    assert ("database", "ok") in found
    assert ("lightgbm", "ok") in found
    assert ("heartbeats", "warning") in found
    assert all(level != "problem" for _, level in found)
    assert all(row["fix"] for row in json.loads(output.getvalue()) if row["level"] != "ok")


def test_the_doctor_of_an_unmigrated_database_names_the_fix_and_exits_with_1(tmp_path: Path) -> None:
    with running("doctor", data_dir=tmp_path) as program:
        assert program.wait_end(seconds=60) == 1
        assert "PROBLEM database" in program.log
        assert "-> Run: python3 run.py manage setup" in program.log


def test_a_check_that_fails_is_a_problem_and_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_checks", {})

    @doctor.check("broken")
    def broken() -> doctor.Finding:
        raise RuntimeError("no")

    @doctor.check("tables", needs_tables=True)
    def tables() -> doctor.Finding:
        return doctor.ok("there")

    found = doctor.examine(migrated=False)
    assert [(name, finding.level) for name, finding in found] == [("broken", Level.PROBLEM)]
    assert [name for name, _ in doctor.examine(migrated=True)] == ["broken", "tables"]


@pytest.mark.django_db
def test_a_skewed_clock_is_a_problem_but_a_small_difference_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_checks.host_clock().level is Level.OK
    now = clock.real_now()
    for seconds, level in ((5, Level.WARNING), (90, Level.PROBLEM)):
        monkeypatch.setattr(clock, "database_time", lambda shift=seconds: now + timedelta(seconds=shift))
        assert doctor_checks.host_clock().level is level


@pytest.mark.django_db
def test_a_clock_of_another_market_and_a_missing_one_are_problems() -> None:
    assert doctor_checks.market_clock().level is Level.PROBLEM
    MarketClock.objects.create(market="binance_um", market_start=START, real_start=START, speed=1)
    finding = doctor_checks.market_clock()
    assert finding.level is Level.PROBLEM
    assert "binance_um" in finding.text


@pytest.mark.django_db
def test_a_dead_process_and_an_abandoned_lease_are_shown() -> None:
    with clock.simulated(START) as sim:
        heartbeats.beat("bot main", "bot", 20)
        leases.acquire("bot:main", holder="bot@x", ttl=timedelta(seconds=20))
        assert levels(doctor_checks.beats()) == [Level.OK]
        sim.advance(timedelta(minutes=10))
        assert levels(doctor_checks.beats()) == [Level.PROBLEM]
        assert levels(doctor_checks.leases()) == [Level.WARNING, Level.OK]


@pytest.mark.django_db
def test_secrets_that_others_can_read_and_lost_indexes_are_problems(settings, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path
    (tmp_path / "secret_key").touch(mode=0o600)
    assert levels(doctor_checks.secret_files()) == [Level.OK]
    (tmp_path / "secret_key").chmod(0o644)
    assert levels(doctor_checks.secret_files()) == [Level.PROBLEM]
    assert levels(doctor_checks.indexes()) == [Level.OK]
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX ops_ormq_key_lock")
    assert levels(doctor_checks.indexes()) == [Level.PROBLEM]


def test_a_lightgbm_that_does_not_load_is_a_problem_that_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "OSError: libgomp.so.1: cannot open shared object file")
    monkeypatch.setattr(doctor_checks.subprocess, "run", lambda *_, **__: failed)
    for platform, word in (("darwin", "brew install libomp"), ("linux", "libgomp1")):
        monkeypatch.setattr(doctor_checks.sys, "platform", platform)
        finding = doctor_checks.lightgbm()
        assert finding.level is Level.PROBLEM
        assert word in finding.fix


def test_on_macos_the_doctor_says_what_is_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "has_parent_death_signal", lambda: False)
    assert doctor_checks.parent_death().level is Level.WARNING


# --- metrics ---


def samples() -> dict[tuple[str, str], float]:
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


@pytest.mark.django_db
def test_metrics_are_read_from_rows() -> None:
    with clock.simulated(START) as sim:
        heartbeats.beat("bot main", "bot", 20)
        leases.acquire("bot:main", holder="bot@x", ttl=timedelta(minutes=5))
        for slot, error in ((1, "Traceback"), (2, "")):
            JobRun.objects.create(
                job="ops.prune", slot=slot, started_at=START, finished_at=START, seconds=slot / 2, error=error
            )
        sim.advance(timedelta(seconds=30))
        found = samples()
    assert found["tradingbot_process_up", "bot main"] == 0
    assert found["tradingbot_process_silence_seconds", "bot main"] == 30
    assert found["tradingbot_lease_held", "bot:main"] == 1
    assert found["tradingbot_job_seconds", "ops.prune"] == 1
    assert found["tradingbot_job_failed", "ops.prune"] == 0
    assert found["tradingbot_market_time_seconds", ""] == (START + timedelta(seconds=30)).timestamp()


@pytest.mark.django_db
def test_a_source_of_metrics_that_fails_is_counted_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[object]:
        raise OperationalError("no such table")

    monkeypatch.setitem(metrics._sources, "broken", broken)
    found = samples()
    assert found["tradingbot_metrics_sources_failed", ""] == 1
    assert ("tradingbot_alerts_open", "") in found


@pytest.mark.django_db
def test_a_scrape_asks_a_constant_number_of_questions(django_assert_max_num_queries) -> None:
    for number in range(50):
        heartbeats.beat(f"bot {number}", "bot")
        JobRun.objects.create(job=f"job {number}", slot=1, started_at=START, finished_at=START, seconds=1)
    clock.market_now()
    with django_assert_max_num_queries(6):
        list(metrics.operations())


# --- admin ---


@pytest.mark.parametrize("app", ["ops_app", "django_q"])
def test_i21_s3_nobody_changes_these_rows_through_the_admin(app: str, admin_user) -> None:
    request = RequestFactory().get("/")
    request.user = admin_user
    pages = [page for model, page in admin.site._registry.items() if model._meta.app_label == app]
    assert len(pages) >= 4
    for page in pages:
        assert isinstance(page, ReadOnlyAdmin)
        assert not page.has_add_permission(request)
        assert not page.has_change_permission(request)
        assert not page.has_delete_permission(request)
        assert page.has_view_permission(request)
        assert not page.get_actions(request)


def test_every_table_of_operations_has_a_page() -> None:
    models = set(apps.get_app_config("ops_app").get_models())
    assert models <= set(admin.site._registry)

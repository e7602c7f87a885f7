"""`manage.py setup`: what it makes, and that it makes it once."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import RequestFactory
from django_q.models import Schedule

from coverage_app.models import Symbol
from ops_app import clock, guards, jobs, setup_steps, wsgi_guard
from ops_app.models import MarketClock
from tradingsite import setup_steps as steps


@pytest.fixture(autouse=True)
def _own_data_dir(settings, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path


def setup() -> str:
    output = io.StringIO()
    call_command("setup", "--skip-files", stdout=output)
    return output.getvalue()


@pytest.mark.django_db
def test_setup_makes_what_the_site_needs_and_says_so_and_then_nothing_more() -> None:
    first = setup()
    assert "market clock starts at" in first
    assert "password" in first
    assert MarketClock.objects.count() == 1
    assert set(Group.objects.values_list("name", flat=True)) == {"viewer", "operator", "admin"}
    assert set(Schedule.objects.values_list("name", flat=True)) == {job.name for job in jobs.registered()}
    assert setup().strip() == "Set-up: nothing to do."


def test_who_waits_for_the_compiler_is_told_so_before_it_begins(monkeypatch, capsys) -> None:
    from quant import features

    shown: list[str] = []
    monkeypatch.setattr(features, "warm_cache", lambda: shown.append(capsys.readouterr().out))
    assert "kernels compiled in" in steps.compile_kernels()
    assert shown == ["  kernels: compiling, about a minute, once ...\n"]
    assert steps.compile_kernels() == ""
    assert capsys.readouterr().out == ""


@pytest.mark.django_db
def test_the_first_admin_can_log_in_with_the_password_that_is_kept_for_the_owner_alone() -> None:
    text = steps.create_admin()
    path = steps.password_file()
    password = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert password in text, "it is printed once"
    user = authenticate(RequestFactory().post("/"), username="admin", password=password)
    assert user is not None
    assert user.is_superuser
    assert steps.create_admin() == ""
    assert path.read_text().strip() == password


@pytest.mark.django_db
def test_a_lost_superuser_is_not_replaced_silently() -> None:
    steps.create_admin()
    get_user_model().objects.update(is_active=False)
    with pytest.raises(CommandError, match="createsuperuser"):
        steps.create_admin()


@pytest.mark.django_db
def test_i22_a_viewer_only_sees_and_an_operator_never_changes_money() -> None:
    steps.create_groups()
    granted = {
        group.name: set(group.permissions.values_list("content_type__app_label", "codename"))
        for group in Group.objects.all()
    }
    assert granted["viewer"]
    assert all(codename.startswith("view_") for _, codename in granted["viewer"])
    changes = {app for app, codename in granted["operator"] if not codename.startswith("view_")}
    assert changes == {"coverage_app", "training_app", "ops_app"}
    assert {name for app, name in granted["operator"] if app == "ops_app" and "view" not in name} == {"change_jobrun"}
    assert granted["viewer"] < granted["operator"] < granted["admin"]


@pytest.mark.django_db
def test_symbols_of_another_market_are_refused_with_the_fix() -> None:
    Symbol.objects.create(
        market="binance_um", code="BTC/USDT:USDT", base="BTC", quote="USDT", created_at=clock.real_now()
    )
    with pytest.raises(CommandError, match=r"binance_um.*another DATA_DIR"):
        steps.start_market_clock()


def test_files_are_made_again_only_when_what_they_depend_on_has_changed(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("1")
    stamp = steps.fingerprint(steps.tree_facts(tmp_path, "*.py"))
    assert steps.changed_since("kernels", stamp)
    steps.keep_stamp("kernels", stamp)
    assert not steps.changed_since("kernels", steps.fingerprint(steps.tree_facts(tmp_path, "*.py")))
    source.write_text("22")
    assert steps.changed_since("kernels", steps.fingerprint(steps.tree_facts(tmp_path, "*.py")))


def test_two_steps_of_the_same_name_are_refused() -> None:
    name = setup_steps.registered()[0].name
    with pytest.raises(ValueError, match="twice"):
        setup_steps.register(name, lambda: "")


@pytest.mark.django_db
def test_a_migrated_database_passes_and_a_missing_migration_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    guards.require_migrated()
    monkeypatch.setattr(guards, "unapplied_migrations", lambda: ["ops_app.0002_queue_indexes"])
    with pytest.raises(guards.NotMigrated, match=r"ops_app.0002_queue_indexes.*manage setup"):
        guards.require_migrated()


@pytest.mark.django_db
def test_a_website_on_a_database_without_tables_names_the_fix_on_every_page_until_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[str] = []
    missing = ["ops_app.0001_initial"]
    asked: list[bool] = []

    def unapplied() -> list[str]:
        asked.append(True)
        return missing

    monkeypatch.setattr(guards, "unapplied_migrations", unapplied)
    site = wsgi_guard.until_migrated(lambda environ, start: [b"page"])

    def get(path: str) -> bytes:
        return b"".join(site({"PATH_INFO": path}, lambda status, headers: answers.append(status)))

    assert b"Run: python3 run.py manage setup" in get("/")
    assert answers == ["503 Service Unavailable"]
    assert get("/healthz") == b"page"
    missing.clear()
    assert get("/") == get("/symbols/") == b"page"
    assert len(asked) == 2, "a migrated database is not asked again"


def test_options_never_shows_a_secret(settings) -> None:
    settings.SECRET_KEY = "very-secret"
    output = io.StringIO()
    call_command("options", "--json", stdout=output)
    rows = {row["name"]: row["value"] for row in json.loads(output.getvalue())}
    assert rows["SECRET_KEY"] == "(set)"
    assert rows["ALERT_URLS"] == "(empty)"
    assert rows["EXCHANGE"] == "simulated"
    assert "very-secret" not in output.getvalue()


def test_options_can_be_searched() -> None:
    output = io.StringIO()
    call_command("options", "leverage", stdout=output)
    assert "RISK_MAX_LEVERAGE=2.0" in output.getvalue()
    assert "DATA_DIR" not in output.getvalue()

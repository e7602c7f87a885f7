"""What the site itself adds to `manage.py setup`: tables, people, the market's clock, schedules, compiled files."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models import Q

from ops_app import clock, guards, jobs, market_clock
from ops_app.setup_steps import DATABASE, FILES, ROWS, register
from tradingsite.permissions import ADMIN, OPERATOR, VIEWER

ADMIN_USER = "admin"
OUR_APPS = ("ops_app", "coverage_app", "training_app", "trading_app")
#: What an operator may change besides seeing everything: symbols and their learning, never the money.
OPERATOR_APPS = ("coverage_app", "training_app")
#: Which model trades decides about money: activating one and rolling back are an admin's.
MONEY_MODELS = ("modelartifact", "activemodel")
STAMPS = "stamps"


def password_file() -> Path:
    """Return the file that keeps the first admin's password; only its owner may read it."""
    return Path(settings.DATA_DIR) / "admin_password"


def migrate() -> str:
    missing = guards.unapplied_migrations()
    if not missing:
        return ""
    call_command("migrate", verbosity=0, interactive=False)
    return f"{len(missing)} migrations applied"


def create_admin() -> str:
    """Make the first person who may log in, with a random password that is kept in a file of mode 0600."""
    users = get_user_model().objects
    if users.filter(is_superuser=True, is_active=True).exists():
        return ""
    if users.filter(username=ADMIN_USER).exists():
        raise CommandError(
            f"There is a user {ADMIN_USER!r}, but no active superuser. Mend it: python3 run.py manage createsuperuser"
        )
    password = secrets.token_urlsafe(12)
    path = password_file()
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(password + "\n")
    users.create_superuser(username=ADMIN_USER, email="", password=password)
    return f"user {ADMIN_USER}, password {password} (kept in {path}; change it at the first log-in)"


def role_permissions(role: str) -> set[int]:
    """Return the ids of the permissions of a role: a viewer sees, an operator changes learning, an admin all."""
    view = Q(content_type__app_label__in=OUR_APPS, codename__startswith="view_")
    change = Q(content_type__app_label__in=OPERATOR_APPS, codename__startswith="change_")
    change &= ~Q(content_type__model__in=MONEY_MODELS)
    change |= Q(content_type__app_label="ops_app", codename="change_jobrun")  # to run a job now
    wanted = {VIEWER: view, OPERATOR: view | change, ADMIN: Q()}[role]
    return set(Permission.objects.filter(wanted).values_list("pk", flat=True))


def create_groups() -> str:
    changed = []
    for role in (VIEWER, OPERATOR, ADMIN):
        group, created = Group.objects.get_or_create(name=role)
        wanted = role_permissions(role)
        if created or set(group.permissions.values_list("pk", flat=True)) != wanted:
            group.permissions.set(wanted)
            changed.append(role)
    return f"permissions of {', '.join(changed)}" if changed else ""


def start_market_clock() -> str:
    from coverage_app.models import Symbol

    other = Symbol.objects.exclude(market=settings.EXCHANGE_MARKET).values_list("market", flat=True).first()
    if other is not None:
        raise CommandError(
            f"This database holds symbols of the market {other}, but the settings name {settings.EXCHANGE_MARKET}: "
            "their times must not be mixed. Use another DATA_DIR (or DATABASE_URL), or set EXCHANGE and "
            "EXCHANGE_MARKET back."
        )
    return market_clock.ensure()


def seed_schedules() -> str:
    changed = jobs.seed_schedules()
    return f"{changed} schedules" if changed else ""


# --- Work on files, done again only when what it depends on has changed ---


def fingerprint(facts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode())
    return digest.hexdigest()


def changed_since(name: str, stamp: str) -> bool:
    path = Path(settings.DATA_DIR) / STAMPS / name
    return not path.exists() or path.read_text() != stamp


def keep_stamp(name: str, stamp: str) -> None:
    path = Path(settings.DATA_DIR) / STAMPS / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(stamp)


def tree_facts(folder: Path, pattern: str) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of the files: what numba and the static files are judged by."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def installed(*distributions: str) -> list[str]:
    found = []
    for name in distributions:
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("absent")
    return found


def compile_kernels() -> str:
    """Compile the numba kernels once, so that no worker and no bot waits for it later."""
    stamp = fingerprint(
        [tree_facts(settings.BASE_DIR / "quant", "*.py"), installed("numba", "numpy"), sys.version, platform.machine()]
    )
    if not changed_since("kernels", stamp):
        return ""
    sys.stdout.write("  kernels: compiling, about a minute, once ...\n")
    sys.stdout.flush()
    began = clock.monotonic()
    from quant.features import warm_cache

    warm_cache()
    keep_stamp("kernels", stamp)
    return f"kernels compiled in {clock.monotonic() - began:.0f} s"


def collect_static() -> str:
    """Copy the static files together for whitenoise; with DEBUG they are served from where they are."""
    if settings.DEBUG:
        return ""
    stamp = fingerprint(
        [
            tree_facts(settings.BASE_DIR / "static", "**/*"),
            installed("django", "django-unfold", "djangorestframework", "drf-spectacular-sidecar", "django-htmx"),
        ]
    )
    if not changed_since("static", stamp) and any(Path(settings.STATIC_ROOT).iterdir()):
        return ""
    call_command("collectstatic", verbosity=0, interactive=False)
    keep_stamp("static", stamp)
    return "static files collected"


register("tables", migrate, order=DATABASE)
register("market clock", start_market_clock, order=DATABASE + 1)
register("admin", create_admin, order=ROWS)
register("roles", create_groups, order=ROWS)
register("schedules", seed_schedules, order=ROWS)
register("kernels", compile_kernels, order=FILES)
register("static files", collect_static, order=FILES)

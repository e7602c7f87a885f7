"""What all tests share: where the real candles are, which browser is driven, and when a skipped test is a failure."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Before NumPy and LightGBM are imported: tests share two cores, and a spinning OpenMP team would slow all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

NEEDS_POSTGRESQL = "shows something that only PostgreSQL can: run with DATABASE_URL=postgres://..."
#: Skips that CI accepts, because another step of `.ci/run` runs the same test with what it needs.
EXCUSED_SKIPS = (NEEDS_POSTGRESQL,)

#: Fixtures of pytest-django that give a test the database without the mark `django_db`.
DATABASE_FIXTURES = frozenset({"db", "transactional_db", "django_db_setup", "live_server", "admin_user"})

#: Marks of tests that take long; a file with tests of several of them takes longest.
LONG = ("soak", "slow", "browser")

# Compiling a numba kernel takes longer than any deadline that would be useful for the examples after it.
hypothesis.settings.register_profile("default", deadline=None)
# The same examples on every run: a submission is judged by its change, not by its luck. Failures print their blob.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, max_examples=50)
hypothesis.settings.load_profile("ci" if IN_CI else "default")


# --- What a test writes ---


def pytest_configure(config: pytest.Config) -> None:
    """Give each test process, and the programs that it starts, a data folder of its own: never the developer's."""
    from django.conf import settings

    folder = Path(tempfile.mkdtemp(prefix="trading-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["DATA_DIR"] = str(folder)
    for name in ("CANDLES_DIR", "ARTIFACTS_DIR", "LEDGER_DIR", "STATIC_ROOT"):
        part = folder / getattr(settings, name).name
        part.mkdir()
        setattr(settings, name, part)
    settings.DATA_DIR = folder
    # Django's own hasher takes a third of a second by design; what tests hash is no secret.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    _let_transactions_idle(settings.DATABASES["default"])
    if config.pluginmanager.hasplugin("xdist"):
        config.option.loadscopereorder = False  # by number of tests; ours is by length (`_long_files_first`)


def _let_transactions_idle(database: dict[str, Any]) -> None:
    """A test is one transaction, in which compiling a kernel may take longer than a frozen process is waited for."""
    options = database.get("OPTIONS", {})
    if "options" in options:
        options["options"] += " -c idle_in_transaction_session_timeout=0"


# --- Real candles ---


@pytest.fixture(scope="session")
def candle_archive() -> Path:
    """The folder with real candles: CANDLE_ARCHIVE, else `shared/data/candles` beside the clone."""
    named = os.environ.get("CANDLE_ARCHIVE")
    path = (ROOT / named if named else ROOT.parent / "shared" / "data" / "candles").resolve()
    if path.is_dir():
        return path
    message = f"no real candles at {path}: set CANDLE_ARCHIVE to the folder that holds <market>/<timeframe>/*.parquet"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)


# --- Redis ---

REDIS_DATABASES = 16
"""How many a Redis server has unless it is told otherwise."""


@pytest.fixture(scope="session")
def redis_url() -> str:
    """A database of a Redis server that tests may fill: TEST_REDIS_URL, else number 15 on this machine's own.

    Each xdist process counts down from there to one of its own: two that shared one would take each other's messages.
    """
    from redis import Redis
    from redis.exceptions import ConnectionError as RedisUnreachable

    server, _, number = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15").rpartition("/")
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    url = f"{server}/{(int(number) - process) % REDIS_DATABASES}"
    try:
        with Redis.from_url(url) as client:
            client.ping()
    except RedisUnreachable as error:
        message = f"no Redis at {url} ({error}): start one, or set TEST_REDIS_URL"
        if IN_CI:
            pytest.fail(message)
        pytest.skip(message)
    return url


# --- Browser ---


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium. Playwright's own is not downloaded: a browser comes from the distribution."""
    named = os.environ.get("CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found:
        return found
    message = "no Chromium: `apt-get install chromium`, or set CHROMIUM to the path of one"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any], chromium: str) -> dict[str, Any]:
    """pytest-playwright's launch options, with the system's Chromium and nothing that calls home."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    return {**browser_type_launch_args, "executable_path": chromium, "args": arguments}


# --- Markers that fixtures imply, and skips that are failures in CI ---


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from django.conf import settings

    on_postgresql = "postgresql" in settings.DATABASES["default"]["ENGINE"]
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "candle_archive" in fixtures:
            item.add_marker("archive")
        if "browser_type_launch_args" in fixtures:
            item.add_marker("browser")
        if item.get_closest_marker("django_db") or DATABASE_FIXTURES.intersection(fixtures):
            item.add_marker("database")
        if "redis_url" in fixtures:
            item.add_marker("redis")
        if item.get_closest_marker("postgres") and not on_postgresql:
            item.add_marker(pytest.mark.skip(reason=NEEDS_POSTGRESQL))
    if hasattr(config, "workerinput"):  # alone, pytest-django's order of tests by what they do to the database counts
        _long_files_first(items)


def _long_files_first(items: list[pytest.Item]) -> None:
    """Whole files go to the processes of pytest-xdist: a long one that begins last is waited for by all others."""
    marks: dict[Path, set[str]] = {}
    for item in items:
        marks.setdefault(item.path, set()).update(name for name in LONG if item.get_closest_marker(name))
    items.sort(key=lambda item: len(marks[item.path]), reverse=True)  # stable: else it stays random


_skipped: dict[str, str] = {}


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(excuse in reason for excuse in EXCUSED_SKIPS):
        _skipped[report.nodeid] = reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI everything is there, so a skipped test means that something was not tested: that is a failure."""
    is_worker = hasattr(session.config, "workerinput")
    passed = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if IN_CI and _skipped and passed and not is_worker:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if IN_CI and _skipped:
        terminalreporter.section("skipped in CI, which counts as failed", red=True, bold=True)
        for test, reason in sorted(_skipped.items()):
            terminalreporter.line(f"{test}: {reason}")

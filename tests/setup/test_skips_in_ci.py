"""In CI a test that was skipped was not tested: the run fails and names it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SKIPPED = """
import pytest

def test_that_skips():
    pytest.skip("no such server")

def test_that_passes():
    pass
"""
SKIPPED_WHOLE = """
import pytest

pytest.skip("no such library", allow_module_level=True)
"""
FINE = """
import pytest

@pytest.mark.postgres
def test_that_another_step_runs():
    raise AssertionError

@pytest.mark.xfail(reason="known")
def test_that_is_known_to_fail():
    raise AssertionError

def test_that_passes():
    pass
"""


def run_pytest(folder: Path, sources: dict[str, str], *arguments: str, ci: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with this project's settings and conftest on files of the given text."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    for name, source in sources.items():
        (folder / name).write_text(source)
    environ = {
        name: value for name, value in os.environ.items() if name not in {"CI", "DATABASE_URL", "PYTEST_ADDOPTS"}
    }
    # Only the plugins that matter here: importing all of them takes seconds.
    environ |= {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    plugins = ["-p", "pytest_django.plugin", "-p", "pytest_socket", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, folder]
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_in_ci_a_skipped_test_fails_the_run_and_is_named_also_by_parallel_workers(tmp_path: Path) -> None:
    sources = {"test_part.py": SKIPPED, "test_whole.py": SKIPPED_WHOLE, "test_fine.py": FINE}
    done = run_pytest(tmp_path, sources, "-p", "xdist.plugin", "-n", "2", ci="true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    named = done.stdout.partition("skipped in CI, which counts as failed")[2].partition("short test summary")[0]
    assert "test_part.py::test_that_skips: Skipped: no such server" in named
    assert "test_whole.py: Skipped: no such library" in named
    assert "test_fine.py" not in named


def test_in_ci_a_test_that_another_step_runs_may_be_skipped(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, {"test_fine.py": FINE}, ci="true")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert "1 passed, 1 skipped, 1 xfailed" in done.stdout


def test_at_home_a_skipped_test_is_no_failure(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, {"test_part.py": SKIPPED}, ci="")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout

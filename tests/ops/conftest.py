"""A migrated database per test for programs that run as processes of their own, and a fresh clock for every test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops_app import clock
from tests.ops.processes import ROOT, environment


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATA_DIR that `manage.py setup` has prepared (without compiling)."""
    data_dir = tmp_path_factory.mktemp("migrated")
    subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "setup", "--skip-files"],
        cwd=ROOT, env=environment(data_dir), check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return data_dir


@pytest.fixture
def data_dir(migrated: Path, tmp_path: Path) -> Path:
    """A copy of the prepared DATA_DIR for one test."""
    return Path(shutil.copytree(migrated, tmp_path / "var"))


@pytest.fixture(autouse=True)
def _fresh_clock() -> Iterator[None]:
    clock.forget()
    yield
    clock.forget()

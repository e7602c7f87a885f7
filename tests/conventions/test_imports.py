"""Who imports whom: the contracts of pyproject.toml, and what a web process must never load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conventions import walker

#: Slow to import, big in memory, or (OpenMP) unsafe after a fork: the web only shows and records (DESIGN, section 3).
NEVER_IN_WEB = ("ccxt", "lightgbm", "numba", "sklearn", "pandas")

LOAD_WEB = f"""
import sys
import tradingsite.wsgi
from django.urls import URLResolver, get_resolver

def visit(patterns):
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            visit(pattern.url_patterns)
        else:
            pattern.callback

visit(get_resolver().url_patterns)
loaded = [name for name in {NEVER_IN_WEB!r} if name in sys.modules]
print("loaded:", *loaded)
"""


@pytest.mark.slow
def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([linter, "--no-cache"], cwd=walker.ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout[-4000:]
    assert "0 broken" in checked.stdout


def test_a_web_process_loads_no_heavy_library(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(walker.ROOT), "DATA_DIR": str(tmp_path)}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD_WEB], cwd=walker.ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr[-4000:]
    assert loaded.stdout.strip().splitlines()[-1] == "loaded:"


def test_the_check_for_heavy_libraries_would_see_one(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(walker.ROOT), "DATA_DIR": str(tmp_path)}
    code = "import pandas\n" + LOAD_WEB
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=walker.ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip().splitlines()[-1] == "loaded: pandas"

"""Settings of a small soak."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coverage_app import market


@pytest.fixture
def small_world(settings: Any, tmp_path: Path) -> Iterator[Any]:
    """A market of few symbols with a year of history, and trainings of a second."""
    settings.EXCHANGE = "simulated"
    settings.EXCHANGE_MARKET = "simulated"
    settings.SIM_SYMBOLS = 4
    settings.SIM_SPEED = 1.0
    settings.HISTORY_TARGET_DAYS = 120
    settings.TRAIN_TREES = 30
    settings.TRAIN_THREADS = 1
    settings.TRAIN_LEASE_SECONDS = 150
    settings.CANDLES_DIR = tmp_path / "candles"
    settings.ARTIFACTS_DIR = tmp_path / "artifacts"
    settings.LEDGER_DIR = tmp_path / "ledger"
    market.reset()
    yield settings
    market.reset()

"""What the coverage tests share: a clock that stands still, a store in a folder of the test, and no real queue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coverage_app import market
from marketdata.store import CandleStore
from ops_app import clock, queue
from ops_app.clock import SimulatedClock
from tests.factories import EPOCH, UserFactory


@pytest.fixture
def sim() -> Iterator[SimulatedClock]:
    with clock.simulated(EPOCH) as simulated:
        yield simulated


@pytest.fixture
def store(tmp_path: Path, settings: Any) -> Iterator[CandleStore]:
    settings.CANDLES_DIR = tmp_path / "candles"
    market.reset()
    yield market.candle_store()
    market.reset()


@pytest.fixture(autouse=True)
def messages() -> Iterator[list[queue.Message]]:
    """The messages that were sent to the queue."""
    with queue.capture() as collected:
        yield collected


@pytest.fixture
def person(db: None) -> Any:
    return UserFactory(username="anna")

"""What the exchange tests share: a clock that is set by hand, and one of every implementation behind the port."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exchanges.ccxt_data import CcxtMarketData
from exchanges.port import MarketData
from exchanges.replay import ReplayMarket
from exchanges.simulated import SimulatedMarket
from quant.candles import Candles
from quant.timeframes import DAY_MS, HOUR_MS
from tests.exchanges.loopback import BybitLoopback

START_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC


@dataclass
class Clock:
    """Market time, set by the test."""

    now: int = START_MS

    def __call__(self) -> int:
        return self.now


@dataclass(frozen=True)
class Subject:
    """An implementation under test, the clock it follows, and a healthy symbol of it."""

    data: MarketData
    clock: Clock
    symbol: str


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def simulated(clock: Clock) -> SimulatedMarket:
    return SimulatedMarket(seed=7, symbols=5, now_ms=clock)


def write_candles(path: Path, candles: Candles) -> None:
    """One file of an archive, as its README describes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("open", "high", "low", "close", "volume")
    columns = {"timestamp": candles.open_time} | {name: getattr(candles, name) for name in names}
    pq.write_table(pa.table(columns), path)


def write_funding(path: Path, times: list[int], rates: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"timestamp": np.array(times, dtype=np.int64), "funding_rate": np.array(rates, dtype=np.float64)}
    pq.write_table(pa.table(table), path)


@pytest.fixture(scope="session")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 days of hourly candles and funding of three simulated symbols, until 30 days after START_MS."""
    root = tmp_path_factory.mktemp("archive")
    end = START_MS + 30 * DAY_MS
    world = SimulatedMarket(seed=3, symbols=3, specials=False, now_ms=lambda: end)
    for instrument in world.instruments():
        stem = instrument.base + instrument.quote
        since = end - 120 * DAY_MS
        candles = world.candles(instrument.symbol, "1h", since, 5_000)
        write_candles(root / "sim_um" / "1h" / f"{stem}.parquet", candles)
        rates = world.funding(instrument.symbol, since, 5_000)
        write_funding(
            root / "sim_um" / "funding" / f"{stem}.parquet", [r.time_ms for r in rates], [r.rate for r in rates]
        )
    return root


def _replay(clock: Clock, archive: Path) -> Subject:
    data = ReplayMarket(archive=archive, market="sim_um", now_ms=clock)
    return Subject(data, clock, data.instruments()[0].symbol)


@pytest.fixture(params=["simulated", "replay", "ccxt"])
def subject(
    request: pytest.FixtureRequest, clock: Clock, simulated: SimulatedMarket, small_archive: Path
) -> Iterator[Subject]:
    """Each implementation of `MarketData`."""
    clock.now = START_MS + 5 * HOUR_MS + 7 * 60_000
    if request.param == "simulated":
        yield Subject(simulated, clock, simulated.instruments()[0].symbol)
    elif request.param == "replay":
        yield _replay(clock, small_archive)
    else:
        with BybitLoopback(simulated, clock) as server:
            data = CcxtMarketData(exchange_id="bybit", market="bybit_linear", now_ms=clock, options=server.ccxt_options)
            yield Subject(data, clock, simulated.instruments()[0].symbol)


@pytest.fixture(params=["simulated", "replay"])
def venue_subject(
    request: pytest.FixtureRequest, clock: Clock, simulated: SimulatedMarket, small_archive: Path
) -> Subject:
    """Each kind of market that the matching engine runs on."""
    clock.now = START_MS + 5 * HOUR_MS + 7 * 60_000
    if request.param == "simulated":
        return Subject(simulated, clock, simulated.instruments()[0].symbol)
    return _replay(clock, small_archive)

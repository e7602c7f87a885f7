"""What the exchange tests share: a clock that is set by hand, and one of every implementation behind the port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exchanges.ccxt_data import CcxtMarketData
from exchanges.ccxt_rules import BYBIT
from exchanges.ccxt_venue import CcxtVenue
from exchanges.keys import Keys
from exchanges.matching import MatchingVenue
from exchanges.port import MarketData, Venue
from exchanges.replay import ReplayMarket
from exchanges.simulated import SimulatedMarket
from quant.candles import Candles
from quant.timeframes import DAY_MS, HOUR_MS
from tests.bybit import BybitServer

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
        with BybitServer(simulated) as server:
            data = CcxtMarketData(exchange_id="bybit", market="bybit_linear", now_ms=clock, options=server.ccxt_options)
            yield Subject(data, clock, simulated.instruments()[0].symbol)


@dataclass
class Accounts:
    """A kind of venue under test: opens accounts by name. The same name again is another process on that account."""

    subject: Subject
    folder: Path
    step_hours: int = 1

    def open(self, name: str = "main", *, balance: int = 10_000) -> Venue:
        return MatchingVenue(
            data=self.subject.data, ledger_path=self.folder / f"{name}.sqlite3", initial_balance=Decimal(balance)
        )


class LiveAccounts(Accounts):
    """Each account is a Bybit of its own on loopback, and `CcxtVenue` trades it."""

    def __init__(self, subject: Subject, truth: MarketData, stack: ExitStack) -> None:
        super().__init__(subject, Path(), step_hours=6)
        self._truth, self._stack = truth, stack
        self.servers: dict[str, BybitServer] = {}

    def open(self, name: str = "main", *, balance: int = 10_000) -> CcxtVenue:
        if name not in self.servers:
            self.servers[name] = self._stack.enter_context(BybitServer(self._truth, balance=balance))
        return open_live(self.servers[name], self.subject.clock)


def open_live(server: BybitServer, clock: Clock, **settings: Any) -> CcxtVenue:
    """A process of its own on the account of `server`."""
    options = server.ccxt_options
    return CcxtVenue(
        data=CcxtMarketData(exchange_id="bybit", market="bybit", now_ms=clock, options=options),
        rules=BYBIT,
        keys=Keys(server.key.key, server.key.secret),
        now_ms=clock,
        options=options,
        **{"receive_window_ms": 5_000} | settings,
    )


@pytest.fixture(params=["simulated", "replay", "paper", "live"])
def accounts(
    request: pytest.FixtureRequest, clock: Clock, simulated: SimulatedMarket, small_archive: Path, tmp_path: Path
) -> Iterator[Accounts]:
    """Each kind of venue: the matching engine on every market that it serves, and a real account."""
    clock.now = START_MS + 5 * HOUR_MS + 7 * 60_000
    symbol = simulated.instruments()[0].symbol
    with ExitStack() as stack:
        if request.param == "simulated":
            yield Accounts(Subject(simulated, clock, symbol), tmp_path)
        elif request.param == "replay":
            yield Accounts(_replay(clock, small_archive), tmp_path)
        elif request.param == "paper":
            server = stack.enter_context(BybitServer(simulated))
            data = CcxtMarketData(exchange_id="bybit", market="bybit", now_ms=clock, options=server.ccxt_options)
            yield Accounts(Subject(data, clock, symbol), tmp_path, step_hours=6)
        else:
            yield LiveAccounts(Subject(simulated, clock, symbol), simulated, stack)

"""A loopback exchange on a running clock, and ccxt clients of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from exchanges.simulated import SimulatedMarket
from quant.timeframes import HOUR_MS
from tests.bybit.server import BybitServer

START_MS = 1_767_225_600_000 + 5 * HOUR_MS  # 2026-01-01 05:00 UTC


@dataclass
class RunningClock:
    """Exchange time: runs as real time does, and jumps when a test says so."""

    start: int = START_MS
    ahead: int = 0
    _real: float = field(default_factory=time.monotonic)

    def __call__(self) -> int:
        return self.start + self.ahead + int(1000 * (time.monotonic() - self._real))


class Trader:
    """ccxt's client with what the tests of this package ask again and again; `symbol` is a healthy one."""

    def __init__(self, server: BybitServer, clock: RunningClock, **settings: Any) -> None:
        import ccxt

        self.server = server
        self.clock = clock
        self.client: Any = ccxt.bybit({**server.ccxt_account, **settings})
        self.client.load_time_difference()
        self.client.load_markets()
        self.symbol = server.truth.instruments()[0].symbol
        self.name = self.client.market(self.symbol)["id"]
        self.last = float(self.client.fetch_ticker(self.symbol)["last"])

    def amount(self, notional: float = 1_000) -> float:
        return float(self.client.amount_to_precision(self.symbol, notional / self.last))

    def price(self, share: float) -> float:
        return float(self.client.price_to_precision(self.symbol, self.last * share))

    def buy(self, link_id: str, notional: float = 1_000, **params: Any) -> Any:
        sent = {"clientOrderId": link_id, **params}
        return self.client.create_order(self.symbol, "market", "buy", self.amount(notional), None, sent)

    def bid(self, link_id: str, share: float = 0.95, notional: float = 1_000, **params: Any) -> Any:
        sent = {"clientOrderId": link_id, **params}
        return self.client.create_order(self.symbol, "limit", "buy", self.amount(notional), self.price(share), sent)

    def stop(self, link_id: str, share: float = 0.97, notional: float = 1_000) -> Any:
        sent = {
            "clientOrderId": link_id,
            "triggerPrice": self.price(share),
            "triggerDirection": "descending",
            "reduceOnly": True,
        }
        return self.client.create_order(self.symbol, "market", "sell", self.amount(notional), None, sent)

    def look_up(self, link_id: str) -> Any:
        """As the reference says: the open ones by id, then the ended ones; never the unified look-up."""
        sent = {"orderLinkId": link_id}
        found = self.client.fetch_open_orders(self.symbol, params=sent)
        found = found or self.client.fetch_canceled_and_closed_orders(self.symbol, params=sent)
        return found[0] if found and found[0]["clientOrderId"] == link_id else None

    def pass_time(self, ms: int) -> None:
        """Jump; the client's idea of the exchange's clock follows."""
        self.clock.ahead += ms
        self.client.load_time_difference()

    def event(self, kind: str, **settings: Any) -> None:
        self.server.control.event({"type": kind, **settings})

    def books(self) -> dict[str, Any]:
        return self.server.control.books()

    def executions(self, **params: Any) -> list[dict[str, Any]]:
        sent = {"category": "linear", **params}
        return list(self.client.private_get_v5_execution_list(sent)["result"]["list"])


@pytest.fixture
def clock() -> RunningClock:
    return RunningClock()


@pytest.fixture(scope="session")
def world() -> SimulatedMarket:
    """One market for all tests: its cache of prices is worth sharing. Its clock is set by each server's fixture."""
    return SimulatedMarket(seed=7, symbols=3, specials=False, now_ms=lambda: START_MS)


@pytest.fixture
def server(world: SimulatedMarket, clock: RunningClock) -> Iterator[BybitServer]:
    world._clock = clock
    with BybitServer(world) as running:
        yield running


@pytest.fixture
def trader(server: BybitServer, clock: RunningClock) -> Trader:
    return Trader(server, clock)

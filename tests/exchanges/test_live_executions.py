"""Each of Bybit's kinds of execution has a stated meaning for the books."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from exchanges.ccxt_account import CASH_ONLY, TRADES
from exchanges.simulated import SimulatedMarket
from quant.timeframes import HOUR_MS
from tests.bybit import BybitServer
from tests.exchanges.conftest import START_MS, Clock, open_live


@pytest.fixture
def server(simulated: SimulatedMarket, clock: Clock) -> Iterator[BybitServer]:
    clock.now = START_MS + 5 * HOUR_MS + 7 * 60_000
    with BybitServer(simulated) as running:
        yield running


def opened(server: BybitServer) -> tuple[str, Decimal]:
    instrument = server.truth.instruments()[0]
    name, quantity = instrument.base + instrument.quote, instrument.min_quantity * 9
    server.control.event({"type": "open_position", "symbol": name, "qty": str(quantity)})
    return name, quantity


@pytest.mark.parametrize("kind", sorted(TRADES))
def test_f16_what_closes_a_position_is_a_trade_that_says_who_made_it(
    server: BybitServer, clock: Clock, kind: str
) -> None:
    name, quantity = opened(server)
    server.control.event({"type": "close_position", "symbol": name, "kind": kind})
    venue = open_live(server, clock)
    *_, close = venue.fills_since(0)
    assert (close.kind, close.side, close.quantity, close.client_order_id) == ("trade", "sell", quantity, "")
    causes = {"BustTrade": "liquidation", "AdlTrade": "adl", "Delivery": "delivery", "MovePosition": "moved"}
    assert close.cause == causes.get(kind, "")
    assert venue.positions() == []


@pytest.mark.parametrize("kind", sorted(CASH_ONLY))
def test_a_payment_changes_cash_and_never_the_position(server: BybitServer, clock: Clock, kind: str) -> None:
    name, quantity = opened(server)
    with server.engine.effect() as now:
        server.engine.account.fund(name, Decimal("0.0001"), Decimal(100), now)
        server.engine.store.executions[-1].kind = kind
    venue = open_live(server, clock)
    trade, payment = venue.fills_since(0)
    assert (trade.kind, payment.kind) == ("trade", "funding")
    assert payment.fee == server.engine.store.executions[-1].fee > 0
    assert [position.quantity for position in venue.positions()] == [quantity]


def test_an_execution_of_an_unknown_kind_is_told_and_not_booked_unless_it_is_of_our_order(
    server: BybitServer, clock: Clock
) -> None:
    told: dict[str, str] = {}
    name, _ = opened(server)
    server.control.event({"type": "close_position", "symbol": name, "kind": "Novelty"})
    venue = open_live(server, clock, notify=told.__setitem__)
    assert [fill.side for fill in venue.fills_since(0)] == ["buy"]
    assert "unknown kind 'Novelty'" in told["execution:Novelty"]
    server.engine.store.executions[-1].link_id = "ours1"
    assert [fill.client_order_id for fill in venue.fills_since(0)] == ["", "ours1"]

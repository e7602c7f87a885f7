"""No request follows a redirect: a signed order would be sent twice, and key and signature shown to another host."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from exchanges.errors import ExchangeError
from exchanges.port import OrderRequest, Unknown
from exchanges.simulated import SimulatedMarket
from quant.timeframes import HOUR_MS
from tests.bybit import BybitServer, Fault
from tests.exchanges.conftest import START_MS, Clock, open_live

CREATE = "order/create"


@pytest.fixture
def server(simulated: SimulatedMarket, clock: Clock) -> Iterator[BybitServer]:
    clock.now = START_MS + 5 * HOUR_MS + 7 * 60_000
    with BybitServer(simulated) as running:
        yield running


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_f03_an_order_that_is_redirected_is_sent_once_and_nowhere_else_and_its_outcome_is_unknown(
    server: BybitServer, simulated: SimulatedMarket, clock: Clock, status: int, phase: str
) -> None:
    venue = open_live(server, clock)
    venue.verify()
    instrument = venue.data.instruments()[0]
    quantity = instrument.quantize_quantity(Decimal(200) / Decimal(repr(venue.data.tickers()[instrument.symbol].last)))
    order = OrderRequest("ours1", instrument.symbol, "buy", quantity, time_ms=clock.now)
    with BybitServer(simulated) as elsewhere:
        rule = Fault("status", CREATE, phase=phase, status=status, location=f"{elsewhere.url}/v5/order/create")  # type: ignore[arg-type]
        server.faults.rules = [rule]
        outcome = venue.place(order)
        server.faults.rules = []
        assert isinstance(outcome, Unknown)
        assert f"redirected ({status})" in outcome.detail
        assert not elsewhere.requests
    assert rule.acted == 1
    found = venue.order_by_client_id(order.symbol, "ours1")
    assert (found is not None) == (phase == "after")


@pytest.mark.parametrize("location", ["/v5/order/create", ""])
def test_a_redirect_to_the_same_host_and_one_to_nowhere_are_unknown_as_well(
    server: BybitServer, clock: Clock, location: str
) -> None:
    venue = open_live(server, clock)
    venue.verify()
    instrument = venue.data.instruments()[0]
    quantity = instrument.quantize_quantity(Decimal(200) / Decimal(repr(venue.data.tickers()[instrument.symbol].last)))
    server.faults.rules = [Fault("status", CREATE, status=307, location=location, body='{"retCode":0,"result":{}}')]
    outcome = venue.place(OrderRequest("ours1", instrument.symbol, "buy", quantity, time_ms=clock.now))
    assert isinstance(outcome, Unknown)
    assert sum(CREATE in each for each in server.requests) == 1
    assert venue.positions() == []


def test_reads_are_not_redirected_either(server: BybitServer, simulated: SimulatedMarket, clock: Clock) -> None:
    venue = open_live(server, clock)
    venue.verify()
    with BybitServer(simulated) as elsewhere:
        server.faults.rules = [Fault("status", "wallet-balance", status=307, location=elsewhere.url + "/v5/a")]
        with pytest.raises(ExchangeError, match="redirected"):
            venue.balance()
        server.faults.rules = [Fault("status", "market/tickers", status=302, location=elsewhere.url + "/v5/a")]
        with pytest.raises(ExchangeError, match="redirected"):
            venue.data.tickers()
        assert not elsewhere.requests

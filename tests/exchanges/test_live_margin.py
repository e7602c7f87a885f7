"""What `CcxtVenue.set_leverage` makes of an account on loopback: margin mode and leverage, read first, set once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest

from exchanges.ccxt_venue import CcxtVenue
from exchanges.errors import ConfigurationError, ExchangeError
from exchanges.port import Ack, OrderRequest
from exchanges.simulated import SimulatedMarket
from quant.timeframes import HOUR_MS
from tests.bybit import BybitServer, Fault
from tests.exchanges.conftest import START_MS, Clock, open_live

MODE, LEVERAGE = "set-margin-mode", "set-leverage"


@pytest.fixture
def server(simulated: SimulatedMarket, clock: Clock) -> Iterator[BybitServer]:
    clock.now = START_MS + 5 * HOUR_MS + 7 * 60_000
    with BybitServer(simulated) as running:
        yield running


def asked(server: BybitServer, part: str) -> int:
    return sum(part in each for each in server.requests)


def leverage_of(server: BybitServer, venue: CcxtVenue, symbol: str) -> Decimal:
    return server.engine.account.leverage(venue.data.link.client.market(symbol)["id"])


def test_leverage_is_read_and_set_once_and_nothing_is_written_where_it_is_so_already(
    server: BybitServer, clock: Clock
) -> None:
    venue = open_live(server, clock)
    symbol = venue.data.instruments()[0].symbol
    for _ in range(3):
        venue.set_leverage(symbol, Decimal(3))
    assert leverage_of(server, venue, symbol) == 3
    assert asked(server, LEVERAGE) == 1
    open_live(server, clock).set_leverage(symbol, Decimal(3))
    assert asked(server, LEVERAGE) == 1
    venue.set_leverage(symbol, Decimal(2))
    assert leverage_of(server, venue, symbol) == 2


def test_that_the_leverage_is_not_modified_is_a_success(server: BybitServer, clock: Clock) -> None:
    venue = open_live(server, clock)
    symbol = venue.data.instruments()[0].symbol
    server.faults.rules = [Fault("ret_code", LEVERAGE, code=110043, message="Set leverage has not been modified.")]
    venue.set_leverage(symbol, Decimal(3))
    assert server.refusals[110043] == 1


def test_the_margin_mode_is_set_before_the_first_entry_and_once(server: BybitServer, clock: Clock) -> None:
    venue = open_live(server, clock, margin_mode="isolated")
    venue.verify()
    assert asked(server, MODE) == 0
    for instrument in venue.data.instruments()[:2]:
        venue.set_leverage(instrument.symbol, Decimal(3))
    assert server.engine.store.state["margin_mode"] == "ISOLATED_MARGIN"
    assert asked(server, MODE) == 1
    open_live(server, clock, margin_mode="isolated").set_leverage(instrument.symbol, Decimal(3))
    assert asked(server, MODE) == 1
    with pytest.raises(ConfigurationError, match="MARGIN_MODE='both'"):
        open_live(server, clock, margin_mode="both")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("ret_code", MODE, code=3400045, message="Set margin mode failed"),
        Fault("reset", MODE),
        Fault("ret_code", LEVERAGE, code=110013, message="cannot set leverage"),
        Fault("html", LEVERAGE),
    ],
    ids=lambda each: f"{each.path}-{each.kind}",
)
def test_i20_what_cannot_be_set_keeps_neither_an_exit_nor_a_stop_from_being_sent(
    server: BybitServer, clock: Clock, fault: Fault
) -> None:
    """A venue refuses another margin mode while positions are open: exactly then stops are needed."""
    instrument = open_live(server, clock).data.instruments()[0]
    server.control.event(
        {"type": "open_position", "symbol": instrument.base + instrument.quote, "qty": str(instrument.min_quantity * 9)}
    )
    venue = open_live(server, clock, margin_mode="isolated")
    server.faults.rules = [fault]
    for _ in range(2):
        with pytest.raises(ExchangeError):
            venue.set_leverage(instrument.symbol, Decimal(3))
    [position] = venue.positions()
    stop = OrderRequest(
        "ours1", instrument.symbol, "sell", position.quantity, kind="stop_market", reduce_only=True,
        trigger_price=instrument.quantize_price(position.mark_price * Decimal("0.9")), time_ms=clock.now,
    )  # fmt: skip
    assert isinstance(venue.place_stop(stop), Ack)
    out = replace(stop, client_order_id="ours2", kind="market", trigger_price=None)
    assert isinstance(venue.place(out), Ack)
    assert venue.positions() == []
    server.faults.rules = []
    venue.set_leverage(instrument.symbol, Decimal(3))
    assert server.engine.store.state["margin_mode"] == "ISOLATED_MARGIN"

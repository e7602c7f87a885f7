"""`CcxtVenue` on a Bybit on loopback that goes wrong in every way that one can."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from exchanges.ccxt_client import run
from exchanges.ccxt_rules import BINANCE
from exchanges.ccxt_venue import CcxtVenue
from exchanges.errors import ConfigurationError, ExchangeError, ExchangeUnavailableError
from exchanges.factory import ExchangeConfig, live_venue
from exchanges.keys import Keys
from exchanges.port import DUPLICATE, Ack, OrderRequest, Rejected, Throttled, Unknown
from exchanges.simulated import SimulatedMarket
from quant.timeframes import HOUR_MS
from tests.bybit import BybitServer, Fault
from tests.exchanges.conftest import START_MS, Clock, open_live

CREATE, WINDOW_MS = "order/create", 5_000


@pytest.fixture
def server(simulated: SimulatedMarket, clock: Clock) -> Iterator[BybitServer]:
    clock.now = START_MS + 5 * HOUR_MS + 7 * 60_000
    with BybitServer(simulated) as running:
        yield running


@pytest.fixture
def venue(server: BybitServer, clock: Clock) -> CcxtVenue:
    opened = open_live(server, clock)
    opened.verify()
    return opened


def request(venue: CcxtVenue, clock: Clock, client_id: str = "ours1", **more: Any) -> OrderRequest:
    instrument = venue.data.instruments()[0]
    last = Decimal(repr(venue.data.tickers()[instrument.symbol].last))
    quantity = instrument.quantize_quantity(Decimal(200) / last)
    return replace(OrderRequest(client_id, instrument.symbol, "buy", quantity, time_ms=clock.now), **more)


def asked(server: BybitServer, part: str) -> int:
    return sum(part in each for each in server.requests)


LOST = [
    Fault("reset", CREATE, phase="after"),
    Fault("close", CREATE, phase="after"),
    Fault("status", CREATE, phase="after", status=502),
    Fault("status", CREATE, phase="after", status=524),
    Fault("html", CREATE, phase="after"),
    Fault("empty", CREATE, phase="after"),
    Fault("truncated", CREATE),
    Fault("broken_json", CREATE),
    Fault("ret_code", CREATE, phase="after", code=10016),
    Fault("ret_code", CREATE, phase="after", code=170146, message="Order creation timeout"),
]


@pytest.mark.parametrize("fault", LOST, ids=lambda each: f"{each.kind}-{each.status}-{each.code}")
def test_f03_an_order_whose_answer_is_lost_is_unknown_sent_once_and_found_by_its_id(
    server: BybitServer, venue: CcxtVenue, clock: Clock, fault: Fault
) -> None:
    server.faults.rules = [replace(fault, matched=0, acted=0)]
    assert isinstance(venue.place(request(venue, clock)), Unknown)
    server.faults.rules = []
    assert asked(server, CREATE) == 1
    found = venue.order_by_client_id(request(venue, clock).symbol, "ours1")
    assert found is not None
    assert (found.client_order_id, found.status) == ("ours1", "filled")


def test_f04_a_time_out_is_unknown_and_the_order_may_be_there(server: BybitServer, clock: Clock) -> None:
    venue = open_live(server, clock)
    venue.verify()
    venue.link.client.timeout = 150
    server.faults.rules = [Fault("delay", CREATE, phase="during", seconds=0.5)]
    assert isinstance(venue.place(request(venue, clock)), Unknown)


def test_f08_a_duplicate_is_reported_as_one(venue: CcxtVenue, clock: Clock) -> None:
    assert isinstance(venue.place(request(venue, clock)), Ack)
    again = venue.place(request(venue, clock))
    assert isinstance(again, Rejected)
    assert again.code == DUPLICATE


def test_f07_a_clock_that_went_off_is_measured_again_and_the_order_signed_once_more(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    told: dict[str, str] = {}
    venue.notify = told.__setitem__
    server.control.event({"type": "skew", "ms": -60_000})
    assert isinstance(venue.place(request(venue, clock)), Ack)
    assert asked(server, CREATE) == 2
    assert venue.link.clock.offset_ms == 60_000
    assert "60000 ms" in told["clock"]


@pytest.mark.parametrize("measured", ["by the refused order", "by a look at prices before it"])
def test_f37_i15_an_order_from_before_a_pause_that_stopped_the_clock_as_well_gets_no_newer_time(
    server: BybitServer, venue: CcxtVenue, clock: Clock, measured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paused virtual machine wakes with the time at which it was paused: its lease has run out, its clock has not."""
    old = request(venue, clock)
    server.control.event({"type": "skew", "ms": 60_000})
    if measured != "by the refused order":
        tickers = venue.data.tickers

        def and_the_clock() -> object:
            run(venue.link.measure_clock())
            return tickers()

        monkeypatch.setattr(venue.data, "tickers", and_the_clock)
    outcome = venue.place(old)
    assert isinstance(outcome, Rejected)
    assert outcome.code in ("STALE_REQUEST", "CLOCK_SKEW")
    assert venue.positions() == []
    assert venue.link.clock.offset_ms == -60_000
    assert isinstance(venue.place(request(venue, clock, "ours2")), Ack), "with the right to send asked for anew"


def test_f07_a_second_refusal_is_final(server: BybitServer, venue: CcxtVenue, clock: Clock) -> None:
    told: dict[str, str] = {}
    venue.notify = told.__setitem__
    server.faults.rules = [Fault("ret_code", CREATE, code=10002, message="invalid request")]
    outcome = venue.place(request(venue, clock))
    assert isinstance(outcome, Rejected)
    assert outcome.code == "CLOCK_SKEW"
    assert asked(server, CREATE) == 2
    assert "twice" in told["clock"]


def test_i15_b4_a_request_from_before_a_freeze_is_refused_here_and_by_the_venue(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    old = request(venue, clock)
    clock.now += WINDOW_MS + 1
    here = venue.place(old)
    assert isinstance(here, Rejected)
    assert here.code == "STALE_REQUEST"
    assert asked(server, CREATE) == 0
    venue._window_ms = None  # a process frozen behind its own check
    there = venue.place(replace(old, client_order_id="ours2"))
    assert isinstance(there, Rejected)
    assert there.code == "CLOCK_SKEW"
    assert server.refusals[10002] == asked(server, CREATE) == 2
    assert venue.positions() == []


def test_f07_b4_a_slow_answer_does_not_make_a_good_measurement_of_the_clock_worse(
    venue: CcxtVenue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_time = venue.link.client.fetch_time

    async def slow(*arguments: Any) -> int:
        clock.now += 4_000  # the request took all of it, so that the middle is two seconds off
        return int(await fetch_time(*arguments))

    monkeypatch.setattr(venue.link.client, "fetch_time", slow)
    run(venue.link.measure_clock())
    assert (venue.link.clock.offset_ms, venue.link.clock.stale) == (0, False)


def test_f14_fills_are_found_from_the_newest_one_on_while_our_clock_is_hours_behind(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    assert isinstance(venue.place(request(venue, clock)), Ack)
    fills = venue.fills_since(clock.now - HOUR_MS)
    assert fills
    clock.now -= 3 * HOUR_MS
    server.control.event({"type": "skew", "ms": 3 * HOUR_MS})
    run(venue.link.measure_clock())
    assert venue.link.clock.offset_ms == -3 * HOUR_MS
    assert venue.fills_since(fills[-1].time_ms - HOUR_MS) == fills


def test_i20_without_public_data_an_exit_is_sent_by_the_rules_of_before(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    order = request(venue, clock)
    assert isinstance(venue.place(order), Ack)
    clock.now += 15 * 60_000
    server.faults.rules = [Fault("reset", "v5/market/")]
    assert len(venue.positions()) == 1
    out = replace(order, client_order_id="ours2", side="sell", reduce_only=True, time_ms=clock.now)
    assert isinstance(venue.place(out), Ack)
    assert venue.positions() == []


def test_f06_a_rate_limit_is_throttled_until_its_reset_and_nothing_is_sent_meanwhile(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    server.faults.rules = [Fault("rate_limit", CREATE, times=1)]
    outcome = venue.place(request(venue, clock))
    assert outcome == Throttled(clock.now + 1_000)
    sent = len(server.requests)
    assert venue.place(request(venue, clock)) == outcome
    with pytest.raises(ExchangeUnavailableError):
        venue.balance()
    assert len(server.requests) == sent
    assert venue.data.candles(request(venue, clock).symbol, "1h", clock.now - 5 * HOUR_MS, 3).open_time.size == 3
    clock.now += 1_000
    assert venue.order_by_client_id(request(venue, clock).symbol, "ours1") is None
    assert isinstance(venue.place(request(venue, clock)), Ack)


def test_f26_during_maintenance_nothing_is_sent_but_a_slow_probe(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    order = request(venue, clock)
    server.control.event({"type": "maintenance", "style": "html", "on": True})
    with pytest.raises(ExchangeUnavailableError):
        venue.balance()
    sent = len(server.requests)
    for _ in range(5):
        assert isinstance(venue.place(order), Throttled)
    assert len(server.requests) == sent
    server.control.event({"type": "maintenance", "on": False})
    clock.now += 61_000
    assert venue.balance().equity == 10_000


@pytest.mark.parametrize("change", [{"revoked": True}, {"expired": True}, {"wrong_ip": True}])
def test_f39_a_refused_key_stops_the_account_tells_a_person_and_does_not_hammer(
    server: BybitServer, venue: CcxtVenue, clock: Clock, change: dict[str, bool]
) -> None:
    told: dict[str, str] = {}
    venue.notify = told.__setitem__
    order = request(venue, clock)
    server.control.event({"type": "key", **change})
    outcome = venue.place(order)
    assert isinstance(outcome, Rejected)
    assert outcome.code == "KEY_REFUSED"
    assert "refuses this key" in told["key"]
    sent = len(server.requests)
    for _ in range(100):
        clock.now += 5_000
        with pytest.raises(ExchangeUnavailableError):
            venue.positions()
    assert len(server.requests) == sent


@pytest.mark.parametrize(
    "change, message",
    [
        ({"withdraw": True}, "may withdraw"),
        ({"read_only": True}, "read-only"),
        ({"may_trade": False}, "may not trade"),
    ],
)
def test_a_key_that_may_too_much_or_too_little_is_refused_before_anything_is_sent(
    server: BybitServer, clock: Clock, change: dict[str, bool], message: str
) -> None:
    server.control.event({"type": "key", **change})
    venue = open_live(server, clock)
    with pytest.raises(ConfigurationError, match=message):
        venue.verify()
    outcome = venue.place(request(venue, clock))
    assert isinstance(outcome, Rejected)
    assert outcome.code == "ACCOUNT_REFUSED"
    assert asked(server, CREATE) == 0


@pytest.mark.parametrize("path", ["position/list", "order/realtime", "execution/list", "wallet-balance"])
@pytest.mark.parametrize("kind", ["reset", "status", "html", "truncated", "broken_json", "ret_code"])
def test_f17_a_failed_read_is_an_error_and_never_an_empty_answer(
    server: BybitServer, venue: CcxtVenue, clock: Clock, path: str, kind: str
) -> None:
    server.faults.rules = [Fault(kind, path)]
    reads = {
        "position/list": venue.positions,
        "order/realtime": venue.open_orders,
        "execution/list": lambda: venue.fills_since(clock.now),
        "wallet-balance": venue.balance,
    }
    with pytest.raises(ExchangeError):
        reads[path]()


def test_f17_an_answer_without_its_list_is_no_flat_account(server: BybitServer, venue: CcxtVenue) -> None:
    server.faults.rules = [Fault("ret_code", "position/list", code=0, message="OK")]  # a result without a list
    with pytest.raises(ExchangeError, match="without its list"):
        venue.positions()


def test_f09_fills_come_once_and_in_order_however_the_venue_sends_them(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    since = clock.now
    for number in range(3):
        assert isinstance(venue.place(request(venue, clock, f"ours{number}")), Ack)
        clock.now += 60_000
    plain = venue.fills_since(since)
    assert [fill.client_order_id for fill in plain] == [f"ours{number}" for number in (0, 0, 1, 1, 2, 2)]
    server.faults.rules = [Fault("duplicate_rows", "execution/list", times=1), Fault("shuffle_rows", "execution/list")]
    assert venue.fills_since(since) == plain
    assert venue.fills_since(since) == plain


def test_a_look_up_that_answers_with_another_order_finds_nothing(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    """Bybit ignores a parameter that it does not know and answers with all orders: by the id, not by the answer."""
    order = request(venue, clock, "other1", kind="limit", price=Decimal(1) * venue.data.instruments()[0].tick_size)
    instrument = venue.data.instruments()[0]
    last = Decimal(repr(venue.data.tickers()[order.symbol].last))
    assert isinstance(venue.place(replace(order, price=instrument.quantize_price(last * Decimal("0.9")))), Ack)
    venue.link.client.rawencode = _without_link_id(venue.link.client.rawencode)
    assert venue.order_by_client_id(order.symbol, "ours1") is None
    found = venue.order_by_client_id(order.symbol, "other1")
    assert found is not None


def _without_link_id(encode: Any) -> Any:
    return lambda query, *more: encode({k: v for k, v in query.items() if k != "orderLinkId"}, *more)


def test_an_entry_carries_its_stop_and_is_never_naked(server: BybitServer, venue: CcxtVenue, clock: Clock) -> None:
    assert venue.attaches_stops
    order = request(venue, clock)
    last = Decimal(repr(venue.data.tickers()[order.symbol].last))
    assert isinstance(venue.place(replace(order, attached_stop=last * Decimal("0.93"))), Ack)
    [position] = venue.positions()
    assert position.stop_price == venue.data.instruments()[0].quantize_price(last * Decimal("0.93"))
    assert venue.open_orders() == []  # that stop is the position's
    [episode] = server.control.books()["episodes"]
    assert episode["naked_ms"] == 0


def test_f19_a_fill_of_the_stop_that_came_with_an_entry_says_so(
    server: BybitServer, venue: CcxtVenue, clock: Clock
) -> None:
    order = request(venue, clock)
    last = Decimal(repr(venue.data.tickers()[order.symbol].last))
    assert isinstance(venue.place(replace(order, attached_stop=last * Decimal("0.98"))), Ack)
    for _ in range(24 * 60):
        clock.now += HOUR_MS
        if not venue.positions():
            break
    *entry, stop = [fill for fill in venue.fills_since(0) if fill.kind == "trade"]
    assert (stop.client_order_id, stop.attached, stop.side) == ("", True, "sell")
    assert not any(fill.attached for fill in entry)


def test_i20_one_symbols_trouble_leaves_the_other_candles_alone(server: BybitServer, venue: CcxtVenue) -> None:
    data = venue.data
    symbols = [each.symbol for each in data.instruments()][:4]
    broken = data.link.client.market(symbols[1])["id"]
    since = data.now_ms() - 5 * HOUR_MS
    healthy = sorted(data.candles_many(symbols, "1h", since, 3))
    server.faults.rules = [Fault("ret_code", "kline", code=10001, message="params error", contains=broken)]
    assert sorted(data.candles_many(symbols, "1h", since, 3)) == [each for each in healthy if each != symbols[1]]
    server.faults.rules = [Fault("html", "kline")]
    with pytest.raises(ExchangeError):
        data.candles(symbols[0], "1h", since, 3)
    server.faults.rules = [Fault("reset", "kline")]
    with pytest.raises(ExchangeUnavailableError):
        data.candles_many(symbols, "1h", since, 3)


def test_the_key_is_in_no_error_even_if_the_venue_quotes_it(server: BybitServer, venue: CcxtVenue) -> None:
    message = f"error sign! origin_string[1767225600000{server.key.key}5000]"
    server.faults.rules = [Fault("ret_code", "wallet-balance", code=10004, message=message)]
    with pytest.raises(ExchangeError) as refusal:
        venue.balance()
    shown = "".join(traceback.format_exception(refusal.value))
    assert "origin_string" in shown
    assert server.key.key not in shown
    assert server.key.secret not in shown


def test_only_a_proven_exchange_gets_real_orders(clock: Clock) -> None:
    assert not BINANCE.proven
    for market in ("binanceusdm", "okx", "gate"):
        config = ExchangeConfig(kind="ccxt", market=market, ccxt_id=market, keys=Keys("k", "s"))
        with pytest.raises(ConfigurationError, match="cannot be traded live"):
            live_venue(config, clock)
    with pytest.raises(ConfigurationError, match="only perpetuals"):
        live_venue(ExchangeConfig(kind="ccxt", market="bybit_spot", keys=Keys("k", "s")), clock)
    with pytest.raises(ConfigurationError, match="API_SECRET_FILE"):
        live_venue(ExchangeConfig(kind="ccxt", market="bybit"), clock)

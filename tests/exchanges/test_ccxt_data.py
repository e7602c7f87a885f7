"""ccxt's client, unmodified, against a loopback server that speaks Bybit v5: what only a real venue can do wrong."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from exchanges.ccxt_client import DATA_PARALLEL
from exchanges.ccxt_data import CcxtMarketData
from exchanges.errors import ConfigurationError, ExchangeError, ExchangeUnavailableError, MarketDataError
from exchanges.factory import ExchangeConfig, market_data, venue
from exchanges.port import Ack, OrderRequest
from exchanges.simulated import SimulatedMarket
from quant.timeframes import DAY_MS, HOUR_MS
from tests.bybit import BybitServer
from tests.exchanges.conftest import Clock


@pytest.fixture
def server(simulated: SimulatedMarket, clock: Clock) -> Iterator[BybitServer]:
    clock.now += 5 * HOUR_MS + 11 * 60_000
    with BybitServer(simulated) as running:
        yield running


def connect(server: BybitServer, clock: Clock) -> CcxtMarketData:
    return CcxtMarketData(exchange_id="bybit", market="bybit_linear", now_ms=clock, options=server.ccxt_options)


def test_f25_the_exchanges_clock_decides_what_is_closed(server: BybitServer, clock: Clock) -> None:
    """Our clock is three minutes fast; the candle that we take for closed is still running."""
    ours = Clock(clock.now)
    boundary = clock.now // HOUR_MS * HOUR_MS + HOUR_MS
    clock.now = boundary - 60_000
    ours.now = boundary + 120_000
    data = connect(server, ours)
    symbol = server.truth.instruments()[0].symbol
    assert data.now_ms() == clock.now
    assert data.candles(symbol, "1h", boundary - 3 * HOUR_MS, 10).open_time[-1] == boundary - 2 * HOUR_MS


def test_f25_the_venue_does_send_the_running_candle(server: BybitServer, clock: Clock) -> None:
    """Else the test above would prove nothing."""
    base = server.truth.instruments()[0]
    since = clock.now - 3 * HOUR_MS
    query = f"category=linear&symbol={base.base}{base.quote}&interval=60&start={since}&limit=10"
    body = server.answer("GET", f"/v5/market/kline?{query}").body
    assert str(clock.now // HOUR_MS * HOUR_MS) in body.decode()


def test_markets_and_clock_are_read_again_when_old(server: BybitServer, clock: Clock) -> None:
    data = connect(server, clock)
    for hours in (0, 0, 1):
        clock.now += hours * HOUR_MS
        data.instruments()
        data.now_ms()
    assert sum("instruments-info" in each and "PreLaunch" not in each for each in server.requests) == 2
    assert sum(each.startswith("GET /v5/market/time") for each in server.requests) == 2


def test_all_tickers_cost_one_request_and_a_second_look_none(server: BybitServer, clock: Clock) -> None:
    data = connect(server, clock)
    assert data.tickers() == data.tickers()
    assert sum(each.startswith("GET /v5/market/tickers") for each in server.requests) == 1


@pytest.mark.parametrize("field", ["bid1Price", "lastPrice"])
def test_a_ticker_without_a_true_number_is_none_and_the_others_are_there(
    server: BybitServer, clock: Clock, field: str
) -> None:
    answer = json.loads(server.answer("GET", "/v5/market/tickers?category=linear").body)
    answer["result"]["list"][0][field] = "NaN"
    server.faults.add("status", "market/tickers", status=200, body=json.dumps(answer))
    assert sorted(connect(server, clock).tickers()) == sorted(server.truth.tickers())[1:]


def test_long_funding_histories_lose_no_payment(server: BybitServer, clock: Clock) -> None:
    """Bybit answers a window that holds more than a page with the newest payments only."""
    data = connect(server, clock)
    symbol = server.truth.instruments()[0].symbol
    since = clock.now - 200 * DAY_MS
    found = []
    cursor = since
    while page := data.funding(symbol, cursor, data.page_limit):
        found += page
        cursor = page[-1].time_ms + 1
    assert found == server.truth.funding(symbol, since, 5_000)


@pytest.mark.parametrize(
    "answer, error",
    [
        ((500, "oops"), ExchangeUnavailableError),
        ((503, "<html>maintenance</html>"), ExchangeUnavailableError),
        ((429, "slow down"), ExchangeUnavailableError),
        ((200, '{"retCode": 10006, "retMsg": "Too many visits!", "result": {}}'), ExchangeUnavailableError),
        ((200, '{"retCode": 10016, "retMsg": "Server error", "result": {}}'), ExchangeError),
        ((200, "<html>hello</html>"), ExchangeError),
        ((200, '{"retCode": 0, "retMsg": "OK", "result": {"list": [["17'), ExchangeError),
        ((200, ""), ExchangeError),
        ((200, '{"retCode": 10001, "retMsg": "params error", "result": {}}'), MarketDataError),
    ],
)
def test_whatever_the_venue_answers_is_an_error_of_the_port(
    server: BybitServer, clock: Clock, answer: tuple[int, str], error: type[ExchangeError]
) -> None:
    data = connect(server, clock)
    symbol = data.instruments()[0].symbol
    data.now_ms()
    server.faults.add("status", "market/kline", status=answer[0], body=answer[1])
    with pytest.raises(error):
        data.candles(symbol, "1h", clock.now - DAY_MS, 10)
    server.faults.clear()
    clock.now += 11 * 60_000  # whatever the gate closed for is over
    assert len(data.candles(symbol, "1h", clock.now - DAY_MS, 10)) == 10


def test_a_venue_that_is_gone_is_unavailable(server: BybitServer, clock: Clock) -> None:
    options = server.ccxt_options
    data = CcxtMarketData(exchange_id="bybit", market="bybit_linear", now_ms=clock, options=options)
    server.faults.add("status", status=502, body="bad gateway")
    with pytest.raises(ExchangeUnavailableError, match="bybit does not answer"):
        data.instruments()


def test_an_unknown_ccxt_exchange_is_named(clock: Clock) -> None:
    with pytest.raises(ConfigurationError, match="ccxt has no exchange 'bibyt'"):
        CcxtMarketData(exchange_id="bibyt", market="x_linear", now_ms=clock)


def test_paper_trading_matches_real_public_data(server: BybitServer, clock: Clock) -> None:
    config = ExchangeConfig(kind="ccxt", market="bybit_linear", ccxt_options=server.ccxt_options)
    data = market_data(config, clock)
    account = venue(config, clock, data=data)
    instrument = data.instruments()[0]
    quantity = instrument.lot_size * 1_000
    entry = account.place(OrderRequest("entry", instrument.symbol, "buy", quantity, time_ms=clock.now))
    assert isinstance(entry, Ack)
    assert entry.order.filled > 0
    mark = account.positions()[0].mark_price
    trigger = instrument.quantize_price(mark * 98 / 100)
    protection = OrderRequest(
        "stop", instrument.symbol, "sell", entry.order.filled, "stop_market", None, trigger, reduce_only=True
    )
    stop = account.place_stop(protection)
    assert isinstance(stop, Ack)
    for _ in range(24 * 20):
        clock.now += HOUR_MS
        if not account.positions():
            break
    assert account.positions() == []


def test_many_candles_are_asked_for_at_once_and_never_more_than_agreed(server: BybitServer, clock: Clock) -> None:
    data = connect(server, clock)
    symbols = [each.symbol for each in data.instruments()]
    assert len(symbols) > DATA_PARALLEL
    running, peak = 0, 0

    async def fetch(*_: object) -> list[object]:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        running -= 1
        return []

    data.link.client.fetch_ohlcv = fetch
    assert data.candles_many(symbols, "1h", clock.now - DAY_MS, 3) == {}
    assert peak == DATA_PARALLEL


def test_importing_the_package_does_not_import_ccxt() -> None:
    """It costs a second and 76 MB, in every process that only shows or trains."""
    names = "exchanges.factory, exchanges.ccxt_data, exchanges.ccxt_venue, exchanges.matching"
    code = f"import sys, {names}; sys.exit('ccxt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "filter_name, field, rule", [("priceFilter", "tickSize", "tick_size"), ("lotSizeFilter", "qtyStep", "lot_size")]
)
@pytest.mark.parametrize("value", ["0", "NaN", "much", "", None])
def test_i20_a_symbol_whose_rules_are_nonsense_says_so_and_hides_no_other(
    server: BybitServer, clock: Clock, filter_name: str, field: str, rule: str, value: str | None
) -> None:
    answer = json.loads(server.answer("GET", "/v5/market/instruments-info?category=linear&limit=1000").body)
    answer["result"]["list"][0][filter_name][field] = value
    server.faults.add("status", "instruments-info", status=200, body=json.dumps(answer), times=1)
    found = connect(server, clock).instruments()
    assert len(found) == len(server.truth.instruments())
    [flawed] = [each for each in found if each.flaw]
    assert flawed.flaw.startswith(f"{rule}=")

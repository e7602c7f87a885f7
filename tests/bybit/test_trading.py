"""The loopback exchange through an unmodified ccxt client: orders, positions, stops, money."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ccxt
import pytest

from quant.timeframes import DAY_MS, HOUR_MS, MINUTE_MS
from tests.bybit.conftest import RunningClock, Trader
from tests.bybit.server import BybitServer


def test_public_data_is_what_a_venue_gives(trader: Trader, clock: RunningClock) -> None:
    """Markets with their rules, the running candle last, best prices, a book, funding."""
    client, symbol = trader.client, trader.symbol
    rules = trader.server.truth.instruments()[0]
    market = client.market(symbol)
    assert market["active"]
    assert market["precision"]["amount"] == float(rules.lot_size)
    assert market["limits"]["cost"]["min"] == float(rules.min_notional)
    candles = client.fetch_ohlcv(symbol, "1h", clock() - 4 * HOUR_MS, 10)
    assert [row[0] for row in candles][-1] == clock() // HOUR_MS * HOUR_MS
    assert len(candles) == 4
    ticker = client.fetch_tickers()[symbol]
    book = client.fetch_order_book(symbol, 5)
    assert book["bids"][0][0] == ticker["bid"] < ticker["ask"] == book["asks"][0][0]
    assert len(client.fetch_funding_rate_history(symbol, clock() - DAY_MS, 10)) == 3
    assert abs(client.fetch_time() - clock()) < 1_000


def test_create_answers_with_ids_only_and_the_order_must_be_read(trader: Trader) -> None:
    order = trader.buy("entry1")
    assert (order["clientOrderId"], order["status"], order["filled"]) == ("entry1", None, None)
    found = trader.look_up("entry1")
    assert (found["id"], found["status"], found["filled"]) == (order["id"], "closed", trader.amount())
    assert found["average"] == pytest.approx(trader.last, rel=0.01)
    held = trader.client.fetch_positions()
    assert [(each["symbol"], each["side"], each["contracts"]) for each in held] == [
        (trader.symbol, "long", trader.amount())
    ]


def test_one_order_fills_in_several_executions_with_ids_of_their_own(trader: Trader) -> None:
    trader.buy("entry1")
    trades = trader.client.fetch_my_trades(trader.symbol)
    assert len({trade["id"] for trade in trades}) == len(trades) == 2
    assert sum(trade["amount"] for trade in trades) == pytest.approx(trader.amount())
    assert all(trade["fee"]["cost"] == pytest.approx(trade["cost"] * 0.00055) for trade in trades)


def test_partial_fills_over_time_and_a_stop_that_follows_the_size(trader: Trader) -> None:
    """F11: between the executions the order is PartiallyFilled, and the attached stop guards what is held."""
    trader.event("settings", fill_slices=3, fill_delay_ms=10_000)
    trader.buy("entry1", stopLoss={"triggerPrice": trader.price(0.9)})
    first = trader.look_up("entry1")
    assert (first["info"]["orderStatus"], first["status"]) == ("PartiallyFilled", "open")
    assert 0 < first["filled"] < trader.amount()
    stop = trader.client.fetch_open_orders(trader.symbol, params={"orderFilter": "StopOrder"})
    assert [each["amount"] for each in stop] == [first["filled"]]
    trader.pass_time(60_000)
    assert trader.look_up("entry1")["filled"] == trader.amount()
    stop = trader.client.fetch_open_orders(trader.symbol, params={"trigger": True})
    assert [(each["amount"], each["clientOrderId"]) for each in stop] == [(trader.amount(), None)]
    assert [each["naked_ms"] for each in trader.books()["episodes"]] == [0]


def test_a_cancelled_order_keeps_its_fills(trader: Trader) -> None:
    trader.event("settings", fill_slices=2, fill_delay_ms=60_000)
    trader.buy("entry1")
    trader.client.cancel_order(None, trader.symbol, {"orderLinkId": "entry1"})
    found = trader.look_up("entry1")
    assert (found["status"], found["info"]["cancelType"]) == ("canceled", "CancelByUser")
    assert 0 < found["filled"] < trader.amount()
    trader.pass_time(120_000)
    assert trader.look_up("entry1")["filled"] == found["filled"]


def test_a_cancel_can_lose_the_race_against_the_fill(trader: Trader) -> None:
    """F10, F11: acknowledged at once, done later; what fills meanwhile counts."""
    trader.event("settings", match_delay_ms=1_000, fill_delay_ms=4_000, cancel_delay_ms=3_000)
    trader.buy("entry1", stopLoss={"triggerPrice": trader.price(0.9)})
    assert trader.look_up("entry1")["info"]["orderStatus"] == "New"
    trader.client.cancel_order(None, trader.symbol, {"orderLinkId": "entry1"})
    assert trader.look_up("entry1")["status"] == "open"
    trader.pass_time(10_000)
    found = trader.look_up("entry1")
    assert (found["status"], found["info"]["orderStatus"]) == ("canceled", "Cancelled")
    assert 0 < found["filled"] < trader.amount()
    (held,) = trader.client.fetch_positions()
    assert (held["contracts"], held["stopLossPrice"]) == (found["filled"], trader.price(0.9))


def test_more_than_the_market_has_is_cancelled_as_partially_filled(trader: Trader) -> None:
    trader.event("cash", amount=1e12)
    trader.buy("entry1", notional=trader.last * 1e9)
    found = trader.look_up("entry1")
    assert found["info"]["orderStatus"] == "PartiallyFilledCanceled"
    assert found["status"] == "closed"
    assert 0 < found["filled"] < found["amount"]


def test_a_limit_order_rests_is_cancelled_once_and_is_gone_from_the_history_after_a_day(trader: Trader) -> None:
    order = trader.bid("bid1", share=0.91)
    assert trader.look_up("bid1")["info"]["orderStatus"] == "New"
    trader.client.cancel_order(order["id"], trader.symbol)
    assert trader.look_up("bid1")["status"] == "canceled"
    with pytest.raises(ccxt.OrderNotFound, match="110001"):
        trader.client.cancel_order(order["id"], trader.symbol)
    trader.server.engine.recent.clear()  # as a restart of the venue does
    trader.pass_time(23 * HOUR_MS)
    assert trader.look_up("bid1")["status"] == "canceled"
    trader.pass_time(2 * HOUR_MS)
    assert trader.look_up("bid1") is None


def test_a_limit_order_fills_as_maker_when_the_market_trades_through_it(trader: Trader) -> None:
    trader.bid("bid1", share=0.999)
    for _ in range(200):
        trader.pass_time(HOUR_MS)
        if trader.look_up("bid1")["status"] == "closed":
            break
    trades = trader.client.fetch_my_trades(trader.symbol)
    assert {trade["takerOrMaker"] for trade in trades} == {"maker"}
    assert sum(trade["amount"] for trade in trades) == pytest.approx(trader.amount())


def test_a_client_order_id_is_unique_for_ever(trader: Trader) -> None:
    """F08: whatever became of the first order."""
    order = trader.bid("once")
    trader.client.cancel_order(order["id"], trader.symbol)
    trader.pass_time(30 * DAY_MS)
    with pytest.raises(ccxt.InvalidOrder, match="110072"):
        trader.buy("once")
    assert [each["code"] for each in trader.books()["attempts"]] == [0, 110072]


def test_the_unified_look_up_lies(trader: Trader) -> None:
    """The venue ignores parameters that it does not know, so an order of another id comes back."""
    trader.bid("mine", share=0.94)
    trader.bid("other", share=0.93)
    lied = trader.client.fetch_order_with_client_order_id("mine", trader.symbol, {"acknowledged": True})
    assert lied["clientOrderId"] == "other"


def test_a_stop_order_of_our_own_fires_and_leaves_the_position_flat(trader: Trader) -> None:
    trader.buy("entry1")
    assert float(trader.books()["positions"][0]["covered"]) == 0
    trader.stop("stop1")
    assert trader.look_up("stop1")["info"]["orderStatus"] == "Untriggered"
    assert float(trader.books()["positions"][0]["covered"]) == trader.amount()
    for _ in range(24 * 30):
        trader.clock.ahead += HOUR_MS
        with trader.server.engine.effect():
            pass
        if not trader.server.engine.account.held():
            break
    trader.pass_time(0)
    stop = trader.look_up("stop1")
    assert (stop["status"], stop["filled"]) == ("closed", trader.amount())
    assert stop["average"] <= trader.price(0.97)
    (row,) = trader.executions(orderLinkId="stop1")
    assert (row["stopOrderType"], row["execType"], row["side"]) == ("Stop", "Trade", "Sell")
    (episode,) = trader.books()["episodes"]
    assert episode["closed_ms"] == int(row["execTime"])
    assert 0 < episode["naked_ms"] < 10_000


def test_an_attached_stop_belongs_to_the_position_and_fires_without_our_id(trader: Trader) -> None:
    """F19: it guards from the first execution on, and what it does carries no orderLinkId."""
    trader.buy("entry1", stopLoss={"triggerPrice": trader.price(0.98)})
    (held,) = trader.client.fetch_positions()
    assert held["stopLossPrice"] == trader.price(0.98)
    for _ in range(24 * 30):
        trader.clock.ahead += HOUR_MS
        with trader.server.engine.effect():
            pass
        if not trader.server.engine.account.held():
            break
    trader.pass_time(0)
    assert trader.client.fetch_positions() == []
    row = trader.executions()[0]
    assert (row["orderLinkId"], row["createType"], row["stopOrderType"]) == ("", "CreateByStopLoss", "StopLoss")
    (episode,) = trader.books()["episodes"]
    assert (episode["naked_ms"], episode["uncovered_ms"]) == (0, 0)


def test_an_attached_stop_vanishes_when_the_position_is_closed(trader: Trader) -> None:
    trader.buy("entry1", stopLoss={"triggerPrice": trader.price(0.9)}, takeProfit={"triggerPrice": trader.price(1.2)})
    stops = trader.client.fetch_open_orders(trader.symbol, params={"orderFilter": "StopOrder"})
    assert sorted(each["info"]["stopOrderType"] for each in stops) == ["StopLoss", "TakeProfit"]
    trader.client.create_order(
        trader.symbol, "market", "sell", trader.amount(), None, {"clientOrderId": "exit1", "reduceOnly": True}
    )
    assert trader.client.fetch_open_orders(trader.symbol) == []
    rows = {each["order_id"]: each for each in trader.books()["orders"]}
    assert {rows[each["id"]]["status"] for each in stops} == {"Deactivated"}
    assert {rows[each["id"]]["cancel_type"] for each in stops} == {"CancelByTpSlTsClear"}


def test_trading_stop_sets_moves_and_takes_away(trader: Trader) -> None:
    post = trader.client.private_post_v5_position_trading_stop
    request: dict[str, Any] = {"category": "linear", "symbol": trader.name, "tpslMode": "Full", "positionIdx": 0}
    with pytest.raises(ccxt.BadRequest, match="can not set tp/sl/ts for zero position"):
        post({**request, "stopLoss": str(trader.price(0.9))})
    trader.buy("entry1")
    for share in (0.9, 0.95):
        post({**request, "stopLoss": str(trader.price(share))})
        (held,) = trader.client.fetch_positions()
        assert held["stopLossPrice"] == trader.price(share)
    with pytest.raises(ccxt.ExchangeError, match="34040"):
        post({**request, "stopLoss": str(trader.price(0.95))})
    with pytest.raises(ccxt.BadRequest, match="should lower than base_price"):
        post({**request, "stopLoss": str(trader.price(1.1))})
    assert float(trader.books()["positions"][0]["covered"]) == trader.amount()
    post({**request, "stopLoss": "0"})
    assert trader.client.fetch_positions()[0]["stopLossPrice"] is None
    assert trader.books()["positions"][0]["naked_since_ms"] > 0


def test_the_books_tell_for_how_long_a_position_had_no_stop(trader: Trader) -> None:
    trader.buy("entry1")
    trader.pass_time(MINUTE_MS)
    trader.stop("stop1", notional=500)
    trader.pass_time(MINUTE_MS)
    position = trader.books()["positions"][0]
    assert MINUTE_MS <= position["naked_ms"] < 2 * MINUTE_MS
    assert 2 * MINUTE_MS <= position["uncovered_ms"] < 4 * MINUTE_MS
    trader.event("remove_stops", symbol=trader.name)
    trader.pass_time(2 * MINUTE_MS)
    position = trader.books()["positions"][0]
    assert position["naked_longest_ms"] >= 2 * MINUTE_MS
    assert position["naked_ms"] >= 3 * MINUTE_MS


def test_leverage_is_set_once(trader: Trader) -> None:
    trader.client.set_leverage(5, trader.symbol)
    with pytest.raises(ccxt.BadRequest, match="110043"):
        trader.client.set_leverage(5, trader.symbol)
    with pytest.raises(ccxt.BadRequest, match="110013"):
        trader.client.set_leverage(1_000, trader.symbol)
    trader.buy("entry1")
    (held,) = trader.client.fetch_positions()
    assert held["leverage"] == 5
    with pytest.raises(ccxt.NoChange, match="110025"):
        trader.client.set_position_mode(False, trader.symbol)


def test_money_is_what_trades_fees_and_funding_left(trader: Trader) -> None:
    before = trader.client.fetch_balance()["USDT"]
    assert (before["free"], before["total"]) == (10_000, 10_000)
    trader.buy("entry1")
    trader.pass_time(9 * HOUR_MS)
    trader.client.create_order(
        trader.symbol, "market", "sell", trader.amount(), None, {"clientOrderId": "exit1", "reduceOnly": True}
    )
    rows = trader.executions()
    funding = [row for row in rows if row["execType"] == "Funding"]
    assert [(row["orderLinkId"], int(row["execTime"]) % (8 * HOUR_MS)) for row in funding] == [("", 0)]
    signs = {"Buy": -1, "Sell": 1}
    trades = [row for row in rows if row["execType"] == "Trade"]
    made = sum(signs[row["side"]] * float(row["execValue"]) for row in trades)
    paid = sum(float(row["execFee"]) for row in rows)
    after = trader.client.fetch_balance()
    assert after["USDT"]["total"] == pytest.approx(10_000 + made - paid, abs=1e-6)
    account = after["info"]["result"]["list"][0]
    assert account["totalAvailableBalance"] == account["totalEquity"]


def test_lists_come_newest_first_and_in_pages_that_end(trader: Trader) -> None:
    for number in range(7):
        trader.bid(f"bid{number}", share=0.93)
    seen: list[str] = []
    cursor = None
    for _ in range(5):
        sent = {"category": "linear", "symbol": trader.name, "limit": 3, **({"cursor": cursor} if cursor else {})}
        page = trader.client.private_get_v5_order_realtime(sent)["result"]
        seen += [row["orderLinkId"] for row in page["list"]]
        cursor = page["nextPageCursor"]
        if not cursor:
            break
    assert seen == [f"bid{number}" for number in range(6, -1, -1)]


def test_an_async_client_trades_too(server: BybitServer) -> None:
    async def trade() -> tuple[Any, Any]:
        import ccxt.async_support

        client = ccxt.async_support.bybit(server.ccxt_account)
        try:
            await client.load_time_difference()
            await client.load_markets()
            symbol = server.truth.instruments()[0].symbol
            last = (await client.fetch_ticker(symbol))["last"]
            amount = float(client.amount_to_precision(symbol, 500 / last))
            made = await asyncio.gather(
                *(
                    client.create_order(symbol, "market", "buy", amount, None, {"clientOrderId": f"a{number}"})
                    for number in range(8)
                )
            )
            return made, await client.fetch_positions()
        finally:
            await client.close()

    with ThreadPoolExecutor(max_workers=1) as thread:  # this one has a loop already, where a browser test ran before
        made, held = thread.submit(asyncio.run, trade()).result()
    assert [order["clientOrderId"] for order in made] == [f"a{number}" for number in range(8)]
    assert held[0]["contracts"] == pytest.approx(sum(float(each["qty"]) for each in server.control.books()["orders"]))

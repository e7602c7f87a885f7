"""What the loopback exchange refuses, with Bybit's codes and ccxt's classes: keys, ages, sizes, prices, money."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ccxt
import pytest

from quant.timeframes import HOUR_MS
from tests.bybit.conftest import RunningClock, Trader
from tests.bybit.server import BybitServer


@pytest.mark.parametrize(
    "order, error, code",
    [
        ({"qty": "0"}, ccxt.BadRequest, "10001"),
        ({"qty": "0.00000001"}, ccxt.BadRequest, "10001"),
        ({"qty": "lots"}, ccxt.BadRequest, "10001"),
        ({"qty": None}, ccxt.BadRequest, "10001"),
        ({"side": "Hold"}, ccxt.BadRequest, "10001"),
        ({"symbol": "NOSUCHUSDT"}, ccxt.BadSymbol, "10001"),
        ({"category": "spot"}, ccxt.BadRequest, "10001"),
        ({"orderLinkId": "no spaces"}, ccxt.BadRequest, "10001"),
        ({"qty": "SMALL"}, ccxt.InvalidOrder, "110094"),
        ({"qty": "HUGE"}, ccxt.InsufficientFunds, "110007"),
        ({"orderType": "Limit", "price": "BETWEEN"}, ccxt.BadRequest, "10001"),
        ({"orderType": "Limit", "price": "FAR"}, ccxt.InvalidOrder, "110003"),
        ({"reduceOnly": True}, ccxt.InvalidOrder, "110017"),
        ({"triggerPrice": "ABOVE", "triggerDirection": 2}, ccxt.InvalidOrder, "110093"),
        ({"triggerPrice": "BELOW", "triggerDirection": 1}, ccxt.InvalidOrder, "110092"),
        ({"triggerPrice": "ABOVE"}, ccxt.BadRequest, "10001"),
        ({"stopLoss": "ABOVE"}, ccxt.BadRequest, "10001"),
        ({"takeProfit": "BELOW"}, ccxt.BadRequest, "10001"),
    ],
)
def test_a_refused_order_leaves_nothing(
    trader: Trader, order: dict[str, Any], error: type[Exception], code: str
) -> None:
    rules = trader.server.truth.instruments()[0]
    words = {
        "SMALL": str(rules.min_quantity),
        "HUGE": trader.client.amount_to_precision(trader.symbol, 1_000_000 / trader.last),
        "BETWEEN": f"{trader.price(0.95) + float(rules.tick_size) / 2:.9f}",
        "FAR": str(trader.price(1.2)),
        "ABOVE": str(trader.price(1.05)),
        "BELOW": str(trader.price(0.95)),
    }
    plain = {"category": "linear", "symbol": trader.name, "side": "Buy", "orderType": "Market", "orderLinkId": "try1"}
    sent = {**plain, "qty": str(trader.amount()), **order}
    sent = {name: words.get(value, value) if isinstance(value, str) else value for name, value in sent.items()}
    with pytest.raises(error, match=f'"retCode":{code}'):
        trader.client.private_post_v5_order_create(sent)
    books = trader.books()
    assert (books["orders"], books["executions"]) == ([], [])
    trader.bid("try1")  # the id is still free


@pytest.mark.parametrize(
    "change, error, code",
    [
        ({"revoked": True}, ccxt.AuthenticationError, "10003"),
        ({"expired": True}, ccxt.AuthenticationError, "33004"),
        ({"wrong_ip": True}, ccxt.PermissionDenied, "10010"),
        ({"read_only": True}, ccxt.PermissionDenied, "10005"),
        ({"may_trade": False}, ccxt.PermissionDenied, "10005"),
    ],
)
def test_a_key_that_may_not_is_refused(trader: Trader, change: Any, error: type[Exception], code: str) -> None:
    """F39."""
    trader.event("key", **change)
    with pytest.raises(error, match=f'"retCode":{code}'):
        trader.buy("entry1")
    trader.event("key", **dict.fromkeys(change, change == {"may_trade": False}))
    trader.buy("entry2")
    assert [order["link_id"] for order in trader.books()["orders"]] == ["entry2"]


def test_a_key_says_what_it_may(trader: Trader) -> None:
    def ask() -> Any:
        return trader.client.private_get_v5_user_query_api()["result"]

    assert (ask()["readOnly"], ask()["permissions"]["Wallet"], ask()["uta"]) == (0, [], 1)
    trader.event("key", withdraw=True, read_only=True)
    assert "Withdraw" in ask()["permissions"]["Wallet"]
    assert ask()["readOnly"] == 1


def test_a_wrong_secret_and_an_unknown_key_are_refused(trader: Trader) -> None:
    for field, code in (("secret", "10004"), ("apiKey", "10003")):
        before = getattr(trader.client, field)
        setattr(trader.client, field, "other")
        with pytest.raises(ccxt.AuthenticationError, match=f'"retCode":{code}'):
            trader.buy("entry1")
        setattr(trader.client, field, before)
    assert trader.books()["orders"] == []


def test_what_was_signed_for_one_body_is_refused_for_another(trader: Trader) -> None:
    sign = trader.client.sign

    def forged(*args: Any, **kwargs: Any) -> Any:
        signed = sign(*args, **kwargs)
        return {**signed, "body": (signed["body"] or "").replace('"Buy"', '"Sell"')}

    trader.client.sign = forged
    with pytest.raises(ccxt.AuthenticationError, match="10004"):
        trader.buy("entry1")
    assert trader.books()["orders"] == []


@pytest.mark.parametrize("wrong_ms", [-6_000, 1_500])
def test_a_request_from_another_time_is_refused(trader: Trader, wrong_ms: int) -> None:
    """F07: older than the window, or from the future."""
    trader.client.options["timeDifference"] -= wrong_ms
    with pytest.raises(ccxt.InvalidNonce, match="10002"):
        trader.buy("entry1")
    trader.client.load_time_difference()
    trader.buy("entry1")


def test_the_venues_own_clock_may_go_wrong(trader: Trader) -> None:
    trader.event("skew", ms=60_000)
    with pytest.raises(ccxt.InvalidNonce, match="10002"):
        trader.buy("entry1")
    trader.client.load_time_difference()
    trader.buy("entry1")


@pytest.mark.parametrize("phase", ["before", "during"])
def test_a_request_that_waited_too_long_has_no_effect(trader: Trader, phase: str) -> None:
    """The age is looked at when it arrives, and again right before the effect."""
    trader.client.options["recvWindow"] = 50
    trader.server.faults.add("delay", "order/create", phase=phase, seconds=0.1, times=1)
    with pytest.raises(ccxt.InvalidNonce, match="10002"):
        trader.buy("entry1")
    assert trader.books()["orders"] == []


def test_the_books_tell_how_old_a_request_was_when_it_was_accepted(trader: Trader) -> None:
    trader.server.faults.add("delay", "order/create", phase="during", seconds=0.05)
    trader.buy("entry1")
    (order,) = trader.books()["orders"]
    assert order["accepted_ms"] - order["request_ms"] == order["age_ms"] >= 50


def test_reduce_only_is_cut_to_what_is_held(trader: Trader) -> None:
    trader.buy("entry1")
    sell = {"clientOrderId": "exit1", "reduceOnly": True}
    trader.client.create_order(trader.symbol, "market", "sell", trader.amount(2_000), None, sell)
    assert trader.look_up("exit1")["filled"] == trader.amount()
    assert trader.client.fetch_positions() == []
    with pytest.raises(ccxt.InvalidOrder, match="110017"):
        trader.client.create_order(trader.symbol, "market", "sell", trader.amount(), None, {"reduceOnly": True})


@pytest.mark.parametrize("kind, what", [("PostOnly", "EC_PostOnlyWillTakeLiquidity"), ("FOK", "EC_NoEnoughQtyToFill")])
def test_an_order_that_may_not_wait_or_take_is_cancelled_by_the_venue(trader: Trader, kind: str, what: str) -> None:
    """Acknowledged with an id, and not there: only the look-up tells."""
    trader.event("cash", amount=1e12)
    notional = 1_000 if kind == "PostOnly" else trader.last * 1e9
    trader.bid("bid1", share=1.05, notional=notional, timeInForce=kind)
    found = trader.look_up("bid1")
    assert (found["status"], found["filled"], found["info"]["rejectReason"]) == ("canceled", 0, what)


def test_an_acknowledged_order_may_be_rejected_afterwards(trader: Trader) -> None:
    trader.event("reject_next")
    assert trader.buy("entry1")["id"]
    assert trader.look_up("entry1")["status"] == "rejected"
    assert trader.client.fetch_positions() == []


def test_ten_stops_of_a_symbol_are_the_most(trader: Trader) -> None:
    trader.buy("entry1")
    for number in range(10):
        trader.stop(f"stop{number}")
    with pytest.raises(ccxt.InvalidOrder, match="110009"):
        trader.stop("stop10")


def test_rate_limits_are_told_with_the_time_of_the_next_try(world: Any, clock: RunningClock) -> None:
    """F06."""
    world._clock = clock
    with BybitServer(world, rate_limited=True) as server:
        trader = Trader(server, clock)
        for number in range(10):
            trader.bid(f"bid{number}", share=0.93)
        with pytest.raises(ccxt.RateLimitExceeded, match="10006"):
            trader.bid("bid10", share=0.93)
        reset = int(trader.client.last_response_headers["X-Bapi-Limit-Reset-Timestamp"])
        assert clock() < reset <= clock() + 1_000
        assert len(trader.books()["orders"]) == 10


@pytest.mark.parametrize(
    "happen, error, code",
    [
        (lambda t: t.event("delist", symbol=t.name), ccxt.ExchangeError, "110074"),
        (lambda t: t.event("reduce_only", symbol=t.name), ccxt.InvalidOrder, "110023"),
        (lambda t: t.event("maintenance", on=True, style="code"), ccxt.ExchangeError, "10016"),
        (lambda t: t.event("maintenance", on=True), ccxt.ExchangeNotAvailable, "503"),
    ],
)
def test_a_venue_that_does_not_trade_says_so(
    trader: Trader, happen: Callable[[Trader], None], error: type[Exception], code: str
) -> None:
    """F26, F27."""
    happen(trader)
    with pytest.raises(error, match=code):
        trader.buy("entry1")
    trader.event("maintenance", on=False)
    trader.event("relist", symbol=trader.name)
    trader.buy("entry2")


def test_what_is_asked_wrongly_is_refused_and_not_answered_with_something(trader: Trader) -> None:
    get = trader.client.private_get_v5_order_realtime
    for sent, words in (({}, "category"), ({"category": "linear"}, "symbol or settleCoin")):
        with pytest.raises(ccxt.BadRequest, match=words):
            get(sent)
    week = {"category": "linear", "startTime": 0, "endTime": 8 * 24 * HOUR_MS}
    with pytest.raises(ccxt.BadRequest, match="7 days"):
        trader.client.private_get_v5_execution_list(week)
    with pytest.raises(ccxt.BadRequest, match="UNIFIED"):
        trader.client.private_get_v5_account_wallet_balance({"accountType": "CONTRACT"})

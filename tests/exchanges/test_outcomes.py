"""The table "Venue answers" of reference/faults.md, row by row and venue by venue, without a network.

ccxt makes each error itself, from the venue's own body: what is tested is what its error tables and our rule make of
it together. Binance is left out of that (its error tables match only its real hosts) and gets ccxt's classes by hand.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import ccxt
import pytest

from exchanges.ccxt_gate import Trouble, trouble_of
from exchanges.ccxt_outcomes import BAN_MS, is_finished, place_outcome, venue_order
from exchanges.ccxt_rules import BINANCE, BYBIT, KRAKEN, OKX, VENUES, VenueRules
from exchanges.port import DUPLICATE, Ack, OrderRequest, PlaceOutcome, Rejected, Throttled, Unknown

NOW = 1_767_225_600_000
REQUEST = OrderRequest("ours1", "BTC/USDT:USDT", "buy", Decimal("0.01"), time_ms=NOW)
CLIENTS = {"bybit": ccxt.bybit(), "okx": ccxt.okx(), "kraken": ccxt.kraken()}


def outcome(answer: Any, rules: VenueRules = BYBIT, **more: Any) -> PlaceOutcome:
    return place_outcome(answer, REQUEST, rules, now_ms=NOW, **more)


def raised(venue: str, body: object, status: int = 200) -> Exception:
    """The error that ccxt makes of an answer, as its `fetch` does."""
    client = CLIENTS[venue]
    text = body if isinstance(body, str) else json.dumps(body)
    parsed = client.parse_json(text)
    try:
        client.handle_errors(status, "reason", "https://host/v5/order/create", "POST", {}, text, parsed, {}, "")
        client.handle_http_status_code(status, "reason", "https://host/v5/order/create", "POST", text)
    except ccxt.BaseError as error:
        return error
    raise AssertionError(f"ccxt takes {text!r} for an answer")


def bybit(code: int, message: str = "") -> Exception:
    return raised("bybit", {"retCode": code, "retMsg": message, "result": {}, "retExtInfo": {}, "time": NOW})


def okx(code: str, message: str = "") -> Exception:
    return raised("okx", {"code": "1", "data": [{"clOrdId": "x", "sCode": code, "sMsg": message}], "msg": ""})


def kraken(message: str) -> Exception:
    return raised("kraken", {"error": [message], "result": {}})


def binance(kind: type[Exception], code: int, message: str) -> Exception:
    return kind("binanceusdm " + json.dumps({"code": code, "msg": message}, separators=(",", ":")))


# ------------------------------------------------------------------------------ unknown
@pytest.mark.parametrize(
    "answer",
    [
        ccxt.RequestTimeout("bybit POST url"),
        ccxt.NetworkError("bybit connection reset"),
        ccxt.ExchangeNotAvailable("bybit POST url"),
        ccxt.OperationFailed("bybit"),
        ccxt.ExchangeError("bybit torn body"),
        ccxt.BadResponse("bybit POST: status 200, the body is no JSON"),
        TypeError("'NoneType' object is not subscriptable"),
        TimeoutError(),
        {"id": None, "clientOrderId": None},
        {"id": "", "clientOrderId": "ours1"},
        {},
    ],
)
def test_f04_silence_and_broken_answers_are_unknown(answer: Any) -> None:
    for rules in VENUES.values():
        assert isinstance(outcome(answer, rules), Unknown)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_f04_a_server_error_on_create_is_unknown(status: int) -> None:
    assert isinstance(outcome(raised("bybit", "<html>oops</html>", status)), Unknown)
    assert isinstance(outcome(raised("okx", "<html>oops</html>", status), OKX), Unknown)


@pytest.mark.parametrize("code", sorted(BYBIT.unclear, key=int))
def test_f04_bybits_time_outs_are_unknown_whatever_ccxt_calls_them(code: str) -> None:
    assert isinstance(outcome(bybit(int(code), "Server error")), Unknown)


def test_f04_ccxt_takes_one_of_them_for_a_refused_order() -> None:
    """Else the list of unclear codes would be needless."""
    assert isinstance(bybit(170146, "Order creation timeout"), ccxt.InvalidOrder)
    assert isinstance(okx("51149", "Order timed out. Please try again."), ccxt.ExchangeError)


@pytest.mark.parametrize("code", ["50004", "51149"])
def test_f04_okx_time_outs_are_unknown(code: str) -> None:
    assert isinstance(outcome(okx(code, "Endpoint request timeout"), OKX), Unknown)


def test_f04_binances_time_outs_are_unknown() -> None:
    text = "Timeout waiting for response from backend server. Send status unknown; execution status unknown."
    assert isinstance(outcome(binance(ccxt.RequestTimeout, -1007, text), BINANCE), Unknown)


def test_f04_an_order_of_another_client_id_is_no_answer() -> None:
    assert isinstance(outcome({"id": "1", "clientOrderId": "foreign"}), Unknown)
    assert isinstance(outcome({"id": "1", "clientOrderId": "ours1"}), Ack)


# ------------------------------------------------------------------------------ rejected
@pytest.mark.parametrize(
    "error, rules, code",
    [
        (bybit(110007, "ab not enough for new order"), BYBIT, "INSUFFICIENT_FUNDS"),
        (bybit(110012, "Available balance not enough"), BYBIT, "INSUFFICIENT_FUNDS"),
        (bybit(110094, "Order notional value below the lower limit"), BYBIT, "MIN_NOTIONAL"),
        (bybit(110003, "Order price is out of permissible range"), BYBIT, "PRICE_BAND"),
        (bybit(10001, "params error: qty invalid"), BYBIT, "BAD_REQUEST"),
        (bybit(110017, "Reduce-only rule not satisfied"), BYBIT, "REDUCE_ONLY"),
        (bybit(110092, "expect Rising"), BYBIT, "TRIGGER_CROSSED"),
        (bybit(110093, "expect Falling"), BYBIT, "TRIGGER_CROSSED"),
        (bybit(110023, "only supports position reduction"), BYBIT, "NOT_TRADING"),
        (bybit(110074, "This contract is not live"), BYBIT, "NOT_TRADING"),
        (bybit(10001, "Not supported symbols"), BYBIT, "UNKNOWN_SYMBOL"),
        (bybit(10029, "The requested symbol is invalid"), BYBIT, "SYMBOL_NOT_ALLOWED"),
        (okx("51008", "Insufficient USDT balance"), OKX, "INSUFFICIENT_FUNDS"),
        (okx("51020", "Order quantity must be more than the minimum"), OKX, "MIN_QUANTITY"),
        (okx("51121", "must be a multiple of the lot size"), OKX, "PRECISION"),
        (okx("51169", "no position in this direction"), OKX, "REDUCE_ONLY"),
        (okx("51028", "Contract under delivery"), OKX, "NOT_TRADING"),
        (kraken("EOrder:Insufficient funds"), KRAKEN, "INSUFFICIENT_FUNDS"),
        (kraken("EOrder:Cost minimum not met"), KRAKEN, "MIN_NOTIONAL"),
        (kraken("EOrder:Tick size check failed"), KRAKEN, "PRECISION"),
        (binance(ccxt.InsufficientFunds, -2019, "Margin is insufficient."), BINANCE, "INSUFFICIENT_FUNDS"),
        (binance(ccxt.ExchangeError, -2019, "Margin is insufficient."), BINANCE, "INSUFFICIENT_FUNDS"),
        (binance(ccxt.InvalidOrder, -4164, "notional must be no smaller than 5"), BINANCE, "MIN_NOTIONAL"),
        (binance(ccxt.BadRequest, -1111, "Precision is over the maximum"), BINANCE, "PRECISION"),
        (binance(ccxt.InvalidOrder, -2022, "ReduceOnly Order is rejected."), BINANCE, "REDUCE_ONLY"),
        (binance(ccxt.OrderImmediatelyFillable, -2021, "would immediately trigger"), BINANCE, "TRIGGER_CROSSED"),
        (binance(ccxt.InvalidOrder, -4140, "Invalid symbol status"), BINANCE, "NOT_TRADING"),
        (ccxt.MarketClosed("bybit"), BYBIT, "NOT_TRADING"),
        (ccxt.NotSupported("bybit"), BYBIT, "NOT_SUPPORTED"),
        (ccxt.ArgumentsRequired("bybit"), BYBIT, "BAD_REQUEST"),
        (ccxt.OperationRejected("bybit"), BYBIT, "OPERATION_REJECTED"),
        (ccxt.BadSymbol("bybit does not have market symbol X"), BYBIT, "UNKNOWN_SYMBOL"),
    ],
)
def test_f05_a_refusal_is_rejected_with_a_stable_code(error: Exception, rules: VenueRules, code: str) -> None:
    found = outcome(error, rules)
    assert isinstance(found, Rejected), found
    assert found.code == code
    assert trouble_of(error, rules, status=200) is Trouble.NONE


# ------------------------------------------------------------------------------ rate limits
@pytest.mark.parametrize(
    "error, rules, status",
    [
        (bybit(10006, "Too many visits!"), BYBIT, 200),
        (raised("bybit", "slow down", 429), BYBIT, 429),
        (okx("50011", "Too Many Requests"), OKX, 200),
        (raised("okx", "slow down", 429), OKX, 429),
        (binance(ccxt.RateLimitExceeded, -1003, "Too many requests"), BINANCE, 429),
        (binance(ccxt.RateLimitExceeded, -1015, "Too many new orders"), BINANCE, 429),
        (kraken("EAPI:Rate limit exceeded"), KRAKEN, 200),
    ],
)
def test_f06_a_rate_limit_is_throttled_until_the_venue_says(error: Exception, rules: VenueRules, status: int) -> None:
    assert outcome(error, rules, status=status) == Throttled(NOW + 1_000)
    assert outcome(error, rules, status=status, retry_at_ms=NOW + 7_000) == Throttled(NOW + 7_000)
    assert trouble_of(error, rules, status=status) is Trouble.RATE_LIMIT


# ------------------------------------------------------------------------------ clock
@pytest.mark.parametrize(
    "error, rules",
    [
        (bybit(10002, "invalid request, please check your server timestamp or recv_window param"), BYBIT),
        (okx("50102", "Timestamp request expired"), OKX),
        (kraken("EAPI:Invalid nonce"), KRAKEN),
        (binance(ccxt.InvalidNonce, -1021, "Timestamp for this request is outside of the recvWindow."), BINANCE),
    ],
)
def test_f07_a_refused_time_is_a_refusal_although_ccxt_calls_it_a_network_error(
    error: Exception, rules: VenueRules
) -> None:
    assert isinstance(error, ccxt.NetworkError)
    found = outcome(error, rules)
    assert isinstance(found, Rejected)
    assert found.code == "CLOCK_SKEW"
    assert trouble_of(error, rules, status=200) is Trouble.NONE


# ------------------------------------------------------------------------------ duplicates
@pytest.mark.parametrize(
    "error, rules",
    [
        (bybit(110072, "OrderLinkedID is duplicate"), BYBIT),
        (bybit(170141, "Duplicate clientOrderId"), BYBIT),
        (bybit(12141, "Duplicate clientOrderId."), BYBIT),
        (bybit(10014, "Request is duplicate"), BYBIT),
        (okx("51016", "Duplicated client order ID"), OKX),
        (binance(ccxt.InvalidOrder, -4116, "ClientOrderId is duplicated."), BINANCE),
        (binance(ccxt.InvalidOrder, -2010, "Duplicate order sent."), BINANCE),
        (ccxt.DuplicateOrderId("bingx duplicate"), BYBIT),
    ],
)
def test_f08_a_duplicate_id_means_that_the_order_is_there(error: Exception, rules: VenueRules) -> None:
    found = outcome(error, rules)
    assert isinstance(found, Rejected)
    assert found.code == DUPLICATE


@pytest.mark.parametrize("code", [110001, 110008, 110010, 170213, 170142])
def test_f11_a_cancel_that_comes_too_late_is_told_from_one_that_failed(code: int) -> None:
    assert is_finished(bybit(code, "finished"), BYBIT)
    assert not is_finished(bybit(10001, "params error"), BYBIT)


# ------------------------------------------------------------------------------ keys and bans
@pytest.mark.parametrize(
    "error, rules",
    [
        (bybit(10003, "API key is invalid."), BYBIT),
        (bybit(10004, "error sign!"), BYBIT),
        (bybit(10005, "Permission denied, please check your API key permissions."), BYBIT),
        (bybit(10010, "Unmatched IP, please check your API key's bound IP addresses."), BYBIT),
        (bybit(33004, "Your api key has expired."), BYBIT),
        (okx("50111", "Invalid OK-ACCESS-KEY"), OKX),
        (binance(ccxt.AuthenticationError, -2015, "Invalid API-key, IP, or permissions"), BINANCE),
        (binance(ccxt.DDoSProtection, -2015, "Invalid API-key, IP, or permissions"), BINANCE),
    ],
)
def test_f39_a_refused_key_is_a_refusal_and_stops_the_account(error: Exception, rules: VenueRules) -> None:
    found = outcome(error, rules)
    assert isinstance(found, Rejected)
    assert found.code == "KEY_REFUSED"
    assert trouble_of(error, rules, status=200) is Trouble.KEY


@pytest.mark.parametrize(
    "error, rules, status",
    [
        (raised("bybit", "<html>access too frequent</html>", 403), BYBIT, 403),
        (bybit(10009, "IP had been banned"), BYBIT, 200),
        (ccxt.DDoSProtection("binanceusdm 418 I'm a teapot"), BINANCE, 418),
    ],
)
def test_f39_a_banned_address_is_throttled_and_stops_every_call(
    error: Exception, rules: VenueRules, status: int
) -> None:
    assert isinstance(outcome(error, rules), Throttled)
    assert trouble_of(error, rules, status=status) is Trouble.BAN
    assert BAN_MS >= 600_000


def test_i20_a_stop_over_whatever_the_position_is_hides_no_other_order() -> None:
    """Placed by hand at the exchange it has no quantity; the list that holds it must still be readable."""
    raw = {"id": "7", "symbol": "BTC/USDT:USDT", "side": "sell", "amount": 0.0, "info": {"qty": "0.000"}}
    assert venue_order(raw).quantity == 0
    with pytest.raises(ValueError, match="without side or quantity"):
        venue_order(raw | {"amount": None, "info": {}})

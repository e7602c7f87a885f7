"""Each kind of fault once, through an unmodified ccxt client, and what became of the order."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

import ccxt
import pytest

from tests.bybit.conftest import Trader
from tests.bybit.faults import KINDS, FaultPlan

#: The fault, and what ccxt's sync client makes of it: an error, or (None) an order without an id.
LOST: list[tuple[dict[str, Any], type[Exception] | None]] = [
    ({"kind": "reset"}, ccxt.NetworkError),
    ({"kind": "close"}, ccxt.NetworkError),
    ({"kind": "delay_close", "seconds": 0.01}, ccxt.NetworkError),
    ({"kind": "status", "status": 502}, ccxt.ExchangeNotAvailable),
    ({"kind": "status", "status": 524}, ccxt.ExchangeError),
    ({"kind": "html"}, None),
    ({"kind": "truncated"}, ccxt.NetworkError),
    ({"kind": "broken_json"}, None),
    ({"kind": "empty"}, None),
    ({"kind": "ret_code", "code": 10016}, ccxt.ExchangeError),
    ({"kind": "ret_code", "code": 170146, "message": "Order creation timeout"}, ccxt.InvalidOrder),
    ({"kind": "rate_limit"}, ccxt.RateLimitExceeded),
]
LISTS = ("duplicate_rows", "shuffle_rows", "no_rows")


@pytest.mark.parametrize("fault, error", LOST)
def test_an_answer_that_is_lost_or_false_hides_an_order_that_was_placed(
    trader: Trader, fault: dict[str, Any], error: type[Exception] | None
) -> None:
    """F03, F04: the effect has happened. Where ccxt raises nothing, it returns an order without an id."""
    rule = trader.server.faults.add(path="order/create", phase="after", times=1, **fault)
    if error is None:
        assert trader.buy("entry1")["id"] is None
    else:
        with pytest.raises(error):
            trader.buy("entry1")
    assert rule.acted == 1
    found = trader.look_up("entry1")
    assert (found["status"], found["filled"]) == ("closed", trader.amount())


@pytest.mark.parametrize("phase", ["before", "during"])
@pytest.mark.parametrize("kind", ["reset", "close", "status", "empty", "ret_code", "rate_limit"])
def test_the_same_trouble_before_the_effect_places_nothing(trader: Trader, kind: str, phase: Any) -> None:
    trader.server.faults.add(kind, "order/create", phase=phase, times=1)
    if kind == "empty":
        assert trader.buy("entry1")["id"] is None
    else:
        with pytest.raises(ccxt.BaseError):
            trader.buy("entry1")
    assert trader.look_up("entry1") is None
    assert trader.books()["attempts"] == []
    assert trader.buy("entry1")["id"]


def test_a_delay_longer_than_the_clients_patience_hides_the_order(trader: Trader) -> None:
    trader.client.timeout = 100
    trader.server.faults.add("delay", "order/create", phase="after", seconds=0.3, times=1)
    with pytest.raises(ccxt.RequestTimeout):
        trader.buy("entry1")
    trader.client.timeout = 10_000
    assert trader.look_up("entry1")["status"] == "closed"


def test_lists_can_repeat_mix_or_lack_their_rows(trader: Trader) -> None:
    """F09, F10, F17: a duplicate, another order, an empty answer that is not the truth."""
    for number in range(4):
        trader.buy(f"entry{number}", notional=100)
    plain = [row["execId"] for row in trader.executions()]
    for kind in LISTS:
        trader.server.faults.clear()
        trader.server.faults.add(kind, "execution/list")
        seen = [row["execId"] for row in trader.executions()]
        assert seen != plain
        assert sorted(set(seen)) == ([] if kind == "no_rows" else sorted(plain))
    trader.server.faults.clear()
    assert [row["execId"] for row in trader.executions()] == plain


def test_faults_and_events_come_over_http_too(trader: Trader) -> None:
    def post(path: str, body: Any) -> Any:
        request = Request(trader.server.url + path, data=json.dumps(body).encode(), method="POST")
        with urlopen(request, timeout=5) as answer:
            return json.load(answer)

    rule = {"kind": "ret_code", "path": "order/create", "code": 10000, "nth": 2}
    assert post("/control/faults", {"seed": 5, "rules": [rule]})["rules"][0]["acted"] == 0
    trader.buy("entry1")
    with pytest.raises(ccxt.ExchangeError):
        trader.buy("entry2")
    trader.buy("entry3")
    post("/control/event", {"type": "close_position", "symbol": trader.name})
    with urlopen(trader.server.url + "/control/books", timeout=5) as answer:
        books = json.load(answer)
    assert books["positions"] == []
    with urlopen(trader.server.url + "/control/books?brief=1", timeout=5) as answer:
        brief = json.load(answer)
    assert (brief["orders"], brief["executions"], brief["episodes"]) == ([], [], books["episodes"])
    assert [order["link_id"] for order in books["orders"]] == ["entry1", "entry3", ""]
    assert books["refusals"] == {"10000": 1}


def test_a_plan_with_a_seed_is_the_same_plan_again() -> None:
    def acted(seed: int) -> list[bool]:
        plan = FaultPlan(seed)
        plan.add("reset", "order/create", method="POST", probability=0.3, times=20)
        return [plan.pick("before", "POST", "/v5/order/create", "{}") is not None for _ in range(100)]

    assert acted(1) == acted(1) != acted(2)
    assert 0 < sum(acted(1)) <= 20
    plan = FaultPlan()
    plan.add("reset", "order", contains="BTCUSDT", skip=1)
    asked = [("POST", "BTCUSDT"), ("POST", "ETHUSDT"), ("POST", "BTCUSDT"), ("GET", "BTCUSDT")]
    struck = [plan.pick("before", method, "/v5/order/create", symbol) is not None for method, symbol in asked]
    assert struck == [False, False, True, True]


def test_a_fault_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="fault 'gremlin' is unknown"):
        FaultPlan().add("gremlin")
    with pytest.raises(ValueError, match="phase 'later'"):
        FaultPlan().add("reset", phase="later")


def test_every_kind_is_tried_above() -> None:
    assert set(KINDS) == {"delay", *LISTS, *(fault["kind"] for fault, _ in LOST)}

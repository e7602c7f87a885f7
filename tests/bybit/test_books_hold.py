"""Whatever is done to the exchange, its books add up, and what is on disk is what is in memory."""

from __future__ import annotations

import random
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from exchanges.simulated import SimulatedMarket
from quant.timeframes import MINUTE_MS
from tests.bybit.checks import RefusedError
from tests.bybit.conftest import START_MS
from tests.bybit.engine import BybitExchange
from tests.bybit.records import OPEN, ZERO, to_json


def _params(chance: random.Random, exchange: BybitExchange, number: int) -> dict[str, Any]:
    name = chance.choice(sorted(exchange.tape.contracts()))
    rules = exchange.tape.contract(name).instrument  # type: ignore[union-attr]
    last = exchange.tape.last(name) or Decimal(1)
    side = chance.choice(["Buy", "Sell"])
    sent: dict[str, Any] = {
        "category": "linear", "symbol": name, "side": side, "orderType": chance.choice(["Market", "Market", "Limit"]),
        "qty": str(rules.quantize_quantity(Decimal(chance.randint(20, 2_000)) / last)), "orderLinkId": f"n{number}",
        "reduceOnly": chance.random() < 0.4,
    }  # fmt: skip

    def at(share: float) -> str:
        return str(rules.quantize_price(last * Decimal(str(share))))

    if sent["orderType"] == "Limit":
        sent["price"] = at(chance.uniform(0.98, 1.02))
    if chance.random() < 0.3:
        sent["stopLoss"] = at(0.98 if side == "Buy" else 1.02)
    if chance.random() < 0.2:
        sent["triggerPrice"], sent["triggerDirection"] = (at(0.99), 2) if side == "Sell" else (at(1.01), 1)
    return sent


@pytest.mark.parametrize("seed", [1, 2])
def test_the_books_add_up_after_any_sequence_of_requests_and_events(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    now = [START_MS]
    market = SimulatedMarket(seed=7, symbols=2, specials=False, now_ms=lambda: now[0])
    state = tmp_path / "bybit.sqlite3"
    exchange = BybitExchange(market, state=state, fill_slices=3, fill_delay_ms=20_000, cancel_delay_ms=30_000)
    accepted = 0
    refused: set[int] = set()
    for number in range(400):
        now[0] += chance.randint(0, 20 * MINUTE_MS)
        try:
            with exchange.effect() as moment:
                drawn = chance.random()
                if drawn < 0.7:
                    exchange.create(_params(chance, exchange, number))
                    accepted += 1
                elif drawn < 0.9:
                    exchange.cancel({**_params(chance, exchange, 0), "orderLinkId": f"n{chance.randint(0, number)}"})
                elif drawn < 0.91:
                    exchange.liquidate(moment)
                else:
                    exchange.trading_stop(_params(chance, exchange, 0) | {"takeProfit": "0"})
        except RefusedError as refusal:
            refused.add(refusal.code)
        _check(exchange)
    assert accepted > 100
    assert refused <= {10001, 110001, 110003, 110007, 110009, 110017, 110092, 110093, 34040}
    assert len({each.kind for each in exchange.store.executions}) == 3

    again = BybitExchange(market, state=state)
    for table in ("orders", "positions"):
        ours, theirs = getattr(exchange.store, table), getattr(again.store, table)
        assert {key: to_json(each) for key, each in ours.items()} == {k: to_json(each) for k, each in theirs.items()}
    assert exchange.store.executions == again.store.executions
    assert exchange.store.episodes == again.store.episodes
    assert exchange.store.state == again.store.state
    exchange.close()
    again.close()


def _check(exchange: BybitExchange) -> None:
    store, account = exchange.store, exchange.account
    held: dict[str, Decimal] = defaultdict(Decimal)
    filled: dict[str, Decimal] = defaultdict(Decimal)
    for each in store.executions:
        if each.kind != "Funding":
            held[each.symbol] += each.qty if each.side == "Buy" else -each.qty
            filled[each.order_id] += each.qty
    assert {name: position.qty for name, position in store.positions.items()} == dict(held)
    assert len({each.exec_id for each in store.executions}) == len(store.executions)
    for order in store.orders.values():
        assert order.filled == filled[order.order_id] <= order.qty
        assert (order.status in OPEN) == (order.order_id in store.open_orders)
        assert order.status != "Filled" or order.leaves == 0
        if order.is_open and order.create_type == "CreateByStopLoss":
            position = account.position(order.symbol)
            assert position.stop_id == order.order_id
            assert order.qty == abs(position.qty) > 0
    running = {each.symbol for each in store.episodes if not each.closed_ms}
    assert running == {each.symbol for each in account.held()}
    fees = sum((each.fee for each in store.executions), ZERO)
    made = sum((each.realised for each in store.positions.values()), ZERO)
    assert account.wallet == Decimal(store.state["deposits"]) + made - fees

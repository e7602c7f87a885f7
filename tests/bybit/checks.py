"""What Bybit checks before it accepts an order, with its codes and words. A refusal is raised as `RefusedError`."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from tests.bybit.records import ZERO, Order, text
from tests.bybit.tape import Contract

_LINK_ID = re.compile(r"[A-Za-z0-9_-]{1,36}")
PRICE_BAND = Decimal("0.10")
MOST_ACTIVE = 500
MOST_CONDITIONAL = 10


class RefusedError(Exception):
    """retCode and retMsg of a refusal; nothing has changed."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def number(params: dict[str, Any], name: str, *, required: bool = False) -> Decimal:
    """A number of the request, 0 when absent. Bybit takes strings; anything else than a number is 10001."""
    value = params.get(name)
    if value in (None, ""):
        if required:
            raise RefusedError(10001, f"params error: {name} is required")
        return ZERO
    try:
        parsed = Decimal(str(value))
    except InvalidOperation:
        raise RefusedError(10001, f"params error: {name} invalid") from None
    if not parsed.is_finite() or parsed < 0:
        raise RefusedError(10001, f"params error: {name} invalid")
    return parsed


def flag(params: dict[str, Any], name: str) -> bool:
    value = params.get(name)
    return value is True or str(value).lower() in ("true", "1")


def check_link_id(link_id: str, taken: bool) -> None:
    if not link_id:
        return
    if _LINK_ID.fullmatch(link_id) is None:
        raise RefusedError(10001, "params error: OrderLinkedID format error, at most 36 of letters, digits, - and _")
    if taken:
        raise RefusedError(110072, "OrderLinkedID is duplicate")


def check_contract(contract: Contract, *, reduces: bool) -> None:
    if contract.status in ("Closed", "PreLaunch"):
        raise RefusedError(110074, "This contract is not live")
    if contract.status == "ReduceOnly" and not reduces:
        raise RefusedError(110023, "Currently you can only reduce positions on this contract")
    if contract.status == "Settling":
        raise RefusedError(110063, f"Settlement in progress! {contract.name} not available for trades.")


def check_size(contract: Contract, qty: Decimal) -> None:
    rules = contract.instrument
    if qty <= 0 or qty % rules.lot_size:
        raise RefusedError(10001, "Qty invalid")
    if qty < rules.min_quantity:
        raise RefusedError(10001, "The number of contracts exceeds minimum limit allowed")
    if qty > contract.max_qty:
        raise RefusedError(10001, "The number of contracts exceeds maximum limit allowed: too large")


def check_price(contract: Contract, name: str, price: Decimal) -> None:
    if price <= 0 or price % contract.instrument.tick_size:
        raise RefusedError(10001, f"params error: {name} invalid")


def check_band(side: str, price: Decimal, mark: Decimal) -> None:
    if (side == "Buy" and price > mark * (1 + PRICE_BAND)) or (side == "Sell" and price < mark * (1 - PRICE_BAND)):
        raise RefusedError(110003, "Order price is out of permissible range.")


def check_notional(contract: Contract, value: Decimal) -> None:
    least = contract.instrument.min_notional
    if value < least:
        raise RefusedError(110094, f"Order does not meet minimum order value {text(least)}USDT")


def check_trigger(direction: int, trigger: Decimal, mark: Decimal) -> None:
    if direction not in (1, 2):
        raise RefusedError(10001, "TriggerDirection invalid")
    if direction == 1 and trigger <= mark:
        raise RefusedError(
            110092, f"expect Rising, but trigger_price[{text(trigger)}] <= current[{text(mark)}]??LastPrice"
        )
    if direction == 2 and trigger >= mark:
        raise RefusedError(
            110093, f"expect Falling, but trigger_price[{text(trigger)}] >= current[{text(mark)}]??LastPrice"
        )


def check_attached(side: str, stop: Decimal, profit: Decimal, base: Decimal) -> None:
    """A stop loss lies behind the price, a take profit before it, seen from the position of `side`."""
    for name, price, lower in (("StopLoss", stop, side == "Buy"), ("TakeProfit", profit, side == "Sell")):
        if price and (price >= base if lower else price <= base):
            word = "lower" if lower else "higher"
            raise RefusedError(
                10001, f"{name}:{text(price)} set for {side} position should {word} than base_price:{text(base)}"
            )


def check_reduces(side: str, held: Decimal) -> None:
    if held == 0:
        raise RefusedError(110017, "current position is zero, cannot fix reduce-only order qty")
    if (held > 0) == (side == "Buy"):
        raise RefusedError(110017, "Reduce-only rule not satisfied: orderQty will be truncated to zero")


def check_counts(order: Order, opened: list[Order]) -> None:
    same = [each for each in opened if each.symbol == order.symbol]
    if order.is_waiting and sum(each.is_waiting for each in same) >= MOST_CONDITIONAL:
        raise RefusedError(110009, "The number of stop orders exceeds maximum limit allowed")
    if not order.is_waiting and sum(not each.is_waiting for each in same) >= MOST_ACTIVE:
        raise RefusedError(110020, "Not allowed to have more than 500 active orders")

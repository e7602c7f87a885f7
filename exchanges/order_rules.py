"""What a venue checks before it accepts an order. Pure: facts in, a refusal or None out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from exchanges.fill_model import Holding
from exchanges.port import MAX_CLIENT_ORDER_ID, Instrument, OrderRequest, Rejected

_CLIENT_ORDER_ID = re.compile(rf"[A-Za-z0-9]{{1,{MAX_CLIENT_ORDER_ID}}}")
_KINDS = ("market", "limit", "stop_market")


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """The account as the check needs it. `mark` is the symbol's price now."""

    holding: Holding
    available: Decimal
    leverage: Decimal
    mark: Decimal
    is_spot: bool = False


def check_form(request: OrderRequest) -> Rejected | None:
    """Rules that need neither market nor account."""
    if _CLIENT_ORDER_ID.fullmatch(request.client_order_id) is None:
        return Rejected(
            "BAD_CLIENT_ORDER_ID",
            f"client order id {request.client_order_id!r}: use 1 to {MAX_CLIENT_ORDER_ID} letters and digits",
        )
    if request.side not in ("buy", "sell"):
        return Rejected("BAD_SIDE", f"side {request.side!r}: use 'buy' or 'sell'")
    if request.kind not in _KINDS:
        return Rejected("BAD_KIND", f"kind {request.kind!r}: use one of {', '.join(_KINDS)}")
    if not request.quantity.is_finite() or request.quantity <= 0:
        return Rejected("BAD_QUANTITY", f"quantity {request.quantity}: it must be above 0")
    if request.kind == "limit" and request.price is None:
        return Rejected("BAD_PRICE", "a limit order needs a price")
    if request.kind == "stop_market" and request.trigger_price is None:
        return Rejected("BAD_PRICE", "a stop_market order needs a trigger_price")
    return None


def check_instrument(request: OrderRequest, instrument: Instrument, mark: Decimal | None) -> Rejected | None:
    """Grid and size rules of the symbol. Without a `mark` (no ticker could be had) what needs one is not checked.

    By flawed rules no entry is sent; an exit is, unchecked: the venue knows its rules better.
    """
    if instrument.flaw:
        if request.reduce_only:
            return None
        return Rejected("BAD_RULES", f"the rules of {instrument.symbol} cannot be right: {instrument.flaw}")
    if request.quantity % instrument.lot_size:
        return Rejected("LOT_SIZE", f"quantity {request.quantity} is no multiple of the lot {instrument.lot_size}")
    if request.quantity < instrument.min_quantity:
        return Rejected("MIN_QUANTITY", f"quantity {request.quantity} is below {instrument.min_quantity}")
    for name, price in (("price", request.price), ("trigger_price", request.trigger_price)):
        if price is not None and (not price.is_finite() or price <= 0 or price % instrument.tick_size):
            return Rejected("TICK_SIZE", f"{name} {price} is no positive multiple of the tick {instrument.tick_size}")
    price = mark if request.price is None else request.price
    if price is not None and not request.reduce_only and request.quantity * price < instrument.min_notional:
        return Rejected("MIN_NOTIONAL", f"notional {request.quantity * price:.4f} is below {instrument.min_notional}")
    if mark is not None and request.kind == "stop_market" and request.trigger_price is not None:
        crossed = mark <= request.trigger_price if request.side == "sell" else mark >= request.trigger_price
        if crossed:
            return Rejected(
                "TRIGGER_CROSSED",
                f"a {request.side} stop at {request.trigger_price} would fire at once: the price is {mark}",
            )
    return None


def check_account(request: OrderRequest, facts: AccountFacts) -> Rejected | None:
    """Reduce-only and margin rules."""
    signed = request.quantity if request.side == "buy" else -request.quantity
    held = facts.holding.quantity
    if request.reduce_only:
        if held == 0 or (held > 0) == (signed > 0):
            return Rejected("REDUCE_ONLY", f"nothing to reduce: the position is {held}, the order a {request.side}")
        return None
    if facts.is_spot and held + signed < 0:
        return Rejected("INSUFFICIENT_FUNDS", f"a spot account holds {held} and cannot sell {request.quantity}")
    added = max(abs(held + signed) - abs(held), Decimal(0))
    margin = added * (facts.mark if request.price is None else request.price) / facts.leverage
    if margin > facts.available:
        return Rejected(
            "INSUFFICIENT_FUNDS",
            f"margin {margin:.2f} at leverage {facts.leverage} exceeds the available {facts.available:.2f}",
        )
    return None

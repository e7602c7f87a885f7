"""What an answer to an order means: a pure function from what ccxt raised or returned to the port's four outcomes.

`NetworkError` is not the set of "nobody knows" (reference/exchanges.md): ccxt raises a bare ExchangeError for a torn
body, returns an order without an id for a web page, and calls a refused timestamp a NetworkError. So the rule goes by
the venue's code first, then by class, and whatever is left is Unknown. ccxt is not imported: classes are told by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from exchanges.ccxt_rules import CLOCK_SKEW, KEY_REFUSED, VenueRules
from exchanges.port import (
    DUPLICATE,
    Ack,
    OrderKind,
    OrderRequest,
    OrderSide,
    OrderStatus,
    PlaceOutcome,
    Rejected,
    Throttled,
    Unknown,
    VenueOrder,
)

REFUSALS = {
    "InsufficientFunds": "INSUFFICIENT_FUNDS",
    "OrderImmediatelyFillable": "TRIGGER_CROSSED",
    "ContractUnavailable": "NOT_TRADING",
    "DuplicateOrderId": DUPLICATE,
    "OrderNotFound": "ORDER_NOT_FOUND",
    "InvalidOrder": "INVALID_ORDER",
    "BadSymbol": "UNKNOWN_SYMBOL",
    "BadRequest": "BAD_REQUEST",
    "PermissionDenied": KEY_REFUSED,
    "AuthenticationError": KEY_REFUSED,
    "MarketClosed": "NOT_TRADING",
    "OperationRejected": "OPERATION_REJECTED",
    "NotSupported": "NOT_SUPPORTED",
    "ArgumentsRequired": "BAD_REQUEST",
}
"""ccxt's classes that surely mean "no new order", and our code where the venue's own says nothing more precise."""
THROTTLES = frozenset({"RateLimitExceeded", "DDoSProtection"})
TOO_MANY_REQUESTS = 429
"""Status of a rate limit, which ccxt makes an ExchangeNotAvailable of for some venues."""
DEFAULT_PAUSE_MS = 1_000
BAN_MS = 600_000
"""How long a banned or revoked access is left alone: Bybit lifts an IP's ban after ten minutes."""
MAX_TEXT = 300
_STATUSES: dict[str, OrderStatus] = {
    "open": "open",
    "closed": "filled",
    "canceled": "cancelled",
    "rejected": "rejected",
    "expired": "expired",
}


def classes_of(error: BaseException) -> list[str]:
    """Return the names of the error's class and of its bases, the narrowest first."""
    return [each.__name__ for each in type(error).__mro__]


def place_outcome(
    answer: BaseException | Mapping[str, Any],
    request: OrderRequest,
    rules: VenueRules,
    *,
    now_ms: int,
    retry_at_ms: int | None = None,
    status: int | None = None,
) -> PlaceOutcome:
    """Return what became of `request`. `status` is that of the HTTP answer, if there was one; `retry_at_ms` is when the
    venue said that a limit ends, by our clock.
    """
    if isinstance(answer, BaseException):
        return _of_error(answer, rules, now_ms=now_ms, retry_at_ms=retry_at_ms, status=status)
    if not isinstance(answer, Mapping) or not answer.get("id"):
        return Unknown("the answer names no order: a web page or an empty body looks like this")
    returned = client_id_of(answer)
    if returned != request.client_order_id:
        return Unknown(f"the answer is about another order: {returned!r} instead of {request.client_order_id!r}")
    return Ack(venue_order(answer, request))


def _of_error(
    error: BaseException, rules: VenueRules, *, now_ms: int, retry_at_ms: int | None, status: int | None
) -> PlaceOutcome:
    text, names = shown(error), classes_of(error)
    code = rules.code_of(str(error))
    if code in rules.duplicates or any(part in str(error) for part in rules.duplicate_texts):
        return Rejected(DUPLICATE, text)
    if code in rules.unclear:
        return Unknown(text)
    if "InvalidNonce" in names:
        return Rejected(CLOCK_SKEW, text)
    if code in rules.key_codes:
        return Rejected(KEY_REFUSED, text)
    if code in rules.ban_codes:
        return Throttled(max(retry_at_ms or 0, now_ms + BAN_MS))
    if status == TOO_MANY_REQUESTS or THROTTLES & set(names):
        return Throttled(max(retry_at_ms or now_ms + DEFAULT_PAUSE_MS, now_ms))
    if code in rules.refused:
        return Rejected(rules.meaning.get(code, "REFUSED"), text)
    for part, meaning in rules.refused_texts.items():
        if part in str(error):
            return Rejected(meaning, text)
    for name in names:
        if name in REFUSALS:
            return Rejected(rules.meaning.get(code, REFUSALS[name]), text)
    return Unknown(text)


def shown(error: BaseException) -> str:
    """Return the error as one short line: class and message."""
    return f"{type(error).__name__}: {error}"[:MAX_TEXT]


def is_finished(error: BaseException, rules: VenueRules) -> bool:
    """Tell whether a cancel was refused because nothing is left to cancel: read the order."""
    return rules.code_of(str(error)) in rules.finished or "OrderNotFound" in classes_of(error)


# ------------------------------------------------------------------- orders as ccxt gives them
def client_id_of(raw: Mapping[str, Any]) -> str:
    return str(raw.get("clientOrderId") or "")


def decimal(value: object) -> Decimal | None:
    """Return a number of ccxt or of a venue as the Decimal that it prints as; None for nothing, NaN or no number."""
    if value is None or value == "":
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def venue_order(raw: Mapping[str, Any], request: OrderRequest | None = None) -> VenueOrder:
    """Return ccxt's order as the port's; what the answer leaves open is taken from `request`.

    Raises ValueError for one without a side or a quantity (0 is one: a stop over whatever the position is, placed by
    hand, must not hide the other orders). Bybit's `closed` may be a cancelled rest: by `filled`.
    """
    info = raw.get("info") or {}
    side = raw.get("side") or (request.side if request else None)
    quantity = decimal(info.get("qty"))
    if quantity is None:
        quantity = decimal(raw.get("amount")) or (request.quantity if request else None)
    if side not in ("buy", "sell") or quantity is None:
        raise ValueError(f"an order without side or quantity: {raw.get('id')!r}")
    filled = decimal(info.get("cumExecQty")) or decimal(raw.get("filled")) or Decimal(0)
    reduces = raw.get("reduceOnly")
    if reduces is None:
        reduces = request is not None and request.reduce_only
    trigger = decimal(raw.get("triggerPrice")) or (request.trigger_price if request else None)
    status = _STATUSES.get(str(raw.get("status") or "open"), "open")
    if status == "filled" and filled < quantity:
        status = "cancelled"
    return VenueOrder(
        client_order_id=client_id_of(raw),
        venue_order_id=str(raw.get("id") or ""),
        symbol=str(raw.get("symbol") or (request.symbol if request else "")),
        side=cast(OrderSide, side),
        kind=_kind_of(raw, trigger, request),
        quantity=quantity,
        filled=filled,
        average_price=(decimal(info.get("avgPrice")) or decimal(raw.get("average"))) if filled else None,
        status=status,
        price=(decimal(raw.get("price")) or None) if raw.get("type") == "limit" else None,
        trigger_price=trigger,
        reduce_only=bool(
            raw.get("reduceOnly") if raw.get("reduceOnly") is not None else request and request.reduce_only
        ),
        time_ms=int(raw.get("timestamp") or (request.time_ms if request else 0)),
    )


def _kind_of(raw: Mapping[str, Any], trigger: Decimal | None, request: OrderRequest | None) -> OrderKind:
    if trigger is not None:
        return "stop_market"
    if raw.get("type") in ("market", "limit"):
        return cast(OrderKind, raw["type"])
    return request.kind if request else "market"

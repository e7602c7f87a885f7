"""What an account on Bybit v5 holds, read through ccxt's client: raw pages, so that no list goes missing unnoticed.

Every function runs in the client's event loop and raises what ccxt raises. An answer without its list raises
TypeError: it is not an empty account (F17).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

from exchanges.ccxt_client import CcxtLink, answer_errors
from exchanges.ccxt_outcomes import decimal, venue_order
from exchanges.ccxt_rules import VENUES
from exchanges.errors import ConfigurationError
from exchanges.port import Balance, FillCause, FillKind, OrderSide, OrderStatus, VenueFill, VenueOrder, VenuePosition
from quant.timeframes import DAY_MS

PROVEN = tuple(rules.ccxt_id for rules in VENUES.values() if rules.proven)
NOT_SENT_PAUSE_MS = 2_000
HISTORY_DAYS = 730
"""Bybit keeps executions for two years."""
WINDOW_MS = 7 * DAY_MS - 1
PAGES_LIMIT = 1_000
TRADE_PERMISSIONS = (("ContractTrade", "Order"), ("Derivatives", "DerivativesTrade"))
ATTACHED_TYPES = frozenset({"StopLoss", "TakeProfit", "TrailingStop", "PartialStopLoss", "PartialTakeProfit"})
MARGIN_MODES = {"cross": "REGULAR_MARGIN", "isolated": "ISOLATED_MARGIN"}
TRADES: dict[str, FillCause] = {
    "Trade": "",
    "BlockTrade": "",
    "FutureSpread": "",
    "BustTrade": "liquidation",
    "AdlTrade": "adl",
    "Delivery": "delivery",
    "MovePosition": "moved",
}
"""Bybit's `execType` of what changes the position, and why if nobody ordered it."""
CASH_ONLY = frozenset({"Funding", "Settle", "SessionSettlePnL"})
"""Those that do not: what a settlement pays out is profit that the position's fills hold already; its fee counts."""
Row = Mapping[str, Any]


# ------------------------------------------------------------------------------ the key and the account
async def read_key(link: CcxtLink) -> Row:
    """Return what the venue says of the key: `readOnly`, `permissions`, `uta`, `ips`."""
    answer = await link.request(lambda client: client.privateGetV5UserQueryApi())
    return cast(Row, _result(answer))


def check_key(found: Row) -> None:
    """Raise ConfigurationError for a key that may do too much or too little, or whose account is of another kind."""
    permissions = {name: tuple(rights or ()) for name, rights in (found.get("permissions") or {}).items()}
    if "Withdraw" in permissions.get("Wallet", ()):
        raise ConfigurationError(
            "this API key may withdraw money, and a bot must not be able to: make a key without the permission "
            "Withdraw at the exchange, and put it in the place of this one"
        )
    if str(found.get("readOnly")) == "1":
        raise ConfigurationError("this API key is read-only: make one that may trade (without Withdraw)")
    if not any(right in permissions.get(name, ()) for name, right in TRADE_PERMISSIONS):
        raise ConfigurationError(
            "this API key may not trade derivatives: give it the permissions Orders and Positions (without Withdraw)"
        )
    if str(found.get("uta")) != "1":
        raise ConfigurationError("this account is no unified trading account: upgrade it at the exchange")


async def ensure_margin_mode(link: CcxtLink, wanted: str) -> None:
    """Set the account's margin mode ("cross" or "isolated") if it is another one.

    Raises ValueError when the venue took the request and names reasons why nothing was changed.
    """
    found = _result(await link.request(lambda client: client.privateGetV5AccountInfo())).get("marginMode")
    if found == MARGIN_MODES[wanted]:
        return
    mode = {"setMarginMode": MARGIN_MODES[wanted]}
    answer = _result(await link.request(lambda client: client.privatePostV5AccountSetMarginMode(mode)))
    if reasons := answer.get("reasons"):
        raise ValueError(f"margin mode {wanted} was not set: {reasons}")


async def ensure_leverage(link: CcxtLink, symbol: str, leverage: Decimal) -> None:
    """Set the leverage of a symbol if it is another one. That it was so already is a success too (110043)."""
    scope = {"symbol": link.client.market(symbol)["id"]}
    rows = await _pages(link, "privateGetV5PositionList", scope)  # a row for a named symbol, held or not
    if rows and all(decimal(row.get("leverage")) == leverage for row in rows):
        return
    try:
        await link.request(lambda client: client.set_leverage(f"{leverage:f}", symbol))
    except answer_errors() as error:
        if link.rules is None or link.rules.code_of(str(error)) not in link.rules.leverage_unchanged:
            raise


async def read_balance(link: CcxtLink, currency: str) -> Balance:
    """Equity is that of `currency` alone; `available` is what the whole account lets be used for new orders."""
    answer = await link.request(lambda client: client.privateGetV5AccountWalletBalance({"accountType": "UNIFIED"}))
    rows = _result(answer).get("list")
    if not isinstance(rows, list) or not rows:
        raise ValueError("an account without a balance")
    account = rows[0]
    coin = next((each for each in account.get("coin") or () if each.get("coin") == currency), None)
    if coin is None:  # nothing of it was ever deposited
        return Balance(currency, Decimal(0), Decimal(0))
    equity = _number(coin, "equity")
    available = decimal(account.get("totalAvailableBalance"))
    if available is None:  # isolated margin: the venue says it per coin
        available = equity - _number(coin, "totalPositionIM") - _number(coin, "totalOrderIM")
    return Balance(currency, equity, max(available, Decimal(0)))


# ------------------------------------------------------------------------------ positions
async def read_positions(link: CcxtLink) -> list[VenuePosition]:
    """Open positions of every settlement currency, sorted by symbol, with the stop that is attached to each."""
    found = []
    for coin in _settle_coins(link.client):
        rows = await _pages(link, "privateGetV5PositionList", {"settleCoin": coin, "limit": 200})
        found += [_position(link.client, row) for row in rows if _number(row, "size") != 0]
    names = [position.symbol for position in found]
    if len(names) != len(set(names)):
        raise ValueError("two positions of one symbol: switch the account to one-way mode, hedge mode is not traded")
    return sorted(found, key=lambda position: position.symbol)


def _position(client: Any, row: Row) -> VenuePosition:
    size = _number(row, "size")
    return VenuePosition(
        symbol=_symbol(client, row),
        quantity=size if row.get("side") == "Buy" else -size,
        entry_price=_number(row, "avgPrice"),
        mark_price=_number(row, "markPrice"),
        stop_price=decimal(row.get("stopLoss")) or None,
    )


def with_stop(position: VenuePosition, trigger: Decimal | None) -> VenuePosition:
    """Return the position with the trigger of its open stop order, if none is attached to it."""
    return position if position.stop_price is not None else replace(position, stop_price=trigger)


# ------------------------------------------------------------------------------ orders
async def read_open_orders(link: CcxtLink, symbol: str | None) -> list[VenueOrder]:
    """Open orders, oldest first, without those that the venue made for a position's own stop."""
    if symbol is not None:
        scopes: list[dict[str, Any]] = [{"symbol": link.client.market(symbol)["id"]}]
    else:
        scopes = [{"settleCoin": coin} for coin in _settle_coins(link.client)]
    orders = []
    for scope in scopes:
        rows = await _pages(link, "privateGetV5OrderRealtime", scope | {"limit": 50})
        own = [row for row in rows if not (_is_attached(row) and not row.get("orderLinkId"))]
        orders += [_order(link.client, row) for row in own]
    return sorted((each for each in orders if each.status == "open"), key=lambda each: each.time_ms)


async def find_order(link: CcxtLink, symbol: str, client_order_id: str) -> VenueOrder | None:
    """Look among the open orders, then in the history, then among the executions; None if all three lack it.

    In this order an order that ends meanwhile is not missed. Answers about other orders are passed over.
    """
    scope = {"symbol": link.client.market(symbol)["id"], "orderLinkId": client_order_id}
    for method in ("privateGetV5OrderRealtime", "privateGetV5OrderHistory"):
        for row in await _pages(link, method, scope):
            if row.get("orderLinkId") == client_order_id:
                return _order(link.client, row)
    rows = await _pages(link, "privateGetV5ExecutionList", scope | {"limit": 100})
    ours = {str(row.get("execId")): row for row in rows if row.get("orderLinkId") == client_order_id}
    return _from_executions(symbol, client_order_id, list(ours.values())) if ours else None


def _from_executions(symbol: str, client_order_id: str, rows: list[Row]) -> VenueOrder:
    """An order that only its fills remember. What is left of it is gone, else it would be among the open ones."""
    filled = sum((_number(row, "execQty") for row in rows), Decimal(0))
    value = sum((_number(row, "execQty") * _number(row, "execPrice") for row in rows), Decimal(0))
    quantity = decimal(rows[0].get("orderQty")) or filled
    status: OrderStatus = "filled" if filled >= quantity else "cancelled"
    return VenueOrder(
        client_order_id=client_order_id,
        venue_order_id=str(rows[0].get("orderId") or ""),
        symbol=symbol,
        side=_side(rows[0]),
        kind="market",
        quantity=quantity,
        filled=filled,
        average_price=value / filled if filled else None,
        status=status,
        price=None,
        trigger_price=None,
        reduce_only=False,
        time_ms=min(int(row["execTime"]) for row in rows),
    )


def _is_attached(row: Row) -> bool:
    return row.get("stopOrderType") in ATTACHED_TYPES


def _order(client: Any, row: Row) -> VenueOrder:
    return venue_order(client.parse_order(dict(row), client.safe_market(row.get("symbol"), None, None, "swap")))


# ------------------------------------------------------------------------------ fills
async def read_fills(link: CcxtLink, since_ms: int) -> list[VenueFill]:
    """Trades, liquidations and payments since `since_ms` (the venue's time), each once, in order of execution.

    A kind that is not known is a trade if it is of our own order. Else it is not booked, and a person is told: what it
    did to a position shows when positions are compared, and the venue's wins.
    """
    now = link.clock.now()
    start = max(since_ms, now - HISTORY_DAYS * DAY_MS)
    found: dict[str, tuple[int, int, VenueFill]] = {}
    while start <= now:
        end = start + WINDOW_MS
        window = {"startTime": start, "endTime": end, "limit": 100}
        rows = await _pages(link, "privateGetV5ExecutionList", window)
        for row in rows:
            if not decimal(row.get("execQty")):
                continue
            kind = str(row.get("execType"))
            if kind not in TRADES and kind not in CASH_ONLY and not row.get("orderLinkId"):
                link.notices[f"execution:{kind}"] = (
                    f"an execution of the unknown kind {kind!r} is not in the books ({row.get('symbol')}, "
                    f"{row.get('side')} {row.get('execQty')}). If a position changed by it, the exchange's is taken."
                )
                continue
            fill = _fill(link.client, row)
            found[fill.trade_id] = (fill.time_ms, int(row.get("seq") or 0), fill)
        start = end + 1
    ordered = sorted(found.values(), key=lambda each: each[:2])
    return [fill for time_ms, _, fill in ordered if time_ms >= since_ms]


def _fill(client: Any, row: Row) -> VenueFill:
    kind: FillKind = "funding" if row.get("execType") in CASH_ONLY else "trade"
    return VenueFill(
        trade_id=str(row["execId"]),
        client_order_id="" if kind == "funding" else str(row.get("orderLinkId") or ""),
        venue_order_id=str(row.get("orderId") or ""),
        symbol=_symbol(client, row),
        side=_side(row),
        quantity=_number(row, "execQty"),
        price=_number(row, "execPrice"),
        fee=decimal(row.get("execFee")) or Decimal(0),
        time_ms=int(row["execTime"]),
        kind=kind,
        attached=_is_attached(row) and not row.get("orderLinkId"),
        cause=TRADES.get(str(row.get("execType")), ""),
    )


# ------------------------------------------------------------------------------ pages and rows
async def _pages(link: CcxtLink, method: str, query: Mapping[str, Any]) -> list[Row]:
    """Every row of a list, page by page. Raises TypeError for an answer without a list."""
    rows: list[Row] = []
    cursor = ""
    for _ in range(PAGES_LIMIT):
        asked = {"category": "linear", **query, **({"cursor": cursor} if cursor else {})}
        result = _result(await link.request(operator.methodcaller(method, asked)))
        page = result.get("list")
        if not isinstance(page, list):
            raise TypeError("an answer without its list")
        rows += page
        next_cursor = str(result.get("nextPageCursor") or "")
        if not page or not next_cursor or next_cursor == cursor:
            return rows
        cursor = next_cursor
    raise ValueError(f"a list of more than {PAGES_LIMIT} pages")


def _result(answer: Any) -> dict[str, Any]:
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, dict):
        raise TypeError("an answer without a result")
    return result


def _settle_coins(client: Any) -> list[str]:
    """Currencies that the traded contracts are settled in: the venue lists positions and orders by them."""
    markets: Iterable[Any] = (client.markets or {}).values()
    return sorted({str(each["settle"]) for each in markets if each.get("linear") and each.get("settle")})


def _symbol(client: Any, row: Row) -> str:
    return str(client.safe_symbol(row.get("symbol"), None, None, "swap"))


def _side(row: Row) -> OrderSide:
    side = str(row.get("side")).lower()
    if side not in ("buy", "sell"):
        raise ValueError(f"side {side!r}")
    return cast(OrderSide, side)


def _number(row: Row, name: str) -> Decimal:
    """A number that must be there. Raises ValueError: a missing size is not zero."""
    value = decimal(row.get(name))
    if value is None:
        raise ValueError(f"{name}={row.get(name)!r} is no number")
    return value

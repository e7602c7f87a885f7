"""Whether the tables say what the exchange says: nothing lost, nothing doubled, nothing stale, nothing naked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from trading_app.choices import TERMINAL_ORDER_STATES, FillKind, OrderPurpose, OrderState
from trading_app.client_ids import ACCOUNT_CHARS, DEPLOYMENT_CHARS, TOKEN_CHARS
from trading_app.models import Bot, Fill, Order, Position

NEVER_PLACED = (OrderState.INTENT, OrderState.NOT_PLACED, OrderState.REJECTED)
TOKEN = slice(ACCOUNT_CHARS + DEPLOYMENT_CHARS, ACCOUNT_CHARS + DEPLOYMENT_CHARS + TOKEN_CHARS)


@dataclass(slots=True)
class Differences:
    """Sentences by what is wrong, of `lost` by the order, execution or position that they are about.

    What is `lost` may be found in a moment: the bot reads while the exchange trades on.
    """

    lost: dict[str, str] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def compare(bot: Bot, books: dict[str, Any], *, first_row: int, last_row: int, window_ms: float) -> Differences:
    """Return how the exchange's `books` and the tables differ in orders of the rows `first_row` to `last_row`.

    Read the books before the call: the tables may know more than they, never less. `window_ms` is the receive window
    in the exchange's milliseconds.
    """
    found = Differences()
    rows = {
        row.client_order_id or "": row
        for row in Order.objects.filter(bot=bot, pk__gte=first_row, pk__lte=last_row).select_related("symbol")
    }
    there = {order["link_id"]: order for order in books["orders"] if order["link_id"]}
    known = set(
        Order.objects.filter(bot=bot, client_order_id__in=there.keys()).values_list("client_order_id", flat=True)
    )
    for link_id in there.keys() - known:
        found.lost[link_id] = f"the exchange has order {link_id}, no row does"
    for link_id, row in rows.items():
        _compare_order(row, there.get(link_id), found)
    _compare_fills(bot, books, found)
    _compare_positions(bot, books, found)
    _doubled(bot, there, found)
    _stale(books["orders"], window_ms, found)
    return found


def _compare_order(row: Order, seen: dict[str, Any] | None, found: Differences) -> None:
    link_id = row.client_order_id or f"row {row.pk}"
    name = f"order {link_id} ({row.purpose} {row.symbol.code})"
    if seen is None:
        if row.state not in NEVER_PLACED:
            found.lost[link_id] = f"{name} is {row.state}, and the exchange does not know it"
        return
    placed = seen["status"] != "Rejected"
    if placed and row.state in NEVER_PLACED:
        found.lost[link_id] = f"{name} is {row.state}, and the exchange says {seen['status']}"
    elif Decimal(seen["filled"]) != row.filled:
        found.lost[link_id] = f"{name} says filled={row.filled}, the exchange {seen['filled']}"
    elif row.state in TERMINAL_ORDER_STATES and seen["status"] in ("New", "PartiallyFilled", "Untriggered"):
        found.lost[link_id] = f"{name} is {row.state}, and the exchange says {seen['status']}"


def _compare_fills(bot: Bot, books: dict[str, Any], found: Differences) -> None:
    there = {each["exec_id"] for each in books["executions"]}
    here = set(Fill.objects.filter(bot=bot, trade_id__in=there).values_list("trade_id", flat=True))
    found.lost.update((exec_id, f"execution {exec_id} has no row") for exec_id in sorted(there - here))
    adjusted = Fill.objects.filter(bot=bot, kind=FillKind.ADJUSTMENT).count()
    if adjusted:
        found.lost["adjusted"] = f"{adjusted} positions had to be set to what the exchange says: their fills were lost"


def _compare_positions(bot: Bot, books: dict[str, Any], found: Differences) -> None:
    there = {_code(each["symbol"]): Decimal(each["qty"]) for each in books["positions"] if Decimal(each["qty"])}
    here = {row.symbol.code: row.quantity for row in Position.objects.open().filter(bot=bot).select_related("symbol")}
    for code in sorted(there.keys() | here.keys()):
        if there.get(code, 0) != here.get(code, 0):
            found.lost[code] = f"{code}: the exchange holds {there.get(code, 0)}, the tables {here.get(code, 0)}"


def _code(symbol: str) -> str:
    """Return ccxt's code of a perpetual's name at Bybit."""
    return f"{symbol.removesuffix('USDT')}/USDT:USDT"


def _doubled(bot: Bot, there: dict[str, dict[str, Any]], found: Differences) -> None:
    """Each decision may open once."""
    entries = Order.objects.filter(bot=bot, purpose=OrderPurpose.ENTRY, client_order_id__in=there.keys())
    accepted = Counter(
        decision
        for link_id, decision in entries.values_list("client_order_id", "decision_id")
        if there[link_id or ""]["status"] != "Rejected"
    )
    found.doubled.extend(f"decision {pk} was sent {times} times" for pk, times in accepted.items() if times > 1)


def _stale(orders: list[dict[str, Any]], window_ms: float, found: Differences) -> None:
    """No order after one of a younger owner of the account, none older than the receive window."""
    newest = ""
    for order in sorted(orders, key=lambda each: each["sequence"]):
        if not order["link_id"]:
            continue
        if order["age_ms"] > window_ms:
            found.stale.append(f"order {order['link_id']} was accepted {order['age_ms']} ms after it was signed")
        token = order["link_id"][TOKEN]
        if token < newest:
            found.stale.append(f"order {order['link_id']} of token {token} was accepted after one of {newest}")
        newest = max(newest, token)


def sent_since(books: dict[str, Any], token: str, since_ms: int) -> list[str]:
    """Return the orders of a former owner (`token`) that the exchange accepted after `since_ms`, when it woke."""
    return [
        f"order {each['link_id']} of a bot that had lost its account was accepted when it woke"
        for each in books["orders"]
        if each["link_id"][TOKEN] == token and each["accepted_ms"] > since_ms
    ]


def unprotected(books: dict[str, Any], *, deadline_ms: float) -> list[str]:
    """Return the positions that had no stop for longer than `deadline_ms` of the exchange's time."""
    return [
        f"{each['symbol']} had no stop for {each['naked_longest_ms']} ms"
        for each in books["episodes"]
        if each["naked_longest_ms"] > deadline_ms
    ]

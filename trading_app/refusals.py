"""What the exchange's refusals of entries say about the next entry: derived from the orders, so a restart forgets none.

A refused entry is never repeated blindly (F05). One symbol's second refusal of a day keeps it out for an hour, doubled
with each further one; a refusal that is about the account (its key, its clock) keeps all entries out at once, and the
same refusal three times in a row, whatever it is about, does as well (F07, F39). Exits are never asked (I20).
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass, field

from quant.policy import back_off_ms
from quant.reasons import reason
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Bot, Order

ACCOUNT_CODES = frozenset({"KEY_REFUSED", "CLOCK_SKEW"})
"""Refusals that no other symbol, size or side would have escaped (`exchanges.ccxt_rules`)."""
WINDOW = dt.timedelta(days=1)
SYMBOL_REFUSALS, ACCOUNT_REFUSALS = 2, 3
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


@dataclass(slots=True)
class Refusals:
    """Reasons against entries: one against all, and by symbol code."""

    account: str | None = None
    symbols: dict[str, str] = field(default_factory=dict)


def code_of(order: Order) -> str:
    """Return the venue's code of a refused order: ``REJECTED: code=..., detail=... | why it was placed``."""
    head = order.reason.partition(" | ")[0].partition("code=")[2]
    return head.partition(",")[0].strip()


def refusals(bot: Bot, now: dt.datetime) -> Refusals:
    """Return what the refusals of the last day have against entries now: two queries."""
    found = Refusals()
    entries = Order.objects.filter(bot=bot, purpose=OrderPurpose.ENTRY)
    by_symbol: dict[str, list[Order]] = defaultdict(list)
    refused = entries.filter(state=OrderState.REJECTED, created_at__gt=now - WINDOW)
    for order in refused.select_related("symbol").order_by("id"):
        by_symbol[order.symbol.code].append(order)
    for code, orders in by_symbol.items():
        times = len(orders)
        if times < SYMBOL_REFUSALS:
            continue
        until = _until(orders[-1], times - SYMBOL_REFUSALS + 1)
        if now < until:
            found.symbols[code] = reason("ORDERS_REFUSED", code=code_of(orders[-1]), times=times, until=until)
    if by_symbol:
        asked = entries.exclude(state__in=(OrderState.INTENT, OrderState.NOT_PLACED))  # what the exchange answered
        found.account = _account(list(asked.order_by("-id")[:ACCOUNT_REFUSALS]), now)
    return found


def _account(newest: list[Order], now: dt.datetime) -> str | None:
    """Judge the newest entries: nothing that was accepted since speaks for the account."""
    streak: list[str] = []
    for order in newest:
        if order.state != OrderState.REJECTED:
            break
        streak.append(code_of(order))
    if not streak or not (streak[0] in ACCOUNT_CODES or streak.count(streak[0]) == ACCOUNT_REFUSALS):
        return None
    until = _until(newest[0], 1)
    return reason("ORDERS_REFUSED", code=streak[0], times=len(streak), until=until) if now < until else None


def _until(last: Order, times: int) -> dt.datetime:
    return last.created_at + dt.timedelta(milliseconds=back_off_ms(times, HOUR_MS, DAY_MS))

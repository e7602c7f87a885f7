"""Takes fills over into the tables, each once, and folds every touched position and order from its fills (I17)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from django.db import transaction

from exchanges.port import VenueFill
from ops_app import alerts, clock, leases
from ops_app.choices import Severity
from quant.reasons import reason
from quant.timeframes import from_ms, to_ms
from trading_app.choices import RESTING_PURPOSES, FillKind, OrderPurpose, OrderState, RiskKind
from trading_app.fold import FoldFill, fold
from trading_app.models import Fill, Order, Position
from trading_app.order_machine import NEVER_PLACED, by_fills
from trading_app.orders import CLOCK_SKEW, OrderDesk, move
from trading_app.services import record_risk
from trading_app.venue import Account

SCALE = Decimal("1e-12")
"""The columns' last digit."""
ATTACHED = "attached-stop"
"""What a fill's row says in place of a client order id when the stop that a venue keeps for a position was filled."""

BY_EXCHANGE = "by-exchange:"
TAKEN = (f"{BY_EXCHANGE}liquidation", f"{BY_EXCHANGE}adl")
"""The same where the exchange itself traded, followed by why (`FillCause`)."""
FAR_OFF = dt.timedelta(minutes=1)


@dataclass(slots=True)
class AppliedFills:
    """What a batch of fills changed: new fills, the codes whose positions they touched, and fills that are not ours.

    `strange` are those with a client order id that no order in the tables has, also in symbols that are not there.
    """

    new: int = 0
    touched: set[str] = field(default_factory=set)
    foreign: list[VenueFill] = field(default_factory=list)
    strange: list[VenueFill] = field(default_factory=list)
    unknown_symbols: set[str] = field(default_factory=set)


def apply_fills(desk: OrderDesk, fills: Sequence[VenueFill]) -> AppliedFills:
    """Record the fills that are not recorded yet and fold what they touch, in one transaction; again: no change."""
    applied = AppliedFills()
    account = desk.account
    if not fills:
        return applied
    with transaction.atomic():
        leases.held(account.lease)  # a zombie's fold of fewer fills must not overwrite a newer one
        known = set(
            Fill.objects.filter(
                account=account.bot.account, trade_id__in=[fill.trade_id for fill in fills]
            ).values_list("trade_id", flat=True)
        )
        fresh = {fill.trade_id: fill for fill in fills if fill.trade_id not in known}
        if not fresh:
            return applied
        orders = _orders_of(account, fresh.values())
        new = _dated(account, sorted(fresh.values(), key=lambda fill: (fill.time_ms, fill.trade_id)), orders)
        rows: list[Fill] = []
        positions: dict[str, Position | None] = {}
        for fill in new:
            if fill.client_order_id and fill.client_order_id not in orders:
                applied.strange.append(fill)
            if fill.symbol not in account.symbol_ids:
                applied.unknown_symbols.add(fill.symbol)
                continue
            order = orders.get(fill.client_order_id)
            position = _position_of(account, fill, order, positions)
            if order is None and fill.kind == FillKind.TRADE.value and not _is_our_stop(fill, position):
                applied.foreign.append(fill)
            rows.append(_row(account, fill, order, position))
            applied.touched.add(fill.symbol)
        Fill.objects.bulk_create(rows, ignore_conflicts=True)
        applied.new = len(rows)
        touched_orders = {order.pk: order for order in orders.values()}
        for order in touched_orders.values():
            fold_order(desk, order)
        for position in {
            each.pk: each for each in positions.values() if each is not None and not each.foreign
        }.values():
            fold_position(position)
    for fill in applied.foreign:
        record_risk(
            bot=account.bot,
            kind=RiskKind.FOREIGN,
            evidence=reason(
                fill.cause.upper() or "FOREIGN_FILL", symbol=fill.symbol, side=fill.side, quantity=fill.quantity,
                price=fill.price, client_order_id=fill.client_order_id or "none",
            ),
            severity=Severity.CRITICAL,
            subject=f"symbol:{fill.symbol}",
        )  # fmt: skip
    return applied


def _dated(account: Account, fills: list[VenueFill], orders: dict[str, Order]) -> list[VenueFill]:
    """Return the fills, in their order, with times that can be: not before their order was sent, not after now.

    The exchange's clock may be off, or ours: then a fill would open a position before its decision, end it in the
    future, or stand on the wrong side of another one. One that is further off than FAR_OFF counts from when its order
    was sent, or from when it was read; a person is told.
    """
    now_ms = to_ms(clock.market_now())
    far_ms = round(max(FAR_OFF, CLOCK_SKEW * clock.speed()).total_seconds() * 1000)
    dated: list[VenueFill] = []
    for place, fill in enumerate(fills):
        order = orders.get(fill.client_order_id)
        sent_ms = to_ms(order.sent_at) if order is not None and order.sent_at is not None else fill.time_ms
        time_ms = fill.time_ms
        if time_ms > now_ms + far_ms:
            time_ms = now_ms + place  # the fold goes by time: they keep their order
        elif time_ms < sent_ms - far_ms:
            time_ms = sent_ms
        if time_ms != fill.time_ms:
            alerts.raise_alert(
                f"fill_time:{account.bot.name}",
                f"{fill.symbol}: a fill says that it was made {(fill.time_ms - time_ms) // 1000} s away from when that "
                "can be. It counts from then. Look at this host's clock (timedatectl) and at the exchange's.",
                Severity.WARNING,
            )
        dated.append(replace(fill, time_ms=time_ms))
    return dated


def _is_our_stop(fill: VenueFill, position: Position | None) -> bool:
    """Tell whether the stop that came with a position's entry closed it: nobody else's order did."""
    return fill.attached and position is not None and not position.foreign


def _orders_of(account: Account, fills: Iterable[VenueFill]) -> dict[str, Order]:
    ids = {fill.client_order_id for fill in fills if fill.client_order_id}
    rows = Order.objects.filter(bot=account.bot, client_order_id__in=ids).select_related("position", "decision")
    return {row.client_order_id or "": row for row in rows}


def _position_of(
    account: Account, fill: VenueFill, order: Order | None, cache: dict[str, Position | None]
) -> Position | None:
    """Find the position that a fill belongs to: its order's, else the open one, else (an entry) a new one.

    A venue nets per symbol. So a late fill of an order whose position is closed belongs to the one that is open now,
    and opens the closed one again when none is.
    """
    if fill.symbol not in cache:
        cache[fill.symbol] = (
            Position.objects.open().filter(bot=account.bot, symbol_id=account.symbol_ids[fill.symbol]).first()
        )
    position = cache[fill.symbol]
    if position is not None and position.foreign and order is not None and order.purpose == OrderPurpose.ENTRY:
        _claim(position, order)
    if order is not None and position is None:
        position = cache[fill.symbol] = order.position
    if position is None and order is not None and order.purpose == OrderPurpose.ENTRY:
        position = cache[fill.symbol] = Position.objects.create(
            bot=account.bot,
            symbol_id=order.symbol_id,
            side=1 if order.side == "buy" else -1,
            stop_price=order.stop_price,
            target_price=order.target_price,
            expires_at=order.position_expires_at,
            entry_decision=order.decision,
            opened_at=from_ms(fill.time_ms),
        )
    if order is not None and position is not None and order.position_id != position.pk:
        order.position = position
        Order.objects.filter(pk=order.pk).update(position=position)
    return position


def _claim(position: Position, order: Order) -> None:
    """Take over a position that looked like somebody else's until a fill of our own entry turned up (F12, R8).

    One that was traded by others as well stays theirs: what of it is ours cannot be told.
    """
    if Fill.objects.filter(position=position, kind=FillKind.TRADE, order=None).exists():
        return
    position.foreign = False
    position.stop_price = order.stop_price
    position.target_price = order.target_price
    position.expires_at = order.position_expires_at
    position.entry_decision = order.decision
    position.save(update_fields=["foreign", "stop_price", "target_price", "expires_at", "entry_decision"])


def _row(account: Account, fill: VenueFill, order: Order | None, position: Position | None) -> Fill:
    return Fill(
        bot=account.bot,
        order=order,
        position=position,
        symbol_id=account.symbol_ids[fill.symbol],
        account=account.bot.account,
        trade_id=fill.trade_id,
        client_order_id=_mark(fill),
        kind=fill.kind,
        side=fill.side,
        quantity=fill.quantity,
        price=fill.price,
        fee=fill.fee,
        filled_at=from_ms(fill.time_ms),
    )


def _mark(fill: VenueFill) -> str:
    if fill.attached:
        return ATTACHED
    return fill.client_order_id[:64] or (BY_EXCHANGE + fill.cause if fill.cause else "")


def fold_order(desk: OrderDesk, order: Order) -> None:
    """Set what was filled from the order's fills; a fill moves even an order that was given up (F12)."""
    trades = [
        (fill.quantity, fill.price)
        for fill in Fill.objects.filter(order=order, kind=FillKind.TRADE).only("quantity", "price")
    ]
    filled = sum((quantity for quantity, _ in trades), Decimal(0))
    if filled == 0:
        return
    average = (sum((quantity * price for quantity, price in trades), Decimal(0)) / filled).quantize(SCALE)
    before = OrderState(order.state)
    filled = max(filled, order.filled)
    state = by_fills(before, filled=filled, quantity=order.quantity)
    if filled > order.quantity:
        _report_overfill(desk, order, filled)
    if (state, filled, average) == (before, order.filled, order.average_price):
        return
    move(order, state, filled=filled, average_price=average)
    if before == OrderState.UNKNOWN:
        desk.resolved(order, reason("FILL_FOUND", filled=filled))
    if before in NEVER_PLACED:
        record_risk(
            bot=desk.account.bot,
            kind=RiskKind.DRIFT,
            evidence=reason("LATE_FILL", order=str(order), was=before, filled=filled),
            severity=Severity.CRITICAL,
            subject=f"symbol:{desk.account.code_of(order.symbol_id)}",
        )


def _report_overfill(desk: OrderDesk, order: Order, filled: Decimal) -> None:
    """Say once that the venue filled more than was asked for: its position wins, and the stop has its size (F13)."""
    symbol = desk.account.code_of(order.symbol_id)
    evidence = reason("OVERFILL", order=str(order), asked=order.quantity, filled=filled)
    raised = alerts.raise_alert(
        f"overfill:{order.client_order_id}",
        f"{symbol}: the exchange filled {filled:f} of an order over {order.quantity:f}. Its position wins; look at it.",
        Severity.CRITICAL,
    )
    if raised is not None:
        record_risk(
            bot=desk.account.bot, kind=RiskKind.DRIFT, evidence=evidence, severity=Severity.CRITICAL,
            subject=f"symbol:{symbol}",
        )  # fmt: skip


def fills_of(position: Position) -> list[FoldFill]:
    """Return the recorded fills of a position for the fold (1 query)."""
    names = ("trade_id", "side", "quantity", "price", "fee", "filled_at", "kind")
    return [
        FoldFill(trade_id, side, quantity, price, fee, to_ms(filled_at), kind)
        for trade_id, side, quantity, price, fee, filled_at, kind in Fill.objects.filter(position=position).values_list(
            *names
        )
    ]


def fold_position(position: Position) -> None:
    """Write the fold of the position's fills into its row; closed exactly when the fold is flat."""
    folded = fold(fills_of(position))
    position.quantity = folded.quantity
    position.entry_price = folded.entry_price.quantize(SCALE)
    position.realised_pnl = folded.realised_pnl.quantize(SCALE)
    position.fees = folded.fees.quantize(SCALE)
    position.side = folded.side or position.side
    if folded.quantity == 0:
        position.closed_at = from_ms(folded.last_ms)
        position.close_reason = position.close_reason or _close_reason(position)
    else:
        position.closed_at, position.close_reason = None, ""
    position.save(
        update_fields=["quantity", "entry_price", "realised_pnl", "fees", "side", "closed_at", "close_reason"]
    )


def _close_reason(position: Position) -> str:
    """Say what closed the position: the order of its newest fill, or the exchange if it took any part of it away."""
    fills = Fill.objects.filter(position=position).exclude(kind=FillKind.FUNDING).order_by("-filled_at", "-id")
    taken = fills.filter(client_order_id__in=TAKEN).first()
    last = taken or fills.select_related("order").first()
    if last is None:
        return ""
    if last.kind == FillKind.ADJUSTMENT:
        return "VANISHED: the exchange had no such position any more"
    if last.client_order_id == ATTACHED:
        return reason(OrderPurpose.STOP.name, price=last.price, attached=True)
    if last.client_order_id.startswith(BY_EXCHANGE):
        return reason(last.client_order_id.removeprefix(BY_EXCHANGE).upper(), price=last.price, by="exchange")
    if last.order is None:
        return "EXTERNAL: closed at the exchange by an order that is not ours"
    if last.order.purpose in RESTING_PURPOSES:
        return reason(OrderPurpose(last.order.purpose).name, price=last.price)
    return last.order.reason.rpartition(" | ")[2][:200]  # without what kept its outcome unknown for a while

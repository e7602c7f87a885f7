"""Every open position has a live stop of its size at the exchange, or is being closed (I18). Nothing can pause this.

A limit order rests beside the stop and takes the profit where the label did (`quant.labels`). Both are reduce-only, so
when one has closed the position the other has nothing left, whoever comes first, and with no bot running. The stop is
a must, the target is not: without one, the engine takes the profit at the close of a bar.

Runs after every batch of fills and at every reconciliation. A position is *closing* from its first exit order on: what
an exit left open (a partial fill, a refusal, an unknown outcome that proved empty) is closed by the next one.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import structlog

from ops_app import alerts, clock
from ops_app.choices import Severity
from ops_app.prepared import Prepared
from quant.policy import back_off_ms
from quant.reasons import reason
from trading_app.choices import (
    IN_FLIGHT_ORDER_STATES,
    OPEN_ORDER_STATES,
    RESTING_PURPOSES,
    OrderPurpose,
    OrderState,
    RiskKind,
)
from trading_app.models import Order, Position
from trading_app.orders import NewOrder, OrderDesk
from trading_app.services import record_risk

log = structlog.get_logger(__name__)

MAX_STOP_ATTEMPTS = 2
"""Stops that a venue refuses before the position is closed by market instead (F18)."""
MAX_TARGET_ATTEMPTS = 3
"""Targets that a venue refuses before the position goes without one."""
TARGET_BASE_MS, TARGET_CAP_MS = 60_000, 3_600_000
EXIT_BASE_MS, EXIT_CAP_MS = 5_000, 300_000
PATIENT_AFTER, PATIENT_CAP_MS = 20, 3_600_000
"""More than an hour of refusals is a suspension, not a hiccup: it may last weeks, and every try leaves a row."""
EXIT_ALERT_AFTER = 3
open_positions = Prepared(lambda bot: Position.objects.open().filter(bot=bot).order_by("id"))
_of_open_positions = Prepared(
    lambda bot: (
        Order.objects.filter(position__in=Position.objects.open().filter(bot=bot).order_by())
        .exclude(purpose=OrderPurpose.ENTRY)
        .order_by("id")
    )
)
_resting = Prepared(
    lambda bot: Order.objects.filter(bot=bot, state__in=OPEN_ORDER_STATES, purpose__in=RESTING_PURPOSES).order_by("id")
)
LIVE = (OrderState.ACKED, OrderState.PARTIALLY_FILLED)
FAILED = (OrderState.REJECTED, OrderState.NOT_PLACED)


@dataclass(slots=True)
class Protected:
    """What was done: stops and targets placed, either cancelled, exits sent, positions without stop and exit yet."""

    stops_placed: int = 0
    targets_placed: int = 0
    cancelled: int = 0
    exits: int = 0
    unprotected: int = 0

    @property
    def changes(self) -> int:
        return self.stops_placed + self.targets_placed + self.cancelled + self.exits


def protect(desk: OrderDesk) -> Protected:
    """Bring stops, targets and exits in line with the positions: three queries when nothing is to be done."""
    done = Protected()
    bot = desk.account.bot
    positions: list[Position] = open_positions.objects(bot.pk)
    orders_of: dict[int | None, list[Order]] = defaultdict(list)
    known = set()
    for order in _of_open_positions.objects(bot.pk):
        orders_of[order.position_id].append(order)
        known.add(order.pk)
    for order in _resting.objects(bot.pk):
        if order.pk not in known:
            orders_of[order.position_id].append(order)
    for position in positions:
        orders = orders_of.pop(position.pk, [])
        try:
            _protect_one(desk, position, orders, done)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # this symbol's: the others go on (I20)
            done.unprotected += 1
            log.exception("not_protected", position=position.pk)
            alerts.raise_alert(
                f"not_protected:{position.pk}",
                f"{position.symbol.code}: its stop and target cannot be kept ({type(error).__name__}: {error}). "
                "Look at the position at the exchange.",
                Severity.CRITICAL,
            )
    for orphans in orders_of.values():  # their positions are closed: what is left must not meet the next one
        for order in orphans:
            if order.state not in IN_FLIGHT_ORDER_STATES:
                desk.cancel(order)
                done.cancelled += 1
    return done


def close_position(desk: OrderDesk, position: Position, cause: str) -> Order | None:
    """Close by market, reduce-only. Returns None when less than one lot is left, which the venue cannot trade."""
    symbol = desk.account.code_of(position.symbol_id)
    instrument = desk.account.rules_of(symbol)
    quantity = abs(position.quantity)
    if instrument is not None:
        quantity = instrument.quantize_quantity(quantity)
    if quantity <= 0:
        alerts.raise_alert(
            f"dust:{position.pk}",
            f"{symbol}: {position.quantity:f} is left, less than one lot. Close it at the exchange by hand.",
            Severity.WARNING,
        )
        return None
    return desk.write_and_send(
        NewOrder(
            symbol=symbol,
            purpose=OrderPurpose.EXIT,
            side="sell" if position.quantity > 0 else "buy",
            quantity=quantity,
            reason=cause,
            reduce_only=True,
            position=position,
        )
    )


def _protect_one(desk: OrderDesk, position: Position, orders: list[Order], done: Protected) -> None:
    exits = [order for order in orders if order.purpose == OrderPurpose.EXIT]
    stops = [order for order in orders if order.purpose == OrderPurpose.STOP]
    targets = [order for order in orders if order.purpose == OrderPurpose.TARGET]
    if any(order.state in OPEN_ORDER_STATES for order in exits):
        return
    if exits and not position.foreign:
        _close_the_rest(desk, position, exits, done)
        # Stop and target stay as they are: if the exits go on failing, the stop is what protects.
        if not any(order.state in OPEN_ORDER_STATES for order in stops):
            _place_stop(desk, position, stops, done)
        return
    before = done.exits
    _keep_stop(desk, position, stops, done)
    if done.exits == before:
        _keep_target(desk, position, targets, done)


def _keep_stop(desk: OrderDesk, position: Position, stops: list[Order], done: Protected) -> None:
    instrument = desk.account.rules_of(desk.account.code_of(position.symbol_id))
    open_quantity = abs(position.quantity)
    if instrument is not None:  # what a stop can be over: a lot that grew must not make every stop look too small (F27)
        open_quantity = instrument.quantize_quantity(open_quantity)
    side = "sell" if position.quantity > 0 else "buy"
    live = [order for order in stops if order.state in LIVE]
    fitting = [order for order in live if order.quantity - order.filled == open_quantity and order.side == side]
    if not fitting:
        if any(order.state in IN_FLIGHT_ORDER_STATES for order in stops):
            done.unprotected += 1  # its outcome is being looked up; a second one could be a second order
            return
        placed = _place_stop(desk, position, stops, done)
        if placed is None or placed.state in IN_FLIGHT_ORDER_STATES:
            return
        fitting = [placed]
    # The new stop stands before the old one goes: reduce-only orders cannot open anything together.
    for order in live:
        if order.pk != fitting[-1].pk:
            desk.cancel(order)
            done.cancelled += 1


def _keep_target(desk: OrderDesk, position: Position, targets: list[Order], done: Protected) -> None:
    """Rest one order of the position's size at its target. Unlike a stop, the old one goes before the new one stands.

    A position that is not ours, or has turned round, has no target.
    """
    symbol = desk.account.code_of(position.symbol_id)
    instrument = desk.account.rules_of(symbol)
    price, stop, quantity = position.target_price, position.stop_price, abs(position.quantity)
    if position.foreign or price is None or stop is None or (price - stop) * position.quantity <= 0:
        return
    if any(order.state in IN_FLIGHT_ORDER_STATES for order in targets):
        return  # its outcome is being looked up; a second one could be a second order
    if instrument is not None:
        price, quantity = instrument.quantize_price(price), instrument.quantize_quantity(quantity)
    side: Literal["buy", "sell"] = "sell" if position.quantity > 0 else "buy"
    live = [order for order in targets if order.state in LIVE]
    fitting = [order for order in live if order.quantity - order.filled == quantity and order.side == side]
    for order in live:
        if order.pk not in {kept.pk for kept in fitting[-1:]}:
            filled = order.filled
            desk.cancel(order)
            done.cancelled += 1
            if order.state in OPEN_ORDER_STATES or order.filled != filled:
                return  # not known to be gone, or it was faster than we: the next pass sees what is left
    if fitting or quantity <= 0 or not _may_try_target(symbol, position, targets):
        return
    placed = desk.write_and_send(
        NewOrder(
            symbol=symbol,
            purpose=OrderPurpose.TARGET,
            side=side,
            kind="limit",
            quantity=quantity,
            target_price=price,
            reduce_only=True,
            position=position,
            reason=reason("TAKE_PROFIT", target=price),
        )
    )
    done.targets_placed += placed.state not in FAILED


def _may_try_target(symbol: str, position: Position, targets: list[Order]) -> bool:
    """Tell whether a target may be sent: refusals since the last one that stood make it rarer, and end it."""
    failures = 0
    for order in reversed(targets):
        if order.state not in FAILED:
            break
        failures += 1
    if failures >= MAX_TARGET_ATTEMPTS:
        alerts.raise_alert(
            f"target_missing:{position.pk}",
            f"{symbol}: no order at the target was accepted ({targets[-1].reason}). "
            "The stop stands; the profit is taken at the close of a bar instead.",
            Severity.INFO,
        )
        return False
    if not failures:
        return True
    wait = dt.timedelta(milliseconds=back_off_ms(failures, TARGET_BASE_MS, TARGET_CAP_MS))
    return clock.market_now() >= (targets[-1].finished_at or targets[-1].created_at) + wait


def _place_stop(desk: OrderDesk, position: Position, stops: list[Order], done: Protected) -> Order | None:
    """Place a stop, at most MAX_STOP_ATTEMPTS times; then close. Returns the stop, or None when it closed instead."""
    symbol = desk.account.code_of(position.symbol_id)
    instrument = desk.account.rules_of(symbol)
    failures = 0
    for order in reversed(stops):  # refusals since the last stop that stood
        if order.state not in FAILED:
            break
        failures += 1
    while position.stop_price is not None and failures < MAX_STOP_ATTEMPTS:
        trigger, quantity = position.stop_price, abs(position.quantity)
        if instrument is not None:
            trigger, quantity = instrument.quantize_price(trigger), instrument.quantize_quantity(quantity)
        stop = desk.write_and_send(
            NewOrder(
                symbol=symbol,
                purpose=OrderPurpose.STOP,
                side="sell" if position.quantity > 0 else "buy",
                kind="stop_market",
                quantity=quantity,
                trigger_price=trigger,
                reduce_only=True,
                position=position,
                reason=reason("PROTECT", stop=trigger),
            )
        )
        if stop.state not in FAILED:
            done.stops_placed += 1
            if stop.state in IN_FLIGHT_ORDER_STATES:
                done.unprotected += 1
            return stop
        failures += 1
    evidence = reason("STOP_MISSING", symbol=symbol, refused=failures, stop=position.stop_price)
    key = f"stop_missing:{position.pk}"
    if position.foreign:
        done.unprotected += 1
        alerts.raise_alert(
            key, f"{symbol}: a position that is not this bot's has no stop: none was accepted. Look after it by hand.",
            Severity.CRITICAL,
        )  # fmt: skip
        return None
    if alerts.raise_alert(key, f"{symbol}: no stop was accepted; the position is closed by market.", Severity.CRITICAL):
        record_risk(
            bot=desk.account.bot, kind=RiskKind.STOP_MISSING, evidence=evidence, severity=Severity.CRITICAL,
            subject=f"symbol:{symbol}",
        )  # fmt: skip
    if not Order.objects.filter(position=position, purpose=OrderPurpose.EXIT).exists():
        close_position(desk, position, evidence)
        done.exits += 1
    return None


def _close_the_rest(desk: OrderDesk, position: Position, exits: list[Order], done: Protected) -> None:
    """Send the next exit when its back-off is over: exits are never given up, and never sent in a storm."""
    last = exits[-1]
    failures = 0
    for order in reversed(exits):
        if order.filled > 0:
            break
        failures += 1
    cap = EXIT_CAP_MS if failures <= PATIENT_AFTER else PATIENT_CAP_MS
    wait = dt.timedelta(milliseconds=back_off_ms(failures, EXIT_BASE_MS, cap))
    if clock.market_now() < (last.finished_at or last.created_at) + wait:
        return
    if failures >= EXIT_ALERT_AFTER:
        symbol = desk.account.code_of(position.symbol_id)
        alerts.raise_alert(
            f"exit_fails:{position.pk}",
            f"{symbol}: {failures} exits in a row failed ({last.reason}). It is tried again; else close it by hand.",
            Severity.CRITICAL,
        )
    close_position(desk, position, exits[0].reason.rpartition(" | ")[2])
    done.exits += 1


def adopt_stop_price(*, quantity: Decimal, mark: Decimal, distance: Decimal) -> Decimal:
    """Return a stop for a position that is not ours: `distance` (a fraction) from the mark, on the losing side."""
    return mark * (1 - distance) if quantity > 0 else mark * (1 + distance)

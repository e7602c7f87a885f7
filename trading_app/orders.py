"""The outbox: an order is a committed row before anything is sent, and only evidence changes its state (I15, I16).

    write()    INTENT, in the caller's transaction, under the fencing token; the client order id comes from the row
    send()     INTENT -> SENDING by compare-and-set under the lease, then one call to the venue
    look_up()  UNKNOWN -> what the venue proves, or NOT_PLACED when it proves that it never had the order

Nothing is ever sent twice: a new try is a new row with a new client order id.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, cast

import structlog
from django.conf import settings
from django.db import DatabaseError, transaction

from coverage_app import services as coverage
from coverage_app.choices import BlockReason
from exchanges.errors import ExchangeError
from exchanges.port import (
    DUPLICATE,
    Ack,
    OrderRequest,
    PlaceOutcome,
    Rejected,
    Throttled,
    Unknown,
    VenueOrder,
)
from ops_app import alerts, clock, journal, leases
from ops_app.choices import Severity
from quant.policy import back_off_ms
from quant.reasons import reason
from quant.timeframes import from_ms, timeframe_ms, to_ms
from trading_app import refusals
from trading_app.choices import (
    OPEN_ORDER_STATES,
    TERMINAL_ORDER_STATES,
    OrderPurpose,
    OrderState,
)
from trading_app.client_ids import client_order_id
from trading_app.exceptions import OrderTakenError
from trading_app.margin import EntryMargin
from trading_app.models import Bot, Decision, Fill, Order, Position
from trading_app.order_machine import Seen, require, seen_state
from trading_app.spool import Spool
from trading_app.venue import RECEIVE_WINDOW, Account, ledger_name

log = structlog.get_logger(__name__)

CLOCK_SKEW = dt.timedelta(seconds=1)
SETTLE = dt.timedelta(seconds=30)
"""An order that the venue does not know this long (market time) after it was sent was never placed."""
MIN_LOOKUPS = 2
LOOKUP_BASE_MS, LOOKUP_CAP_MS = 2_000, 60_000
FILL_DELAY = dt.timedelta(minutes=5)
"""Venues publish some fills late (F14); a simulated one matches a resting order when its candle closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrder:
    """An order to be written. Quantities and prices are on the instrument's lots and ticks already.

    A limit order rests at its ``target_price``; that of an entry, like its ``stop_price``, is of the position to be.
    """

    symbol: str
    purpose: OrderPurpose
    side: Literal["buy", "sell"]
    quantity: Decimal
    reason: str
    kind: Literal["market", "limit", "stop_market"] = "market"
    reference_price: Decimal | None = None
    trigger_price: Decimal | None = None
    stop_price: Decimal | None = None
    target_price: Decimal | None = None
    position_expires_at: dt.datetime | None = None
    reduce_only: bool = False
    position: Position | None = None
    decision: Decision | None = None


def spool_path(bot: Bot) -> Path:
    return Path(settings.DATA_DIR) / "spool" / f"{ledger_name(bot.account)}.jsonl"


def settle() -> dt.timedelta:
    """Return SETTLE, or longer where market time is fast: real time decides until when a venue accepts a request."""
    return max(SETTLE, (RECEIVE_WINDOW + CLOCK_SKEW) * clock.speed())


def fill_overlap() -> dt.timedelta:
    """Return how far before the newest known fill the fills are read again."""
    return FILL_DELAY + 2 * dt.timedelta(milliseconds=timeframe_ms(settings.TIMEFRAME))


class OrderDesk:
    """Writes, sends and looks up the orders of one account."""

    def __init__(self, account: Account, spool: Spool | None = None) -> None:
        self.account = account
        self.spool = spool if spool is not None else Spool(spool_path(account.bot))
        self.sent = 0
        self._margin = EntryMargin(account)
        self._may_be_refused = True
        self._unread: dict[int, dt.datetime] = {}

    # --- writing

    def write(self, new: Iterable[NewOrder]) -> list[Order]:
        """Insert intents. Call it inside `atomic()`; raises LeaseLost when the account is another's by now."""
        leases.held(self.account.lease)
        return [self._insert(each) for each in new]

    def _insert(self, new: NewOrder) -> Order:
        bot, token = self.account.bot, self.account.lease.token
        order = Order.objects.create(
            bot=bot,
            symbol_id=self.account.symbol_ids[new.symbol],
            position=new.position,
            decision=new.decision,
            purpose=new.purpose,
            side=new.side,
            kind=new.kind,
            quantity=new.quantity,
            reference_price=new.reference_price,
            trigger_price=new.trigger_price,
            stop_price=new.stop_price,
            target_price=new.target_price,
            position_expires_at=new.position_expires_at,
            reduce_only=new.reduce_only,
            reason=new.reason[:300],
            fencing_token=token,
            created_at=clock.market_now(),
        )
        order.client_order_id = client_order_id(bot, token=token, order_id=order.pk)
        order.save(update_fields=["client_order_id"])
        return order

    def write_and_send(self, new: NewOrder) -> Order:
        with transaction.atomic():
            (order,) = self.write([new])
        return self.send(order)

    # --- sending

    def send(self, order: Order) -> Order:
        """Send an intent once. Raises LeaseLost, with nothing sent, when the account is another's by now.

        An entry is not sent behind a kill switch that was pulled since it was written: sending a bar may take minutes;
        nor while the exchange's margin mode or leverage is not what it must be.

        The request's time is taken before the lease is checked, so that a pause anywhere behind the check makes the
        request too old for the venue (the receive-window fence, B4).
        """
        leases.keep(self.account.lease)  # a slow pass (a replay, many orders) must not run out of it half-way
        refused = None if order.reduce_only else self._margin.refusal(self.account.code_of(order.symbol_id))
        now = clock.market_now()
        with transaction.atomic():
            leases.held(self.account.lease)
            if not order.reduce_only and Bot.objects.filter(pk=order.bot_id, kill_switch_at__isnull=False).exists():
                refused = "NOT_SENT: kill_switch=true"
            if refused is not None and order.state == OrderState.INTENT:
                move(order, OrderState.NOT_PLACED, reason=f"{refused} | {order.reason}"[:300])
                return order
            claimed = Order.objects.filter(pk=order.pk, state=OrderState.INTENT).update(
                state=OrderState.SENDING, sent_at=now
            )
        if claimed != 1:
            order.refresh_from_db()
            return order
        order.state, order.sent_at = OrderState.SENDING, now
        request = self._request(order, time_ms=to_ms(now))
        if not self.account.lease.locally_valid(margin=RECEIVE_WINDOW):
            raise leases.LeaseLost(f"the lease of {self.account.lease.name} ends too soon to send {order}")
        venue = self.account.venue
        outcome: PlaceOutcome
        try:
            outcome = venue.place_stop(request) if order.kind == "stop_market" else venue.place(request)
        except ExchangeError as error:  # the port forbids it; if it happens, nobody knows what became of the order
            outcome = Unknown(f"{type(error).__name__}: {error}")
        self.sent += 1
        try:
            self.apply_outcome(order, outcome)
        except DatabaseError:
            self.spool.keep(order.client_order_id or "", outcome)  # the only moment at which it could be lost (F29)
            raise
        return order

    def send_all(self, orders: Iterable[Order]) -> None:
        """Send one after the other; behind a refusal that is about the account, entries are not sent any more (F39)."""
        refused = ""
        for order in orders:
            if refused and not order.reduce_only:
                move(order, OrderState.NOT_PLACED, reason=f"NOT_SENT: refused={refused} | {order.reason}"[:300])
                continue
            self.send(order)
            if order.state == OrderState.REJECTED and (code := refusals.code_of(order)) in refusals.ACCOUNT_CODES:
                refused = code

    def write_spooled(self) -> int:
        """Write the answers that the database could not take, and say so; returns how many orders they moved.

        Raises DatabaseError when it still cannot: until then nothing new is decided, and the exchange's stops protect.
        """
        kept = self.spool.kept()
        waiting = Order.objects.filter(bot=self.account.bot, client_order_id__in=kept, state=OrderState.SENDING)
        moved = 0
        for order in waiting.order_by("id"):
            self.apply_outcome(order, kept[order.client_order_id or ""])
            moved += 1
        alerts.raise_alert(
            f"database:{self.account.bot.name}:{min(kept)}",
            f"{self.account.bot.name}: the database could not be written after {len(kept)} orders were sent; it can "
            f"again. {moved} answers came from memory or {self.spool.path}. Look at the disk and at the database.",
            Severity.CRITICAL,
        )
        self.spool.clear()
        return moved

    def _request(self, order: Order, *, time_ms: int) -> OrderRequest:
        return OrderRequest(
            client_order_id=order.client_order_id or "",
            symbol=self.account.code_of(order.symbol_id),
            side=cast(Literal["buy", "sell"], order.side),
            quantity=order.quantity,
            kind=cast(Literal["market", "limit", "stop_market"], order.kind),
            price=order.target_price if order.kind == "limit" else None,
            trigger_price=order.trigger_price,
            reduce_only=order.reduce_only,
            attached_stop=order.stop_price,
            time_ms=time_ms,
        )

    def apply_outcome(self, order: Order, outcome: PlaceOutcome) -> None:
        """Turn the venue's answer to a place into the order's state."""
        if isinstance(outcome, Ack):
            if self._may_be_refused:
                self._may_be_refused = False
                alerts.resolve_alert(self._refused_alert)
            if outcome.order.client_order_id == order.client_order_id:
                self.apply_evidence(order, outcome.order)
            else:
                self._to_unknown(order, reason("WRONG_ORDER_RETURNED", got=outcome.order.client_order_id))
        elif isinstance(outcome, Rejected):
            if outcome.code == DUPLICATE:  # an order with this id exists: find out which state it is in (F08)
                self._to_unknown(order, reason("DUPLICATE", detail=outcome.reason), quiet=True)
                self.look_up(order)
            else:
                why = reason("REJECTED", code=outcome.code, detail=outcome.reason)
                move(order, OrderState.REJECTED, reason=f"{why} | {order.reason}"[:300])
                self._journal(order, f"rejected: {why}", Severity.WARNING)
                if outcome.code in refusals.ACCOUNT_CODES:
                    self._may_be_refused = True
                    alerts.raise_alert(
                        self._refused_alert,
                        f"{self.account.bot.name}: the exchange refuses orders of this account ({why}). No entries for "
                        "an hour; stops stay. Check the key, its rights and addresses, and the host's clock.",
                        Severity.CRITICAL,
                    )
        elif isinstance(outcome, Throttled):
            # Refused before matching, but that must be seen before a new order may be sent.
            self._to_unknown(order, "THROTTLED", quiet=True, look_at=from_ms(outcome.retry_at_ms))
        else:
            self._to_unknown(order, reason("UNKNOWN", detail=outcome.detail))

    @property
    def _refused_alert(self) -> str:
        return f"account_refused:{self.account.bot.name}"

    # --- evidence

    def apply_evidence(self, order: Order, seen: VenueOrder) -> bool:
        """Take over what the venue says of the order; returns whether anything changed. `filled` never falls."""
        filled = max(order.filled, seen.filled)
        picture = Seen(seen.status, seen.filled, seen.quantity)
        state = seen_state(OrderState(order.state), picture, filled=filled, quantity=order.quantity)
        changes: dict[str, Any] = {}
        if filled != order.filled:
            changes["filled"] = filled
            self._unread[order.pk] = clock.market_now()
        if seen.average_price is not None and seen.filled >= order.filled:
            price = seen.average_price.quantize(Decimal("1e-12"))
            if price != order.average_price:
                changes["average_price"] = price
        if seen.venue_order_id and seen.venue_order_id != order.venue_order_id:
            changes["venue_order_id"] = seen.venue_order_id
        if state == order.state and not changes:
            return False
        was_unknown = order.state == OrderState.UNKNOWN
        # One transaction: nobody looks at a known order again, so its block would stay for ever after a kill between.
        with transaction.atomic():
            move(order, state, **changes)
            if was_unknown:
                self.resolved(order, reason("FOUND", state=state, filled=filled))
        return True

    def awaits_fills(self) -> bool:
        """Tell whether the venue said that an order was filled and has not published any fill of it yet (F14)."""
        since = clock.market_now() - FILL_DELAY
        read = Fill.objects.filter(order_id__in=list(self._unread)).values_list("order_id", flat=True)
        known = set(read) if self._unread else set()
        self._unread = {pk: at for pk, at in self._unread.items() if at >= since and pk not in known}
        return bool(self._unread)

    def look_up(self, order: Order) -> bool:
        """Ask the venue for an order of unknown outcome; returns whether it is known now.

        A failed read proves nothing, and neither does one absence: `settle()` must have passed when it was asked.
        """
        asked_at = clock.market_now()
        symbol = self.account.code_of(order.symbol_id)
        try:
            found = self.account.venue.order_by_client_id(symbol, order.client_order_id or "")
        except ExchangeError as error:
            log.warning("order_lookup_failed", order=str(order), error=str(error))
            self._look_again(order)
            return False
        # Look-ups lie: one venue returns some other open order (reference/exchanges.md), so the ids are compared.
        if found is not None and found.client_order_id == order.client_order_id:
            self.apply_evidence(order, found)
            return True
        sent_at = order.sent_at or order.created_at
        if asked_at < sent_at + settle() or order.lookups + 1 < MIN_LOOKUPS or self._has_fill(order, sent_at):
            self._look_again(order)
            return False
        with transaction.atomic():  # as in `apply_evidence`
            move(order, OrderState.NOT_PLACED, reason=f"NOT_PLACED: lookups={order.lookups + 1} | {order.reason}"[:300])
            self.resolved(order, reason("NOT_PLACED", lookups=order.lookups + 1, settle_seconds=settle().seconds))
        return True

    def _has_fill(self, order: Order, sent_at: dt.datetime) -> bool:
        """Tell whether the trade history knows the order: some venues forget orders sooner than trades."""
        fills = self.account.venue.fills_since(to_ms(sent_at - fill_overlap()))
        return any(fill.client_order_id == order.client_order_id for fill in fills)

    def gone(self, order: Order, *, looks: int) -> None:
        """Give up an open order that the venue shows nowhere any more; evidence of it is accepted at any time."""
        symbol = self.account.code_of(order.symbol_id)
        why = reason("GONE", looks=looks, was=order.state)
        move(order, OrderState.MISSING, reason=f"{why} | {order.reason}"[:300])
        self._journal(order, f"not at the exchange any more: {why}", Severity.WARNING)
        alerts.raise_alert(
            f"order_missing:{order.client_order_id}",
            f"{symbol}: order {order} ({order.purpose}) was open and the exchange does not show it any more.",
            Severity.WARNING,
        )

    def _look_again(self, order: Order) -> None:
        order.lookups += 1
        wait = back_off_ms(order.lookups, LOOKUP_BASE_MS, LOOKUP_CAP_MS)
        order.next_lookup_at = clock.market_now() + dt.timedelta(milliseconds=wait)
        Order.objects.filter(pk=order.pk).update(lookups=order.lookups, next_lookup_at=order.next_lookup_at)

    def to_unknown(self, order: Order, why: str) -> None:
        """Say that nobody knows whether the venue has the order: a crash between commit and answer (F01, F02)."""
        self._to_unknown(order, why)

    def _to_unknown(self, order: Order, why: str, *, quiet: bool = False, look_at: dt.datetime | None = None) -> None:
        now = clock.market_now()
        first = now + dt.timedelta(milliseconds=LOOKUP_BASE_MS)
        move(
            order,
            OrderState.UNKNOWN,
            reason=f"{why} | {order.reason}"[:300],
            lookups=0,
            next_lookup_at=look_at or first,
        )
        if quiet:
            return
        symbol = self.account.code_of(order.symbol_id)
        coverage.open_block(
            symbol_ids=[order.symbol_id],
            reason=BlockReason.ORDER_UNKNOWN,
            evidence=reason("ORDER_UNKNOWN", order=str(order), purpose=order.purpose, why=why),
            recheck_at=now + dt.timedelta(milliseconds=LOOKUP_CAP_MS),
        )
        alerts.raise_alert(
            _alert_key(order),
            f"{symbol}: nobody knows whether order {order} was placed ({why}). It is looked up; no entry until then.",
            Severity.WARNING,
        )
        self._journal(order, f"outcome unknown: {why}", Severity.WARNING)

    def resolved(self, order: Order, evidence: str) -> None:
        others = Order.objects.filter(bot=self.account.bot, symbol_id=order.symbol_id, state=OrderState.UNKNOWN)
        if not others.exclude(pk=order.pk).exists():
            coverage.close_blocks(
                symbol_ids=[order.symbol_id], reasons=[BlockReason.ORDER_UNKNOWN], close_reason=evidence
            )
        if alerts.resolve_alert(_alert_key(order)):
            self._journal(order, f"outcome known: {evidence}", Severity.INFO)

    # --- cancelling

    def cancel(self, order: Order) -> None:
        """Cancel what is left of an order at the venue. Whatever the answer, only the order's picture changes it."""
        symbol = self.account.code_of(order.symbol_id)
        outcome: PlaceOutcome
        try:
            outcome = self.account.venue.cancel(symbol, order.client_order_id or "")
        except ExchangeError as error:
            outcome = Unknown(f"{type(error).__name__}: {error}")
        if isinstance(outcome, Ack) and outcome.order.client_order_id == order.client_order_id:
            self.apply_evidence(order, outcome.order)
            return
        # Not known to the venue, throttled, or unanswered: the next reconciliation reads the order itself.
        log.warning("cancel_not_confirmed", order=str(order), outcome=str(outcome))

    def _journal(self, order: Order, text: str, severity: Severity) -> None:
        symbol = self.account.code_of(order.symbol_id)
        journal.record(
            "order", f"{order.purpose} {order.side} {order.quantity:f} {symbol}: {text}",
            subject=f"symbol:{symbol}", severity=severity,
        )  # fmt: skip


def _alert_key(order: Order) -> str:
    return f"order_unknown:{order.client_order_id}"


def move(order: Order, state: OrderState, **changes: Any) -> None:
    """Change the state of an order by compare-and-set.

    Raises OrderStateError for what the table does not have, OrderTakenError if another process was faster.
    """
    before = OrderState(order.state)
    if state != before:
        require(before, state)
    if state in TERMINAL_ORDER_STATES and before in OPEN_ORDER_STATES:
        changes.setdefault("finished_at", clock.market_now())
    elif state in OPEN_ORDER_STATES and before in TERMINAL_ORDER_STATES:
        changes["finished_at"] = None  # it is at the venue after all
    if state != OrderState.UNKNOWN and order.next_lookup_at is not None:
        changes["next_lookup_at"] = None
    updated = Order.objects.filter(pk=order.pk, state=before).update(state=state, **changes)
    if updated != 1:
        order.refresh_from_db()
        raise OrderTakenError(f"order {order} is {order.state}, not {before}: another process changed it")
    order.state = state
    for name, value in changes.items():
        setattr(order, name, value)

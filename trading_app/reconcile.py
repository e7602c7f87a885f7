"""Makes the tables say what the exchange says; a second pass changes nothing (I17).

Order of a pass: fills, orders of unknown outcome, open orders, positions, protective stops. Every read of the venue may
raise `ExchangeError`: then nothing is concluded, above all never that a position is gone (F17).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

import structlog
from django.db import transaction
from django.db.models import Q

from exchanges.errors import ExchangeError, ExchangeUnavailableError
from exchanges.port import VenueOrder, VenuePosition
from ops_app import alerts, clock, leases
from ops_app.choices import Severity
from ops_app.prepared import Prepared
from quant.reasons import reason
from quant.timeframes import from_ms, to_ms
from trading_app.choices import TERMINAL_ORDER_STATES, FillKind, OrderPurpose, OrderState, RiskKind
from trading_app.equity import entries_blocked
from trading_app.models import Bot, Fill, Order, Position
from trading_app.orders import FILL_DELAY, OrderDesk, fill_overlap, move
from trading_app.other_bots import OtherBots
from trading_app.positions import AppliedFills, apply_fills, fold_position
from trading_app.protection import adopt_stop_price, open_positions, protect
from trading_app.services import record_risk

log = structlog.get_logger(__name__)

MAX_DRIFT_LOOKS = 3
"""Passes in a row with the same difference before the exchange's position wins."""
FOREIGN_STOP_DISTANCE = Decimal("0.05")

# Read by every reconciliation.
_interrupted = Prepared(
    lambda bot: Order.objects.filter(bot=bot, state__in=(OrderState.INTENT, OrderState.SENDING)).order_by("id")
)
_due_for_lookup = Prepared(
    lambda bot, *, now: (
        Order.objects.filter(bot=bot, state=OrderState.UNKNOWN)
        .filter(Q(next_lookup_at__isnull=True) | Q(next_lookup_at__lte=now))
        .order_by("id")
    )
)
_open_here = Prepared(
    lambda bot: Order.objects.filter(bot=bot, state__in=(OrderState.ACKED, OrderState.PARTIALLY_FILLED))
)


@dataclass(slots=True)
class Reconciled:
    """What a pass changed. `changes` is 0 when the tables said what the exchange says."""

    fills: int = 0
    not_sent: int = 0
    resolved: int = 0
    orders: int = 0
    foreign_orders: list[VenueOrder] = field(default_factory=list)
    positions: int = 0
    protection: int = 0
    unknown: int = 0

    @property
    def changes(self) -> int:
        return self.fills + self.not_sent + self.resolved + self.orders + self.positions + self.protection


class Reconciler:
    """Remembers between passes only how often it saw the same difference."""

    def __init__(self, desk: OrderDesk) -> None:
        self.desk = desk
        self._drift: dict[str, tuple[Decimal, int]] = {}
        self._reported: set[str] = set()
        self._recorded: set[str] = set()
        self._missing: dict[str, int] = {}
        self.others = OtherBots(desk.account.bot)

    @property
    def bot(self) -> Bot:
        return self.desk.account.bot

    def adopt_in_flight(self) -> int:
        """Take over what an interrupted send left. An INTENT was surely not sent; a SENDING may have been (F01, F02).

        A pass never runs while this process sends, so such a row is a dead process's, or an exception's.
        """
        found = 0
        for order in _interrupted.objects(self.bot.pk):
            found += 1
            if order.state == OrderState.INTENT:
                # The signal is computed anew at the next bar; a stale intent is never replayed.
                move(order, OrderState.NOT_PLACED, reason=f"NOT_SENT: restart=true | {order.reason}"[:300])
            else:
                self.desk.to_unknown(order, reason("RESTART", state="sending"))
                Order.objects.filter(pk=order.pk).update(next_lookup_at=clock.market_now())
        return found

    def run(self, *, may_send: bool = True) -> Reconciled:
        """One whole pass; without `may_send` nothing is placed or cancelled (B5).

        Raises ExchangeError when the venue could not be read, LeaseLost when the account is another's.
        """
        done = Reconciled()
        self.others.look_back(self.desk.account.venue)
        done.not_sent = self.adopt_in_flight()
        done.fills = self.sync_fills().new
        done.resolved = self.look_up_due(done)
        leftovers = self._open_orders(done)
        if done.orders:
            # Filled after the fills were read: without them its position would look open, and a stop would be missed.
            done.fills += self.sync_fills().new
        self.others.judge(done.foreign_orders, self._positions(done))
        if may_send:
            self._cancel_entries(done)
            for order in leftovers:
                self.desk.cancel(order)
            done.protection = protect(self.desk).changes
        if done.protection:  # what was just closed or stopped has fills of its own
            done.fills += self.sync_fills().new
        return done

    def sync_fills(self) -> AppliedFills:
        """Read fills from before the cursor on, record the new ones, move the cursor."""
        cursor = self.bot.last_fill_at or self.bot.created_at
        fills = self.desk.account.venue.fills_since(to_ms(cursor - fill_overlap()))
        trades = {fill.trade_id for fill in fills}
        if trades <= self._recorded:  # nothing that this process has not recorded: no query
            return AppliedFills()
        applied = apply_fills(self.desk, fills)
        # A fill that says it is of the future must not hide those that come before it (F14).
        newest = min(max((fill.time_ms for fill in fills), default=0), clock.market_now_ms())
        if newest > to_ms(cursor):
            self.bot.last_fill_at = from_ms(newest)
            Bot.objects.filter(pk=self.bot.pk).update(last_fill_at=self.bot.last_fill_at)
        self._report_strangers(applied)
        if applied.strange:
            self.others.note(applied.strange)
            if self.others.evidence is None:
                self.others.judge()
        self._recorded = trades
        return applied

    def _report_strangers(self, applied: AppliedFills) -> None:
        for symbol in applied.unknown_symbols - self._reported:
            self._reported.add(symbol)
            alerts.raise_alert(
                f"foreign_symbol:{self.bot.name}:{symbol}",
                f"{symbol}: the account has fills in a symbol that is not in the tables. They are not this bot's.",
                Severity.WARNING,
            )

    def look_up_due(self, done: Reconciled | None = None) -> int:
        """Look up the orders of unknown outcome whose time has come; returns how many are known now."""
        rows = _due_for_lookup.objects(self.bot.pk, now=clock.market_now())
        resolved = sum(self.desk.look_up(order) for order in rows)
        if resolved:  # an order that was found may have been filled long ago
            self.sync_fills()
        if done is not None:
            done.unknown = len(rows) - resolved
        return resolved

    # --- orders

    def _open_orders(self, done: Reconciled) -> list[Order]:
        """Compare the open orders. Returns those that ended here and are open there: a look-up lied once, and nobody
        would ever ask for them again.
        """
        leftovers: list[Order] = []
        seen = {order.client_order_id: order for order in self.desk.account.venue.open_orders()}
        ours = {order.client_order_id or "": order for order in _open_here.objects(self.bot.pk)}
        if only_there := seen.keys() - ours.keys():
            ended = Order.objects.filter(bot=self.bot, client_order_id__in=list(only_there))
            ours |= {order.client_order_id or "": order for order in ended}
        for client_id, order in ours.items():
            picture = seen.get(client_id)
            if picture is None:  # it is open here and not there: ask for the order itself
                symbol = self.desk.account.code_of(order.symbol_id)
                try:
                    picture = self.desk.account.venue.order_by_client_id(symbol, client_id)
                except ExchangeUnavailableError:
                    raise
                except ExchangeError as error:  # this symbol's alone, and proves nothing (F17, I20)
                    log.warning("order_not_read", order=str(order), symbol=symbol, error=str(error))
                    continue
                if picture is None:
                    done.orders += self._nowhere(order)
                    continue
            self._missing.pop(client_id, None)
            if picture is not None and picture.client_order_id == client_id:
                done.orders += self.desk.apply_evidence(order, picture)
                if picture.status == "open" and order.state in TERMINAL_ORDER_STATES:
                    leftovers.append(order)
        for client_id in seen.keys() - ours.keys():
            self._foreign_order(seen[client_id], done)
        return leftovers

    def _nowhere(self, order: Order) -> bool:
        """Count a look that found an open order nowhere; returns whether it was one too many.

        One absence proves nothing. A stop that nobody can find protects nobody: once it is MISSING, another one is
        placed (I18).
        """
        client_id = order.client_order_id or ""
        looks = self._missing[client_id] = self._missing.get(client_id, 0) + 1
        if looks < MAX_DRIFT_LOOKS:
            return False
        del self._missing[client_id]
        self.desk.gone(order, looks=looks)
        return True

    def _foreign_order(self, order: VenueOrder, done: Reconciled) -> None:
        done.foreign_orders.append(order)
        key = order.client_order_id or order.venue_order_id
        if key in self._reported:
            return
        self._reported.add(key)
        evidence = reason(
            "FOREIGN_ORDER", symbol=order.symbol, side=order.side, kind=order.kind, quantity=order.quantity, id=key
        )
        raised = alerts.raise_alert(
            f"foreign_order:{self.bot.name}:{key}",
            f"{order.symbol}: an open order {key} is not this bot's. It is left alone; cancel it if nobody wants it.",
            Severity.WARNING,
        )
        if raised is not None:
            record_risk(bot=self.bot, kind=RiskKind.FOREIGN, evidence=evidence, subject=f"symbol:{order.symbol}")

    def _cancel_entries(self, done: Reconciled) -> None:
        """Cancel what still waits to open a position when nothing is to be opened any more (F38)."""
        if entries_blocked(self.bot) is None:
            return
        for order in _open_here.objects(self.bot.pk):
            if order.purpose == OrderPurpose.ENTRY:
                self.desk.cancel(order)
                done.orders += 1

    # --- positions

    def _positions(self, done: Reconciled) -> set[str]:
        """Compare the positions. Returns the symbols of those that are not ours."""
        there = {position.symbol: position for position in self.desk.account.venue.positions()}
        here = {
            self.desk.account.code_of(position.symbol_id): position for position in open_positions.objects(self.bot.pk)
        }
        for symbol in sorted(there.keys() | here.keys()):
            seen, position = there.get(symbol), here.get(symbol)
            venue_quantity = seen.quantity if seen is not None else Decimal(0)
            if position is not None and position.foreign:
                done.positions += self._follow_foreign(
                    position, venue_quantity, seen.mark_price if seen is not None else None
                )
                continue
            own_quantity = position.quantity if position is not None else Decimal(0)
            if venue_quantity == own_quantity:
                self._drift.pop(symbol, None)
                continue
            if self._settled(symbol, venue_quantity - own_quantity):
                self._venue_wins(symbol, seen, position, venue_quantity - own_quantity)
                done.positions += 1
        return {symbol for symbol in there if symbol not in here or here[symbol].foreign}

    def _settled(self, symbol: str, difference: Decimal) -> bool:
        """Tell whether the same difference was seen often enough: fills and positions are not published at once."""
        before, looks = self._drift.get(symbol, (difference, 0))
        looks = looks + 1 if before == difference else 1
        self._drift[symbol] = (difference, looks)
        return looks >= MAX_DRIFT_LOOKS and not self._explained(symbol)

    def _explained(self, symbol: str) -> bool:
        """Tell whether an order of ours may be the difference: its outcome is unknown, or its fills are published late.

        A position that our own order made must not be taken for somebody else's (F14).
        """
        orders = Order.objects.filter(bot=self.bot, symbol__code=symbol)
        if orders.filter(state=OrderState.UNKNOWN).exists():
            return True
        recent = orders.filter(sent_at__gte=clock.market_now() - FILL_DELAY, filled__gt=0).prefetch_related("fills")
        return any(
            order.filled > sum((fill.quantity for fill in order.fills.all() if fill.kind == FillKind.TRADE), Decimal(0))
            for order in recent
        )

    @property
    def drifting(self) -> frozenset[str]:
        """Symbols whose position differs from the exchange's: no entry there."""
        return frozenset(self._drift)

    @property
    def unsettled(self) -> bool:
        """Whether a difference is being watched, so that the next look should be soon."""
        return bool(self._drift or self._missing)

    def _venue_wins(
        self, symbol: str, seen: VenuePosition | None, position: Position | None, difference: Decimal
    ) -> None:
        self._drift.pop(symbol, None)
        evidence = reason(
            "DRIFT", symbol=symbol, here=position.quantity if position is not None else 0,
            exchange=seen.quantity if seen is not None else 0,
        )  # fmt: skip
        if position is not None:
            price = seen.mark_price if seen is not None else (position.stop_price or position.entry_price)
            self._adjust(position, difference, price)
        elif seen is not None:
            if symbol not in self.desk.account.symbol_ids:
                self._report_strangers(AppliedFills(unknown_symbols={symbol}))
                return
            self._adopt(symbol, seen)
        record_risk(
            bot=self.bot, kind=RiskKind.DRIFT if position is not None else RiskKind.FOREIGN, evidence=evidence,
            severity=Severity.CRITICAL, subject=f"symbol:{symbol}",
        )  # fmt: skip
        alerts.raise_alert(
            f"drift:{self.bot.name}:{symbol}:{to_ms(clock.market_now())}",
            f"{symbol}: the position differed from the exchange's, and the exchange won ({evidence}).",
            Severity.CRITICAL,
        )

    def _adjust(self, position: Position, difference: Decimal, price: Decimal) -> None:
        """Correct by a fill of its own kind, so that the position stays the fold of its fills."""
        now = clock.market_now()
        with transaction.atomic():
            leases.held(self.desk.account.lease)
            Fill.objects.create(
                bot=self.bot, position=position, symbol_id=position.symbol_id, account=self.bot.account,
                trade_id=f"adjust:{position.pk}:{to_ms(now)}", kind=FillKind.ADJUSTMENT,
                side="buy" if difference > 0 else "sell", quantity=abs(difference), price=price, filled_at=now,
            )  # fmt: skip
            fold_position(position)

    def _adopt(self, symbol: str, seen: VenuePosition) -> None:
        """Take a position that is not ours into the table: protected and shown, never traded (F15)."""
        stop = seen.stop_price or adopt_stop_price(
            quantity=seen.quantity, mark=seen.mark_price, distance=FOREIGN_STOP_DISTANCE
        )
        Position.objects.create(
            bot=self.bot, symbol_id=self.desk.account.symbol_ids[symbol], foreign=True,
            side=1 if seen.quantity > 0 else -1, quantity=seen.quantity, entry_price=seen.entry_price,
            stop_price=stop, opened_at=clock.market_now(),
        )  # fmt: skip

    def _follow_foreign(self, position: Position, quantity: Decimal, mark: Decimal | None) -> bool:
        """Follow what its owner does. Returns whether anything changed. `mark`: the price now."""
        if quantity == position.quantity:
            return False
        if quantity * position.quantity < 0 and mark is not None:  # turned round: the old stop is on the winning side
            position.stop_price = adopt_stop_price(quantity=quantity, mark=mark, distance=FOREIGN_STOP_DISTANCE)
        position.quantity = quantity
        if quantity == 0:
            position.closed_at = clock.market_now()
            position.close_reason = "EXTERNAL: closed at the exchange by its owner"
        else:
            position.side = 1 if quantity > 0 else -1
        position.save(update_fields=["quantity", "side", "stop_price", "closed_at", "close_reason"])
        return True

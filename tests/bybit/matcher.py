"""How orders meet the market: what fills at once, what fires or fills in later bars, what the venue does itself."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from pathlib import Path

from exchanges.fill_model import round_against, taker_price, taker_quantity
from exchanges.port import MarketData, OrderSide
from quant.fills import MAX_VOLUME_SHARE
from tests.bybit.account import Account
from tests.bybit.records import ZERO, Order, Position
from tests.bybit.store import Store
from tests.bybit.tape import Bar, Contract, Tape

RECENT_CLOSED = 500
_LIQUIDATION_SLIP = Decimal("0.005")


class Matcher:
    """The market's side of the exchange. Every method wants the exchange's lock held."""

    def __init__(self, data: MarketData, *, state: Path | str, balance: Decimal) -> None:
        self.data = data
        self.fill_slices = 1
        self.fill_delay_ms = 0
        self.match_delay_ms = 0
        self.store = Store(state)
        self.tape = Tape(data, lambda: self.store.state.get("contracts", {}))
        self.account = Account(self.store, self.tape, balance=balance)
        #: What `order/realtime` remembers of ended orders: a restart of the venue forgets it, the history does not.
        self.recent: deque[Order] = deque(maxlen=RECENT_CLOSED)

    def now_ms(self) -> int:
        return self.tape.now_ms()

    def catch_up(self, now: int) -> None:
        """Everything that has happened in the market since the last look, in the order of time."""
        cursors: dict[str, int] = self.store.state.get("cursors", {})
        if any(since + self.tape.step <= now for since in cursors.values()):
            for bar in self.tape.bars(dict(cursors)):
                self._run_slices(bar.closed_ms)
                self.account.replayed[bar.name] = Decimal(repr(bar.close))
                self._run_cancels(bar.opened_ms)
                self._apply(bar)
                self._run_cancels(bar.closed_ms)
                cursors[bar.name] = bar.closed_ms
                self._liquidate_if_due(bar.closed_ms)
            self.account.replayed.clear()
            wanted = {order.symbol for order in self.store.open_orders.values()}
            wanted |= {each.symbol for each in self.account.held()}
            self.store.put_state("cursors", {name: at for name, at in cursors.items() if name in wanted})
        self._run_slices(now)
        self._run_cancels(now)
        self._settle_closed(now)
        self.store.flush()

    def close_by_venue(self, symbol: str, *, create_type: str, kind: str, price: Decimal | None = None) -> None:
        """An order of the venue's own that closes a position: liquidation, ADL, delivery, a person at the web page."""
        position = self.account.position(symbol)
        if position.qty == 0:
            return
        now = self.now_ms()
        self._own_order(position, -position.qty, price or self.account.mark(symbol), now, create_type, kind)

    def open_by_hand(self, symbol: str, qty: Decimal) -> None:
        """A position that a person opened at the web page: executions without our client order id."""
        self._track(symbol)
        position = self.account.position(symbol)
        self._own_order(position, qty, self.account.mark(symbol), self.now_ms(), "CreateByUser", "Trade")

    def liquidate(self, now: int) -> None:
        """Cancel everything, close everything, at prices that are worse than the market's."""
        for order in list(self.store.open_orders.values()):
            self.account.finish(order, "Cancelled", now, cancel="CancelAllBeforeLiq")
            self.remember(order)
        for position in self.account.held():
            slip = 1 - _LIQUIDATION_SLIP if position.qty > 0 else 1 + _LIQUIDATION_SLIP
            price = self._rounded(position.symbol, self.account.mark(position.symbol) * slip, position.qty < 0)
            self._own_order(position, -position.qty, price, now, "CreateByLiq", "BustTrade")
        if self.account.wallet < 0:  # the insurance fund bears the rest
            self.account.add_cash(-self.account.wallet)

    def cancel_now(self, order: Order, reason: str, now: int) -> None:
        """End an open order; a position's own stop is forgotten by its position too."""
        position = self.account.position(order.symbol)
        self.account.finish(order, "Cancelled", now, cancel=reason)
        for name in ("stop_id", "profit_id"):
            if getattr(position, name) == order.order_id:
                setattr(position, name, "")
                self.store.put_position(position)
        self.remember(order)

    def remember(self, order: Order) -> None:
        if not any(each is order for each in self.recent):
            self.recent.append(order)

    # ------------------------------------------------------------------ internal
    def _own_order(self, position: Position, signed: Decimal, price: Decimal, now: int, made: str, kind: str) -> None:
        sequence = self.account.next_number()
        order = Order(
            order_id=self.account.new_id(sequence), link_id="", sequence=sequence, symbol=position.symbol,
            side="Buy" if signed > 0 else "Sell", order_type="Market", qty=abs(signed), price=ZERO, status="New",
            created_ms=now, updated_ms=now, tif="IOC", reduce_only=position.qty * signed < 0, create_type=made,
            last_price=price,
        )  # fmt: skip
        self.account.fill(order, order.qty, price, now, kind=kind)
        self.remember(order)

    def _track(self, symbol: str) -> None:
        cursors: dict[str, int] = self.store.state.get("cursors", {})
        if symbol not in cursors:
            start = self.tape.start_of_bar()
            if not self.data.capabilities.ticker_is_last_close:
                start += self.tape.step  # part of the running bar is past
            self.store.put_state("cursors", {**cursors, symbol: start})

    def _take(self, order: Order, contract: Contract, now: int) -> None:
        """What the market gives at once, in `fill_slices` executions; the rest rests, or is cancelled."""
        rules = contract.instrument
        ticker = self.tape.ticker(order.symbol)
        liquidity = self.tape.liquidity(order.symbol)
        side: OrderSide = "buy" if order.side == "Buy" else "sell"
        got = ZERO if ticker is None else taker_quantity(rules, order.leaves, liquidity)
        price = ZERO
        if got > 0 and ticker is not None:
            price = taker_price(rules, ticker, side, got, liquidity)
            best = Decimal(repr(ticker.ask if side == "buy" else ticker.bid))
            if order.price and (best > order.price if side == "buy" else best < order.price):
                got = ZERO
            elif order.price:
                price = min(price, order.price) if side == "buy" else max(price, order.price)
        if order.tif == "PostOnly" and got > 0:
            self._end(order, now, "EC_PostOnlyWillTakeLiquidity")
            return
        if order.tif == "FOK" and got < order.leaves:
            self._end(order, now, "EC_NoEnoughQtyToFill")
            return
        for index, part in enumerate(_parts(got, self.fill_slices, rules.lot_size)):
            order.slices.append([str(now + self.match_delay_ms + index * self.fill_delay_ms), str(part), str(price)])
        self.store.put_order(order)
        self._run_slices(now, only=order)
        if not order.slices:
            self._end_of_taking(order, now)

    def _run_slices(self, until: int, only: Order | None = None) -> None:
        orders = [only] if only is not None else [o for o in self.store.open_orders.values() if o.slices]
        for order in orders:
            last = min(until, order.cancel_at_ms or until)
            while order.slices and int(order.slices[0][0]) <= last and order.is_open:
                due, part, price = order.slices.pop(0)
                qty = min(Decimal(part), order.leaves)
                if order.reduce_only:
                    qty = min(qty, self._reducible(order))
                if qty > 0:
                    self.account.fill(order, qty, Decimal(price), int(due))
                if order.reduce_only and qty == 0:
                    self.account.finish(order, "Cancelled", int(due), cancel="CancelByReduceOnly")
            if only is None and not order.slices:
                self._end_of_taking(order, order.updated_ms)
            if not order.is_open:
                self.remember(order)

    def _run_cancels(self, until: int) -> None:
        due = [each for each in self.store.open_orders.values() if 0 < each.cancel_at_ms <= until]
        for order in due:
            self.cancel_now(order, "CancelByUser", order.cancel_at_ms)

    def _end_of_taking(self, order: Order, now: int) -> None:
        immediate = order.order_type == "Market" or order.tif in ("IOC", "FOK")
        if order.is_open and immediate:
            self._end(order, now, "EC_NoImmediateQtyToFill")
        elif not order.is_open:
            self.remember(order)

    def _end(self, order: Order, now: int, reason: str) -> None:
        """The rest of an order that may not wait."""
        status = "PartiallyFilledCanceled" if order.filled else "Cancelled"
        self.account.finish(order, status, now, reject=reason)
        self.remember(order)

    def _reducible(self, order: Order) -> Decimal:
        held = self.account.position(order.symbol).qty
        return max(held if order.side == "Sell" else -held, ZERO)

    def _rounded(self, symbol: str, price: Decimal, up: bool) -> Decimal:
        contract = self.tape.contract(symbol)
        return price if contract is None else round_against(contract.instrument, price, "buy" if up else "sell")

    def _apply(self, bar: Bar) -> None:
        """Funding, then what fires, then what rests; a bar that touches stop and limit hurts most so."""
        for rate in bar.funding:
            if self.account.position(bar.name).qty:
                mark = Decimal(repr(bar.opened))
                self.account.fund(bar.name, Decimal(repr(rate.rate)), mark, rate.time_ms)
        slack = self.tape.step - 1 if self.data.capabilities.ticker_is_last_close else 0
        concerned = [
            each
            for each in self.store.open_orders.values()
            if each.symbol == bar.name and bar.opened_ms + slack >= each.active_ms and not each.slices
        ]
        for order in sorted(concerned, key=lambda each: (not each.is_waiting, each.stop_order_type == "TakeProfit")):
            if order.is_waiting:
                self._fire_if_touched(order, bar)
            elif order.is_open:
                self._rest(order, bar)

    def _fire_if_touched(self, order: Order, bar: Bar) -> None:
        trigger = float(order.trigger_price)
        rises = order.trigger_direction == 1
        if not (bar.high >= trigger if rises else bar.low <= trigger):
            return
        worst = max(trigger, bar.opened) if rises else min(trigger, bar.opened)
        price = self._rounded(order.symbol, Decimal(repr(worst)), order.side == "Buy")
        order.status = "Triggered"
        order.updated_ms = bar.closed_ms
        if order.order_type == "Limit":
            order.status, order.active_ms = "New", bar.closed_ms
            self.store.put_order(order)
            return
        qty = min(order.leaves, self._reducible(order)) if order.reduce_only else order.leaves
        if qty > 0:
            self.account.fill(order, qty, price, bar.closed_ms)
            if order.is_open:  # less was held than the order was made for
                self.account.finish(order, "PartiallyFilledCanceled", bar.closed_ms, cancel="CancelByReduceOnly")
        else:
            self.account.finish(order, "Rejected", bar.closed_ms, reject="EC_ReduceOnly")
        self.remember(order)

    def _rest(self, order: Order, bar: Bar) -> None:
        limit = float(order.price)
        if not (bar.low < limit if order.side == "Buy" else bar.high > limit):
            return
        contract = self.tape.contract(order.symbol)
        if contract is None:
            return
        share = contract.instrument.quantize_quantity(Decimal(repr(MAX_VOLUME_SHARE * bar.volume)))
        qty = min(order.leaves, share, self._reducible(order) if order.reduce_only else order.leaves)
        if qty > 0:
            self.account.fill(order, qty, order.price, bar.closed_ms, maker=True)
        if not order.is_open:
            self.remember(order)

    def _liquidate_if_due(self, now: int) -> None:
        if self.account.held() and self.account.equity() <= self.account.maintenance():
            self.liquidate(now)

    def _settle_closed(self, now: int) -> None:
        """A contract that was delisted: its orders are cancelled, its positions delivered at the last price."""
        symbols = {each.symbol for each in self.store.open_orders.values()}
        for symbol in symbols | {each.symbol for each in self.account.held()}:
            contract = self.tape.contract(symbol)
            if contract is None or contract.status != "Closed":
                continue
            for order in [each for each in self.store.open_orders.values() if each.symbol == symbol]:
                self.account.finish(order, "Cancelled", now, cancel="CancelBySettle")
                self.remember(order)
            self.close_by_venue(symbol, create_type="CreateByDelivery", kind="Delivery")


def _parts(qty: Decimal, count: int, lot: Decimal) -> list[Decimal]:
    """Cut a quantity into at most `count` multiples of the lot, the first ones smaller or equal."""
    if qty <= 0:
        return []
    each = (qty / count) // lot * lot
    if each <= 0 or count <= 1:
        return [qty]
    return [*[each] * (count - 1), qty - each * (count - 1)]

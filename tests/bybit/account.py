"""The account's books: what a fill does to wallet, position, stops and watch. No checks, no matching.

Cross margin, one-way mode, one currency (USDT), the Unified Trading Account. `wallet` is cash: deposits, realised
profit, fees and funding; equity = wallet + unrealised profit at the last price.
"""

from __future__ import annotations

from decimal import Decimal

from exchanges.fill_model import Holding, fee_of
from tests.bybit.records import ZERO, Episode, Execution, Order, Position
from tests.bybit.store import Store
from tests.bybit.tape import Tape

DEFAULT_LEVERAGE = Decimal(10)
MAINTENANCE_RATE = Decimal("0.005")
_FEE_STEP = Decimal("1e-8")


class Account:
    """Money and positions over `store`; every method leaves the books whole, the caller flushes."""

    def __init__(self, store: Store, tape: Tape, *, balance: Decimal) -> None:
        self.store = store
        self.tape = tape
        if "wallet" not in store.state:
            store.put_state("wallet", str(balance))
            store.put_state("deposits", str(balance))
            store.put_state("sequence", 0)
            store.flush()
        self._marks: dict[str, Decimal] = {}
        #: Closes of the bars that are being matched: the past is judged by its own prices.
        self.replayed: dict[str, Decimal] = {}

    # --------------------------------------------------------------------- reads
    @property
    def wallet(self) -> Decimal:
        return Decimal(self.store.state["wallet"])

    def position(self, symbol: str) -> Position:
        return self.store.positions.get(symbol) or Position(symbol)

    def held(self) -> list[Position]:
        return [each for _, each in sorted(self.store.positions.items()) if each.qty]

    def mark(self, symbol: str) -> Decimal:
        """The last price; of what trades no longer, the last one known."""
        last = self.replayed.get(symbol) or self.tape.last(symbol)
        if last is not None:
            self._marks[symbol] = last
        return self._marks.get(symbol) or self.position(symbol).entry

    def leverage(self, symbol: str) -> Decimal:
        chosen = Decimal(self.store.state.get("leverages", {}).get(symbol, str(DEFAULT_LEVERAGE)))
        contract = self.tape.contract(symbol)
        return chosen if contract is None else min(chosen, contract.instrument.max_leverage)

    def unrealised(self, position: Position) -> Decimal:
        return position.qty * (self.mark(position.symbol) - position.entry)

    def equity(self) -> Decimal:
        return self.wallet + sum((self.unrealised(each) for each in self.held()), ZERO)

    def position_margin(self, position: Position) -> Decimal:
        return abs(position.qty) * self.mark(position.symbol) / self.leverage(position.symbol)

    def maintenance(self) -> Decimal:
        return sum((abs(each.qty) * self.mark(each.symbol) * MAINTENANCE_RATE for each in self.held()), ZERO)

    def order_margin(self) -> Decimal:
        values: dict[str, Decimal] = {}
        for each in self.store.open_orders.values():
            if not each.is_waiting and not each.reduce_only:
                values[each.symbol] = values.get(each.symbol, ZERO) + each.leaves * each.price
        return sum((value / self.leverage(symbol) for symbol, value in values.items()), ZERO)

    def available(self) -> Decimal:
        used = sum((self.position_margin(each) for each in self.held()), ZERO)
        return self.equity() - used - self.order_margin()

    # -------------------------------------------------------------------- writes
    def next_number(self) -> int:
        number = self.store.state["sequence"] + 1
        self.store.put_state("sequence", number)
        return number

    def add_cash(self, amount: Decimal) -> None:
        self.store.put_state("wallet", str(self.wallet + amount))

    def new_id(self, number: int) -> str:
        """Looks like Bybit's UUIDs, and sorts by age."""
        return f"{number:08x}-b1b1-4000-8000-{number:012x}"

    def fill(
        self, order: Order, qty: Decimal, price: Decimal, now: int, *, maker: bool = False, kind: str = "Trade"
    ) -> Execution:
        """Execute `qty` of an order at `price`; the order's status follows, and the position's stops."""
        fee = fee_of(price, qty, maker=maker)
        order.filled += qty
        order.value += qty * price
        order.fee += fee
        order.updated_ms = now
        order.status = "Filled" if order.leaves == 0 else "PartiallyFilled"
        self.store.put_order(order)
        before = self.position(order.symbol).qty
        closed = self._trade(order.symbol, order.side, qty, price, now)
        self.add_cash(-fee)
        number = self.next_number()
        execution = Execution(
            exec_id=self.new_id(number), sequence=number, order_id=order.order_id, link_id=order.link_id,
            symbol=order.symbol, side=order.side, price=price, qty=qty, fee=fee, fee_rate=fee / (price * qty),
            kind=kind, time_ms=now, is_maker=maker, order_type=order.order_type,
            stop_order_type=order.stop_order_type, create_type=order.create_type, order_price=order.price,
            order_qty=order.qty, leaves=order.leaves, closed=closed,
        )  # fmt: skip
        self.store.put_execution(execution)
        self._after_trade(order, before, now)
        return execution

    def fund(self, symbol: str, rate: Decimal, price: Decimal, now: int) -> None:
        """Longs pay `rate` of the position's value, shorts receive it."""
        position = self.position(symbol)
        fee = (position.qty * price * rate).quantize(_FEE_STEP)
        self.add_cash(-fee)
        number = self.next_number()
        self.store.put_execution(
            Execution(
                exec_id=self.new_id(number), sequence=number, order_id=f"{now}-funding-{symbol}", link_id="",
                symbol=symbol, side=position.side, price=price, qty=abs(position.qty), fee=fee, fee_rate=rate,
                kind="Funding", time_ms=now, order_type="UNKNOWN",
            )
        )  # fmt: skip

    def finish(self, order: Order, status: str, now: int, *, cancel: str = "UNKNOWN", reject: str = "") -> None:
        """End an order that has not ended. A conditional one that never fired is Deactivated, not Cancelled."""
        if status == "Cancelled" and order.is_waiting:
            status = "Deactivated"
        order.status = status
        order.cancel_type = cancel
        order.reject_reason = reject or order.reject_reason
        order.slices = []
        order.updated_ms = now
        self.store.put_order(order)
        self.observe(order.symbol, now)

    def set_stop(self, symbol: str, kind: str, price: Decimal, now: int) -> None:
        """Full-mode StopLoss or TakeProfit of a position: set, move, or take away (price 0)."""
        position = self.position(symbol)
        name = "stop_id" if kind == "StopLoss" else "profit_id"
        order = self.store.orders.get(getattr(position, name))
        if price == 0:
            if order is not None and order.is_open:
                self.finish(order, "Cancelled", now, cancel="CancelByTpSlTsClear")
            setattr(position, name, "")
        elif order is not None and order.is_open:
            order.trigger_price, order.updated_ms, order.active_ms = price, now, now
            self.store.put_order(order)
        else:
            closing = "Sell" if position.qty > 0 else "Buy"
            falls = (kind == "StopLoss") == (position.qty > 0)
            number = self.next_number()
            order = Order(
                order_id=self.new_id(number), link_id="", sequence=number, symbol=symbol, side=closing,
                order_type="Market", qty=abs(position.qty), price=ZERO, status="Untriggered", created_ms=now,
                updated_ms=now, tif="IOC", reduce_only=True, close_on_trigger=True, trigger_price=price,
                trigger_direction=2 if falls else 1, stop_order_type=kind, create_type=f"CreateBy{kind}",
                last_price=self.mark(symbol), active_ms=now,
            )  # fmt: skip
            self.store.put_order(order)
            setattr(position, name, order.order_id)
        self.store.put_position(position)
        self.observe(symbol, now)

    def stop_price(self, position: Position, kind: str) -> Decimal:
        order = self.store.orders.get(position.stop_id if kind == "StopLoss" else position.profit_id)
        return order.trigger_price if order is not None and order.is_waiting else ZERO

    def covered(self, symbol: str) -> Decimal:
        """How much of a position is under a stop on its losing side, position-level or a conditional order."""
        position = self.position(symbol)
        adverse = 2 if position.qty > 0 else 1
        closing = "Sell" if position.qty > 0 else "Buy"
        stops = (
            each.leaves
            for each in self.store.open_orders.values()
            if each.symbol == symbol and each.side == closing and each.reduce_only
            and each.trigger_direction == adverse and each.stop_order_type != "TakeProfit"
        )  # fmt: skip
        return min(sum(stops, ZERO), abs(position.qty))

    def observe(self, symbol: str, now: int) -> None:
        """Tell the watch how the position stands from `now` on."""
        numbers = self.store.state.setdefault("watched", {})
        size = abs(self.position(symbol).qty)
        number = numbers.get(symbol)
        if number is None:
            if size == 0:
                return
            number = len(self.store.episodes)
            self.store.put_episode(number, Episode(symbol, self.position(symbol).side, now))
            self.store.put_state("watched", {**numbers, symbol: number})
        episode = self.store.episodes[number]
        episode.observe(now, size, self.covered(symbol) if size else ZERO)
        self.store.put_episode(number, episode)
        if size == 0:
            self.store.put_state("watched", {name: n for name, n in numbers.items() if name != symbol})

    # ------------------------------------------------------------------ internal
    def _trade(self, symbol: str, side: str, qty: Decimal, price: Decimal, now: int) -> Decimal:
        """Returns how much was closed."""
        position = self.position(symbol)
        signed = qty if side == "Buy" else -qty
        closed = min(qty, abs(position.qty)) if position.qty * signed < 0 else ZERO
        if closed:
            profit = closed * (price - position.entry) * (1 if position.qty > 0 else -1)
            profit = profit.quantize(_FEE_STEP)
            position.realised += profit
            self.add_cash(profit)
        if position.qty == 0:
            position.created_ms = now
        after = Holding(position.qty, position.entry).after("buy" if side == "Buy" else "sell", qty, price)
        position.qty, position.entry, position.updated_ms = after.quantity, after.entry_price, now
        self.store.put_position(position)
        return closed

    def _after_trade(self, order: Order, before: Decimal, now: int) -> None:
        """Full-mode stops follow the size and vanish with the position; an entry brings its own."""
        symbol = order.symbol
        position = self.position(symbol)
        if position.qty == 0 or before * position.qty < 0:
            for kind in ("StopLoss", "TakeProfit"):
                self.set_stop(symbol, kind, ZERO, now)
            for each in list(self.store.open_orders.values()):
                if each.symbol == symbol and each.reduce_only and not each.is_waiting and each is not order:
                    self.finish(each, "Cancelled", now, cancel="CancelByReduceOnly")
            if before * position.qty < 0:  # turned round: one position ended, another began
                self._end_episode(symbol, now)
        for number in (position.stop_id, position.profit_id):
            stop = self.store.orders.get(number)
            if stop is not None and stop.is_waiting and stop.qty != abs(position.qty):
                stop.qty, stop.updated_ms = abs(position.qty), now
                self.store.put_order(stop)
        grew = abs(position.qty) > abs(before) or before * position.qty < 0
        if grew and not order.reduce_only:
            for kind, price in (("StopLoss", order.stop_loss), ("TakeProfit", order.take_profit)):
                if price:
                    self.set_stop(symbol, kind, price, now)
        self.observe(symbol, now)

    def _end_episode(self, symbol: str, now: int) -> None:
        numbers = self.store.state.get("watched", {})
        if symbol in numbers:
            episode = self.store.episodes[numbers[symbol]]
            episode.observe(now, ZERO, ZERO)
            self.store.put_episode(numbers[symbol], episode)
            self.store.put_state("watched", {name: n for name, n in numbers.items() if name != symbol})

"""`BybitExchange`: one account of a venue of its own. What a client does through REST is all that happens to it.

Prices and fills come from `exchanges.fill_model`, the one fill model of this project; what Bybit does around them (ids,
statuses, stops that belong to a position, refusals) is here. Every public method wants `lock` held: see `effect`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from exchanges.port import MarketData
from tests.bybit import checks
from tests.bybit.checks import RefusedError, flag, number
from tests.bybit.matcher import Matcher
from tests.bybit.records import ZERO, Order, text
from tests.bybit.tape import Contract


class BybitExchange(Matcher):
    """`fill_slices` executions make one taker fill, the first `match_delay_ms` (exchange time) after the answer, the
    others `fill_delay_ms` apart. `visible_delay_ms`: a new order cannot be looked up before; `history_delay_ms`: an
    ended one is not in the history before; `cancel_delay_ms`: how long a cancel that was acknowledged takes.
    """

    def __init__(
        self,
        data: MarketData,
        *,
        state: Path | str = ":memory:",
        balance: Decimal = Decimal(10_000),
        speed: float = 1.0,
        fill_slices: int = 2,
        fill_delay_ms: int = 0,
        match_delay_ms: int = 0,
        cancel_delay_ms: int = 0,
        visible_delay_ms: int = 0,
        history_delay_ms: int = 0,
    ) -> None:
        super().__init__(data, state=state, balance=balance)
        self.lock = threading.RLock()
        self.speed = speed
        self.fill_slices = fill_slices
        self.fill_delay_ms = fill_delay_ms
        self.match_delay_ms = match_delay_ms
        self.cancel_delay_ms = cancel_delay_ms
        self.visible_delay_ms = visible_delay_ms
        self.history_delay_ms = history_delay_ms

    def close(self) -> None:
        with self.lock:
            self.store.close()

    @contextmanager
    def effect(self) -> Iterator[int]:
        """The lock, a market that has caught up with the clock, and everything on disk before it is let go."""
        with self.lock:
            now = self.now_ms()
            self.catch_up(now)
            try:
                yield now
            finally:
                self.store.flush()

    # -------------------------------------------------------------------- orders
    def create(self, params: dict[str, Any], *, request_ms: int = 0) -> Order:
        """Take an order, or raise `RefusedError`. What it trades at once is traded before this returns."""
        now = self.now_ms()
        contract = self.contract(params)
        symbol = contract.name
        side, order_type = str(params.get("side", "")), str(params.get("orderType", ""))
        if side not in ("Buy", "Sell"):
            raise RefusedError(10001, "params error: side invalid")
        if order_type not in ("Market", "Limit"):
            raise RefusedError(10001, "params error: orderType invalid")
        link_id = str(params.get("orderLinkId") or "")
        checks.check_link_id(link_id, link_id in self.store.by_link)
        reduces = flag(params, "reduceOnly") or flag(params, "closeOnTrigger")
        checks.check_contract(contract, reduces=reduces)
        ticker = self.tape.ticker(symbol)
        if ticker is None:
            raise RefusedError(110066, "No trading is allowed at the current time")
        qty = number(params, "qty", required=True)
        checks.check_size(contract, qty)
        mark = Decimal(repr(ticker.last))
        price, trigger = number(params, "price"), number(params, "triggerPrice")
        stop, profit = number(params, "stopLoss"), number(params, "takeProfit")
        names = ("price", "triggerPrice", "stopLoss", "takeProfit")
        for name, value in zip(names, (price, trigger, stop, profit), strict=True):
            if value or (name == "price" and order_type == "Limit"):
                checks.check_price(contract, name, value)
        if order_type == "Market":
            price = ZERO
        if price and not trigger:
            checks.check_band(side, price, mark)
        direction = int(params.get("triggerDirection") or 0)
        if trigger:
            checks.check_trigger(direction, trigger, mark)
        base = trigger or price or mark
        checks.check_attached(side, stop, profit, base)
        held = self.account.position(symbol).qty
        if reduces:
            checks.check_reduces(side, held)
            if not trigger:  # cut to what is held, as the venue does
                qty = min(qty, abs(held))
        else:
            checks.check_notional(contract, qty * base)
            self._check_margin(symbol, side, qty, base)
        sequence = self.account.next_number()
        order = Order(
            order_id=self.account.new_id(sequence), link_id=link_id, sequence=sequence, symbol=symbol, side=side,
            order_type=order_type, qty=qty, price=price, status="Untriggered" if trigger else "New",
            created_ms=now, updated_ms=now, tif=str(params.get("timeInForce") or _default_tif(order_type)),
            reduce_only=reduces, close_on_trigger=flag(params, "closeOnTrigger"), trigger_price=trigger,
            trigger_direction=direction, stop_order_type="Stop" if trigger else "", stop_loss=stop,
            take_profit=profit, last_price=mark, active_ms=now, request_ms=request_ms,
            age_ms=now - request_ms if request_ms else 0,
        )  # fmt: skip
        checks.check_counts(order, list(self.store.open_orders.values()))
        self._track(symbol)
        self.store.put_order(order)
        if self._refuses_later(order, now):
            return order
        if order.is_waiting:
            self.account.observe(symbol, now)
        else:
            self._take(order, contract, now)
        return order

    def cancel(self, params: dict[str, Any]) -> Order:
        """Cancel by orderId or orderLinkId. 110001: unknown, or ended."""
        self.contract(params)
        order = self.find(params)
        if order is None:
            raise RefusedError(110001, "order not exists or too late to cancel")
        if not order.is_open:
            self.remember(order)
            raise RefusedError(110001, "order not exists or too late to cancel")
        if self.cancel_delay_ms:  # acknowledged now, done later: the order may still trade
            order.cancel_at_ms = order.cancel_at_ms or self.now_ms() + self.cancel_delay_ms
            self.store.put_order(order)
        else:
            self.cancel_now(order, "CancelByUser", self.now_ms())
        return order

    def cancel_all(self, params: dict[str, Any], *, reason: str = "CancelByUser") -> list[Order]:
        symbol = params.get("symbol")
        found = [each for each in self.store.open_orders.values() if not symbol or each.symbol == symbol]
        for order in found:
            self.cancel_now(order, reason, self.now_ms())
        return found

    def amend(self, params: dict[str, Any]) -> Order:
        """Change quantity, price or trigger of an open order."""
        contract = self.contract(params)
        order = self.find(params)
        if order is None or not order.is_open:
            raise RefusedError(110001, "order not exists or too late to replace")
        qty, price, trigger = number(params, "qty"), number(params, "price"), number(params, "triggerPrice")
        if qty:
            checks.check_size(contract, qty)
            if qty <= order.filled:
                raise RefusedError(
                    110064, "The number of contracts modified cannot be less than or equal to the filled"
                )
        for name, value in (("price", price), ("triggerPrice", trigger)):
            if value:
                checks.check_price(contract, name, value)
        if trigger:
            checks.check_trigger(order.trigger_direction, trigger, self.account.mark(order.symbol))
        now = self.now_ms()
        order.qty, order.price = qty or order.qty, price or order.price
        order.trigger_price = trigger or order.trigger_price
        order.updated_ms = order.active_ms = now
        self.store.put_order(order)
        self.account.observe(order.symbol, now)
        if price and not order.is_waiting:
            self._take(order, contract, now)
        return order

    def find(self, params: dict[str, Any]) -> Order | None:
        """By orderId, else by orderLinkId; empty ones count as not given."""
        if params.get("orderId"):
            return self.store.orders.get(str(params["orderId"]))
        return self.store.by_link.get(str(params["orderLinkId"])) if params.get("orderLinkId") else None

    def contract(self, params: dict[str, Any]) -> Contract:
        if params.get("category") != "linear":
            raise RefusedError(10001, "params error: category only linear is served here")
        found = self.tape.contract(str(params.get("symbol", "")))
        if found is None:
            raise RefusedError(10001, "Not supported symbols")
        return found

    # ----------------------------------------------------------------- positions
    def trading_stop(self, params: dict[str, Any]) -> None:
        """Full-mode stop loss and take profit of a position. "0" takes one away; absent leaves it."""
        contract = self.contract(params)
        position = self.account.position(contract.name)
        if position.qty == 0:
            raise RefusedError(10001, "can not set tp/sl/ts for zero position")
        if params.get("tpslMode", "Full") != "Full":
            raise RefusedError(10001, "params error: tpslMode only Full is served here")
        checks.check_contract(contract, reduces=True)
        wanted = {
            kind: number(params, name)
            for kind, name in (("StopLoss", "stopLoss"), ("TakeProfit", "takeProfit"))
            if params.get(name) not in (None, "")
        }
        for kind, price in wanted.items():
            if price:
                checks.check_price(contract, kind, price)
        mark = self.account.mark(contract.name)
        checks.check_attached(position.side, wanted.get("StopLoss", ZERO), wanted.get("TakeProfit", ZERO), mark)
        if all(self.account.stop_price(position, kind) == price for kind, price in wanted.items()):
            raise RefusedError(34040, "not modified")
        for kind, price in wanted.items():
            self.account.set_stop(contract.name, kind, price, self.now_ms())

    def set_leverage(self, params: dict[str, Any]) -> None:
        contract = self.contract(params)
        buy, sell = number(params, "buyLeverage", required=True), number(params, "sellLeverage", required=True)
        if buy != sell:
            raise RefusedError(10001, "buy leverage must be equal to sell leverage")
        if not 1 <= buy <= contract.instrument.max_leverage:
            raise RefusedError(110013, f"cannot set leverage [{text(buy)}] gt maxLeverage")
        chosen = self.store.state.get("leverages", {})
        if self.account.leverage(contract.name) == buy:
            raise RefusedError(110043, "leverage not modified")
        self.store.put_state("leverages", {**chosen, contract.name: text(buy)})

    # ------------------------------------------------------------------ internal
    def _check_margin(self, symbol: str, side: str, qty: Decimal, price: Decimal) -> None:
        held = self.account.position(symbol).qty
        signed = qty if side == "Buy" else -qty
        added = max(abs(held + signed) - abs(held), ZERO)
        if added * price / self.account.leverage(symbol) > self.account.available():
            raise RefusedError(110007, "ab not enough for new order")

    def _refuses_later(self, order: Order, now: int) -> bool:
        """The venue acknowledged an order and rejects it afterwards (control event `reject_next`)."""
        waiting = int(self.store.state.get("reject_next", 0))
        if waiting:
            self.store.put_state("reject_next", waiting - 1)
            self.account.finish(order, "Rejected", now, reject="EC_Others")
            self.remember(order)
        return bool(waiting)


def _default_tif(order_type: str) -> str:
    return "IOC" if order_type == "Market" else "GTC"

"""The books of one account in memory, written through to its ledger.

Every change happens inside `transaction()`: either ledger and memory have it, or neither. What another process wrote is
noticed and read before anything is answered or changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from exchanges.fill_model import Holding, fee_of
from exchanges.ledger import Cursor, Ledger, order_id, trade_id
from exchanges.port import OrderRequest, OrderSide, VenueFill, VenueOrder

_FLAT = Holding()
_ZERO = Decimal(0)


class Book:
    """Cash, positions, open orders and cursors. Equity is cash + positions at their marks, always."""

    cash: Decimal
    positions: dict[str, Holding]
    open_orders: dict[str, VenueOrder]
    cursors: dict[str, Cursor]
    leverages: dict[str, Decimal]

    def __init__(self, path: Path | str, *, account: str, currency: str, initial_balance: Decimal) -> None:
        self._ledger = Ledger(path, account=account, currency=currency, initial_balance=initial_balance)
        self._version = -1
        self.refresh()

    def close(self) -> None:
        self._ledger.close()

    def refresh(self) -> None:
        """Read the ledger again if another process has written to it."""
        version = self._ledger.data_version()
        if version != self._version:
            self._load()
            self._version = version

    def _load(self) -> None:
        self.cash = self._ledger.cash()
        self.positions = self._ledger.positions()
        self.open_orders = self._ledger.open_orders()
        self.cursors = self._ledger.cursors()
        self.leverages = self._ledger.leverages()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with self._ledger.transaction():
                self.refresh()
                yield
        except BaseException:
            self._load()  # memory follows the ledger, which has rolled back
            raise

    # --------------------------------------------------------------------- reads
    def holding(self, symbol: str) -> Holding:
        return self.positions.get(symbol, _FLAT)

    def find(self, client_order_id: str) -> VenueOrder | None:
        return self.open_orders.get(client_order_id) or self._ledger.order(client_order_id)

    def fills_since(self, time_ms: int) -> list[VenueFill]:
        return self._ledger.fills_since(time_ms)

    def tracked(self) -> set[str]:
        """Symbols whose candles matter: something is held or waiting."""
        return {*self.positions, *(order.symbol for order in self.open_orders.values())}

    # -------------------------------------------------------------------- writes
    def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        self.leverages[symbol] = leverage
        self._ledger.save_leverage(symbol, leverage)

    def set_cursor(self, symbol: str, cursor: Cursor) -> None:
        self.cursors[symbol] = cursor
        self._ledger.save_cursor(symbol, cursor)

    def add_order(self, request: OrderRequest, now_ms: int) -> VenueOrder:
        order = VenueOrder(
            client_order_id=request.client_order_id,
            venue_order_id=order_id(self._ledger.next_sequence("orders")),
            symbol=request.symbol,
            side=request.side,
            kind=request.kind,
            quantity=request.quantity,
            filled=_ZERO,
            average_price=None,
            status="open",
            price=request.price,
            trigger_price=request.trigger_price,
            reduce_only=request.reduce_only,
            time_ms=now_ms,
        )
        self.update_order(order)
        return order

    def update_order(self, order: VenueOrder) -> None:
        self._ledger.save_order(order)
        if order.status == "open":
            self.open_orders[order.client_order_id] = order
        else:
            self.open_orders.pop(order.client_order_id, None)

    def fill(self, order: VenueOrder, quantity: Decimal, price: Decimal, time_ms: int, *, maker: bool) -> VenueOrder:
        """Execute `quantity` of an order; returns the order as it is now."""
        filled = order.filled + quantity
        paid_before = _ZERO if order.average_price is None else order.filled * order.average_price
        order = replace(
            order,
            filled=filled,
            average_price=(paid_before + quantity * price) / filled,
            status="filled" if filled == order.quantity else "open",
        )
        fee = fee_of(price, quantity, maker=maker)
        self._trade(order.symbol, order.side, quantity, price, fee, time_ms, order)
        self.update_order(order)
        return order

    def settle(self, symbol: str, price: Decimal, time_ms: int) -> None:
        """The venue closes a position itself (delisting): a fill that no order of ours asked for."""
        quantity = self.holding(symbol).quantity
        self._trade(symbol, "sell" if quantity > 0 else "buy", abs(quantity), price, _ZERO, time_ms, None)

    def fund(self, symbol: str, rate: Decimal, mark: Decimal, time_ms: int) -> None:
        """Pay or receive funding on what is held."""
        holding = self.holding(symbol)
        payment = holding.quantity * mark * rate
        self._set_cash(self.cash - payment)
        self._ledger.add_fill(
            VenueFill(
                trade_id=trade_id(self._ledger.next_sequence("fills")),
                client_order_id="",
                venue_order_id="",
                symbol=symbol,
                side="buy" if holding.quantity > 0 else "sell",
                quantity=abs(holding.quantity),
                price=mark,
                fee=payment,
                time_ms=time_ms,
                kind="funding",
            )
        )

    def _trade(
        self,
        symbol: str,
        side: OrderSide,
        quantity: Decimal,
        price: Decimal,
        fee: Decimal,
        time_ms: int,
        order: VenueOrder | None,
    ) -> None:
        signed = quantity if side == "buy" else -quantity
        self._set_cash(self.cash - signed * price - fee)
        holding = self.holding(symbol).after(side, quantity, price)
        if holding.quantity == 0:
            self.positions.pop(symbol, None)
        else:
            self.positions[symbol] = holding
        self._ledger.save_position(symbol, holding)
        self._ledger.add_fill(
            VenueFill(
                trade_id=trade_id(self._ledger.next_sequence("fills")),
                client_order_id="" if order is None else order.client_order_id,
                venue_order_id="" if order is None else order.venue_order_id,
                symbol=symbol,
                side=side,
                quantity=quantity,
                price=price,
                fee=fee,
                time_ms=time_ms,
            )
        )

    def _set_cash(self, cash: Decimal) -> None:
        self.cash = cash
        self._ledger.save_cash(cash)

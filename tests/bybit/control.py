"""What a test may see and do that no client can: the truth of the books, and events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from tests.bybit.engine import BybitExchange
from tests.bybit.keys import ApiKey
from tests.bybit.records import ZERO, text, to_json

Event = dict[str, Any]
SETTINGS = (
    "fill_slices", "fill_delay_ms", "match_delay_ms", "cancel_delay_ms", "visible_delay_ms", "history_delay_ms",
)  # fmt: skip


class Control:
    """`GET /control/books` and `POST /control/event`. `flags` belong to the server: maintenance, skew."""

    def __init__(self, engine: BybitExchange, key: ApiKey) -> None:
        self._engine = engine
        self._key = key
        self.events: dict[str, Callable[[Event], None]] = {
            "liquidate": self._liquidate,
            "adl": lambda event: self._close(event, "CreateByAdl_PassThrough", "AdlTrade"),
            "close_position": lambda event: self._close(event, "CreateByUser", event.get("kind", "Trade")),
            "open_position": lambda event: engine.open_by_hand(event["symbol"], Decimal(str(event["qty"]))),
            "remove_stops": self._remove_stops,
            "cancel_orders": self._cancel_orders,
            "delist": lambda event: self._change({**event, "status": "Closed"}),
            "reduce_only": lambda event: self._change({**event, "status": "ReduceOnly"}),
            "relist": lambda event: self._change({**event, "status": "Trading"}),
            "change_instrument": self._change,
            "maintenance": lambda event: engine.store.put_state("maintenance", _maintenance(event)),
            "skew": lambda event: engine.store.put_state("skew_ms", int(event["ms"])),
            "key": self._change_key,
            "revoke_key": lambda event: self._change_key({"revoked": True}),
            "restore_key": lambda event: self._change_key(dict.fromkeys(("revoked", "expired", "wrong_ip"), False)),
            "reject_next": lambda event: engine.store.put_state("reject_next", int(event.get("count", 1))),
            "cash": lambda event: engine.account.add_cash(Decimal(str(event["amount"]))),
            "settings": self._settings,
        }
        for name, value in engine.store.state.get("key", {}).items():
            setattr(key, name, value)

    def event(self, event: Event) -> None:
        """Let `event["type"]` happen. Raises ValueError or KeyError for one that cannot."""
        kind = event.get("type")
        if kind not in self.events:
            raise ValueError(f"event type {kind!r} is unknown; choose one of {', '.join(sorted(self.events))}")
        with self._engine.effect():
            self.events[kind]({name: value for name, value in event.items() if name != "type"})

    def books(self, *, brief: bool = False) -> dict[str, Any]:
        """The truth, as JSON. Times are exchange ms, durations too (`speed` of them pass in a real ms).

        `brief` leaves out the lists that grow for ever: orders (open ones stay), executions, attempts.
        """
        engine = self._engine
        with engine.effect() as now:
            account, store = engine.account, engine.store
            return {
                "now_ms": now,
                "speed": engine.speed,
                "cash": {
                    "wallet": text(account.wallet),
                    "equity": text(account.equity()),
                    "available": text(account.available()),
                    "deposits": store.state["deposits"],
                },
                "orders": [
                    {**to_json(order), "accepted_ms": order.created_ms}
                    for order in (store.open_orders if brief else store.orders).values()
                ],
                "executions": [] if brief else [to_json(each) for each in store.executions],
                "positions": [self._position(each.symbol, now) for each in account.held()],
                "episodes": [each.at(now) for each in store.episodes],
                "attempts": [] if brief else store.attempts,
                "contracts": store.state.get("contracts", {}),
                "key": {name: value for name, value in asdict(self._key).items() if name != "secret"},
            }

    # ------------------------------------------------------------------ internal
    def _position(self, symbol: str, now: int) -> dict[str, Any]:
        account, store = self._engine.account, self._engine.store
        position = account.position(symbol)
        episode = store.episodes[store.state["watched"][symbol]].at(now)
        stops = [
            {"order_id": o.order_id, "link_id": o.link_id, "trigger_price": text(o.trigger_price),
             "qty": text(o.leaves), "stop_order_type": o.stop_order_type, "create_type": o.create_type}
            for o in store.open_orders.values()
            if o.symbol == symbol and o.is_waiting and o.reduce_only
        ]  # fmt: skip
        return {
            **to_json(position),
            "side": position.side,
            "mark": text(account.mark(symbol)),
            "covered": text(account.covered(symbol)),
            "stops": stops,
            **{name: episode[name] for name in episode if name.startswith(("naked", "uncovered", "opened"))},
        }

    def _cancel_orders(self, event: Event) -> None:
        """All open orders, or those of a symbol: by a person, or by the venue."""
        self._engine.cancel_all(event, reason="CancelByAdmin")

    def _liquidate(self, event: Event) -> None:
        self._engine.liquidate(self._engine.now_ms())

    def _close(self, event: Event, create_type: str, kind: str) -> None:
        self._engine.close_by_venue(event["symbol"], create_type=create_type, kind=kind)

    def _remove_stops(self, event: Event) -> None:
        """A person takes the stops of a symbol away, both kinds."""
        engine = self._engine
        for kind in ("StopLoss", "TakeProfit"):
            engine.account.set_stop(event["symbol"], kind, ZERO, engine.now_ms())
        for order in list(engine.store.open_orders.values()):
            if order.symbol == event["symbol"] and order.is_waiting:
                engine.account.finish(order, "Cancelled", engine.now_ms(), cancel="CancelByUser")
                engine.remember(order)

    def _change(self, event: Event) -> None:
        """tickSize, qtyStep, minOrderQty, maxOrderQty, minNotionalValue, maxLeverage, status of a symbol."""
        symbol = event["symbol"]
        if self._engine.tape.contract(symbol) is None:
            raise ValueError(f"symbol {symbol!r} is unknown")
        changes = self._engine.store.state.get("contracts", {})
        change = {name: value for name, value in event.items() if name != "symbol"}
        self._engine.store.put_state("contracts", {**changes, symbol: {**changes.get(symbol, {}), **change}})

    def _change_key(self, event: Event) -> None:
        for name, value in event.items():
            if name in ("key", "secret") or not hasattr(self._key, name):
                raise ValueError(f"a key has no {name!r} to change")
            setattr(self._key, name, value)
        state = {name: value for name, value in asdict(self._key).items() if name not in ("key", "secret")}
        self._engine.store.put_state("key", state)

    def _settings(self, event: Event) -> None:
        """`SETTINGS` of the engine."""
        for name, value in event.items():
            if name not in SETTINGS:
                raise ValueError(f"{name!r} is no setting of the exchange")
            setattr(self._engine, name, int(value))


def _maintenance(event: Event) -> str:
    """'' off, else how it answers: `code` (10016) or `html` (503)."""
    return str(event.get("style", "html")) if event.get("on", True) else ""

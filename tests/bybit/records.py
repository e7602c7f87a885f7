"""What the loopback exchange keeps: orders, executions, positions. Venue names and words (`BTCUSDT`, `Buy`, `New`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, get_type_hints

ZERO = Decimal(0)

#: Of an order that can still trade or fire.
OPEN = frozenset({"New", "PartiallyFilled", "Untriggered", "Triggered"})
#: Kept by the order history for a day only if nothing was filled, as Bybit documents.
SHORT_LIVED = frozenset({"Cancelled", "Rejected", "Deactivated"})


@dataclass(slots=True)
class Order:
    """One order. `slices` are fills still to come: [due ms, quantity, price]. Times are exchange ms."""

    order_id: str
    link_id: str
    sequence: int
    symbol: str
    side: str
    order_type: str
    qty: Decimal
    price: Decimal
    status: str
    created_ms: int
    updated_ms: int
    tif: str = "GTC"
    reduce_only: bool = False
    close_on_trigger: bool = False
    trigger_price: Decimal = ZERO
    trigger_direction: int = 0
    stop_order_type: str = ""
    create_type: str = "CreateByUser"
    stop_loss: Decimal = ZERO
    take_profit: Decimal = ZERO
    filled: Decimal = ZERO
    value: Decimal = ZERO
    fee: Decimal = ZERO
    last_price: Decimal = ZERO
    reject_reason: str = "EC_NoError"
    cancel_type: str = "UNKNOWN"
    active_ms: int = 0
    request_ms: int = 0
    age_ms: int = 0
    cancel_at_ms: int = 0
    slices: list[list[str]] = field(default_factory=list)

    @property
    def leaves(self) -> Decimal:
        return self.qty - self.filled

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def is_waiting(self) -> bool:
        """A conditional order that has not fired."""
        return self.status == "Untriggered"


@dataclass(slots=True)
class Execution:
    """One fill, or a payment of funding. `fee` is what was paid, negative when received."""

    exec_id: str
    sequence: int
    order_id: str
    link_id: str
    symbol: str
    side: str
    price: Decimal
    qty: Decimal
    fee: Decimal
    fee_rate: Decimal
    kind: str
    time_ms: int
    is_maker: bool = False
    order_type: str = "Market"
    stop_order_type: str = ""
    create_type: str = ""
    order_price: Decimal = ZERO
    order_qty: Decimal = ZERO
    leaves: Decimal = ZERO
    closed: Decimal = ZERO


@dataclass(slots=True)
class Position:
    """What is held of a symbol; `stop_id` and `profit_id` name its Full-mode stop orders."""

    symbol: str
    qty: Decimal = ZERO
    entry: Decimal = ZERO
    realised: Decimal = ZERO
    created_ms: int = 0
    updated_ms: int = 0
    stop_id: str = ""
    profit_id: str = ""

    @property
    def side(self) -> str:
        return "" if self.qty == 0 else "Buy" if self.qty > 0 else "Sell"


@dataclass(slots=True)
class Episode:
    """A position from opening to flat, and for how long it had no stop (`naked`) or too small a one (`uncovered`)."""

    symbol: str
    side: str
    opened_ms: int
    closed_ms: int = 0
    max_size: Decimal = ZERO
    naked_since_ms: int = 0
    naked_ms: int = 0
    naked_longest_ms: int = 0
    uncovered_since_ms: int = 0
    uncovered_ms: int = 0

    def observe(self, now: int, size: Decimal, covered: Decimal) -> None:
        """Book the time until `now` under what held before, then take over what holds from now on."""
        self.max_size = max(self.max_size, size)
        if self.naked_since_ms and (covered > 0 or size == 0):
            lasted = now - self.naked_since_ms
            self.naked_ms += lasted
            self.naked_longest_ms = max(self.naked_longest_ms, lasted)
            self.naked_since_ms = 0
        elif not self.naked_since_ms and covered == 0 and size > 0:
            self.naked_since_ms = now
        if self.uncovered_since_ms and covered >= size:
            self.uncovered_ms += now - self.uncovered_since_ms
            self.uncovered_since_ms = 0
        elif not self.uncovered_since_ms and covered < size:
            self.uncovered_since_ms = now
        if size == 0:
            self.closed_ms = now

    def at(self, now: int) -> dict[str, Any]:
        """As JSON, time until `now` included."""
        row = to_json(self)
        for name in ("naked", "uncovered"):
            since = getattr(self, f"{name}_since_ms")
            row[f"{name}_ms"] += max(now - since, 0) if since else 0
        if self.naked_since_ms:
            row["naked_longest_ms"] = max(self.naked_longest_ms, now - self.naked_since_ms)
        return row


def text(value: Decimal) -> str:
    """A number as Bybit writes it: no exponent, no superfluous zeros."""
    if value == 0:
        return "0"
    written = format(value, "f")
    return written.rstrip("0").rstrip(".") if "." in written else written


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain values; decimals as strings."""
    row = {each.name: getattr(record, each.name) for each in fields(record)}
    return {name: text(value) if isinstance(value, Decimal) else value for name, value in row.items()}


def from_json(kind: type[Any], row: dict[str, Any]) -> Any:
    """The record that `to_json` wrote."""
    hints = _hints(kind)
    return kind(**{name: Decimal(value) if hints[name] is Decimal else value for name, value in row.items()})


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]

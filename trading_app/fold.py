"""Position = fold of its fills (I17): pure, and the same for any order and any duplicates of the fills.

Fills are put into one order (time, then trade id) and each trade id counts once, so what arrives when, and how often,
does not matter (fault cards F09, F10). Average cost method; exact Decimals but for the average price itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

ZERO = Decimal(0)
FoldKind = Literal["trade", "funding", "adjustment"]


@dataclass(frozen=True, slots=True)
class FoldFill:
    """One execution. ``quantity`` > 0 in base units, ``price`` and ``fee`` in quote units (fee < 0: received)."""

    trade_id: str
    side: str
    quantity: Decimal
    price: Decimal
    fee: Decimal
    time_ms: int
    kind: str = "trade"

    @property
    def signed_quantity(self) -> Decimal:
        """Quantity with the sign of the side; 0 for a funding payment, which moves cash only."""
        if self.kind == "funding":
            return ZERO
        return self.quantity if self.side == "buy" else -self.quantity


@dataclass(frozen=True, slots=True)
class Folded:
    """What the fills make: ``quantity`` signed, ``entry_price`` the average cost of what is open, or was open last.

    ``realised_pnl`` is before fees; ``fees`` holds funding payments too. ``opened_ms`` is the first and ``last_ms`` the
    last fill's time (0 without fills).
    """

    quantity: Decimal = ZERO
    entry_price: Decimal = ZERO
    realised_pnl: Decimal = ZERO
    fees: Decimal = ZERO
    opened_ms: int = 0
    last_ms: int = 0

    @property
    def side(self) -> int:
        return (self.quantity > 0) - (self.quantity < 0)


def fold(fills: Iterable[FoldFill]) -> Folded:
    """Return the position that the fills make. A fill through zero closes one side and opens the other at its price."""
    unique = {fill.trade_id: fill for fill in fills}
    quantity = cost = realised = fees = entry_price = ZERO  # cost: signed quantity x average entry price
    opened_ms = last_ms = 0
    for fill in sorted(unique.values(), key=lambda each: (each.time_ms, each.trade_id)):
        fees += fill.fee
        opened_ms, last_ms = opened_ms or fill.time_ms, fill.time_ms
        change = fill.signed_quantity
        if change == 0:
            continue
        if quantity * change >= 0:
            quantity += change
            cost += change * fill.price
            entry_price = cost / quantity
            continue
        closing = -quantity if abs(change) >= abs(quantity) else change
        # The whole of the cost when all is closed: no remainder of a division is left behind.
        removed = cost if closing == -quantity else cost * (-closing / quantity)
        realised += -closing * fill.price - removed
        quantity, cost = quantity + change, cost - removed + (change - closing) * fill.price
        entry_price = cost / quantity if quantity else entry_price  # flat: a person still wants to read what it cost
    return Folded(
        quantity=quantity,
        entry_price=entry_price,
        realised_pnl=realised,
        fees=fees,
        opened_ms=opened_ms,
        last_ms=last_ms,
    )

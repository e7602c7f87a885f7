"""What becomes of an order: a pure step per event, within the one table `choices.ORDER_TRANSITIONS` (I16, I17).

Two kinds of event. An *answer* is the end of something that we did (`Sent`, `Refused`, `Unanswered`, `Absent`): it
comes once and in its order, so one that the table does not have is a bug and raises OrderStateError. *Evidence* is what
the venue shows (`Seen`, `Traded`): it comes late, twice, split and in any order, never raises, and the result is the
same; an older picture than the one that we have changes nothing.

States that other systems have and this one has not:
- throttled: refused before matching is still to be *seen*, so it is UNKNOWN with the time of its first look-up;
- cancelling: a cancel that was asked for proves nothing about the order, and nothing waits for it: the order keeps its
  state until a picture shows what became of it;
- manual: what a person orders at the exchange has no row here; its fills are foreign, its position is adopted (F15).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from exchanges.port import OrderStatus
from trading_app.choices import OPEN_ORDER_STATES, ORDER_TRANSITIONS, OrderState
from trading_app.exceptions import OrderStateError

NEVER_PLACED = frozenset({OrderState.REJECTED, OrderState.NOT_PLACED})
"""States that a fill contradicts (F12)."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The request is about to leave."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The venue said that it has no order because of this request."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Nobody knows what became of the request: a lost answer, a rate limit, a process that died while sending."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The venue does not know the order, long enough after the request, or it was surely never sent."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The venue had the order and shows it neither among the open ones nor by its id, several times in a row."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The venue's picture of the order; ``quantity`` is what the venue works on, 0 when it does not say."""

    status: OrderStatus
    filled: Decimal
    quantity: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Traded:
    """One execution of the order, in base units."""

    trade_id: str
    quantity: Decimal


Answer = Sent | Refused | Unanswered | Absent | Gone
Event = Answer | Seen | Traded


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of an order. ``filled`` in base units never falls; it may be above what ``trades`` add up to,
    when the venue told of fills that were not read yet, and above ``quantity`` when the venue filled too much (F13).
    """

    quantity: Decimal
    state: OrderState = OrderState.INTENT
    filled: Decimal = Decimal(0)
    trades: frozenset[Traded] = frozenset()


_ANSWERS: dict[type[Answer], OrderState] = {
    Sent: OrderState.SENDING,
    Refused: OrderState.REJECTED,
    Unanswered: OrderState.UNKNOWN,
    Absent: OrderState.NOT_PLACED,
    Gone: OrderState.MISSING,
}


def step(picture: Picture, event: Event) -> Picture:
    """Return the picture after one event. Raises OrderStateError for an answer that the table does not have."""
    if isinstance(event, Seen):
        filled = max(picture.filled, event.filled)
        wanted = _by_picture(event, filled=filled, quantity=picture.quantity)
        return replace(picture, filled=filled, state=_evident(picture.state, wanted))
    if isinstance(event, Traded):
        trades = picture.trades
        if all(trade.trade_id != event.trade_id for trade in trades):
            trades |= {event}
        filled = max(picture.filled, sum((trade.quantity for trade in trades), Decimal(0)))
        wanted = by_fills(picture.state, filled=filled, quantity=picture.quantity)
        return replace(picture, trades=trades, filled=filled, state=_evident(picture.state, wanted))
    state = _ANSWERS[type(event)]
    require(picture.state, state)
    return replace(picture, state=state)


def require(before: OrderState, after: OrderState) -> None:
    """Raise OrderStateError when the table does not have this change."""
    if after not in ORDER_TRANSITIONS[before]:
        raise OrderStateError(f"{before} -> {after} is not in ORDER_TRANSITIONS; evidence must decide")


def seen_state(before: OrderState, seen: Seen, *, filled: Decimal, quantity: Decimal) -> OrderState:
    """Return the state after a picture of the venue; ``filled`` is the most that is known to be filled."""
    return _evident(before, _by_picture(seen, filled=filled, quantity=quantity))


def by_fills(before: OrderState, *, filled: Decimal, quantity: Decimal) -> OrderState:
    """Return the state after executions alone: they say how much, not whether the rest still waits."""
    if filled >= quantity:
        return OrderState.FILLED
    if filled == 0 or before not in OPEN_ORDER_STATES | NEVER_PLACED:
        return before
    return OrderState.MISSING if before in NEVER_PLACED else OrderState.PARTIALLY_FILLED


def _evident(before: OrderState, wanted: OrderState) -> OrderState:
    return wanted if wanted in ORDER_TRANSITIONS[before] else before


def _by_picture(seen: Seen, *, filled: Decimal, quantity: Decimal) -> OrderState:
    """Decide by what was filled, then by the venue's word (reference/exchanges.md: `closed` may be cancelled)."""
    if filled >= (seen.quantity or quantity):
        return OrderState.FILLED
    if seen.status == "open":
        return OrderState.PARTIALLY_FILLED if filled else OrderState.ACKED
    if seen.status == "rejected" and not filled:
        return OrderState.REJECTED
    if seen.status == "expired":
        return OrderState.EXPIRED
    return OrderState.CANCELLED  # also `filled` with less than was asked for: the rest is gone

"""Venues for tests: a real one behind a wrapper that answers as bad networks do, and one that kills its process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from exchanges.errors import ExchangeUnavailableError
from exchanges.port import (
    Ack,
    Balance,
    OrderRequest,
    PlaceOutcome,
    Rejected,
    Throttled,
    Unknown,
    Venue,
    VenueFill,
    VenueOrder,
    VenuePosition,
)

Fault = Callable[[Venue, OrderRequest], PlaceOutcome]


def lost_answer(venue: Venue, request: OrderRequest) -> PlaceOutcome:
    """The order is placed, the answer is lost (F03)."""
    venue.place(request)
    return Unknown("read timed out")


def lost_request(venue: Venue, request: OrderRequest) -> PlaceOutcome:
    """The request never arrives, and looks the same from here."""
    return Unknown("connection reset")


def rejected(venue: Venue, request: OrderRequest) -> PlaceOutcome:
    return Rejected("INSUFFICIENT_FUNDS", "not enough margin")


def throttled(venue: Venue, request: OrderRequest) -> PlaceOutcome:
    return Throttled(request.time_ms + 5_000)


def duplicate(venue: Venue, request: OrderRequest) -> PlaceOutcome:
    """An answer was lost below us and the request was sent again: the venue says that it has it (F08)."""
    venue.place(request)
    return venue.place(request)


def wrong_order(venue: Venue, request: OrderRequest) -> PlaceOutcome:
    """The venue answers with another order's picture."""
    outcome = venue.place(request)
    if isinstance(outcome, Ack):
        return Ack(replace(outcome.order, client_order_id="somebodyelse"))
    return outcome


class FaultyVenue:
    """Passes everything on to `inner`; faults are consumed one per placed order of the chosen kind."""

    def __init__(self, inner: Venue) -> None:
        self.inner = inner
        self.faults: list[Fault] = []
        self.stop_faults: list[Fault] = []
        self.target_faults: list[Fault] = []
        self.placed: list[OrderRequest] = []
        self.down = False
        self.blind_to: set[str] = set()
        self.late_fills: set[str] = set()
        self.leverages: dict[str, Decimal] = {}
        self.leverage_error: Exception | None = None
        self._closed: tuple[str, VenueOrder] | None = None

    def closed_while_reading(self, client_order_id: str, picture: VenueOrder, fills: list[VenueFill]) -> None:
        """The order fills, as `picture` did, between the next look at the fills and the next one at the orders."""
        self._closed = (client_order_id, replace(picture, client_order_id=client_order_id))
        self.late_fills = {fill.trade_id for fill in fills}

    def _check(self) -> None:
        if self.down:
            raise ExchangeUnavailableError("maintenance")

    def balance(self) -> Balance:
        self._check()
        return self.inner.balance()

    def positions(self) -> list[VenuePosition]:
        self._check()
        return self.inner.positions()

    def open_orders(self, symbol: str | None = None) -> list[VenueOrder]:
        self._check()
        found = self.inner.open_orders(symbol)
        if self._closed is not None:
            self.late_fills = set()
            found = [order for order in found if order.client_order_id != self._closed[0]]
        return found

    def order_by_client_id(self, symbol: str, client_order_id: str) -> VenueOrder | None:
        self._check()
        if client_order_id in self.blind_to:
            return None
        if self._closed is not None and client_order_id == self._closed[0]:
            return self._closed[1]
        return self.inner.order_by_client_id(symbol, client_order_id)

    def fills_since(self, time_ms: int) -> list[VenueFill]:
        self._check()
        return [fill for fill in self.inner.fills_since(time_ms) if fill.trade_id not in self.late_fills]

    def place(self, request: OrderRequest) -> PlaceOutcome:
        self.placed.append(request)
        if self.down:
            return Unknown("maintenance")
        faults = {"stop_market": self.stop_faults, "limit": self.target_faults}.get(request.kind, self.faults)
        if faults:
            return faults.pop(0)(self.inner, request)
        return self.inner.place(request)

    def place_stop(self, request: OrderRequest) -> PlaceOutcome:
        return self.place(request)

    def cancel(self, symbol: str, client_order_id: str) -> PlaceOutcome:
        if self.down:
            return Unknown("maintenance")
        return self.inner.cancel(symbol, client_order_id)

    def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        if self.leverage_error is not None:
            raise self.leverage_error
        self.inner.set_leverage(symbol, leverage)
        self.leverages[symbol] = leverage


class DyingVenue:
    """Kills its own process with SIGKILL around the first order of a kind: `before` or `after` the venue has it."""

    def __init__(self, inner: Venue, *, when: str, kind: str) -> None:
        self._inner, self._when, self._kind = inner, when, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def place(self, request: OrderRequest) -> PlaceOutcome:
        if request.kind != self._kind:
            return self._inner.place(request)
        if self._when == "before":
            self._die()
        outcome = self._inner.place(request)
        self._die()
        return outcome

    def place_stop(self, request: OrderRequest) -> PlaceOutcome:
        return self.place(request)


def client_ids(requests: Iterable[OrderRequest]) -> list[str]:
    return [request.client_order_id for request in requests]

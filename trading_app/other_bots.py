"""Notices that another bot trades our account, from another database or under another name (F36).

Only bots make client order ids of our form, and ours are in the tables; so an order, a fill or a position of such an id
that is not there is another bot's. One that has nothing open is known by its fills.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable

from exchanges.port import Venue, VenueFill, VenueOrder
from ops_app import alerts, clock
from ops_app.choices import Severity
from quant.reasons import reason
from quant.timeframes import from_ms, to_ms
from trading_app.choices import FillKind
from trading_app.client_ids import is_a_bots, own_prefix
from trading_app.models import Bot, Order

TWO_BOTS = "TWO_BOTS"
QUIET = dt.timedelta(days=1)
"""Market time after another bot's newest fill in which it may still be alive: no entries."""
LOOK_BACK = dt.timedelta(days=7)
"""How far back fills are read at the start, for who opened what is held."""


class OtherBots:
    """What one process has seen of other bots on its account, in its own time there."""

    def __init__(self, bot: Bot) -> None:
        self.bot = bot
        self.evidence: str | None = None
        self._began_ms = clock.market_now_ms()
        self._looked_back = False
        self._fills: dict[str, VenueFill] = {}
        self._may_be_alerted = True

    def look_back(self, venue: Venue) -> None:
        """Read the fills from before this process, once. Raises ExchangeError."""
        if self._looked_back:
            return
        fills = venue.fills_since(to_ms(clock.market_now() - LOOK_BACK))
        ids = {fill.client_order_id for fill in fills if is_a_bots(fill.client_order_id)}
        ours = set(
            Order.objects.filter(bot=self.bot, client_order_id__in=ids).values_list("client_order_id", flat=True)
        )
        self.note(fill for fill in fills if fill.client_order_id not in ours)
        self._looked_back = True

    def note(self, strange: Iterable[VenueFill]) -> None:
        """Remember the newest fill per symbol among these, none of which is of an order in the tables."""
        for fill in strange:
            if fill.kind != FillKind.TRADE.value or not is_a_bots(fill.client_order_id):
                continue
            if fill.client_order_id.startswith(own_prefix(self.bot)) and fill.time_ms < self._began_ms:
                continue  # our own, from before this database was restored
            known = self._fills.get(fill.symbol)
            if known is None or known.time_ms <= fill.time_ms:
                self._fills[fill.symbol] = fill

    def judge(self, orders: Iterable[VenueOrder] = (), held: Collection[str] = ()) -> str | None:
        """Return why nothing may be opened, or None. `orders` are open and not ours; so are the positions `held`.

        A person is told once, and told when it is over.
        """
        self.evidence = self._evidence(orders, held)
        key = f"two_bots:{self.bot.name}"
        if self.evidence is not None:
            self._may_be_alerted = True
            alerts.raise_alert(
                key,
                f"{self.bot.name}: another bot trades account {self.bot.account} ({self.evidence}). Nothing is opened "
                "here. Stop one of the two, or give each its own account at the exchange. If the other one is stopped "
                "for good: close what it left open; entries begin a day after its last fill.",
                Severity.CRITICAL,
            )
        elif self._may_be_alerted:
            self._may_be_alerted = False
            alerts.resolve_alert(key)
        return self.evidence

    def _evidence(self, orders: Iterable[VenueOrder], held: Collection[str]) -> str | None:
        for order in orders:
            if is_a_bots(order.client_order_id):
                return reason(TWO_BOTS, order=order.client_order_id, symbol=order.symbol)
        if not self._fills:
            return None
        newest = max(self._fills.values(), key=lambda fill: fill.time_ms)
        until = from_ms(newest.time_ms) + QUIET
        if clock.market_now() < until:
            return reason(TWO_BOTS, fill=newest.client_order_id, symbol=newest.symbol, until=until)
        for symbol in sorted(self._fills.keys() & set(held)):
            return reason(TWO_BOTS, position=symbol, opened_by=self._fills[symbol].client_order_id)
        return None

"""Which rows of the bot may go. Orders, fills, positions and risk events never do: they are the account's books."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from django.db.models import Exists, OuterRef

from ops_app import retention
from trading_app.models import Bot, Decision, EquityPoint, Order, Position


def prune_trading(cutoff: dt.datetime, limit: int) -> Mapping[str, int]:
    """Delete decisions from before `cutoff` that no order or position names, and thin out equity to one point a day."""
    decisions = points = 0
    for bot in Bot.objects.order_by("pk"):
        led_to_nothing = Decision.objects.filter(
            ~Exists(Order.objects.filter(decision=OuterRef("pk"))),
            ~Exists(Position.objects.filter(entry_decision=OuterRef("pk"))),
            bot=bot,
            bar_at__lt=cutoff,
        )
        decisions += retention.delete_in_batches(led_to_nothing.order_by("bar_at", "pk"), limit=limit - decisions)
        points += _thin_equity(bot, cutoff, limit - points)
    return {"decisions": decisions, "equity points": points}


def _thin_equity(bot: Bot, cutoff: dt.datetime, limit: int) -> int:
    """Keep the last point of each UTC day: the curve of all years stays, in days."""
    rows = EquityPoint.objects.filter(bot=bot, at__lt=cutoff).order_by("at").values_list("pk", "at")
    spare: list[int] = []
    before: tuple[int, dt.datetime] | None = None
    for pk, at in rows.iterator():
        if before is not None and before[1].date() == at.date():
            spare.append(before[0])
            if len(spare) >= limit:
                break
        before = (pk, at)
    for start in range(0, len(spare), retention.BATCH):
        EquityPoint.objects.filter(pk__in=spare[start : start + retention.BATCH]).delete()
    return len(spare)


retention.register("trading", prune_trading, app="trading_app")

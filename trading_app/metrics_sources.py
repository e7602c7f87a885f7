"""What trading adds to /metrics."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Count
from prometheus_client.core import Metric

from ops_app.metrics import labelled, register
from trading_app import selectors
from trading_app.choices import OrderState
from trading_app.models import Bot, Order, Position
from training_app.models import ActiveModel


def trading() -> Iterable[Metric]:
    """Yield equity, limits, positions and orders of every bot."""
    bots = list(Bot.objects.all())
    points = {bot.name: selectors.latest_equity(bot) for bot in bots}
    yield labelled("equity", "Equity at the last bar.", "bot", ((n, p.equity) for n, p in points.items() if p))
    yield labelled("drawdown", "Loss from the peak / peak.", "bot", ((n, p.drawdown) for n, p in points.items() if p))
    yield labelled(
        "kill_switch", "1: pulled.", "bot", ((bot.name, float(bot.kill_switch_at is not None)) for bot in bots)
    )
    yield labelled(
        "entries_blocked", "1: no position is opened.", "bot", ((b.name, float(bool(b.entries_blocked))) for b in bots)
    )
    yield labelled("model_reloads", "Models loaded since the bot was made.", "bot", ((b.name, b.reloads) for b in bots))
    serving = list(ActiveModel.objects.values_list("artifact_id", flat=True))
    promises = {
        f"v{each.version} (#{each.artifact_id})": each
        for bot in bots
        for each in selectors.promises(bot, artifact_ids=serving)
    }
    live = ((name, each.live_precision) for name, each in promises.items() if each.live_precision is not None)
    yield labelled("model_live_precision", "Share of its closed trades that paid.", "model", live)
    said = ((name, each.promised_precision) for name, each in promises.items() if each.promised_precision is not None)
    yield labelled("model_promised_precision", "Precision in its test window.", "model", said)
    yield labelled(
        "model_guard", "Share of the size that live precision leaves.", "model",
        ((name, each.guard) for name, each in promises.items()),
    )  # fmt: skip
    yield labelled("bars_missed", "Bars that closed while it was down.", "bot", ((b.name, b.missed_bars) for b in bots))
    open_now = dict(Position.objects.open().order_by().values_list("bot").annotate(n=Count("id")))
    yield labelled("positions_open", "Open positions.", "bot", ((bot.name, open_now.get(bot.pk, 0)) for bot in bots))
    states = dict(Order.objects.open().order_by().values_list("state").annotate(n=Count("id")))
    yield labelled(
        "orders_open", "Orders that have not ended, by state.", "state",
        ((state.value, states.get(state.value, 0)) for state in OrderState if state.value in states),
    )  # fmt: skip


register("trading", trading)

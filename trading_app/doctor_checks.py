"""What trading adds to `manage.py doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from ops_app.doctor import Finding, check, ok, problem, warning
from ops_app.heartbeats import pulses
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Bot, Order, Position


@check("bot", needs_tables=True)
def bot() -> Iterator[Finding]:
    alive = {pulse.name for pulse in pulses(kind="bot") if pulse.alive}
    for row in Bot.objects.all():
        if f"bot:{row.name}" not in alive:
            yield warning(f"{row.name} does not run", "Start everything with `python3 run.py`, or `manage.py runbot`.")
        if row.kill_switch_at is not None:
            yield warning(
                f"{row.name}: the kill switch is pulled ({row.kill_switch_reason})",
                "Look at the positions, then reset it in the admin under Bots.",
            )
        elif row.entries_blocked:
            yield warning(
                f"{row.name} opens no position: {row.entries_blocked}", "See the reason; `manage.py explain`."
            )
        else:
            yield ok(f"{row.name} may open positions")


@check("orders", needs_tables=True)
def orders() -> Iterator[Finding]:
    unknown = Order.objects.filter(state=OrderState.UNKNOWN).count()
    if unknown:
        yield warning(
            f"{unknown} orders of unknown outcome", "The bot looks them up; if they stay, check the exchange's website."
        )
    else:
        yield ok("no order of unknown outcome")


@check("stops", needs_tables=True)
def stops() -> Iterator[Finding]:
    live = Order.objects.open().filter(purpose__in=(OrderPurpose.STOP, OrderPurpose.EXIT)).values("position")
    bare = Position.objects.open().exclude(pk__in=live.filter(position__isnull=False))
    codes = ", ".join(bare.values_list("symbol__code", flat=True)[:5])
    if codes:
        yield problem(f"no stop at the exchange for {codes}", "Start the bot: its first act is to place them.")
    else:
        yield ok("every open position has a stop or is being closed")

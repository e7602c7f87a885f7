"""A pass of the bot in which nothing happened: most of its life."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from django.db import connection

from coverage_app import market
from ops_app import clock, queue
from trading_app.bot import HEARTBEAT_SECONDS, BotRunner
from trading_app.services import ensure_bot
from tradingsite.bench import worlds
from tradingsite.bench.measure import QUERIES, SECONDS, Figure, Scale, expect, many_times, queries

SIZES = (50, 500)
BYTES_PER_CANDLE = 0
GOAL, GOAL_QUERIES = 0.002, 3
TIMES = 200
BARE = (
    "SELECT * FROM trading_app_bot",
    "SELECT * FROM ops_app_lease",
    "UPDATE ops_app_heartbeat SET ttl_seconds = ttl_seconds",
)
"""What a pass cannot do without: its row, its right, its sign of life (every fifth second)."""


def run(scale: Scale) -> Iterator[Figure]:
    market.reset()
    with clock.simulated(worlds.NOW) as simulated, queue.capture():
        worlds.fill_symbols(scale)
        bot = BotRunner(ensure_bot(), lease_ttl=dt.timedelta(hours=12))
        try:
            bot.tick()
            expect(bot.tick().idle, "the second pass in the same minute was not idle")

            def idle_pass() -> None:
                bot.tick()

            yield Figure(
                name="loop.idle_pass", symbols=scale.symbols, unit=SECONDS, goal=GOAL,
                value=many_times(idle_pass, TIMES), limit=many_times(_bare, TIMES),
                versus="row, lease and heartbeat as three bare statements",
            )  # fmt: skip
            simulated.advance(dt.timedelta(seconds=HEARTBEAT_SECONDS))
            yield Figure(
                name="loop.idle_pass.queries", symbols=scale.symbols, unit=QUERIES, goal=GOAL_QUERIES,
                value=queries(idle_pass), limit=len(BARE), versus="the bare statements",
            )  # fmt: skip
        finally:
            bot.release()
            market.reset()


def _bare() -> None:
    with connection.cursor() as cursor:
        for statement in BARE:
            cursor.execute(statement)

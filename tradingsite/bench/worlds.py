"""Symbols and candles to measure with: random, but the same in every run."""

from __future__ import annotations

import datetime as dt

import numpy as np
from django.conf import settings
from django.db import connection, models

from coverage_app.models import Block, Symbol
from ops_app import bulk
from ops_app.models import Event
from quant.candles import Candles
from quant.panel import Panel
from quant.timeframes import HOUR_MS, to_ms
from trading_app.models import Decision
from tradingsite.bench.measure import Scale

NOW = dt.datetime(2026, 1, 20, 0, 1, tzinfo=dt.UTC)
"""A minute after a bar closed."""
NEWEST = NOW.replace(minute=0) - dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)


def codes(count: int) -> tuple[str, ...]:
    return tuple(f"C{number:05d}/USDT:USDT" for number in range(count))


def empty(*tables: type[models.Model]) -> None:
    """Delete every row, without Django's look at each."""
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f'DELETE FROM "{table._meta.db_table}"')  # noqa: S608 - a name that comes from the model


def fill_symbols(scale: Scale) -> None:
    """Put nothing but `scale.symbols` healthy symbols with whole histories into the tables of coverage."""
    empty(Decision, Event, Block, Symbol)
    names = codes(scale.symbols)
    bulk.insert_columns(
        Symbol,
        {"code": names, "base": [name.partition("/")[0] for name in names]},
        market=settings.EXCHANGE_MARKET,
        quote="USDT",
        listed_at=NOW - 1000 * DAY,
        in_universe=True,
        history_start=NEWEST - (scale.bars - 1) * dt.timedelta(hours=1),
        history_days=float(scale.days),
        history_coverage=1.0,
        candle_count=scale.bars,
        expected_count=scale.bars,
        last_candle_at=NEWEST,
        backfilled=True,
        ingest_due_at=NOW + DAY,
        next_evaluation_at=NOW + DAY,
        last_evaluated_at=NOW - DAY,
        evaluations=1,
        created_at=NOW - 1000 * DAY,
    )


def candles(scale: Scale) -> dict[str, Candles]:
    """A random walk per symbol over a common one, up to the bar before NOW's."""
    random = np.random.default_rng(20260120)
    shape = (scale.symbols, scale.bars)
    close = np.cumsum(0.01 * random.standard_normal(shape) + 0.006 * random.standard_normal(scale.bars), axis=1)
    close -= close.mean(axis=1, keepdims=True)  # so that no walk ends where prices stop making sense
    close = 100.0 * np.exp(close)
    opened = np.concatenate([close[:, :1], close[:, :-1]], axis=1)
    spread = 1.0 + 0.004 * random.random(shape)
    high, low = np.maximum(opened, close) * spread, np.minimum(opened, close) / spread
    volume = 1000.0 * random.random(shape)
    times = to_ms(NEWEST) + HOUR_MS * np.arange(1 - scale.bars, 1, dtype=np.int64)
    return {
        code: Candles(times, opened[row], high[row], low[row], close[row], volume[row])
        for row, code in enumerate(codes(scale.symbols))
    }


def panel(scale: Scale) -> Panel:
    return Panel.from_candles(candles(scale), HOUR_MS, symbols=codes(scale.symbols))

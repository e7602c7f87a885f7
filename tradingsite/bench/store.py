"""The candle store: everything, the newest 300 candles of each symbol, and one more candle for each symbol.

An append is measured as the mean of those of a day: one of them folds the recent rows into the month.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from marketdata.store import CandleStore
from quant.candles import Candles
from quant.timeframes import HOUR_MS, to_ms
from tradingsite.bench import worlds
from tradingsite.bench.measure import SECONDS, Figure, Scale, cpu_seconds, expect

SIZES = (50, 500)
BYTES_PER_CANDLE = 200  # candles, and as many that were read
MARKET, TIMEFRAME, RECENT = "bench", "1h", 300
APPENDS = 25
"""As many as fill the recent file with 500 symbols, and the one after that, which folds it."""
GOALS = {"store.read_all": 0.45, "store.last_300": 0.03, "store.append": 0.02}
"""In seconds, for 500 symbols over 730 days."""
COLUMNS = ("open_time", "open", "high", "low", "close", "volume")


def run(scale: Scale) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
        store, candles = CandleStore(Path(folder)), worlds.candles(scale)
        store.write(MARKET, TIMEFRAME, candles)
        since = to_ms(worlds.NEWEST) - (RECENT - 1) * HOUR_MS

        def read(since_ms: int | None, bars: int) -> None:
            found = store.read(MARKET, TIMEFRAME, since_ms=since_ms)
            expect(sum(map(len, found.values())) == bars * scale.symbols, "candles are missing")

        bars = min(RECENT, scale.bars)
        work = {
            "store.read_all": (lambda: read(None, scale.bars), lambda: _copy(candles, 0), "a copy in memory"),
            "store.last_300": (lambda: read(since, bars), lambda: _copy(candles, -bars), "a copy in memory"),
        }
        for name, (ours, least, versus) in work.items():
            yield Figure(
                name=name, symbols=scale.symbols, unit=SECONDS, goal=GOALS[name], value=cpu_seconds(ours),
                limit=cpu_seconds(least), versus=versus,
            )  # fmt: skip
        newest: dict[str, Candles] = {}
        bars_ahead = itertools.count(1)

        def arrive() -> None:
            newest.update(next_bar(candles, next(bars_ahead)))

        def append() -> None:
            expect(store.write(MARKET, TIMEFRAME, newest) == 1, "no file changed")

        def mean_append() -> float:
            return sum(cpu_seconds(append, before=arrive, best_of=1) for _ in range(APPENDS)) / APPENDS

        payload = np.concatenate([np.asarray(c.close[-1:]) for c in candles.values()] * len(COLUMNS)).tobytes()
        yield Figure(
            name="store.append", symbols=scale.symbols, unit=SECONDS, goal=GOALS["store.append"],
            value=min(mean_append() for _ in range(3)), limit=cpu_seconds(lambda: _write(Path(folder), payload)),
            versus="write, fsync and rename the bytes of the new candles",
        )  # fmt: skip


def next_bar(candles: Mapping[str, Candles], bar: int) -> dict[str, Candles]:
    """One candle for each symbol, `bar` bars after its last: the last one again."""
    return {
        code: Candles(series.open_time[-1:] + bar * HOUR_MS, *(getattr(series, name)[-1:] for name in COLUMNS[1:]))
        for code, series in candles.items()
    }


def _copy(candles: Mapping[str, Candles], first: int) -> None:
    for series in candles.values():
        for name in COLUMNS:
            getattr(series, name)[first:].copy()


def _write(folder: Path, payload: bytes) -> None:
    temporary = folder / ".least"
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "least")

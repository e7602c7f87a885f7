"""The one clock: everything else reads time here, so that the whole system can run on a simulated one.

There are two times, never compared with each other (DESIGN.md, 7). **Market time** is the exchange's: candles, due
times, back-offs. It is real time, or a pure function of it that one row (`MarketClock`) holds. **Database time**
decides leases and heartbeats, so that a host with a wrong clock can delay, but never corrupt (T11).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from django.db import connection
from django.db.models import DateTimeField, Expression, Value
from django.db.models.functions import Now

from ops_app.models import MarketClock
from quant.timeframes import to_ms

# A suspended laptop must not keep a lease: this clock goes on during sleep. macOS calls it CLOCK_MONOTONIC.
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def market_time(*, real: datetime, market_start: datetime, real_start: datetime, speed: float) -> datetime:
    """Return the market time at `real`: `market_start + (real - real_start) * speed`."""
    return market_start + (real - real_start) * speed


def real_time(*, market: datetime, market_start: datetime, real_start: datetime, speed: float) -> datetime:
    """Return the real time at which it is `market` on the market's clock: the inverse of `market_time`."""
    return real_start + (market - market_start) / speed


class SystemClock:
    """Real time of this host, and the market time that the database's row makes of it."""

    def __init__(self) -> None:
        self._row: MarketClock | None = None
        self._known = False
        self._lock = threading.Lock()

    def refresh(self) -> None:
        with self._lock:
            self._row = MarketClock.objects.first()
            self._known = True

    def forget(self) -> None:
        self._known = False

    def row(self) -> MarketClock | None:
        if not self._known:
            self.refresh()
        return self._row

    def real_now(self) -> datetime:
        return datetime.now(UTC)

    def market_now(self) -> datetime:
        row = self.row()
        if row is None:
            return self.real_now()
        return market_time(
            real=self.real_now(), market_start=row.market_start, real_start=row.real_start, speed=row.speed
        )

    def speed(self) -> float:
        row = self.row()
        return 1.0 if row is None else row.speed

    def monotonic(self) -> float:
        return time.monotonic()

    def boot_seconds(self) -> float:
        return time.clock_gettime(_BOOT_CLOCK)

    def database_now(self) -> Expression:
        return Now()

    def database_time(self) -> datetime:
        sqlite = connection.vendor == "sqlite"
        with connection.cursor() as cursor:
            cursor.execute("SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'now')" if sqlite else "SELECT CLOCK_TIMESTAMP()")
            (value,) = cursor.fetchone()
        return datetime.fromisoformat(value).replace(tzinfo=UTC) if sqlite else value

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class SimulatedClock(SystemClock):
    """Stands still until it is told to advance; market, real, lease and monotonic time are one and the same."""

    def __init__(self, start: datetime) -> None:
        super().__init__()
        if start.tzinfo is None:
            raise ValueError(f"start is {start}: it must be an aware datetime, like datetime(2026, 1, 1, tzinfo=UTC)")
        self.start = self.now = start

    def advance(self, step: timedelta) -> datetime:
        """Move the time forward by `step` and return the new time. Raises ValueError for a negative step."""
        if step < timedelta(0):
            raise ValueError(f"step is {step}: time runs forward only")
        self.now += step
        return self.now

    def refresh(self) -> None:
        """Nothing is stored: the simulation is its own clock."""

    def row(self) -> MarketClock | None:
        return None

    def real_now(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return (self.now - self.start).total_seconds()

    def boot_seconds(self) -> float:
        return self.monotonic()

    def database_now(self) -> Expression:
        return Value(self.now, output_field=DateTimeField())

    def database_time(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.advance(timedelta(seconds=seconds))


_system = SystemClock()
_active: SystemClock = _system


@contextmanager
def simulated(start: datetime) -> Iterator[SimulatedClock]:
    """Replace every time of this process by one that moves only with `advance()`: for tests and the soak."""
    global _active
    before, clock = _active, SimulatedClock(start)
    _active = clock
    try:
        yield clock
    finally:
        _active = before


def refresh() -> None:
    """Read the market clock's row again: after `manage.py setup` has changed it."""
    _active.refresh()


def forget() -> None:
    """Read the row at the next use: for tests, whose database changes below the cache."""
    _system.forget()


def market_clock() -> MarketClock | None:
    """Return the row that makes market time of real time; None: market time is real time."""
    return _active.row()


def market_now() -> datetime:
    """Return the exchange's time (aware, UTC)."""
    return _active.market_now()


def market_now_ms() -> int:
    """Return the exchange's time in ms since 1970."""
    return to_ms(_active.market_now())


def real_now() -> datetime:
    """Return this host's time (aware, UTC): for log rows and people, never for a lease."""
    return _active.real_now()


def speed() -> float:
    """Return the seconds of market time per real second."""
    return _active.speed()


def monotonic() -> float:
    """Return seconds for pacing and time-outs within this process."""
    return _active.monotonic()


def boot_seconds() -> float:
    """Return seconds since this host started, suspended time included: for local lease deadlines (B3)."""
    return _active.boot_seconds()


def database_now() -> Expression:
    """Return the database's time as an expression, for every lease's UPDATE and filter (T11)."""
    return _active.database_now()


def database_time() -> datetime:
    """Return the database's time (1 query)."""
    return _active.database_time()


def sleep(seconds: float) -> None:
    """Wait; on a simulated clock, advance it instead."""
    _active.sleep(seconds)

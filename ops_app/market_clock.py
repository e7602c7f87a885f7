"""The row that makes market time of real time: written by `manage.py setup`, read by every process."""

from __future__ import annotations

from datetime import UTC, datetime

from django.conf import settings
from django.core.management.base import CommandError

from ops_app import clock, heartbeats
from ops_app.models import MarketClock


def wanted_source() -> str:
    """Return what the market's candles depend on: another source is another market, even under the same name."""
    if settings.EXCHANGE == "simulated":
        return f"simulated: seed={settings.SIM_SEED}, learnable={settings.SIM_LEARNABLE}"
    if settings.EXCHANGE == "replay":
        return f"replay: from={settings.REPLAY_FROM}"
    return str(settings.EXCHANGE)


def wanted_speed() -> float:
    """Return the seconds of market time per real second that the settings ask for."""
    return float(settings.SIM_SPEED if settings.EXCHANGE == "simulated" else settings.REPLAY_SPEED)


def market_start(real: datetime) -> datetime:
    """Return the market time at which a new clock starts: the replay's date, or the last full hour."""
    if settings.EXCHANGE == "replay":
        try:
            return datetime.fromisoformat(settings.REPLAY_FROM).replace(tzinfo=UTC)
        except ValueError as error:
            raise CommandError(
                f"REPLAY_FROM={settings.REPLAY_FROM!r} is not a date of the calendar: write one like 2025-06-01."
            ) from error
    return real.replace(minute=0, second=0, microsecond=0)


def ensure() -> str:
    """Make the row, or change its speed without a jump of market time; returns what was done.

    Raises CommandError if the data of this DATA_DIR belong to another market: their times and candles would be mixed.
    """
    row = MarketClock.objects.first()
    if row is not None and (row.market, row.source) != (settings.EXCHANGE_MARKET, wanted_source()):
        raise CommandError(
            f"This database belongs to the market {row.market} ({row.source}), but the settings name "
            f"{settings.EXCHANGE_MARKET} ({wanted_source()}). Use another DATA_DIR (or DATABASE_URL) for the new "
            "market, or set EXCHANGE, EXCHANGE_MARKET, REPLAY_FROM, SIM_SEED and SIM_LEARNABLE back."
        )
    if settings.EXCHANGE in ("paper", "live"):
        return ""  # market time is real time: no row
    real = clock.real_now()
    if row is None:
        start = market_start(real)
        MarketClock.objects.create(
            market=settings.EXCHANGE_MARKET,
            source=wanted_source(),
            market_start=start,
            real_start=real,
            speed=wanted_speed(),
        )
        clock.refresh()
        return f"market clock starts at {start:%Y-%m-%d %H:%M} UTC and runs {wanted_speed():g} x"
    if row.speed == wanted_speed():
        return ""
    running = [pulse.name for pulse in heartbeats.pulses() if pulse.alive]
    if running:  # each process has read the row once: two speeds at a time would be two times
        raise CommandError(
            f"The market clock runs {row.speed:g} x and cannot be set to {wanted_speed():g} x while "
            f"{', '.join(running)} runs. Stop everything (Ctrl-C in the terminal of runall; after a kill wait a "
            "minute), then try again."
        )
    # Market time goes on from where it is: nothing that was due becomes undue.
    now = clock.market_time(real=real, market_start=row.market_start, real_start=row.real_start, speed=row.speed)
    MarketClock.objects.filter(pk=row.pk, speed=row.speed, real_start=row.real_start).update(
        market_start=now, real_start=real, speed=wanted_speed()
    )
    clock.refresh()
    return f"market clock now runs {wanted_speed():g} x (before: {row.speed:g} x)"

"""Who may trade an account: one process at a time (I15), and how a new owner begins (B5)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import structlog
from django.conf import settings
from django.db import OperationalError, connection

from ops_app import clock, leases
from ops_app.leases import LeaseToken
from ops_app.models import Lease
from trading_app.exceptions import AccountBusyError
from trading_app.models import Bot
from trading_app.orders import CLOCK_SKEW
from trading_app.venue import RECEIVE_WINDOW

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5


def lease_name(bot: Bot) -> str:
    return f"account:{bot.account}"


def lease_ttl() -> dt.timedelta:
    return dt.timedelta(seconds=settings.BOT_LEASE_SECONDS)


def fence() -> dt.timedelta:
    """Return how long a new owner waits before its first order: until nothing of the old one can be accepted."""
    return RECEIVE_WINDOW + CLOCK_SKEW


def take(bot: Bot, *, holder: str, ttl: dt.timedelta) -> LeaseToken | None:
    return leases.acquire(lease_name(bot), holder=holder, ttl=ttl)


def wait_for_account(
    bot: Bot, *, holder: str, ttl: dt.timedelta, stopped: Callable[[], bool] = lambda: False
) -> LeaseToken | None:
    """Take the account; wait for the end of a dead holder's lease. Raises AccountBusyError if its holder lives.

    Returns None when told to stop meanwhile.
    A holder lives when it renews while we look. One whose process is gone from this host need not be waited for.
    """
    first: tuple[int, dt.datetime | None] | None = None
    while not stopped():
        try:
            lease = take(bot, holder=holder, ttl=ttl)
        except OperationalError as error:  # away or locked: it will come back, and ending here would not help
            log.warning("account_not_asked", account=bot.account, error=str(error))
            connection.close()
            clock.sleep(POLL_SECONDS)
            continue
        if lease is not None:
            return lease
        row = Lease.objects.get(name=lease_name(bot))
        if leases.died_here(row.holder):
            log.warning("holder_is_dead", account=bot.account, holder=row.holder)
            # What it sent may still arrive: whoever takes the account now, this process or another, must know (B5).
            leases.end(LeaseToken(row.name, row.holder, row.token, ttl, deadline=0.0))
            continue
        seen = (row.token, row.renewed_at)
        if first is None:
            first = seen
            log.info("waiting_for_account", account=bot.account, holder=row.holder, seconds=ttl.total_seconds())
        elif seen != first:
            raise AccountBusyError(
                f"account {bot.account} is traded by {row.holder}, which renewed its lease just now (I15). "
                "Stop that one first (manage.py doctor shows it), or give this bot its own account with BOT_NAME."
            )
        clock.sleep(POLL_SECONDS)
    return None

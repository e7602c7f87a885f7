"""The right to do one thing, held by one process at a time, on the database's clock (reference/locks.md).

The one place that says when a lease is over: a right is a row of `Lease` (accounts, candles, migrations), or the end is
written on the row that it is about (a run, whose claim must be one UPDATE). A lease is taken, renewed and given back
by one UPDATE each. Its token only grows: whoever is fenced by it can tell an owner from a zombie. B2: a renewal needs
my token *and* an unexpired lease; a lapsed one is only taken anew, with a new token.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from django.db import connection
from django.db.models import Expression, Q, QuerySet

from ops_app import clock
from ops_app.models import Lease
from ops_app.prepared import Prepared, Time

HOST_NAMESPACE = 0xEFFFFFFC
"""The inode that Linux gives to the process namespace of every host; containers have others."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Random at each start of Linux: two hosts of the same name differ in it. Other systems have none."""


class LeaseLost(Exception):  # noqa: N818 - it names what happened, like LeaseBusy
    """The lease is another's now, or has run out: stop, nothing may be written in its name."""


class LeaseBusy(Exception):  # noqa: N818 - it names what happened, like LeaseLost
    """Another process holds the lease."""


class Term:
    """The time for which a right surely holds here. `deadline`: seconds of `clock.boot_seconds()` (B3)."""

    __slots__ = ()
    deadline: float

    def locally_valid(self, *, margin: timedelta = timedelta(0)) -> bool:
        """Tell without a query whether the right holds for `margin` more: counted from before the renewal."""
        return clock.boot_seconds() + margin.total_seconds() < self.deadline


def local_deadline(*, begun: float, ttl: timedelta) -> float:
    """Return the deadline of a right of `ttl` that was asked for at `begun` (`clock.boot_seconds()`)."""
    return begun + ttl.total_seconds()


def ends_in(ttl: timedelta) -> Expression:
    """Return what to write as the end of a lease: the database's clock plus `ttl` (T11)."""
    return clock.database_now() + ttl


def expired(field: str = "expires_at", *, since: timedelta = timedelta(0)) -> Q:
    """Match rows whose lease has been over for `since`, by the database's clock; the end is in `field` (T3, T11)."""
    now = clock.database_now()
    return Q((f"{field}__lte", now - since if since else now))


def unexpired(field: str = "expires_at") -> Q:
    """Match rows whose lease is not over; a row without an end matches neither this nor `expired`."""
    return Q((f"{field}__gt", clock.database_now()))


def _renewal(name: str, token: int, ttl: timedelta, *, now: Time) -> tuple[QuerySet[Lease], dict[str, object]]:
    held = Lease.objects.filter(name=name, token=token, expires_at__gt=now)
    return held, {"renewed_at": now, "expires_at": now + ttl}


_renew = Prepared(_renewal)


@dataclass(slots=True)
class LeaseToken(Term):
    """A lease that was granted to `holder`. `left_by`: who held it before and did not give it back (B5)."""

    name: str
    holder: str
    token: int
    ttl: timedelta
    deadline: float = field(compare=False)
    left_by: str = field(default="", compare=False)

    def due(self) -> bool:
        """Tell whether a third of the lease has passed, so that it should be renewed."""
        return clock.boot_seconds() > self.deadline - self.ttl.total_seconds() * 2 / 3


def holder_name(kind: str) -> str:
    """Return a name for the holder that no other process, earlier or later, has."""
    return f"{kind}@{_place()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def _place() -> str:
    """Return where process ids mean what they mean here: the host since its start, and the container's namespace."""
    host = socket.gethostname()[:40]
    if BOOT_ID.exists():
        host += f"+{BOOT_ID.read_text()[:8]}"
    namespace = Path("/proc/self/ns/pid")
    inode = namespace.stat().st_ino if namespace.exists() else HOST_NAMESPACE
    return host if inode == HOST_NAMESPACE else f"{host}~{inode}"


def died_here(holder: str) -> bool:
    """Tell whether `kind@place:pid:random` was a process of this place that is gone. Unsure: no."""
    place = holder.partition("@")[2].split(":")
    if len(place) != 3 or place[0] != _place() or not place[1].isdigit():
        return False
    try:
        os.kill(int(place[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def acquire(name: str, *, holder: str, ttl: timedelta) -> LeaseToken | None:
    """Take the lease if it is free or expired; return None if another (or this holder) has it.

    `holder` must be unique per process life (`holder_name()`): who was killed waits for the end of its old lease.
    """
    if not holder or ttl <= timedelta(0):
        raise ValueError(f"lease {name!r}: holder is {holder!r} and ttl {ttl}; give a name and a positive time")
    free = Q(expires_at__isnull=True) | expired()
    begun = clock.boot_seconds()
    row = Lease.objects.filter(name=name).values_list("token", "holder").first()
    if row is None:
        Lease.objects.bulk_create([Lease(name=name)], ignore_conflicts=True)
    known, left_by = row or (0, "")
    # One compare-and-set: the database's clock decides, and the token makes it mine alone (T3).
    taken = Lease.objects.filter(free, name=name, token=known).update(
        holder=holder,
        token=known + 1,
        acquired_at=clock.database_now(),
        renewed_at=clock.database_now(),
        expires_at=ends_in(ttl),
    )
    if taken != 1:
        return None
    return LeaseToken(
        name=name,
        holder=holder,
        token=known + 1,
        ttl=ttl,
        deadline=local_deadline(begun=begun, ttl=ttl),
        left_by=left_by,  # nobody was in between: the token would have grown
    )


def renew(lease: LeaseToken) -> bool:
    """Extend the lease by its ttl from now; False: it was lost (B2), stop."""
    begun = clock.boot_seconds()
    if _renew.update(lease.name, lease.token, lease.ttl, now=clock.database_now()) != 1:
        return False
    lease.deadline = local_deadline(begun=begun, ttl=lease.ttl)
    return True


def release(lease: LeaseToken) -> bool:
    """Give the lease back, so that another need not wait for its end; False: it was not mine any more."""
    lease.deadline = clock.boot_seconds()
    return (
        Lease.objects.filter(name=lease.name, token=lease.token, expires_at__isnull=False).update(
            holder="", expires_at=None
        )
        == 1
    )


def end(lease: LeaseToken) -> bool:
    """End the lease now, but not as given back: its holder stays named, and counts as who left it (B5).

    For a dead holder's lease, and for an owner that goes before it has waited out the one before it. False: it was
    not mine any more.
    """
    lease.deadline = clock.boot_seconds()
    mine = Lease.objects.filter(name=lease.name, token=lease.token, expires_at__isnull=False)
    return mine.update(expires_at=clock.database_now()) == 1


def held(lease: LeaseToken) -> bool:
    """Return True, and keep the lease's row locked until the end of the transaction, so that nobody takes it over.

    Raises LeaseLost when it is not mine any more: the transaction is then rolled back. Call it inside `atomic()`.
    """
    if not connection.in_atomic_block:
        raise RuntimeError(f"held({lease.name!r}) outside of a transaction guards nothing: call it inside atomic()")
    row = (
        Lease.objects.select_for_update()
        .filter(unexpired(), name=lease.name, token=lease.token)
        .values_list("pk", flat=True)
        .first()
    )
    if row is None:
        raise LeaseLost(f"lease {lease.name} with token {lease.token} is not held any more by {lease.holder}")
    return True


def keep(lease: LeaseToken) -> None:
    """Renew the lease when a third of it has passed: cheap, for between the steps of long work. Raises LeaseLost."""
    if lease.due() and not renew(lease):
        raise LeaseLost(f"lease {lease.name} with token {lease.token} could not be renewed by {lease.holder}")


@contextmanager
def holding(name: str, *, ttl: timedelta, holder: str | None = None) -> Iterator[LeaseToken]:
    """Hold the lease for the block and give it back after it. Raises LeaseBusy. Long work calls `keep(lease)`."""
    lease = acquire(name, holder=holder or holder_name(name), ttl=ttl)
    if lease is None:
        raise LeaseBusy(f"lease {name} is held by another process: wait until it is released or runs out")
    try:
        yield lease
    finally:
        release(lease)

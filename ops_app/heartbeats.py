"""Each process says in a row that it lives; older than its ttl on the database's clock means dead or stuck."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F

from ops_app import clock
from ops_app.models import Heartbeat
from ops_app.prepared import Prepared

_said: dict[str, tuple[Any, ...]] = {}
"""What this process last said of itself, by name: usually only the time is new."""
_again = Prepared(
    lambda name, pid, host, *, now: (Heartbeat.objects.filter(name=name, pid=pid, host=host), {"beat_at": now})
)
_ages = Prepared(
    lambda *, database_now: Heartbeat.objects.annotate(database_now=database_now).values_list(
        "beat_at", "ttl_seconds", "database_now"
    )
)


@dataclass(frozen=True)
class Pulse:
    """A heartbeat, judged on the database's clock."""

    name: str
    kind: str
    beat_at: datetime
    age: timedelta
    ttl: timedelta
    pid: int | None
    host: str
    detail: dict[str, Any]

    @property
    def alive(self) -> bool:
        return self.age <= self.ttl


def beat(name: str, kind: str, ttl_seconds: int = 60, detail: dict[str, Any] | None = None) -> None:
    """Say that `name` lives: 1 query (2 the first time). Silent for longer than `ttl_seconds` means dead or stuck."""
    values: dict[str, Any] = {
        "kind": kind,
        "beat_at": clock.database_now(),
        "ttl_seconds": ttl_seconds,
        "pid": os.getpid(),
        "host": socket.gethostname()[:120],
        "detail": detail or {},
    }
    said = (kind, ttl_seconds, values["pid"], values["host"], values["detail"])
    if _said.get(name) == said and _again.update(name, values["pid"], values["host"], now=values["beat_at"]):
        return
    if not Heartbeat.objects.filter(name=name).update(**values):
        Heartbeat.objects.bulk_create([Heartbeat(name=name, **values)], ignore_conflicts=True)
    _said[name] = said


def stop(name: str) -> None:
    """Forget `name`: it ended as it was told to, so nobody should miss it."""
    Heartbeat.objects.filter(name=name).delete()


def pulses(*, kind: str | None = None) -> list[Pulse]:
    """Return every process that has said that it lives, by name (1 query)."""
    rows = Heartbeat.objects.annotate(database_now=clock.database_now()).order_by(F("kind"), F("name"))
    if kind is not None:
        rows = rows.filter(kind=kind)
    return [
        Pulse(
            name=row.name,
            kind=row.kind,
            beat_at=row.beat_at,
            age=row.database_now - row.beat_at,
            ttl=timedelta(seconds=row.ttl_seconds),
            pid=row.pid,
            host=row.host,
            detail=row.detail,
        )
        for row in rows
    ]


def any_dead() -> bool:
    """Return whether `dead()` would find one (1 query)."""
    rows = _ages.rows(database_now=clock.database_now())
    return any(now - beat_at > timedelta(seconds=ttl) for beat_at, ttl, now in rows)


def dead() -> list[Pulse]:
    """Return the processes that were not stopped, but have been silent for longer than their ttl."""
    return [pulse for pulse in pulses() if not pulse.alive]

"""The append-only journal: what happened to what, why, and who did it (I21)."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from django.contrib.auth.models import User

from ops_app import bulk, clock
from ops_app.choices import Severity
from ops_app.models import Event

log = structlog.get_logger(__name__)


def record(
    kind: str,
    text: str,
    *,
    subject: str = "",
    severity: str = Severity.INFO,
    user: User | None = None,
) -> Event:
    """Write down that `kind` happened to `subject` (like `symbol:BTC/USDT:USDT` or `run:7`); part of the transaction.

    The text is for a person: what happened, with the numbers that caused it.
    """
    log.info(kind, text=text, subject=subject, severity=str(severity))
    return Event.objects.create(
        created_at=clock.market_now(),
        recorded_at=clock.real_now(),
        severity=severity,
        kind=kind,
        subject=subject[:120],
        text=text,
        user=user,
    )


def record_many(
    entries: Iterable[tuple[str, str, str]], *, severity: str = Severity.INFO, user: User | None = None
) -> int:
    """Write down (kind, subject, text) triples in one statement, however many; returns their number."""
    events = [(kind, subject[:120], text) for kind, subject, text in entries]
    if events:
        kinds, subjects, texts = zip(*events, strict=True)
        bulk.insert_columns(
            Event,
            {"kind": kinds, "subject": subjects, "text": texts},
            created_at=clock.market_now(),
            recorded_at=clock.real_now(),
            severity=severity,
            user_id=None if user is None else user.pk,
        )
        log.info("journal", count=len(events), first=f"{kinds[0]} {subjects[0]}: {texts[0]}")
    return len(events)

"""Alerts: a row is written with the thing that it reports, and sent later by a worker (an outbox, F41).

Sending may fail, hang or be killed: the row stays. An attempt is counted before it is made, and waits longer each time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q

from ops_app import clock
from ops_app.choices import AlertState, Severity
from ops_app.models import Alert
from ops_app.prepared import Prepared

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 10
FIRST_BACK_OFF = timedelta(seconds=30)
LONGEST_BACK_OFF = timedelta(hours=1)
BATCH = 20

_pending = Prepared(lambda: Alert.objects.filter(state=AlertState.PENDING))


def raise_alert(key: str, text: str, severity: str = Severity.WARNING) -> Alert | None:
    """Raise an alert, unless one with this `key` is open already (then None): once until it is resolved."""
    if Alert.objects.filter(key=key, resolved_at__isnull=True).exists():
        return None
    try:
        with transaction.atomic():
            alert = Alert.objects.create(created_at=clock.real_now(), key=key, text=text, severity=severity)
    except IntegrityError:  # another process raised it between the look and the write
        return None
    log.warning("alert_raised", key=key, text=text, severity=str(severity))
    return alert


def resolve_alert(key: str) -> bool:
    """Close the open alert with this `key`; False: there was none. A cause that returns raises a new one."""
    return Alert.objects.filter(key=key, resolved_at__isnull=True).update(resolved_at=clock.real_now()) == 1


def back_off(attempts: int) -> timedelta:
    """Return how long to wait after this many attempts: 30 s doubled each time, at most an hour."""
    return min(FIRST_BACK_OFF * 2 ** min(attempts - 1, 16), LONGEST_BACK_OFF)


def apprise_notifier(urls: tuple[str, ...]) -> Callable[[str, str], bool]:
    """Return a function (title, body) -> sent, over apprise."""
    import apprise

    sender = apprise.Apprise()
    for url in urls:
        if not sender.add(url):
            # The URL holds a secret: say which one by its place, never by its text.
            log.error("alert_url_refused", position=urls.index(url) + 1, fix="mend this entry of ALERT_URLS")
    return lambda title, body: bool(sender.notify(title=title, body=body))


def are_pending() -> bool:
    """Return whether an alert waits to be sent or shown."""
    return _pending.exists()


def send_pending(*, notify: Callable[[str, str], bool] | None = None) -> str:
    """Send the alerts that are due; returns what was done, "" for nothing. A job calls it every minute."""
    now = clock.real_now()
    due = Alert.objects.filter(Q(not_before__isnull=True) | Q(not_before__lte=now), state=AlertState.PENDING)
    if not settings.ALERT_URLS and notify is None:
        shown = due.update(state=AlertState.SHOWN)
        return f"{shown} shown only: ALERT_URLS is empty" if shown else ""
    batch = list(due.order_by("id")[:BATCH])
    if not batch:
        return ""
    notify = notify or apprise_notifier(settings.ALERT_URLS)
    sent = failed = 0
    for alert in batch:
        attempts = alert.attempts + 1
        # Counted before the attempt, and claimed: whoever is killed in between, it is neither lost nor sent for ever.
        mine = Alert.objects.filter(pk=alert.pk, state=AlertState.PENDING, attempts=alert.attempts).update(
            attempts=attempts, not_before=now + back_off(attempts)
        )
        if not mine:
            continue
        error = _attempt(alert, notify)
        if error is None:
            sent += 1
            Alert.objects.filter(pk=alert.pk).update(state=AlertState.SENT, sent_at=clock.real_now(), error="")
        else:
            failed += 1
            state = AlertState.FAILED if attempts >= MAX_ATTEMPTS else AlertState.PENDING
            Alert.objects.filter(pk=alert.pk).update(state=state, error=error[:500])
    return f"{sent} sent, {failed} failed"


def _attempt(alert: Alert, notify: Callable[[str, str], bool]) -> str | None:
    title = f"[{alert.severity}] Trading bot"
    body = alert.text if alert.resolved_at is None else f"{alert.text}\n(resolved at {alert.resolved_at:%H:%M} UTC)"
    try:
        return None if notify(title, body) else "the service refused it; see the log for its answer"
    except Exception as error:
        # One service's error must not keep the other alerts from being sent. Its text may hold the URL's secret.
        log.exception("alert_not_sent", alert=alert.pk)
        return type(error).__name__

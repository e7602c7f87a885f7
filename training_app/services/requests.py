"""Asking for a run, ringing a worker for it, and calling it off."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import F

from coverage_app.models import Symbol
from ops_app import bulk, clock, journal, queue
from quant.reasons import reason
from training_app import capacity, policies, registry
from training_app.choices import OPEN_STATES, RunState, RunTrigger
from training_app.exceptions import RunRefused
from training_app.models import RunSymbol, TrainingRun, TrainingScope
from training_app.services.verdicts import leave_verdicts

TRAIN_TASK = "training_app.tasks.train"


def ensure_scope(*, market: str, symbol: Symbol | None = None) -> TrainingScope:
    """Return the scope of the settings' mode and timeframe, made at the first call."""
    scope, _ = TrainingScope.objects.get_or_create(
        key=registry.slot_key(market=market, symbol=None if symbol is None else symbol.code),
        defaults={
            "market": market,
            "training_mode": settings.TRAINING_MODE,
            "timeframe": settings.TIMEFRAME,
            "symbol": symbol,
        },
    )
    return scope


def request_run(
    *,
    scope: TrainingScope,
    trigger: RunTrigger | str,
    cause: str,
    symbols: Collection[int],
    not_before: dt.datetime | None = None,
    user: User | None = None,
) -> TrainingRun:
    """Return the scope's open run, or a new one of the symbol ids `symbols` that starts at `not_before` (T1, T2).

    The row, its symbols and its message are one transaction (I7). A symbol in another open run is left out (I1).
    Raises RunRefused when no symbol is left.
    """
    present = scope.runs.open().first()
    if present is not None:
        return present
    now = clock.market_now()
    try:
        with transaction.atomic():
            return _insert_run(
                scope_id=scope.pk,
                trigger=trigger,
                cause=cause,
                symbols=symbols,
                not_before=max(not_before or now, now),
                now=now,
                user=user,
            )
    except IntegrityError:  # somebody was faster: the database let only one of us in
        present = scope.runs.open().first()
        if present is None:  # and that run has ended already
            raise RunRefused(f"{scope.key}: another run began and ended at this moment; ask again") from None
        return present


def _insert_run(
    *,
    scope_id: int,
    trigger: str,
    cause: str,
    symbols: Collection[int],
    not_before: dt.datetime,
    now: dt.datetime,
    user: User | None,
) -> TrainingRun:
    scope = TrainingScope.objects.select_for_update().get(pk=scope_id)
    wanted = sorted(set(symbols))
    taken = set(RunSymbol.objects.filter(open=True, symbol__in=wanted).values_list("symbol_id", flat=True))
    free = [symbol_id for symbol_id in wanted if symbol_id not in taken]
    if not free:
        what = f"all {len(taken)} are in open runs" if taken else "no symbol is ready"
        raise RunRefused(f"{scope.key}: nothing to train: {what}; see the symbols' states")
    TrainingScope.objects.filter(pk=scope_id).update(run_seq=F("run_seq") + 1)
    needed = capacity.needs(free, timeframe=scope.timeframe)
    due = not_before <= now
    run = TrainingRun.objects.create(
        scope=scope,
        run_no=scope.run_seq + 1,
        trigger=trigger,
        cause=cause[:500],
        requested_by=user,
        max_attempts=settings.TRAIN_MAX_ATTEMPTS,
        not_before=not_before,
        needs_memory_mb=needed.memory_mb,
        needs_threads=needed.threads,
        enqueued_at=clock.database_now() if due else None,
        created_at=now,
    )
    # A symbol that another run took since it was read is left out by the unique index, not by an `if` (I1).
    entered = bulk.insert_rows(RunSymbol(run=run, symbol_id=symbol_id) for symbol_id in free)
    if entered == 0:
        raise RunRefused(f"{scope.key}: its symbols went to other runs at this moment; ask again if they are needed")
    if due:
        ring(run.pk)
    run.refresh_from_db()
    journal.record(
        "run_requested",
        f"Run {run.run_no} of {scope.key}: {entered} symbols, because {cause}",
        subject=f"run:{run.pk}",
        user=user,
    )
    return run


def ring(run_id: int) -> None:
    """Tell a training worker that a run waits. Whoever rings has written `enqueued_at` in the same transaction."""
    queue.enqueue(TRAIN_TASK, run_id, queue=settings.TRAINING_QUEUE)


def cancel(
    *,
    run: TrainingRun,
    user: User | None = None,
    why: str = "by a person",
    recheck_at: dt.datetime | None = None,
) -> TrainingRun:
    """End an open run without a result; a process that trains it stops at its next heartbeat.

    Its symbols get verdicts like those of any other end (I2): those that no model covers wait until `recheck_at`
    (default: one least interval between runs), so that the next look at the scope does not ask again at once. Raises
    RunRefused when the run has ended already.
    """
    now = clock.market_now()
    recheck_at = recheck_at or now + dt.timedelta(milliseconds=policies.training_policy().min_train_interval_ms)
    with transaction.atomic():
        scope = TrainingScope.objects.select_for_update().get(pk=run.scope_id)
        ended = TrainingRun.objects.filter(pk=run.pk, state__in=OPEN_STATES).update(
            state=RunState.CANCELLED,
            finished_at=now,
            lease_expires_at=None,
            error=reason("CANCELLED", why=why, user=getattr(user, "username", None)),
        )
        if ended != 1:
            raise RunRefused(f"run {run.pk} has ended already; there is nothing to cancel")
        run.refresh_from_db()
        leave_verdicts(run, block_reason="TRAINING_FAILED", evidence=run.error, recheck_at=recheck_at)
        journal.record(
            "run_cancelled",
            f"Run {run.run_no} of {scope.key} was cancelled: {why}. Its uncovered symbols wait until "
            f"{recheck_at:%Y-%m-%d %H:%M}.",
            subject=f"run:{run.pk}",
            user=user,
        )
    return run

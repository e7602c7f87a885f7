"""Asking for a run, ringing a worker for it, and calling it off."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F

from coverage_app.models import Symbol
from ops_app import bulk, clock, journal, queue
from quant.reasons import reason
from training_app import capacity, policies, registry
from training_app.choices import OPEN_STATES, RunState, RunTrigger
from training_app.exceptions import RunRefused
from training_app.models import RunSymbol, TrainingRun, TrainingScope
from training_app.services.verdicts import leave_verdicts

log = structlog.get_logger(__name__)

TRAIN_TASK = "training_app.tasks.train"
RUNS_PER_TRANSACTION, RINGS_AT_ONCE = 200, 30


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A run that is wanted: of the symbol ids `symbols`, because of `cause`, now or at `not_before` (market time)."""

    scope: TrainingScope
    trigger: RunTrigger | str
    cause: str
    symbols: Collection[int]
    not_before: dt.datetime | None = None
    user: User | None = None


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
    wish = Wish(scope=scope, trigger=trigger, cause=cause, symbols=symbols, not_before=not_before, user=user)
    made, refused = _insert_runs([wish])
    if made:
        return made[0]
    present = scope.runs.open().first()
    if present is None:
        raise RunRefused(refused.get(scope.pk, f"{scope.key}: another run began and ended at this moment; ask again"))
    return present  # somebody was faster


def request_runs(wishes: Sequence[Wish]) -> list[TrainingRun]:
    """Return the new runs of `wishes`, each for another scope: a constant number of statements for 200 of them.

    A scope that has an open run meanwhile, or no free symbol left, gets none: the next look at it sees why.
    """
    runs: list[TrainingRun] = []
    for start in range(0, len(wishes), RUNS_PER_TRANSACTION):
        made, refused = _insert_runs(wishes[start : start + RUNS_PER_TRANSACTION])
        runs += made
        for text in refused.values():
            log.info("run_refused", error=text)
    return runs


@transaction.atomic
def _insert_runs(wishes: Sequence[Wish]) -> tuple[list[TrainingRun], dict[int, str]]:
    """Insert the runs that may be, under the locks of their scopes; return them, and why the others may not by scope.

    What another process takes at this moment is left out by the unique indexes, not by an `if` (I1).
    """
    now = clock.market_now()
    among = bulk.among([wish.scope.pk for wish in wishes])
    scopes = {
        scope.pk: scope for scope in TrainingScope.objects.select_for_update().filter(pk__in=among).order_by("pk")
    }
    busy = set(TrainingRun.objects.open().filter(scope__in=among).values_list("scope_id", flat=True))
    wanted = bulk.among({symbol_id for wish in wishes for symbol_id in wish.symbols})
    taken = set(RunSymbol.objects.filter(open=True, symbol__in=wanted).values_list("symbol_id", flat=True))
    days = dict(Symbol.objects.filter(pk__in=wanted).values_list("pk", "history_days"))
    free: dict[int, list[int]] = {}
    refused: dict[int, str] = {}
    rows = []
    for wish in wishes:
        scope = scopes[wish.scope.pk]
        if scope.pk in busy:
            continue
        free[scope.pk] = sorted({symbol_id for symbol_id in wish.symbols if symbol_id not in taken})
        if not free[scope.pk]:
            what = f"all {len(set(wish.symbols))} are in open runs" if wish.symbols else "no symbol is ready"
            refused[scope.pk] = f"{scope.key}: nothing to train: {what}; see the symbols' states"
            continue
        rows.append(_run_of(wish, scope, [days[symbol_id] for symbol_id in free[scope.pk]], now))
    bulk.insert_rows(rows)
    asked = {row.scope_id: row.run_no for row in rows}
    present = TrainingRun.objects.open().filter(scope__in=bulk.among(asked)).order_by("pk")
    made = [run for run in present if run.run_no == asked[run.scope_id]]
    bulk.insert_rows(RunSymbol(run=run, symbol_id=symbol_id) for run in made for symbol_id in free[run.scope_id])
    ids = bulk.among([run.pk for run in made])
    entered = Counter(RunSymbol.objects.filter(run__in=ids).values_list("run_id", flat=True))
    for run in [run for run in made if not entered[run.pk]]:
        refused[run.scope_id] = f"{scopes[run.scope_id].key}: its symbols went to other runs at this moment; ask again"
        run.delete()
        made.remove(run)
    _announce(made, scopes, entered, {wish.scope.pk: wish for wish in wishes}, now)
    return made, refused


def _run_of(wish: Wish, scope: TrainingScope, days: list[float], now: dt.datetime) -> TrainingRun:
    needed = capacity.needs(days, timeframe=scope.timeframe)
    return TrainingRun(
        scope=scope,
        run_no=scope.run_seq + 1,
        trigger=wish.trigger,
        cause=wish.cause[:500],
        requested_by=wish.user,
        max_attempts=settings.TRAIN_MAX_ATTEMPTS,
        not_before=max(wish.not_before or now, now),
        needs_memory_mb=needed.memory_mb,
        needs_threads=needed.threads,
        created_at=now,
    )


def _announce(
    made: list[TrainingRun],
    scopes: Mapping[int, TrainingScope],
    entered: Mapping[int, int],
    wishes: Mapping[int, Wish],
    now: dt.datetime,
) -> None:
    """Count the runs on their scopes, ring for those that are due, and write them down.

    A message makes its worker look for any run, so a few wake all; the sweeper rings for runs that still wait then.
    """
    made_ids = [run.pk for run in made]
    TrainingScope.objects.filter(pk__in=bulk.among([run.scope_id for run in made])).update(run_seq=F("run_seq") + 1)
    due = [run for run in made if run.not_before <= now]
    rung = [run.pk for run in due[:RINGS_AT_ONCE]]
    if rung:
        TrainingRun.objects.filter(pk__in=bulk.among(rung)).update(enqueued_at=clock.database_now())
    for run_id in rung:
        ring(run_id)
    for user in {wishes[run.scope_id].user for run in made}:
        entries = [
            (
                "run_requested",
                f"run:{run.pk}",
                f"Run {run.run_no} of {scopes[run.scope_id].key}: {entered[run.pk]} symbols, because {run.cause}",
            )
            for run in made
            if wishes[run.scope_id].user == user
        ]
        journal.record_many(entries, user=user)
    fresh = TrainingRun.objects.select_related("scope").in_bulk(made_ids)
    made[:] = [fresh[run_id] for run_id in made_ids]


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

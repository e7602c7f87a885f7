"""Claim, heartbeat, failure and sweep of a run: each one guarded UPDATE on the database's clock (reference/locks.md).

T12 allows four statements to a transaction. The ones that end a run need more, because its verdicts, blocks and the
journal must appear with the end or not at all (I2); none of them waits for anything but the database.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Concat

from ops_app import alerts, clock, journal, leases, queue
from ops_app.choices import Severity
from ops_app.prepared import Prepared, Time
from quant.reasons import reason
from training_app import capacity, policies
from training_app.choices import ActivationState, RunState
from training_app.exceptions import RunLost
from training_app.models import Activation, TrainingRun, TrainingScope
from training_app.querysets import RunQuerySet
from training_app.services.requests import ring
from training_app.services.verdicts import leave_verdicts

log = structlog.get_logger(__name__)

ATTEMPTS_PER_TOKEN = 65_536
STALE_RING = dt.timedelta(seconds=60)
"""A message older than this may be lost. One that was only waiting makes its double a no-op that costs one read."""
DECLINED_RING = dt.timedelta(seconds=15)
RINGS_PER_SWEEP = 10
"""Also the most messages that are left waiting: each makes its worker look for any run, so more would tell nothing."""
LEASE_END = "lease_expires_at"
APPLY_TASK = "training_app.tasks.apply_activation"

# Asked by every sweep, so compiled once: an idle sweep costs nothing but these.
_running = Prepared(lambda: TrainingRun.objects.filter(state=RunState.RUNNING))
_unheard_run = Prepared(lambda *, database_now, now: _unheard_runs(database_now, now))
_unheard_activation = Prepared(lambda *, database_now: _unheard_activations(database_now))


@dataclass(slots=True, kw_only=True)
class Claim(leases.Term):
    """The right to train a run."""

    run_id: int
    scope_id: int
    run_no: int
    attempt: int
    max_attempts: int
    token: int
    owner: str
    data_end: dt.datetime
    deadline: float


def claimable(run_id: int) -> bool:
    """Return whether a claim could succeed: a read, so that a double message costs nothing more."""
    return TrainingRun.objects.filter(_claimable(), pk=run_id).exists()


def next_claimable() -> int | None:
    """Return the id of the run that waits longest among those that this host can do: a large one holds up nobody."""
    waiting = TrainingRun.objects.filter(_claimable()).order_by("not_before", "id")
    return waiting.values_list("pk", flat=True).first()


def decline(run_id: int) -> bool:
    """Let the sweeper ring soon for a run that this host cannot do, if a live worker can; False: it needs no ring.

    The message went to the wrong worker. The run's `enqueued_at` moves so that it counts as lost in 15 s, not in 60:
    at most four messages a minute for a run whose host is busy, and no worker sends itself what it has just refused.
    """
    run = TrainingRun.objects.filter(pk=run_id, state=RunState.QUEUED).exclude(capacity.fits_here()).first()
    if run is None or not capacity.takers(run, capacity.live_shares()):
        return False
    soon = clock.database_now() - (STALE_RING - DECLINED_RING)
    return TrainingRun.objects.filter(pk=run_id, state=RunState.QUEUED).update(enqueued_at=soon) == 1


def _claimable() -> Q:
    due = Q(state=RunState.QUEUED, not_before__lte=clock.market_now())
    expired = Q(state=RunState.RUNNING) & leases.expired(LEASE_END)
    return (due | expired) & Q(attempt__lt=F("max_attempts")) & capacity.fits_here()


def claim(run_id: int, owner: str) -> Claim | None:
    """Take the run; None when there is nothing to take: somebody has it, it ended, or it is not due (T3, T10).

    One UPDATE decides and counts the attempt before any work (I4, T8). The token grows with every claim (T2).
    """
    begun, now = clock.boot_seconds(), clock.market_now()
    with transaction.atomic():  # the row stays locked until it is read back
        taken = TrainingRun.objects.filter(_claimable(), pk=run_id).update(
            state=RunState.RUNNING,
            attempt=F("attempt") + 1,
            fencing_token=F("run_no") * ATTEMPTS_PER_TOKEN + F("attempt") + 1,
            owner=owner[:120],
            lease_expires_at=leases.ends_in(policies.lease_time()),
            heartbeat_at=clock.database_now(),
            started_at=now,
            data_end=now,
            progress=0.0,
            stage="claimed",
        )
        if taken != 1:
            return None
        run = TrainingRun.objects.get(pk=run_id)
    return Claim(
        run_id=run.pk,
        scope_id=run.scope_id,
        run_no=run.run_no,
        attempt=run.attempt,
        max_attempts=run.max_attempts,
        token=run.run_no * ATTEMPTS_PER_TOKEN + run.attempt,
        owner=run.owner,
        data_end=now,
        deadline=leases.local_deadline(begun=begun, ttl=policies.lease_time()),
    )


def mine(claim: Claim) -> Q:
    """The fence: what a holder writes takes effect only where its token is the run's present one (T4, T5)."""
    return Q(pk=claim.run_id, state=RunState.RUNNING, fencing_token=claim.token)


def heartbeat(claim: Claim, progress: float, stage: str, *, line: str = "") -> None:
    """Renew the lease and show the progress (0..1); `line` is appended to the run's log. Raises RunLost (T4)."""
    begun = clock.boot_seconds()
    changes: dict[str, object] = {
        "lease_expires_at": leases.ends_in(policies.lease_time()),
        "heartbeat_at": clock.database_now(),
        "progress": min(max(progress, 0.0), 1.0),
        "stage": stage[:80],
    }
    if line:
        changes["log"] = Concat(F("log"), Value(line.rstrip("\n") + "\n"))
    if TrainingRun.objects.filter(mine(claim)).update(**changes) != 1:
        raise RunLost(f"run {claim.run_id}: token {claim.token} is not the current one; another process has the run")
    claim.deadline = leases.local_deadline(begun=begun, ttl=policies.lease_time())


def release(claim: Claim) -> bool:
    """Give the run back without blame, as at a planned stop; the attempt stays counted. False: it was lost already."""
    with transaction.atomic():
        released = TrainingRun.objects.filter(mine(claim), attempt__lt=F("max_attempts")).update(
            state=RunState.QUEUED, owner="", lease_expires_at=None, enqueued_at=clock.database_now()
        )
        if released:
            ring(claim.run_id)
    return released == 1


def fail(claim: Claim, error: str, *, final: bool = False) -> RunState:
    """Record that the attempt failed: QUEUED again after a back-off, or FAILED with verdicts. Raises RunLost (T4).

    `final` is for errors that another attempt on the same data would repeat. Returns the run's new state.
    """
    now = clock.market_now()
    if not final and claim.attempt < claim.max_attempts:
        again_at = policies.retry_back_off(str(claim.run_id), claim.attempt, now)
        queued = TrainingRun.objects.filter(mine(claim)).update(
            state=RunState.QUEUED,
            owner="",
            lease_expires_at=None,
            enqueued_at=None,  # the sweeper rings when the back-off is over
            not_before=again_at,
            error=error,
        )
        if queued != 1:
            raise _lost(claim)
        log.warning("attempt_failed", run=claim.run_id, attempt=claim.attempt, again_at=again_at.isoformat())
        return RunState.QUEUED
    if not _end_failed(claim.scope_id, claim.run_id, mine(claim), error):
        raise _lost(claim)
    return RunState.FAILED


def _lost(claim: Claim) -> RunLost:
    return RunLost(f"run {claim.run_id}: token {claim.token} is not the current one; nothing was changed")


def _end_failed(scope_id: int, run_id: int, guard: Q, error: str) -> bool:
    """RUNNING -> FAILED where `guard` still holds, with the scope's back-off and all verdicts, in one transaction."""
    now = clock.market_now()
    with transaction.atomic():
        scope = TrainingScope.objects.select_for_update().get(pk=scope_id)
        failed = TrainingRun.objects.filter(guard, pk=run_id).update(
            state=RunState.FAILED, finished_at=now, lease_expires_at=None, error=error
        )
        if failed != 1:
            return False
        scope.failures += 1
        scope.not_before = policies.scope_back_off(scope.key, scope.failures, now)
        scope.save(update_fields=["failures", "not_before"])
        run = TrainingRun.objects.select_related("scope").get(pk=run_id)
        last_line = error.strip().rpartition("\n")[2]
        evidence = reason("TRAINING_FAILED", run=run.pk, attempts=run.attempt, error=last_line)
        counts = leave_verdicts(run, block_reason="TRAINING_FAILED", evidence=evidence, recheck_at=scope.not_before)
        text = (
            f"Run {run.run_no} of {scope.key} failed after {run.attempt} attempts: {last_line} "
            f"({counts['covered']} symbols stay covered, {counts['blocked']} are blocked). "
            f"Next run: not before {scope.not_before:%Y-%m-%d %H:%M}."
        )
        journal.record("run_failed", text, subject=f"run:{run.pk}", severity=Severity.WARNING)
        alerts.raise_alert(f"training:{scope.key}", text, Severity.WARNING)
    return True


def sweep() -> dict[str, int]:
    """End or requeue runs of the dead, and ring again for rows whose message may be lost (T9, T10).

    Dead is whose lease expired, or whose process is gone from this host.

    Cheap, idempotent, safe in any number of processes at once: each step is a compare-and-set. Idle: three reads.
    """
    counts = {"requeued": 0, "failed": 0, "rung": 0, "activations": 0}
    running = TrainingRun.objects.filter(state=RunState.RUNNING).defer("log")
    over = leases.expired(LEASE_END)
    for run in list(running.annotate(over=over)) if _running.exists() else ():
        guard = Q(state=RunState.RUNNING, fencing_token=run.fencing_token)
        if run.over:
            guard &= leases.expired(LEASE_END)  # it may be renewed at this moment
            error = reason("LEASE_EXPIRED", attempt=run.attempt, stage=run.stage, owner=run.owner)
        elif leases.died_here(run.owner):  # nobody is left who could renew it: no need to wait
            error = reason("TRAINER_DIED", attempt=run.attempt, stage=run.stage, owner=run.owner)
        else:
            continue
        if run.attempt >= run.max_attempts:
            counts["failed"] += _end_failed(run.scope_id, run.pk, guard, error)
            continue
        with transaction.atomic():
            requeued = TrainingRun.objects.filter(guard, pk=run.pk).update(
                state=RunState.QUEUED,
                owner="",
                lease_expires_at=None,
                enqueued_at=clock.database_now(),
                error=error,
                log=Concat(F("log"), Value(error + "\n")),
            )
            if requeued:
                ring(run.pk)
        counts["requeued"] += requeued
    counts["rung"] = _ring_lost_runs()
    counts["activations"] = _ring_lost_activations()
    return counts


def _unheard_runs(database_now: Time, now: dt.datetime) -> RunQuerySet:
    return TrainingRun.objects.filter(
        _never_rung_or_stale(database_now), state=RunState.QUEUED, not_before__lte=now
    ).order_by("not_before", "id")


def _unheard_activations(database_now: Time) -> QuerySet[Activation]:
    return Activation.objects.filter(_never_rung_or_stale(database_now), state=ActivationState.REQUESTED)


def _never_rung_or_stale(database_now: Time) -> Q:
    return Q(enqueued_at__isnull=True) | Q(enqueued_at__lt=database_now - STALE_RING)


def _ring_lost_runs() -> int:
    database_now, now = clock.database_now(), clock.market_now()
    if not _unheard_run.exists(database_now=database_now, now=now):
        return 0
    lost = list(_unheard_runs(database_now, now).values_list("pk", flat=True)[:RINGS_PER_SWEEP])
    # While every worker is busy for hours, the messages of all that wait would pile up, minute after minute.
    room = max(RINGS_PER_SWEEP - queue.waiting(settings.TRAINING_QUEUE), 0) if lost else 0
    rung = 0
    for run_id in lost[:room]:
        with transaction.atomic():
            mine = TrainingRun.objects.filter(
                _never_rung_or_stale(database_now), pk=run_id, state=RunState.QUEUED
            ).update(enqueued_at=database_now)
            if mine:
                ring(run_id)
        rung += mine
    return rung


def _ring_lost_activations() -> int:
    database_now = clock.database_now()
    if not _unheard_activation.exists(database_now=database_now):
        return 0
    waiting = _unheard_activations(database_now)
    rung = 0
    for activation_id in list(waiting.values_list("pk", flat=True)[:RINGS_PER_SWEEP]):
        with transaction.atomic():
            mine = Activation.objects.filter(
                _never_rung_or_stale(database_now), pk=activation_id, state=ActivationState.REQUESTED
            ).update(enqueued_at=database_now)
            if mine:
                queue.enqueue(APPLY_TASK, activation_id)
        rung += mine
    return rung

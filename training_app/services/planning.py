"""What trains now, and why: one look at every scope of the market. Idle, it costs a constant number of reads."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Exists, F, FilteredRelation, Max, OuterRef, Q, Subquery

from coverage_app import selectors as coverage_selectors
from ops_app import bulk, clock
from ops_app.prepared import Prepared
from quant.compatibility import check_compatibility
from quant.policy import RunCause, ScopeFacts, run_due
from quant.reasons import reason
from quant.timeframes import from_ms, to_ms
from quant.watch import unanswered
from training_app import activation, policies, registry, selectors
from training_app.choices import BY_A_PERSON, OPEN_STATES, ActivationKind, ActivationState, RunTrigger
from training_app.exceptions import ActivationRefused, RunRefused
from training_app.models import (
    Activation,
    ActiveModel,
    ModelArtifact,
    RunSymbol,
    TrainingRun,
    TrainingScope,
)
from training_app.services.requests import Wish, request_run, request_runs

log = structlog.get_logger(__name__)

COUNTED, DECIDED = ("new_count", "first_new_at", "last_new_at"), ("decision", "not_before")
"""What a look writes on a scope, apart: a run that ends at this moment writes `not_before` too."""

# What every look reads.
_ready = Prepared(lambda market: coverage_selectors.ready_symbols(market).values_list("pk", "code"))
_in_runs = Prepared(
    lambda market: RunSymbol.objects.filter(open=True, symbol__market=market).order_by().values_list("symbol_id")
)
_open_scopes = Prepared(
    lambda market: TrainingRun.objects.filter(scope__market=market, state__in=OPEN_STATES).values_list("scope_id")
)
_pending_slots = Prepared(lambda: Activation.objects.filter(state=ActivationState.REQUESTED).values_list("slot"))
_waited = Prepared(
    lambda market, training_mode, timeframe, *, now: TrainingScope.objects.filter(
        ~Exists(TrainingRun.objects.open().filter(scope=OuterRef("pk"))),
        market=market,
        training_mode=training_mode,
        timeframe=timeframe,
        not_before__lte=now,
    )
)


@dataclass
class _Plan:
    """What was read once for all scopes. `ready` maps the id of each symbol that may be trained to its code.

    `chosen` says since when a slot serves what a person put there.
    """

    market: str
    now: dt.datetime
    ready: dict[int, str]
    covering: dict[int, ModelArtifact]
    in_runs: set[int]
    open_scopes: set[int]
    pending_slots: set[str]
    active: Mapping[str, ActiveModel]
    usable: dict[str, ModelArtifact]
    asking: dict[int, tuple[dt.datetime, str]]
    chosen: dict[str, dt.datetime]
    counted: dict[int, TrainingScope]
    decided: dict[int, TrainingScope]

    @cached_property
    def scopes_with_good_artifacts(self) -> set[int]:
        """Scopes whose registry may have something to fall back to; read when the first one asks."""
        good = ModelArtifact.objects.promotable().filter(scope__market=self.market)
        return set(good.values_list("scope_id", flat=True).distinct())


def plan() -> list[TrainingRun]:
    """Request the run of every scope that is due; return the new runs.

    A scope without a usable model first gets the best good artifact of its registry, and trains only if there is none
    (R1, R11). The blocks that runs leave are closed by the evaluation when their back-off is over, not here. Each
    decision is written on its scope when it changes, so that a person can read why nothing trains. The number of
    statements grows with the scopes that fall back to their registry, not with those that train or wait.
    """
    market, now = settings.EXCHANGE_MARKET, clock.market_now()
    look = _read(market, now)
    wishes = []
    for scope in _scopes(look):
        candidates = _candidates(scope, look)
        if scope.key in look.pending_slots:
            _note(scope, look, reason("ACTIVATION_PENDING", slot=scope.key), None)
            continue
        without_model = scope.key not in look.usable and candidates and scope.pk not in look.open_scopes
        if without_model and _promote_from_registry(scope, look, candidates):
            continue
        decision = run_due(_facts(scope, look, candidates), to_ms(now), policies.training_policy())
        _note(scope, look, decision.reason, decision.not_before_ms)
        if decision.due:
            trigger = RunTrigger(str(decision.cause).lower())
            wishes.append(Wish(scope=scope, trigger=trigger, cause=decision.reason, symbols=candidates))
    _write_notes(look)
    return request_runs(wishes)


def plan_waiting() -> int:
    """Plan again when the time has come that an earlier decision named; returns the number of new runs.

    A sweeper calls it: with a fast clock a debounce of ten minutes is over long before the plan's next slot. Idle: one
    read.
    """
    of_mode = settings.EXCHANGE_MARKET, settings.TRAINING_MODE, settings.TIMEFRAME
    return len(plan()) if _waited.exists(*of_mode, now=clock.market_now()) else 0


def train_now(*, user: User | None = None, symbols: Collection[int] | None = None) -> list[TrainingRun]:
    """Request a run for a person: of every scope, or of the scopes that train the symbol ids `symbols`.

    A scope that may not train yet (I5) gets a run that waits; a scope with an open run returns it. Raises RunRefused
    when nothing can be trained, with the reason.
    """
    market, now = settings.EXCHANGE_MARKET, clock.market_now()
    look = _read(market, now)
    runs = []
    why = "no symbol is ready: see the blocks"
    for scope in _scopes(look):
        if symbols is not None and scope.symbol_id is not None and scope.symbol_id not in symbols:
            continue
        candidates = _candidates(scope, look)
        present = scope.runs.open().first()
        if present is not None:
            runs.append(present)
            continue
        decision = run_due(_facts(scope, look, candidates, manual=True), to_ms(now), policies.training_policy())
        why = decision.reason
        if decision.cause is None:
            continue
        asked_by = getattr(user, "username", None) or "command line"
        cause = reason(RunCause.MANUAL, scope=scope.key, symbols=len(candidates), user=asked_by)
        runs.append(
            request_run(
                scope=scope,
                trigger=RunTrigger.MANUAL,
                cause=cause,
                symbols=candidates,
                not_before=from_ms(decision.not_before_ms) if decision.not_before_ms is not None else None,
                user=user,
            )
        )
    _write_notes(look)
    if not runs:
        raise RunRefused(f"nothing can be trained: {why}")
    return runs


def _read(market: str, now: dt.datetime) -> _Plan:
    rows = ActiveModel.objects.filter(artifact__scope__market=market).select_related("artifact")
    rows = rows.defer(*(f"artifact__{name}" for name in selectors.BULKY)).annotate(
        # What its watch asked for, at most once per model, in the same read.
        watch=FilteredRelation("artifact__watches", condition=Q(artifact__watches__asks=True)),
        asked_at=F("watch__at"),
        asked_why=F("watch__text"),
        # How it came to serve: a generation belongs to one activation.
        kind=Subquery(Activation.objects.filter(generation=OuterRef("generation")).values("kind")[:1]),
    )
    active = {row.slot: row for row in rows}
    needs = registry.requirement(market)
    usable = {
        slot: row.artifact
        for slot, row in active.items()
        if not check_compatibility(needs, registry.facts(row.artifact))
    }
    by_id = {artifact.pk: artifact for artifact in usable.values()}
    return _Plan(
        market=market,
        now=now,
        ready=dict(_ready.rows(market)),
        covering=selectors.covering_artifacts(market=market, usable=by_id),
        in_runs={symbol_id for (symbol_id,) in _in_runs.rows(market)},
        open_scopes={scope_id for (scope_id,) in _open_scopes.rows(market)},
        pending_slots={slot for (slot,) in _pending_slots.rows()},
        active=active,
        usable=usable,
        asking={row.artifact_id: (row.asked_at, row.asked_why) for row in active.values() if row.asked_at is not None},
        chosen={slot: row.activated_at for slot, row in active.items() if row.kind in BY_A_PERSON},
        counted={},
        decided={},
    )


def _scopes(look: _Plan) -> Sequence[TrainingScope]:
    """Return the scopes of the settings' mode, with the missing ones made: one, or one for each ready symbol."""
    of_mode = {
        "market": look.market, "training_mode": settings.TRAINING_MODE, "timeframe": settings.TIMEFRAME
    }  # fmt: skip
    present = TrainingScope.objects.filter(**of_mode).annotate(
        run_asked_at=Max("runs__created_at"),
        run_started_at=Max("runs__started_at"),
        run_ended_at=Max("runs__finished_at"),
    )
    scopes = list(present.order_by("pk"))
    if settings.TRAINING_MODE == registry.MULTI_SYMBOL:
        wanted: dict[int | None, str] = {None: registry.slot_key(market=look.market)} if look.ready else {}
    else:
        wanted = {pk: registry.slot_key(market=look.market, symbol=code) for pk, code in look.ready.items()}
    known = {scope.symbol_id for scope in scopes}
    missing = [
        TrainingScope(key=key, symbol_id=symbol_id, **of_mode)
        for symbol_id, key in wanted.items()
        if symbol_id not in known
    ]
    if missing:
        TrainingScope.objects.bulk_create(missing, ignore_conflicts=True, batch_size=200)
        scopes = list(present.order_by("pk"))
    return scopes


def _candidates(scope: TrainingScope, look: _Plan) -> list[int]:
    """Return the symbol ids that a run of the scope would train; those in runs of other scopes are left out (I1)."""
    if scope.symbol_id is not None:
        return [scope.symbol_id] if scope.symbol_id in look.ready and scope.symbol_id not in look.in_runs else []
    if scope.pk in look.open_scopes:
        return list(look.ready)
    return [symbol_id for symbol_id in look.ready if symbol_id not in look.in_runs]


def _facts(scope: TrainingScope, look: _Plan, candidates: list[int], *, manual: bool = False) -> ScopeFacts:
    new = [symbol_id for symbol_id in candidates if symbol_id not in look.covering]
    _note_new(scope, look, len(new))
    serving = look.usable.get(scope.key)
    started_at = getattr(scope, "run_started_at", None)
    ended_at = getattr(scope, "run_ended_at", None)
    drift_ms, drift = _drift(scope, look, serving)
    return ScopeFacts(
        scope=scope.key,
        trainable_symbols=len(candidates),
        new_symbols=len(new),
        first_new_ms=_ms(scope.first_new_at) if scope.symbol_id is None else None,
        last_new_ms=_ms(scope.last_new_at) if scope.symbol_id is None else None,
        has_compatible_model=serving is not None,
        model_trained_ms=_ms(serving.created_at) if serving is not None else None,
        open_run=scope.pk in look.open_scopes,
        last_run_ms=_ms(started_at),
        last_run_ended_ms=_ms(ended_at),
        failures=scope.failures,
        manual_requested_ms=to_ms(look.now) if manual else None,
        drift_ms=drift_ms,
        drift=drift,
        chosen_ms=_ms(look.chosen.get(scope.key)),
    )


def _drift(scope: TrainingScope, look: _Plan, serving: ModelArtifact | None) -> tuple[int | None, str]:
    """Return when (ms) the watch of the serving model asked for a training, and why, unless a run came since.

    A model asks once, so this ends (I5).
    """
    at, text = look.asking.get(serving.pk, (None, "")) if serving is not None else (None, "")
    asked_ms = unanswered(_ms(at), _ms(getattr(scope, "run_asked_at", None)))
    return asked_ms, text if asked_ms is not None else ""


def _ms(moment: dt.datetime | None) -> int | None:
    return None if moment is None else to_ms(moment)


def _note_new(scope: TrainingScope, look: _Plan, count: int) -> None:
    """Remember when the number of uncovered symbols last grew: what the debounce waits for. No change, no write."""
    if count == scope.new_count and (count == 0) == (scope.first_new_at is None):
        return
    if count == 0:
        scope.first_new_at = scope.last_new_at = None
    else:
        scope.first_new_at = scope.first_new_at or look.now
        if count > scope.new_count or scope.last_new_at is None:
            scope.last_new_at = look.now
    scope.new_count = count
    look.counted[scope.pk] = scope


def _note(scope: TrainingScope, look: _Plan, text: str, not_before_ms: int | None) -> None:
    """Note the decision on its scope when it says something new."""
    not_before = None if not_before_ms is None else from_ms(not_before_ms)
    if (scope.decision, scope.not_before) == (text[:500], not_before):
        return
    scope.decision, scope.not_before = text[:500], not_before
    look.decided[scope.pk] = scope


def _write_notes(look: _Plan) -> None:
    """Write what changed on the scopes: two statements at most, none when nothing did."""
    for scopes, fields in ((look.counted, COUNTED), (look.decided, DECIDED)):
        rows = {pk: {name: getattr(scope, name) for name in fields} for pk, scope in scopes.items()}
        bulk.update_rows(TrainingScope, rows, fields=fields)


def _promote_from_registry(scope: TrainingScope, look: _Plan, candidates: list[int]) -> bool:
    """Ask for the best artifact that already exists; False when there is none and a run is needed."""
    if scope.pk not in look.scopes_with_good_artifacts:
        return False
    broken = look.active.get(scope.key)
    selection = registry.select_best(
        scope,
        symbols=[look.ready[symbol_id] for symbol_id in candidates],
        exclude=None if broken is None else broken.artifact_id,
    )
    if selection.best is None:
        refused = Counter(refusal.code.value for against in selection.refusals.values() for refusal in against)
        if refused:
            log.info("registry_has_no_model", scope=scope.key, refusals=dict(refused))
        return False
    artifact = scope.artifacts.get(pk=selection.best.artifact_id)
    why = reason(
        "REGISTRY_FALLBACK",
        artifact=artifact.pk,
        version=artifact.version,
        instead_of=None if broken is None else broken.artifact_id,
        compatible=len(selection.ranking),
    )
    try:
        activation.request_activation(artifact=artifact, kind=ActivationKind.PROMOTION, reason=why)
    except ActivationRefused as error:
        log.warning("registry_fallback_refused", scope=scope.key, artifact=artifact.pk, error=str(error))
        return False
    _note(scope, look, why, None)
    return True

"""Reads of training: the state of every symbol and why, the active models, runs, and the registry with its refusals."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from django.conf import settings
from django.db.models import OuterRef, QuerySet, Subquery

from coverage_app import facts as coverage_facts
from coverage_app.choices import BlockReason
from coverage_app.models import Block, Symbol
from ops_app import bulk, clock
from quant.compatibility import Refusal, check_compatibility
from quant.reasons import code_of, reason
from quant.timeframes import timeframe_ms
from training_app import registry
from training_app.choices import RunState
from training_app.models import (
    ActiveModel,
    ArtifactSymbol,
    ModelArtifact,
    ModelWatch,
    RunSymbol,
    TrainingRun,
    TrainingScope,
)


class State(StrEnum):
    """State of a symbol (DESIGN section 5); the first that holds. TRADABLE and BLOCKED ones may be in a run as well."""

    TRADABLE = "TRADABLE"
    TRAINING = "TRAINING"
    TRAINABLE = "TRAINABLE"
    BLOCKED = "BLOCKED"


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """An open block of a symbol."""

    block_id: int
    reason: str
    evidence: str
    permanent: bool
    opened_at: dt.datetime
    recheck_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolState:
    """A symbol's derived state.

    `reason` is its code (empty when TRADABLE), `evidence` the whole sentence, `recheck_at` when it is looked at next in
    market time (None: permanent, or nothing to wait for). `tradable` and `training` may both be true.
    """

    symbol_id: int
    code: str
    state: State
    reason: str = ""
    evidence: str = ""
    recheck_at: dt.datetime | None = None
    permanent: bool = False
    tradable: bool = False
    training: bool = False
    covered: bool = False
    artifact_id: int | None = None
    artifact_version: int | None = None
    run_id: int | None = None
    run_progress: float | None = None
    run_stage: str = ""
    history_days: float = 0.0
    history_coverage: float = 0.0
    last_candle_at: dt.datetime | None = None
    blocks: tuple[BlockFacts, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class ActiveSlot:
    """A slot of the settings' mode and timeframe with the artifact in it, the codes it covers, and what is against it.

    A slot with `refusals` serves nothing: its symbols are not covered until another model is active.
    """

    slot: str
    generation: int
    activated_at: dt.datetime
    artifact: ModelArtifact
    symbols: tuple[str, ...]
    refusals: tuple[Refusal, ...]

    @property
    def usable(self) -> bool:
        return not self.refusals


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """An artifact, whether it is active, and every reason why it could not be."""

    artifact: ModelArtifact
    active_slot: str | None
    refusals: tuple[Refusal, ...]
    symbols: tuple[str, ...]


BULKY = ("metrics", "drift_reference", "gates", "panel_symbols", "label_spec", "library_versions")
"""Columns of an artifact that compatibility does not need: with a model per symbol they are megabytes."""


def active_models(*, market: str | None = None) -> list[ActiveSlot]:
    """Return the slots of the settings' market, mode and timeframe: at most two queries for any number."""
    return _slots(_active_rows(market))


def newest_watches(*, market: str | None = None) -> dict[str, ModelWatch]:
    """Return the newest look at the active model of each slot, by slot: two queries, without the features."""
    newest = ModelWatch.objects.filter(artifact=OuterRef("artifact")).order_by("-at", "-pk").values("pk")[:1]
    active = dict(_active_rows(market).annotate(watch=Subquery(newest)).values_list("watch", "slot"))
    ids = bulk.among(pk for pk in active if pk is not None)
    rows = (
        ModelWatch.objects.filter(pk__in=ids)
        .select_related("artifact")
        .defer("features", *(f"artifact__{name}" for name in BULKY))
    )
    return {active[row.pk]: row for row in rows}


def changed_since(generation: int, *, market: str | None = None) -> list[ActiveSlot]:
    """Return the slots activated after `generation`, oldest first. Nothing changed: one query."""
    return _slots(_active_rows(market).filter(generation__gt=generation))


def _active_rows(market: str | None) -> QuerySet[ActiveModel]:
    return (
        ActiveModel.objects.filter(
            artifact__scope__market=market or settings.EXCHANGE_MARKET,
            artifact__training_mode=settings.TRAINING_MODE,
            artifact__timeframe=settings.TIMEFRAME,
        )
        .select_related("artifact")
        .defer("artifact__drift_reference")
        .order_by("generation")
    )


def _slots(rows: QuerySet[ActiveModel]) -> list[ActiveSlot]:
    active = list(rows)
    if not active:
        return []
    codes = registry.codes_of(row.artifact_id for row in active)
    needs = registry.requirement()
    return [
        ActiveSlot(
            slot=row.slot,
            generation=row.generation,
            activated_at=row.activated_at,
            artifact=row.artifact,
            symbols=tuple(codes[row.artifact_id]),
            refusals=check_compatibility(needs, registry.facts(row.artifact)),
        )
        for row in active
    ]


def usable_artifact_ids(*, market: str) -> dict[int, ModelArtifact]:
    """Return the active artifacts that fit the settings, by id: one query."""
    needs = registry.requirement()
    return {
        row.artifact_id: row.artifact
        for row in _active_rows(market).defer(*(f"artifact__{name}" for name in BULKY))
        if not check_compatibility(needs, registry.facts(row.artifact))
    }


def covering_artifacts(
    *, market: str, ids: Iterable[int] | None = None, usable: Mapping[int, ModelArtifact] | None = None
) -> dict[int, ModelArtifact]:
    """Return the active artifact that covers each symbol id: two queries, one when `usable` is known already."""
    usable = usable_artifact_ids(market=market) if usable is None else usable
    if not usable:
        return {}
    rows = ArtifactSymbol.objects.filter(artifact__in=list(usable))
    if ids is not None:
        rows = rows.filter(symbol__in=list(ids))
    return {symbol_id: usable[artifact_id] for symbol_id, artifact_id in rows.values_list("symbol_id", "artifact_id")}


def symbol_states(
    market: str | None = None, *, ids: Iterable[int] | None = None, now: dt.datetime | None = None
) -> list[SymbolState]:
    """Return the state of every symbol of `market`, by code: six queries for any number of symbols."""
    market = market or settings.EXCHANGE_MARKET
    now = now or clock.market_now()
    wanted = None if ids is None else list(ids)
    symbols = Symbol.objects.filter(market=market).order_by("code")
    blocks = Block.objects.filter(closed_at__isnull=True, symbol__market=market)
    in_run = RunSymbol.objects.filter(open=True, symbol__market=market)
    if wanted is not None:
        symbols, blocks, in_run = (
            symbols.filter(pk__in=wanted),
            blocks.filter(symbol__in=wanted),
            in_run.filter(symbol__in=wanted),
        )
    blocks_of: dict[int, list[BlockFacts]] = {}
    for block in blocks.order_by("opened_at", "id"):
        blocks_of.setdefault(block.symbol_id, []).append(
            BlockFacts(block.pk, block.reason, block.evidence, block.permanent, block.opened_at, block.recheck_at)
        )
    runs = {row.symbol_id: row.run for row in in_run.select_related("run").defer("run__log", "run__error")}
    covering = covering_artifacts(market=market, ids=wanted)
    decisions = {
        scope.symbol_id: scope
        for scope in TrainingScope.objects.filter(
            market=market, training_mode=settings.TRAINING_MODE, timeframe=settings.TIMEFRAME
        )
    }
    bar = dt.timedelta(milliseconds=timeframe_ms(settings.TIMEFRAME))
    oldest_fresh = now - bar * (coverage_facts.coverage_policy().stale_after_bars + 1)
    return [
        _state_of(
            symbol,
            blocks=sorted(blocks_of.get(symbol.pk, []), key=_block_rank),
            run=runs.get(symbol.pk),
            artifact=covering.get(symbol.pk),
            scope=decisions.get(symbol.pk) or decisions.get(None),
            oldest_fresh=oldest_fresh,
        )
        for symbol in symbols
    ]


_REASON_ORDER = {code: order for order, code in enumerate(BlockReason.values)}


def _block_rank(block: BlockFacts) -> tuple[bool, int]:
    """A permanent block explains most: nothing else matters until it is lifted."""
    return not block.permanent, _REASON_ORDER[block.reason]


def _state_of(
    symbol: Symbol,
    *,
    blocks: list[BlockFacts],
    run: TrainingRun | None,
    artifact: ModelArtifact | None,
    scope: TrainingScope | None,
    oldest_fresh: dt.datetime,
) -> SymbolState:
    why, recheck_at, permanent = _obstacle(symbol, blocks=blocks, oldest_fresh=oldest_fresh)
    code = blocks[0].reason if blocks else ""
    tradable = artifact is not None and not why
    if tradable:
        state, why, recheck_at = State.TRADABLE, "", None
    elif run is not None and not blocks:
        state = State.TRAINING
        why = why or reason("IN_RUN", run=run.pk, state=run.state, progress=run.progress, stage=run.stage or "waiting")
    elif why:
        state = State.BLOCKED
    else:
        state = State.TRAINABLE
        recheck_at = scope.not_before if scope is not None else None
        why = (scope.decision if scope is not None else "") or reason("NOT_COVERED", next="the next look at the scope")
    return SymbolState(
        symbol_id=symbol.pk,
        code=symbol.code,
        state=state,
        reason="" if tradable else code or code_of(why),
        evidence=why,
        recheck_at=recheck_at,
        permanent=permanent and state is State.BLOCKED,
        tradable=tradable,
        training=run is not None,
        covered=artifact is not None,
        artifact_id=artifact.pk if artifact is not None else None,
        artifact_version=artifact.version if artifact is not None else None,
        run_id=run.pk if run is not None else None,
        run_progress=run.progress if run is not None else None,
        run_stage=run.stage if run is not None else "",
        history_days=symbol.history_days,
        history_coverage=symbol.history_coverage,
        last_candle_at=symbol.last_candle_at,
        blocks=tuple(blocks),
    )


def _obstacle(
    symbol: Symbol, *, blocks: list[BlockFacts], oldest_fresh: dt.datetime
) -> tuple[str, dt.datetime | None, bool]:
    """Return why the symbol may not be traded, apart from coverage: (evidence, when to look again, permanent)."""
    if blocks:
        return blocks[0].evidence or blocks[0].reason, blocks[0].recheck_at, blocks[0].permanent
    if symbol.last_evaluated_at is None:
        return reason("NOT_EVALUATED", next="the next evaluation"), symbol.next_evaluation_at, False
    if not symbol.in_universe:
        why = reason("NOT_IN_UNIVERSE", why=symbol.universe_reason or "not chosen")
        return why, symbol.next_evaluation_at, False
    # The evaluation may be minutes away; the bot must not wait for it to learn that the candles stopped.
    if symbol.last_candle_at is None or symbol.last_candle_at < oldest_fresh:
        return reason("STALE_DATA", last_candle=symbol.last_candle_at), symbol.next_evaluation_at, False
    return "", None, False


def state_counts(states: Iterable[SymbolState]) -> dict[str, int]:
    """Return how many symbols are in each state; every state is named."""
    counts = {state.value: 0 for state in State}
    for each in states:
        counts[each.state.value] += 1
    return counts


def runs(*, market: str | None = None, limit: int = 50) -> list[TrainingRun]:
    """Return the newest runs with their scope, person and artifact: one query."""
    rows = TrainingRun.objects.select_related("scope", "requested_by", "artifact")
    return list(rows.filter(scope__market=market or settings.EXCHANGE_MARKET).order_by("-id")[:limit])


def open_runs(*, market: str | None = None) -> list[TrainingRun]:
    """Return the runs that are queued or running, oldest first."""
    rows = TrainingRun.objects.open().select_related("scope")
    return list(rows.filter(scope__market=market or settings.EXCHANGE_MARKET).order_by("id"))


def standing(run: TrainingRun, *, now: dt.datetime) -> str:
    """Return what an open run does at market time `now`, in words that follow its number."""
    if run.state == RunState.RUNNING:
        return f"is running: {run.stage or 'it starts'}, {run.progress:.0%}"
    if run.not_before > now:
        return f"waits until {run.not_before:%Y-%m-%d %H:%M} (market time): a scope trains at most once per interval"
    return "waits for a worker"


def registry_view(*, market: str | None = None, limit: int = 200) -> list[RegistryEntry]:
    """Return the newest artifacts with every refusal against the present settings: three queries."""
    market = market or settings.EXCHANGE_MARKET
    artifacts = list(
        ModelArtifact.objects.filter(scope__market=market)
        .select_related("scope", "run")
        .defer("drift_reference")[:limit]
    )
    active = {row.artifact_id: row.slot for row in ActiveModel.objects.filter(artifact__scope__market=market)}
    codes = registry.codes_of(artifact.pk for artifact in artifacts)
    needs = registry.requirement(market)
    return [
        RegistryEntry(
            artifact=artifact,
            active_slot=active.get(artifact.pk),
            refusals=check_compatibility(needs, registry.facts(artifact, codes[artifact.pk])),
            symbols=tuple(codes[artifact.pk]),
        )
        for artifact in artifacts
    ]


def market() -> str:
    """Return the market key of the settings."""
    return str(settings.EXCHANGE_MARKET)


def training_mode() -> str:
    """Return the training mode of the settings."""
    return str(settings.TRAINING_MODE)

"""Watching the active models: do their features still look as in training, and do their trades keep the promise?

`manage.py watch_models` does it in a process of its own, which a light worker starts once a market day: it needs numba
and the candles of a month, and gives the memory back. Who knows the trades registers here: this app does not.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery

from coverage_app.market import candle_store
from ops_app import clock, journal
from ops_app.choices import Severity
from quant.promises import LiveRecord
from quant.timeframes import floor_ms, from_ms, timeframe_ms, to_ms
from quant.watch import EVERY_MS, judge, window_start
from training_app import registry
from training_app.choices import WatchVerdict
from training_app.models import ActiveModel, ModelArtifact, ModelWatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quant.drift import Drift
    from quant.watch import WatchOutcome


log = structlog.get_logger(__name__)

WATCH_TASK = "training_app.tasks.watch_models"
EVERY = dt.timedelta(milliseconds=EVERY_MS)
MOST_WATCHED = 50
"""Models at one go, those first that were not looked at for the longest: in single_symbol mode there are hundreds."""
WORST = 10
CHUNK_VALUES = 2**23
"""Features in memory at once: 32 MB."""

LiveSource = Callable[[Collection[int]], Mapping[int, LiveRecord]]
_live_sources: list[LiveSource] = []


def register_live(source: LiveSource) -> None:
    """Add a function that returns the closed trades of artifact ids, for those that have any."""
    if source not in _live_sources:
        _live_sources.append(source)


def is_due() -> bool:
    """Tell whether an active model was not looked at for a day: one query."""
    return _due(clock.market_now()).exists()


def watch_models(*, every: dt.timedelta = EVERY) -> list[ModelWatch]:
    """Look at the active models that were not looked at for `every`, and write a row for each."""
    from quant.drift import measure_drift, pool_drifts  # NumPy: for a process of its own

    now = clock.market_now()
    one_symbol = settings.TRAINING_MODE == registry.SINGLE_SYMBOL
    # Models of one symbol each are looked at together, whenever each was trained: they judge their market as a pool.
    due = _due(now, every / 2 if one_symbol else every)
    chosen = [row.artifact for row in due.select_related("artifact__scope")[:MOST_WATCHED]]
    live: dict[int, LiveRecord] = {}
    for source in _live_sources:
        live |= source([artifact.pk for artifact in chosen])
    rows = []
    for group in _together(chosen):
        signals = _signals(group, now)
        names = registry.feature_schema().names
        drifts = {
            artifact.pk: measure_drift(signals[artifact.pk][1], names, artifact.drift_reference) for artifact in group
        }
        pooled = pool_drifts(drifts.values()) if one_symbol else None
        for artifact in group:
            record = live.get(artifact.pk, LiveRecord())
            found = judge(drifts[artifact.pk], record, pooled)
            rows.append(_write(artifact, now, signals[artifact.pk][0], drifts[artifact.pk], record, found))
    return rows


def _due(now: dt.datetime, every: dt.timedelta = EVERY) -> QuerySet[ActiveModel]:
    newest = ModelWatch.objects.filter(artifact=OuterRef("artifact")).order_by("-at").values("at")[:1]
    active = ActiveModel.objects.filter(
        artifact__scope__market=settings.EXCHANGE_MARKET,
        artifact__training_mode=settings.TRAINING_MODE,
        artifact__timeframe=settings.TIMEFRAME,
        artifact__schema_hash=registry.feature_schema().hash,  # of others the kernel computes no features
        artifact__created_at__lte=now - every,
    ).annotate(watched_at=Subquery(newest))
    waiting = active.filter(Q(watched_at=None) | Q(watched_at__lte=now - every))
    return waiting.order_by(F("watched_at").asc(nulls_first=True), "pk")


def _together(artifacts: list[ModelArtifact]) -> list[list[ModelArtifact]]:
    """Group what one replay serves: models without market-wide features need no panel of their own."""
    groups: dict[tuple[str, ...], list[ModelArtifact]] = defaultdict(list)
    for artifact in artifacts:
        panel = tuple(artifact.panel_symbols) if artifact.training_mode == registry.MULTI_SYMBOL else ()
        groups[panel].append(artifact)
    return list(groups.values())


def _signals(artifacts: list[ModelArtifact], now: dt.datetime) -> dict[int, tuple[dt.datetime, NDArray[np.float32]]]:
    """Return, by artifact, from when on signals were looked at, and the features at the signals of its symbols.

    From one warm-up before the first window on, not from the model's `data_start`: what the kernel remembers from
    before that has faded, and no share of a bin shows the difference.
    """
    import numpy as np  # and numba below: for a process of its own

    from quant.features import FeatureState, replay
    from quant.signals import primary_side

    step_ms = timeframe_ms(settings.TIMEFRAME)
    schema = registry.feature_schema()
    until_ms = floor_ms(to_ms(now), step_ms)
    since_ms = {artifact.pk: _window_start(artifact, until_ms, step_ms) for artifact in artifacts}
    panel = candle_store().read_panel(
        settings.EXCHANGE_MARKET,
        settings.TIMEFRAME,
        symbols=list(dict.fromkeys(code for artifact in artifacts for code in artifact.panel_symbols)),
        since_ms=min(since_ms.values()) - schema.warmup * step_ms,
        until_ms=until_ms,
    )
    codes = registry.codes_of(since_ms)
    columns = {pk: np.isin(panel.symbols, codes[pk]) for pk in since_ms}
    parts: dict[int, list[NDArray[np.float32]]] = {pk: [] for pk in since_ms}
    state = FeatureState.create(schema, panel.n_symbols)
    chunk = max(1, CHUNK_VALUES // (panel.n_symbols * len(schema)))
    for start in range(0, panel.n_times, chunk):
        part = panel.rows(start, min(start + chunk, panel.n_times))
        features = replay(state, part)
        for artifact in artifacts:
            fired = primary_side(artifact.signal, features, schema) != 0
            fired &= (part.open_time >= since_ms[artifact.pk])[:, np.newaxis] & columns[artifact.pk]
            parts[artifact.pk].append(features[fired])
    empty = np.empty((0, len(schema)), dtype=np.float32)
    return {pk: (from_ms(since_ms[pk]), np.concatenate([empty, *parts[pk]])) for pk in since_ms}


def _window_start(artifact: ModelArtifact, until_ms: int, step_ms: int) -> int:
    fitted_ms = int((artifact.metrics.get("windows") or {}).get("development_end_ms", 0))
    return window_start(artifact.drift_reference, fitted_ms=fitted_ms, until_ms=until_ms, step_ms=step_ms)


def _write(
    artifact: ModelArtifact,
    now: dt.datetime,
    since: dt.datetime,
    drift: Drift,
    live: LiveRecord,
    found: WatchOutcome,
) -> ModelWatch:
    watch = ModelWatch(
        artifact=artifact,
        at=now,
        since=since,
        samples=drift.samples,
        features=[
            {
                "feature": each.name,
                "psi": round(each.psi, 4),
                "bound": round(each.bound, 4) if each.bound < float("inf") else None,
                "missing": round(each.missing, 4),
                "missing_before": round(each.missing_before, 4),
                "drifted": drift.judged and each.drifted,
            }
            for each in drift.features
        ],
        drifted=len(drift.drifted),
        psi_max=max((each.psi for each in drift.features if each.judged), default=None),
        trades=live.trades,
        wins=live.wins,
        promised_precision=live.promised_precision,
        guard=found.guard,
        verdict=WatchVerdict(found.finding.value),
        text=found.text[:500],
        asks=found.wants_training and not artifact.watches.filter(asks=True).exists(),
    )
    try:
        with transaction.atomic():
            watch.save(force_insert=True)
    except IntegrityError:  # a person's command asked at this moment
        watch.asks = False
        watch.save(force_insert=True)
    if watch.asks:
        what = f"{artifact} of {artifact.scope.key} asks for a training: {found.text}"
        journal.record("model_drifted", what, subject=f"artifact:{artifact.pk}", severity=Severity.WARNING)
    return watch

"""Which model may serve: the requirement of the settings, the facts of each artifact, and the best of them.

Nothing here loads a model: web pages show every artifact with every reason against it (I12).
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

from django.conf import settings

from ops_app import clock
from quant.compatibility import ArtifactFacts, ModelRequirement, Refusal, check_compatibility
from quant.label_spec import LabelSpec
from quant.reasons import reason
from quant.schema import FeatureSchema
from quant.selection import Selection, select_best_model
from quant.timeframes import to_ms
from training_app.models import ArtifactSymbol, ModelArtifact, TrainingScope

MULTI_SYMBOL, SINGLE_SYMBOL = "multi_symbol", "single_symbol"


def label_spec() -> LabelSpec:
    """Return the barriers and costs that are learnt."""
    return LabelSpec()


def feature_schema() -> FeatureSchema:
    """Return the features of the training mode: a model of one symbol must not depend on the others."""
    return _schema(settings.TRAINING_MODE == MULTI_SYMBOL)


@lru_cache(maxsize=2)
def _schema(market_wide: bool) -> FeatureSchema:
    """Return the one schema of its kind, which remembers its hash."""
    return FeatureSchema(market_wide=market_wide)


def requirement(market: str | None = None, *, symbols: Iterable[str] = ()) -> ModelRequirement:
    """Return what the settings ask of a model; without `symbols` its coverage is not judged.

    `market` is part of the slot, not of the requirement; it is accepted so that callers can name what they mean.
    """
    del market
    return ModelRequirement(
        training_mode=settings.TRAINING_MODE,
        symbol_encoding=settings.SYMBOL_ENCODING,
        timeframe=settings.TIMEFRAME,
        schema_hash=feature_schema().hash,
        signal=settings.PRIMARY_SIGNAL,
        label_hash=label_spec().hash,
        symbols=frozenset(symbols),
        blend=settings.TRAIN_BLEND,
    )


def slot_key(*, market: str, symbol: str | None = None) -> str:
    """Return the key of the scope, which is the slot of ActiveModel, for the settings' mode and timeframe."""
    key = f"{settings.TRAINING_MODE}:{market}:{settings.TIMEFRAME}"
    return key if symbol is None else f"{key}:{symbol}"


def facts(artifact: ModelArtifact, symbols: Iterable[str] = ()) -> ArtifactFacts:
    """Return what is known of `artifact`, which covers the codes `symbols`, without reading its files."""
    return ArtifactFacts(
        artifact_id=artifact.pk,
        version=artifact.version,
        training_mode=artifact.training_mode,
        symbol_encoding=artifact.symbol_encoding,
        timeframe=artifact.timeframe,
        schema_hash=artifact.schema_hash,
        signal=artifact.signal,
        label_hash=artifact.label_hash,
        symbols=frozenset(symbols),
        score=artifact.score,
        created_ms=to_ms(artifact.created_at),
        gates_passed=artifact.gates_passed,
        blend=artifact.blend,
        integrity_error=artifact.integrity_error or None,
        retired=(artifact.retired_reason or "rolled back") if artifact.retired_at is not None else None,
    )


def expired(artifact: ModelArtifact, now: dt.datetime) -> str | None:
    """Return why a model is too old to open trades, or None: markets change, and its promise was for a while ago."""
    age = now - artifact.data_end
    if age <= dt.timedelta(days=settings.MODEL_MAX_AGE_DAYS):
        return None
    return reason(
        "MODEL_EXPIRED", newest_data=artifact.data_end, days=round(age / dt.timedelta(days=1), 1),
        limit_days=settings.MODEL_MAX_AGE_DAYS,
    )  # fmt: skip


def codes_of(artifact_ids: Iterable[int]) -> dict[int, list[str]]:
    """Return the codes that each artifact covers, sorted: one query."""
    codes: dict[int, list[str]] = defaultdict(list)
    rows = ArtifactSymbol.objects.filter(artifact__in=list(artifact_ids)).order_by("symbol__code")
    for artifact_id, code in rows.values_list("artifact_id", "symbol__code"):
        codes[artifact_id].append(code)
    return codes


def refusals_of(artifact: ModelArtifact, *, needs: ModelRequirement | None = None) -> tuple[Refusal, ...]:
    """Return every reason why `artifact` cannot serve; coverage is judged only when `needs` names symbols."""
    needs = needs or requirement()
    symbols = codes_of([artifact.pk])[artifact.pk] if needs.symbols else ()
    return check_compatibility(needs, facts(artifact, symbols))


def select_best(scope: TrainingScope, *, symbols: Iterable[str], exclude: int | None = None) -> Selection:
    """Rank the scope's artifacts for `symbols`: two queries for any number of artifacts.

    `exclude` is the artifact that is active now and did not serve. One that has expired serves nobody.
    """
    rows = scope.artifacts.exclude(pk=exclude) if exclude is not None else scope.artifacts.all()
    now = clock.market_now()
    artifacts = [artifact for artifact in rows.defer("drift_reference") if expired(artifact, now) is None]
    codes = codes_of(artifact.pk for artifact in artifacts)
    needs = requirement(scope.market, symbols=symbols)
    return select_best_model(needs, [facts(artifact, codes[artifact.pk]) for artifact in artifacts])

"""Which models the bot holds. It loads only what has a new generation, verified, between two bars (I9, I10).

A model that cannot be trusted is refused once: the last good one stays, a person is told, that generation is not tried
again, not even after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import structlog
from django.conf import settings
from django.db.models import F
from numpy.typing import NDArray

from ops_app import alerts, clock, journal
from ops_app.choices import Severity
from quant.model import MetaModel
from quant.reasons import reason
from quant.timeframes import to_ms
from trading_app.choices import RiskKind
from trading_app.models import Bot
from trading_app.services import record_risk
from training_app import activation, artifacts, selectors
from training_app.choices import ActivationState
from training_app.exceptions import ArtifactError, ArtifactUnreachable
from training_app.models import Activation, ModelArtifact
from training_app.registry import MULTI_SYMBOL
from training_app.selectors import ActiveSlot

log = structlog.get_logger(__name__)

UNREACHABLE_SECONDS = 60.0
"""Until the storage of artifacts is asked again when it did not answer: an attempt may cost a pass its time-out."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A verified model of a slot. A bar keeps the reference that it began with (F34)."""

    slot: str
    generation: int
    artifact: ModelArtifact
    model: MetaModel


@dataclass(slots=True)
class LoadReport:
    loaded: int = 0
    refused: int = 0


@dataclass(slots=True)
class ModelLoader:
    """Holds the model of each slot: one slot in multi_symbol mode, one per symbol in single_symbol mode.

    `load` is a parameter for tests only; there is one place in the code that loads (`training_app.artifacts`).
    """

    bot: Bot
    load: Callable[[ModelArtifact], MetaModel] = artifacts.load
    models: dict[str, LoadedModel] = field(default_factory=dict)
    seen_generation: int = 0
    _refused: set[int] = field(default_factory=set)
    _wait_until: float = 0.0

    def refresh(self) -> LoadReport:
        """Take over the slots activated since the last look: one query when there are none."""
        report = LoadReport()
        if clock.monotonic() < self._wait_until:
            return report
        for slot in selectors.changed_since(self.seen_generation, market=self.bot.market):
            try:
                self._consider(slot, report)
            except ArtifactUnreachable as error:  # nobody's fault: the models that are held go on, this one comes later
                self._wait_until = clock.monotonic() + UNREACHABLE_SECONDS
                log.warning("model_unreachable", slot=slot.slot, generation=slot.generation, error=str(error))
                alerts.raise_alert(
                    _alert_key(slot.slot),
                    f"Bot {self.bot.name} cannot fetch model v{slot.artifact.version} of {slot.slot}, and trades with "
                    f"what it holds. It asks again every {UNREACHABLE_SECONDS:.0f} s. {error}",
                )
                break
            self.seen_generation = max(self.seen_generation, slot.generation)
        if report.loaded:
            self.bot.loaded_generation = max(each.generation for each in self.models.values())
            self.bot.loaded_at = clock.market_now()
            Bot.objects.filter(pk=self.bot.pk).update(
                loaded_generation=self.bot.loaded_generation, loaded_at=self.bot.loaded_at, reloads=F("reloads") + 1
            )
        return report

    def _consider(self, slot: ActiveSlot, report: LoadReport) -> None:
        if slot.generation in self._refused or slot.generation == self.bot.refused_generation:
            self._fall_back(slot, report)
        elif slot.refusals:
            self._refuse(slot, "; ".join(each.text for each in slot.refusals), report)
        else:
            self._take(slot, report)

    def _take(self, slot: ActiveSlot, report: LoadReport) -> None:
        try:
            model = self.load(slot.artifact)
        except ArtifactError as error:
            # The registry learns it, so that the next plan falls back.
            activation.report_broken(artifact=slot.artifact, error=str(error))
            self._refuse(slot, str(error), report)
            return
        self._hold(slot.slot, slot.generation, slot.artifact, model)
        report.loaded += 1
        alerts.resolve_alert(_alert_key(slot.slot))
        journal.record(
            "model_loaded",
            reason("MODEL_LOADED", slot=slot.slot, artifact=slot.artifact.pk, generation=slot.generation),
            subject=f"bot:{self.bot.name}",
        )

    def _hold(self, slot: str, generation: int, artifact: ModelArtifact, model: MetaModel) -> None:
        self.models[slot] = LoadedModel(slot, generation, artifact, model)

    def _refuse(self, slot: ActiveSlot, why: str, report: LoadReport) -> None:
        self._refused.add(slot.generation)
        self.bot.refused_generation = slot.generation
        Bot.objects.filter(pk=self.bot.pk).update(refused_generation=slot.generation)
        report.refused += 1
        held = self.models.get(slot.slot)
        kept = f"model v{held.artifact.version} is kept" if held is not None else "no model is held for it"
        evidence = reason(
            "MODEL_REFUSED", slot=slot.slot, artifact=slot.artifact.pk, generation=slot.generation, why=why
        )
        record_risk(bot=self.bot, kind=RiskKind.MODEL_REFUSED, evidence=evidence, severity=Severity.CRITICAL)
        alerts.raise_alert(
            _alert_key(slot.slot),
            f"Bot {self.bot.name} refused model v{slot.artifact.version} of {slot.slot}; {kept}. {why}",
            Severity.CRITICAL,
        )
        if held is None:
            self._fall_back(slot, report)

    def _fall_back(self, slot: ActiveSlot, report: LoadReport) -> None:
        """After a restart nothing is held: take the slot's last artifact before the refused one that can be trusted."""
        if slot.slot in self.models:
            return
        earlier = (
            Activation.objects.filter(
                slot=slot.slot,
                state=ActivationState.APPLIED,
                generation__lt=slot.generation,
                artifact__schema_hash=slot.artifact.schema_hash,
                artifact__integrity_error="",
            )
            .exclude(artifact=slot.artifact)
            .select_related("artifact")
            .order_by("-generation")[:3]
        )
        for served in earlier:
            try:
                model = self.load(served.artifact)
            except ArtifactError as error:
                activation.report_broken(artifact=served.artifact, error=str(error))
                log.warning("fall_back_refused", slot=slot.slot, artifact=served.artifact_id, error=str(error))
                continue
            self._hold(slot.slot, served.generation or 0, served.artifact, model)
            report.loaded += 1
            journal.record(
                "model_loaded",
                reason("FALL_BACK", slot=slot.slot, artifact=served.artifact_id, instead_of=slot.artifact.pk),
                subject=f"bot:{self.bot.name}",
                severity=Severity.WARNING,
            )
            return

    # --- what the held models say

    @property
    def panel_since_ms(self) -> dict[str, int]:
        """The panel whose features the held models need, in their order, with the open time of its first bar (I13)."""
        if settings.TRAINING_MODE == MULTI_SYMBOL:
            held = next(iter(self.models.values()), None)
            return {} if held is None else dict.fromkeys(held.model.panel_symbols, to_ms(held.artifact.data_start))
        since = {symbol: to_ms(each.artifact.data_start) for symbol, each in self.covering().items()}
        return dict(sorted(since.items()))

    def covering(self) -> dict[str, LoadedModel]:
        """Return the model of every covered symbol (I11)."""
        return {symbol: each for each in self.models.values() for symbol in each.model.symbols}


def predict(
    covering: Mapping[str, LoadedModel],
    symbols: tuple[str, ...],
    features: NDArray[np.float32],
    asked: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the probability of each asked symbol, float64[S]; NaN where it was not asked, or is not covered."""
    probability = np.full(len(symbols), np.nan)
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(asked).tolist():
        held = covering.get(symbols[row])
        if held is not None:
            rows_of.setdefault(held.slot, []).append(row)
    models = {held.slot: held.model for held in covering.values()}
    for slot, rows in rows_of.items():
        codes = models[slot].codes_for(tuple(symbols[row] for row in rows))
        probability[rows] = models[slot].predict(features[rows], codes, num_threads=1)
    return probability


def _alert_key(slot: str) -> str:
    return f"model_refused:{slot}"

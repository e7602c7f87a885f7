"""Look at the rows after each pass, and tell the judge what the system did."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from django.conf import settings

from coverage_app.models import Symbol
from ops_app import clock
from ops_app.prepared import Prepared
from quant.timeframes import floor_ms, from_ms, timeframe_ms, to_ms
from trading_app.report import TickReport
from tradingsite.soak.judge import LoopJudge
from training_app.choices import OPEN_STATES, ActivationState, RunTrigger
from training_app.models import Activation, ActiveModel, ArtifactSymbol, ModelArtifact, ModelWatch, TrainingRun
from training_app.querysets import RunQuerySet

# Looked at after every pass.
_evaluated = Prepared(lambda *, now: Symbol.objects.filter(last_evaluated_at=now).order_by("pk").values_list("code"))
_newest_run = Prepared(lambda: TrainingRun.objects.order_by("-pk").values_list("pk")[:1])
_newest_generation = Prepared(lambda: ActiveModel.objects.order_by("-generation").values_list("generation")[:1])

LATEST_DECISION = dt.timedelta(minutes=15)
"""The bot may wait this long for a late candle before it decides a bar without it."""


def new_judge(violations: list[str]) -> LoopJudge:
    return LoopJudge(
        interval=dt.timedelta(seconds=settings.EVALUATION_INTERVAL),
        bar=dt.timedelta(milliseconds=timeframe_ms(settings.TIMEFRAME)),
        violations=violations,
    )


@dataclass(slots=True)
class WorkWatch:
    """Evaluations and runs. A run's cause is verified here, from the history of activations, not taken from its row."""

    judge: LoopJudge
    _newest_run: int = 0
    _open: set[int] = field(default_factory=set)

    def look(self, now: dt.datetime) -> None:
        for (code,) in _evaluated.rows(now=now):
            self.judge.evaluated(code, now)
        ((newest_run,),) = _newest_run.rows() or [(0,)]
        for run in self._new_runs() if newest_run > self._newest_run else ():
            self._newest_run = run.pk
            self._forget_ended()
            symbols = run.run_symbols.values_list("symbol__code", flat=True)
            self.judge.run_requested(str(run.pk), list(symbols), cause=verified_cause(run))
            self._open.add(run.pk)
        self._forget_ended()

    def _new_runs(self) -> RunQuerySet:
        return TrainingRun.objects.filter(pk__gt=self._newest_run).select_related("scope").order_by("pk")

    def _forget_ended(self) -> None:
        if not self._open:
            return
        still = set(TrainingRun.objects.filter(pk__in=self._open, state__in=OPEN_STATES).values_list("pk", flat=True))
        for run_id in self._open - still:
            self.judge.run_ended(str(run_id))
        self._open = still


def verified_cause(run: TrainingRun) -> str:
    """Return what had changed when `run` was requested, or "" if nothing had."""
    served = Activation.objects.filter(
        slot=run.scope.key, state=ActivationState.APPLIED, artifact__run__lt=run.pk, decided_at__lte=run.created_at
    )
    before = served.select_related("artifact").order_by("-generation").first()
    if before is None:
        return "no model served" if run.trigger == RunTrigger.NO_MODEL else ""
    artifact: ModelArtifact = before.artifact
    if run.trigger == RunTrigger.SCHEDULED:
        age = run.created_at - artifact.created_at
        return "the model reached its age" if age >= dt.timedelta(hours=settings.TRAIN_INTERVAL_HOURS) else ""
    if run.trigger == RunTrigger.NEW_SYMBOLS:
        covered = ArtifactSymbol.objects.filter(artifact=artifact).values("symbol")
        return "new symbols" if run.run_symbols.exclude(symbol__in=covered).exists() else ""
    if run.trigger == RunTrigger.DRIFT:
        asked = ModelWatch.objects.filter(artifact=artifact, asks=True, at__lte=run.created_at).first()
        if asked is None:
            return ""
        since = TrainingRun.objects.filter(scope=run.scope, created_at__gte=asked.at, pk__lt=run.pk)
        return "" if since.exists() else "the model's watch saw a drift that no run had answered"
    return "a person asked" if run.requested_by_id is not None else ""


@dataclass(slots=True)
class BotWatch:
    """What the bot loaded and decided: one load for each generation that it could see (I9), and every bar."""

    judge: LoopJudge
    seen: int = 0
    _visible: int = 0

    def before(self) -> None:
        ((self._visible,),) = _newest_generation.rows() or [(0,)]

    def after(self, report: TickReport) -> None:
        if report.models_loaded:
            self.judge.reloaded(self._visible, clock.market_now())
            self.seen = self._visible
        elif self._visible > self.seen and not report.waiting and report.lease in ("held", "taken"):
            self.judge.violations.append(f"I9: generation {self._visible} was there and the bot did not load it")
            self.seen = self._visible
        if report.bar_at is not None and self.seen:
            self.judge.decided(report.bar_at)
        if report.lease in ("busy", "lost"):
            self.judge.violations.append(f"I15: the only bot found its account {report.lease} at {clock.market_now()}")

    def end_of_day(self) -> None:
        step = timeframe_ms(settings.TIMEFRAME)
        self.judge.bars_due(from_ms(floor_ms(to_ms(clock.market_now() - LATEST_DECISION), step) - step))

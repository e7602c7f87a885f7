"""What `runall` shows of the first minutes, from the exchange's list of symbols to the first decision."""

from __future__ import annotations

from django.conf import settings
from django.db.models import Count, Q

from coverage_app.models import Block, Symbol
from ops_app.stages import Stage, register
from trading_app.models import Decision
from training_app.choices import OPEN_STATES, RunState
from training_app.models import ActiveModel, TrainingRun


def symbols() -> Stage:
    found = Symbol.objects.filter(market=settings.EXCHANGE_MARKET).aggregate(
        all=Count("pk"), chosen=Count("pk", filter=Q(in_universe=True))
    )
    if not found["all"]:
        return Stage("asking the exchange")
    return Stage(f"{found['all']} found, {found['chosen']} in the universe", done=True)


def history() -> Stage:
    count = Symbol.objects.filter(market=settings.EXCHANGE_MARKET, in_universe=True).aggregate(
        all=Count("pk"),
        here=Count("pk", filter=Q(backfilled=True)),
        failing=Count("pk", filter=Q(ingest_failures__gt=0)),
    )
    if not count["all"]:
        return Stage("waits for the symbols")
    failing = f", {count['failing']} with errors" if count["failing"] else ""
    return Stage(
        f"{count['here']} of {count['all']} symbols have their candles{failing}",
        done=count["here"] == count["all"],
        share=count["here"] / count["all"],
    )


def coverage() -> Stage:
    judged = Symbol.objects.filter(market=settings.EXCHANGE_MARKET, in_universe=True).aggregate(
        all=Count("pk"), judged=Count("pk", filter=Q(last_evaluated_at__isnull=False))
    )
    if not judged["judged"]:
        return Stage("waits for the candles")
    reasons = (
        Block.objects.filter(symbol__market=settings.EXCHANGE_MARKET, symbol__in_universe=True, closed_at__isnull=True)
        .values_list("reason")
        .annotate(symbols=Count("symbol", distinct=True))
        .order_by("-symbols")
    )
    blocked = ", ".join(f"{count} {reason}" for reason, count in reasons) or "none blocked"
    return Stage(f"{judged['judged']} judged: {blocked}", done=judged["judged"] == judged["all"])


def training() -> Stage:
    run = TrainingRun.objects.filter(scope__market=settings.EXCHANGE_MARKET).order_by("-pk").first()
    if run is None:
        return Stage("waits for symbols with enough history")
    if run.state == RunState.RUNNING:
        return Stage(f"run {run.pk}: {run.stage or 'starts'}", share=run.progress)
    if run.state in OPEN_STATES:
        return Stage(f"run {run.pk} is queued")
    error = f" - {run.error.strip().splitlines()[-1]}" if run.error.strip() else ""
    return Stage(f"run {run.pk} {run.get_state_display().lower()}{error}"[:160], done=True)


def model() -> Stage:
    active = (
        ActiveModel.objects.filter(artifact__scope__market=settings.EXCHANGE_MARKET)
        .select_related("artifact")
        .annotate(symbols=Count("artifact__artifact_symbols"))
        .order_by("-generation")
    )
    newest = active.first()
    if newest is None:
        return Stage("none is promoted yet")
    return Stage(
        f"{newest.artifact} promoted: {newest.symbols} symbols, score {newest.artifact.score:.4g}"
        + (f"; {len(active)} slots" if len(active) > 1 else ""),
        done=True,
    )


def decisions() -> Stage:
    by_model = Decision.objects.filter(bot__name=settings.BOT_NAME, artifact__isnull=False)
    bar_at = by_model.values_list("bar_at", flat=True).first()
    if bar_at is None:
        return Stage("waits for a model and the next closed candle")
    outcomes = (
        Decision.objects.filter(bot__name=settings.BOT_NAME, bar_at=bar_at)
        .values_list("outcome")
        .annotate(count=Count("pk"))
        .order_by("-count")
    )
    text = ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
    return Stage(f"candle of {bar_at:%Y-%m-%d %H:%M}: {text}", done=True)


for position, (name, read) in enumerate(
    {
        "symbols": symbols,
        "history": history,
        "coverage": coverage,
        "training": training,
        "model": model,
        "decisions": decisions,
    }.items()
):
    register(name, read, order=position)

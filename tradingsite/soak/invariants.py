"""What must never be true, asked of the rows: each function returns sentences, empty when all is well."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from itertools import pairwise

from django.conf import settings
from django.db.models import Count, F, Q

from coverage_app.models import Block, Symbol
from ops_app import clock
from trading_app.choices import OPEN_ORDER_STATES, RESTING_PURPOSES, OrderPurpose, OrderState
from trading_app.models import Bot, Decision, Fill, Order, Position
from training_app.choices import OPEN_STATES, ActivationState, RunState, RunTrigger
from training_app.models import Activation, ActiveModel, ArtifactSymbol, ModelArtifact, RunSymbol, TrainingRun

Check = Callable[[], Iterator[str]]


def one_open_run() -> Iterator[str]:
    for row in RunSymbol.objects.filter(open=True).values("symbol__code").annotate(n=Count("id")).filter(n__gt=1):
        yield f"I1: {row['symbol__code']} is in {row['n']} open runs"
    open_runs = TrainingRun.objects.filter(state__in=OPEN_STATES)
    for scope in open_runs.values("scope__key").annotate(n=Count("id")).filter(n__gt=1):
        yield f"I1: {scope['scope__key']} has {scope['n']} open runs"


def verdicts() -> Iterator[str]:
    ended = RunSymbol.objects.exclude(run__state__in=OPEN_STATES)
    for row in ended.filter(Q(open=True) | Q(verdict=""))[:5]:
        yield f"I2: run {row.run_id} ended without a verdict for symbol {row.symbol_id}"
    for run in TrainingRun.objects.filter(run_symbols__isnull=True)[:5]:
        yield f"I2: run {run.pk} has no symbols"


def causes() -> Iterator[str]:
    for run in TrainingRun.objects.filter(Q(trigger="") | Q(cause="")):
        yield f"I2: run {run.pk} has no cause"


def intervals() -> Iterator[str]:
    """A scope starts at most one run per min_train_interval, a person's wish apart (I5); attempts are no new runs."""
    least = dt.timedelta(hours=settings.TRAIN_MIN_INTERVAL_HOURS)
    runs = TrainingRun.objects.exclude(started_at=None).exclude(trigger=RunTrigger.MANUAL)
    for earlier, later in pairwise(runs.order_by("scope", "run_no")):
        if earlier.scope_id == later.scope_id and later.created_at - earlier.created_at < least:
            yield f"I5: runs {earlier.pk} and {later.pk} of a scope are {later.created_at - earlier.created_at} apart"


def attempts() -> Iterator[str]:
    for run in TrainingRun.objects.filter(attempt__gt=F("max_attempts")):
        yield f"I4: run {run.pk} had {run.attempt} attempts, {run.max_attempts} are allowed"


def tokens() -> Iterator[str]:
    for row in ModelArtifact.objects.values("run").annotate(n=Count("id")).filter(n__gt=1):
        yield f"I6: run {row['run']} has {row['n']} accepted artifacts"
    for artifact in ModelArtifact.objects.select_related("scope", "run"):
        if artifact.fencing_token > artifact.scope.active_token:
            yield f"I6: artifact {artifact.pk} has a token larger than the scope accepted"
        if artifact.run.state not in (RunState.SUCCEEDED, RunState.REJECTED):
            yield f"I6: artifact {artifact.pk} belongs to run {artifact.run_id}, which {artifact.run.state}"


def activations() -> Iterator[str]:
    applied = Activation.objects.filter(state=ActivationState.APPLIED).order_by("id")
    generations = [number or 0 for number in applied.values_list("generation", flat=True)]
    if any(earlier >= later for earlier, later in pairwise(generations)):
        yield f"I10: generations do not grow: {generations}"
    for row in ActiveModel.objects.select_related("artifact"):
        if not row.artifact.gates_passed:
            yield f"I10: {row.slot} serves artifact {row.artifact_id}, which its gates refused"


def trades_are_covered() -> Iterator[str]:
    entries = Order.objects.filter(purpose=OrderPurpose.ENTRY).exclude(state=OrderState.NOT_PLACED)
    for order in entries.filter(decision__artifact=None)[:5]:
        yield f"I11: order {order.pk} was decided without a model"
    covered = set(ArtifactSymbol.objects.values_list("artifact", "symbol"))
    for artifact, symbol in set(entries.values_list("decision__artifact", "symbol")):
        if artifact is not None and (artifact, symbol) not in covered:
            yield f"I11: symbol {symbol} was traded by artifact {artifact}, which does not cover it"


def orders_are_single() -> Iterator[str]:
    entries = Order.objects.filter(purpose=OrderPurpose.ENTRY).exclude(decision=None)
    for row in entries.values("decision").annotate(n=Count("id")).filter(n__gt=1)[:5]:
        yield f"I16: decision {row['decision']} has {row['n']} entry orders"
    for order in Order.objects.exclude(sent_at=None).filter(client_order_id=None)[:5]:
        yield f"I16: order {order.pk} was sent without a client order id"
    stuck = clock.market_now() - dt.timedelta(hours=1)
    for order in Order.objects.filter(state__in=(OrderState.SENDING, OrderState.UNKNOWN), created_at__lt=stuck)[:5]:
        yield f"I16: order {order.pk} is {order.state} for more than an hour"


def positions_are_protected() -> Iterator[str]:
    late = clock.market_now() - dt.timedelta(minutes=5)
    for position in Position.objects.open().filter(foreign=False, opened_at__lt=late).exclude(quantity=0):
        orders = Order.objects.filter(position=position, state__in=OPEN_ORDER_STATES)
        if not orders.filter(purpose__in=(OrderPurpose.STOP, OrderPurpose.EXIT)).exists():
            yield f"I18: position {position.pk} has neither a stop nor an exit on its way"


def nothing_rests_for_a_closed_position() -> Iterator[str]:
    """What is left of a stop or target goes with its position, or it would reduce the next one at an old price."""
    resting = Order.objects.open().filter(purpose__in=RESTING_PURPOSES)
    for order in resting.filter(position__closed_at__lt=clock.market_now() - dt.timedelta(hours=1))[:5]:
        yield f"I18: {order.purpose} {order.pk} rests although position {order.position_id} is closed"
    targets = resting.filter(purpose=OrderPurpose.TARGET).order_by()
    for row in targets.values("position").annotate(n=Count("id")).filter(n__gt=1)[:5]:
        yield f"I18: position {row['position']} has {row['n']} orders at its target"


def decisions_are_single() -> Iterator[str]:
    since = clock.market_now() - dt.timedelta(days=2)
    for bot in Bot.objects.all():  # by bot, because the table is large and its index begins with it
        recent = Decision.objects.filter(bot=bot, bar_at__gte=since)
        for row in recent.order_by().values("symbol", "bar_at").annotate(n=Count("id")).filter(n__gt=1)[:5]:
            yield f"a bar was decided twice by {bot.name}: {row}"
        for decision in recent.filter(reason="")[:1]:
            yield f"decision {decision.pk} ({decision.outcome}) has no reason"


def blocks_come_back() -> Iterator[str]:
    for block in Block.objects.open().filter(permanent=False, recheck_at=None)[:5]:
        yield f"I2: block {block.pk} is temporary and has no recheck_at"
    overdue = clock.market_now() - dt.timedelta(days=2)
    for block in Block.objects.open().filter(permanent=False, recheck_at__lt=overdue)[:5]:
        yield f"I2: block {block.pk} ({block.reason}) was due at {block.recheck_at} and nobody looked"


def symbols_come_back() -> Iterator[str]:
    overdue = clock.market_now() - dt.timedelta(days=2)
    for symbol in Symbol.objects.filter(next_evaluation_at__lt=overdue)[:5]:
        yield f"I3: {symbol.code} was due for evaluation at {symbol.next_evaluation_at} and nobody looked"


def kill_switch_is_latched() -> Iterator[str]:
    for bot in Bot.objects.exclude(kill_switch_at=None):
        entries = Order.objects.filter(bot=bot, purpose=OrderPurpose.ENTRY, created_at__gt=bot.kill_switch_at)
        if entries.exists():
            yield f"I19: bot {bot.name} entered after its kill switch was pulled"


def fills_are_single() -> Iterator[str]:
    for row in Fill.objects.values("account", "trade_id").annotate(n=Count("id")).filter(n__gt=1)[:5]:
        yield f"I17: trade {row['trade_id']} was booked {row['n']} times"


CHECKS: tuple[Check, ...] = (
    one_open_run, verdicts, causes, intervals, attempts, tokens, activations, trades_are_covered, orders_are_single,
    positions_are_protected, nothing_rests_for_a_closed_position, decisions_are_single, blocks_come_back,
    symbols_come_back, kill_switch_is_latched, fills_are_single,
)  # fmt: skip


def broken() -> list[str]:
    """Return a sentence for everything that is not as it must be."""
    return [sentence for check in CHECKS for sentence in check()]

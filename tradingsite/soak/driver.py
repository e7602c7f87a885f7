"""Runs the soak: passes of 60 simulated seconds through workers and bot, counted and checked."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import Max, Sum

from coverage_app import market
from coverage_app.models import Block, Symbol
from ops_app import clock, queue
from quant.timeframes import floor_ms, from_ms, timeframe_ms, to_ms
from trading_app.bot import BotRunner
from trading_app.models import Bot, Decision, Position
from trading_app.report import TickReport
from trading_app.services import ensure_bot
from tradingsite.soak import invariants
from tradingsite.soak.chaos import Chaos
from tradingsite.soak.report import Counts, Day, SoakReport
from tradingsite.soak.work import Workers
from training_app.choices import ActivationState
from training_app.models import Activation, ActiveModel, ModelArtifact, TrainingRun

PASS = dt.timedelta(seconds=60)
LATEST_DECISION = dt.timedelta(minutes=15)
"""The bot may wait this long for a late candle before it decides a bar without it."""
IDLE_QUERIES = 3
MAX_VIOLATIONS = 100
START = dt.datetime(2026, 1, 5, 0, 0, 30, tzinfo=dt.UTC)
"""Half a minute past the bar, so that passes do not fall on it."""


@dataclass(slots=True)
class QueryCounter:
    """Counts SQL statements; transactions and savepoints are not counted, as in assertNumQueries without them."""

    count: int = 0

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if not sql.startswith(("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT")):
            self.count += 1
        return execute(sql, params, many, context)


@dataclass(slots=True)
class EvaluationWatch:
    """No symbol is evaluated more often than the interval allows (I3): asked of the rows after each pass."""

    violations: list[str]
    _last: dict[int, dt.datetime] = field(default_factory=dict)

    def look(self, now: dt.datetime) -> None:
        least = dt.timedelta(seconds=settings.EVALUATION_INTERVAL)
        for pk, code in Symbol.objects.filter(last_evaluated_at=now).values_list("pk", "code"):
            before = self._last.get(pk)
            if before is not None and now - before < least:
                self.violations.append(f"I3: {code} was evaluated at {before:%H:%M:%S} and at {now:%Y-%m-%d %H:%M:%S}")
            self._last[pk] = now


@dataclass(slots=True)
class BotWatch:
    """The bot reloads once for each generation that it saw, and decides every bar once it has a model (I9)."""

    violations: list[str]
    generation: int = 0
    seen: int = 0
    first_bar: dt.datetime | None = None

    def before(self) -> int:
        return ActiveModel.objects.aggregate(newest=Max("generation"))["newest"] or 0

    def after(self, newest: int, report: TickReport) -> None:
        if newest > self.generation and not report.waiting and report.lease in ("held", "taken"):
            self.generation = newest
            self.seen += 1
        elif report.models_loaded:
            self.violations.append(f"I9: the bot loaded a model at {clock.market_now()} without a new generation")
        if report.bar_at is not None and self.first_bar is None and self.seen:
            self.first_bar = report.bar_at
        if report.lease in ("busy", "lost"):
            self.violations.append(f"I15: the only bot found its account {report.lease} at {clock.market_now()}")

    def check(self, bot: Bot) -> None:
        if bot.reloads != self.seen:
            self.violations.append(f"I9: the bot reloaded {bot.reloads} times, and saw {self.seen} new generations")
        if self.first_bar is None:
            return
        step = timeframe_ms(settings.TIMEFRAME)
        last = from_ms(floor_ms(to_ms(clock.market_now() - LATEST_DECISION), step) - step)
        decided = Decision.objects.filter(bot=bot, bar_at__range=(self.first_bar, last))
        bars = decided.values("bar_at").distinct().count()
        expected = (last - self.first_bar) // dt.timedelta(milliseconds=step) + 1
        if bars != expected:
            self.violations.append(f"the bot decided {bars} of {expected} bars since {self.first_bar}")


@dataclass(slots=True)
class Soak:
    """One soak on the present database, which must be empty but for its tables. `on_day` is told of each day."""

    days: int
    seed: int = 1
    chaos: bool = False
    start: dt.datetime = START
    on_day: Callable[[Day], None] = lambda _day: None

    def run(self) -> SoakReport:
        report = SoakReport(
            settings={
                "days": self.days,
                "symbols": settings.SIM_SYMBOLS,
                "seed": self.seed,
                "chaos": self.chaos,
                "training_mode": settings.TRAINING_MODE,
                "timeframe": settings.TIMEFRAME,
                "learnable": settings.SIM_LEARNABLE,
            }
        )
        accidents = Chaos(seed=self.seed, enabled=self.chaos)
        with clock.simulated(self.start) as simulated, queue.capture() as messages, fresh_market():
            workers = Workers(chaos=accidents, violations=report.violations)
            runner = BotRunner(ensure_bot(), lease_ttl=3 * PASS)  # a pass is longer than the lease of real time
            evaluation_watch = EvaluationWatch(report.violations)
            bot_watch = BotWatch(report.violations)
            counter = QueryCounter()
            before = Counts()
            with connection.execute_wrapper(counter):
                for _ in range(self.days):
                    began, counter.count = time.process_time(), 0
                    date = f"{simulated.now:%Y-%m-%d}"
                    day_queries = 0
                    for _ in range(dt.timedelta(days=1) // PASS):
                        workers.work(messages)
                        newest = bot_watch.before()
                        idle_from = counter.count
                        tick = runner.tick()
                        if tick.idle and tick.lease == "held":
                            report.queries_per_idle_pass = max(report.queries_per_idle_pass, counter.count - idle_from)
                        bot_watch.after(newest, tick)
                        day_queries = counter.count
                        evaluation_watch.look(simulated.now)
                        simulated.advance(PASS)
                    bot_watch.check(Bot.objects.get(pk=runner.bot.pk))
                    report.violations += invariants.broken()
                    now = counts()
                    day = Day(
                        date=date,
                        counts=now.minus(before),
                        queries_per_pass=day_queries / (dt.timedelta(days=1) // PASS),
                        cpu_seconds=time.process_time() - began,
                    )
                    before = now
                    report.days.append(day)
                    self.on_day(day)
                    if len(report.violations) > MAX_VIOLATIONS:
                        break
            report.violations += books_differ(runner)
        if report.queries_per_idle_pass > IDLE_QUERIES:
            report.violations.append(
                f"an idle pass cost {report.queries_per_idle_pass} queries, {IDLE_QUERIES} are allowed"
            )
        report.totals = before
        report.chaos = dict(accidents.counts)
        return report


@contextmanager
def fresh_market() -> Iterator[None]:
    """Open the market data anew on the simulated clock, and close it afterwards."""
    market.reset()
    try:
        yield
    finally:
        market.reset()


def counts() -> Counts:
    """Count what came to be since the beginning."""
    return Counts(
        evaluations=Symbol.objects.aggregate(n=Sum("evaluations"))["n"] or 0,
        blocks=Block.objects.count(),
        runs=TrainingRun.objects.count(),
        causes=TrainingRun.objects.values("scope", "cause").distinct().count(),
        artifacts=ModelArtifact.objects.count(),
        activations=Activation.objects.filter(state=ActivationState.APPLIED).count(),
        reloads=Bot.objects.aggregate(n=Sum("reloads"))["n"] or 0,
        decisions=Decision.objects.count(),
        trades=Position.objects.filter(closed_at__isnull=False).count(),
    )


def books_differ(runner: BotRunner) -> list[str]:
    """Compare our open positions with the exchange's, as they are after the last pass."""
    if runner.venue is None:
        return []
    theirs = {each.symbol: each.quantity for each in runner.venue.positions() if each.quantity}
    ours = dict(Position.objects.open().exclude(quantity=0).values_list("symbol__code", "quantity"))
    return [
        f"I17: {code}: the exchange has {theirs.get(code, 0)}, our books say {ours.get(code, 0)}"
        for code in sorted(theirs.keys() | ours.keys())
        if theirs.get(code, 0) != ours.get(code, 0)
    ]

"""Runs the soak: passes of 60 simulated seconds through workers and bot, counted and checked."""

from __future__ import annotations

import datetime as dt
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from django.conf import settings
from django.db import connection
from django.db.models import Sum

from coverage_app import market
from coverage_app.models import Block, Symbol
from ops_app import clock, queue
from trading_app.bot import BotRunner
from trading_app.models import Bot, Decision, Position
from trading_app.services import ensure_bot
from tradingsite.soak import invariants, yardstick
from tradingsite.soak.chaos import Chaos
from tradingsite.soak.report import Counts, Day, SoakReport
from tradingsite.soak.watches import BotWatch, WorkWatch, new_judge
from tradingsite.soak.work import Workers
from training_app.choices import ActivationState
from training_app.models import Activation, ModelArtifact, TrainingRun

PASS = dt.timedelta(seconds=60)
PASSES_PER_DAY = dt.timedelta(days=1) // PASS
PASSES_PER_YARDSTICK = 60
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
class Soak:
    """One soak on the present database, which must be empty but for its tables.

    A day may be shortened to fewer passes, as a dose for CI. `on_day` is told of each day. Once `stopped` is true no
    further day begins, and the report is of those that ran.
    """

    days: int
    seed: int = 1
    chaos: bool = False
    passes_per_day: int = PASSES_PER_DAY
    start: dt.datetime = START
    on_day: Callable[[Day], None] = lambda _day: None
    stopped: Callable[[], bool] = lambda: False

    def run(self) -> SoakReport:
        """Run it to its end, or until more is broken than anybody would read."""
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
        with clock.simulated(self.start) as simulated, queue.capture() as messages, fresh_market():
            world = _World(report, simulated, messages, Chaos(seed=self.seed, enabled=self.chaos))
            with connection.execute_wrapper(world.queries):
                for _ in range(self.days):
                    self.on_day(world.day(self.passes_per_day))
                    if self.stopped() or len(report.violations) > MAX_VIOLATIONS:
                        break
            world.finish()
        return report


class _World:
    """What a soak holds while it runs: workers, bot, and those who watch them."""

    def __init__(
        self, report: SoakReport, simulated: clock.SimulatedClock, messages: list[queue.Message], chaos: Chaos
    ) -> None:
        self.report, self.simulated, self.messages, self.chaos = report, simulated, messages, chaos
        self.workers = Workers(chaos=chaos, violations=report.violations)
        self.runner = BotRunner(ensure_bot(), lease_ttl=3 * PASS)  # a pass is longer than the lease of real time
        self.judge = new_judge(report.violations)
        self.work_watch, self.bot_watch = WorkWatch(self.judge), BotWatch(self.judge)
        self.queries = QueryCounter()
        self.working = self.watching = 0.0  # CPU seconds of this day

    def day(self, passes: int) -> Day:
        """Run so many passes, then ask the rows for everything that must never be true."""
        date = f"{self.simulated.now:%Y-%m-%d}"
        self.working = self.watching = 0.0
        known, queries, yardsticks = len(self.report.violations), 0, []
        for number in range(passes):
            if number % PASSES_PER_YARDSTICK == 0:
                yardsticks.append(yardstick.measure())
            queries += self._pass()
        began = time.process_time()
        gc.collect()
        self.bot_watch.end_of_day()
        self.report.violations += invariants.broken()
        before, self.report.totals = self.report.totals, self._counts()
        self.watching += time.process_time() - began
        day = Day(
            date=date,
            counts=self.report.totals.minus(before),
            queries_per_pass=queries / passes,
            cpu_seconds=self.working,
            watching_seconds=self.watching,
            yardstick_seconds=statistics.mean(yardsticks),
            memory_mb=psutil.Process().memory_info().rss / 2**20,
            violations=self.report.violations[known:],
        )
        self.report.days.append(day)
        return day

    def _pass(self) -> int:
        """Let workers and bot do a minute; returns the number of their queries."""
        self.queries.count = 0
        times = [time.process_time()]
        self.workers.work(self.messages)
        by_workers = self.queries.count
        times.append(time.process_time())
        self.bot_watch.before()
        self.queries.count = 0
        times.append(time.process_time())
        tick = self.runner.tick()
        by_bot = self.queries.count
        times.append(time.process_time())
        if tick.idle and tick.lease == "held":
            self.report.queries_per_idle_pass = max(self.report.queries_per_idle_pass, by_bot)
        self.bot_watch.after(tick)
        self.work_watch.look(self.simulated.now)
        self.simulated.advance(PASS)
        workers_began, workers_ended, bot_began, bot_ended = times
        self.working += workers_ended - workers_began + bot_ended - bot_began
        self.watching += bot_began - workers_ended + time.process_time() - bot_ended
        return by_workers + by_bot

    def finish(self) -> None:
        report = self.report
        report.chaos = dict(self.chaos.counts)
        report.violations += books_differ(self.runner)
        if report.totals.reloads != self.judge.reloads:
            report.violations.append(
                f"I9: the bot says {report.totals.reloads} reloads, {self.judge.reloads} were seen"
            )
        if report.queries_per_idle_pass > IDLE_QUERIES:
            report.violations.append(
                f"an idle pass cost {report.queries_per_idle_pass} queries, {IDLE_QUERIES} are allowed"
            )

    def _counts(self) -> Counts:
        """Count what came to be since the beginning."""
        return Counts(
            evaluations=Symbol.objects.aggregate(n=Sum("evaluations"))["n"] or 0,
            blocks=Block.objects.count(),
            runs=TrainingRun.objects.count(),
            causes=self.judge.causes,
            artifacts=ModelArtifact.objects.count(),
            activations=Activation.objects.filter(state=ActivationState.APPLIED).count(),
            reloads=Bot.objects.aggregate(n=Sum("reloads"))["n"] or 0,
            decisions=Decision.objects.count(),
            trades=Position.objects.filter(closed_at__isnull=False).count(),
        )


@contextmanager
def fresh_market() -> Iterator[None]:
    """Open the market data anew on the simulated clock, and close it afterwards."""
    market.reset()
    try:
        yield
    finally:
        market.reset()


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

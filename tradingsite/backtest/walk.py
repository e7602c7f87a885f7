"""Plays history forward: judge the symbols, watch the models, train when it was due, gate, trade what passed.

Coverage (`quant.policy.judge`), the watch (`quant.watch`), the schedule of trainings (`quant.policy.run_due`), the
training itself (`quant.pipeline.train`), its gates and the trading (`quant.simulation`) are the functions that run
live. Symbols are judged and models watched once a day, at midnight UTC; live it is every few minutes and once a day.
What is due before the next look starts at its own time. Everything before that is known to it and nothing after.

In ``single_symbol`` mode every symbol is a scope of its own, whose runs and model read its candles alone; all models
trade one account. Pure: no database, no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from marketdata.gaps import history_stats
from quant.candles import Candles
from quant.drift import measure_drift
from quant.engine import EngineSpec
from quant.gates import GateBounds
from quant.model import MetaModel
from quant.panel import Panel
from quant.pipeline import Look, TrainingError, TrainingResult, train
from quant.policy import (
    CoveragePolicy,
    RunCause,
    RunDecision,
    ScopeFacts,
    SymbolFacts,
    TrainingPolicy,
    judge,
    run_due,
)
from quant.simulation import Simulation
from quant.timeframes import DAY_MS, floor_ms, from_ms
from quant.training_spec import TrainingSpec
from quant.watch import EVERY_MS, unanswered
from quant.watch import judge as judge_watch
from tradingsite.backtest.account import Account, SignalFeed

SCOPE = "multi_symbol:backtest"
Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played: from ``start_ms`` to ``end_ms``, with the rules of the settings.

    ``scope`` is the key of the live scope (in ``single_symbol`` mode without the symbol): back-offs depend on it.
    """

    start_ms: int
    end_ms: int
    training: TrainingSpec
    gates: GateBounds
    coverage: CoveragePolicy
    schedule: TrainingPolicy
    engine: EngineSpec
    initial_equity: float
    model_max_age_ms: int = 45 * DAY_MS
    scope: str = SCOPE

    @property
    def one_symbol(self) -> bool:
        return self.training.training_mode == "single_symbol"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A run of the walk: when, of which scope, why, over which symbols, and what came of it.

    ``text`` is the cause with its numbers; ``error`` is set instead of a result.
    """

    number: int
    at_ms: int
    scope: str
    cause: RunCause
    text: str
    symbols: tuple[str, ...]
    result: TrainingResult | None
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.result is not None and self.result.gates_passed


def feed_of(panel: Panel, plan: Plan, training: Training, result: TrainingResult) -> SignalFeed:
    """Return the signals of a trained model: from the end of its training until it is too old to open trades."""
    return SignalFeed(
        panel=panel,
        spec=plan.training,
        symbols=result.model.panel_symbols,
        data_start_ms=result.data_start_ms,
        start_ms=training.at_ms,
        end_ms=result.data_end_ms + plan.model_max_age_ms,
        model=result.model,
        number=training.number,
        promised=result.metrics["test"]["precision"],
        reference=result.reference,
        fitted_ms=result.metrics["windows"]["development_end_ms"],
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A watch that asked for a training: when, of which scope, and what it saw."""

    at_ms: int
    scope: str
    text: str


@dataclass(slots=True)
class Walk:
    """The account that the promoted models traded, all trainings in order, and what watches asked for.

    ``blocked`` are the symbols that were blocked on the last day, with the evidence.
    """

    traded: Simulation
    trainings: list[Training] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)


def open_account(panel: Panel, plan: Plan) -> Account:
    """Return the account as it is at the start of the plan."""
    return Account.open(
        panel,
        engine=plan.engine,
        training=plan.training,
        initial_equity=plan.initial_equity,
        start_ms=plan.start_ms,
    )


def walk_forward(panel: Panel, plan: Plan, *, progress: Progress) -> Walk:
    """Go through the days from ``plan.start_ms`` to its end: trade, watch, and train whenever a training was due."""
    account, scopes = open_account(panel, plan), dict[str, _Scope]()
    walk = Walk(account.simulation)
    for now in range(floor_ms(plan.start_ms + DAY_MS - 1, DAY_MS), plan.end_ms, DAY_MS):
        done = (now - plan.start_ms) / max(plan.end_ms - plan.start_ms, 1)
        progress(done, f"{_date(now)}: {len(walk.trainings)} trainings")
        account.play(now)
        trainable, walk.blocked = judge_symbols(panel, plan, now)
        wanted = _scopes(plan, trainable)
        for key in wanted:
            scopes.setdefault(key, _Scope(key, one_symbol=plan.one_symbol))
        for key, scope in scopes.items():
            scope.look(wanted.get(key, ()), now)
            walk.asked += scope.watch(account, now)
        _train_until(min(now + DAY_MS, plan.end_ms), panel, plan, walk, account, scopes, now)
    account.finish(plan.end_ms)
    progress(1.0, f"{len(walk.trainings)} trainings")
    return walk


def _scopes(plan: Plan, trainable: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return what each scope would train: one over all symbols, or one for each of them."""
    return {f"{plan.scope}:{code}": (code,) for code in trainable} if plan.one_symbol else {plan.scope: trainable}


def _train_until(
    end_ms: int, panel: Panel, plan: Plan, walk: Walk, account: Account, scopes: dict[str, _Scope], now_ms: int
) -> None:
    """Run what is due from ``now_ms`` on and before ``end_ms``, in order of time; then what that makes due."""
    waiting = [(start, key) for key, scope in scopes.items() if (start := scope.starts_at(now_ms, plan)) is not None]
    heapq.heapify(waiting)
    while waiting and waiting[0][0] < end_ms:
        at, key = heapq.heappop(waiting)
        scope = scopes[key]
        decision = scope.ask(at, plan)
        if not decision.due or decision.cause is None:
            raise AssertionError(f"{key} was to start at {at} and does not: {decision.reason}")
        account.play(at)
        known = Training(
            number=len(walk.trainings) + 1, at_ms=at, scope=key, cause=decision.cause, text=decision.reason,
            symbols=scope.trainable, result=None,
        )  # fmt: skip
        training = _train(panel, plan, walk, scope, known)
        walk.trainings.append(training)
        scope.note(training)
        if training.passed and training.result is not None:
            scope.feed = feed_of(panel, plan, training, training.result)
            account.hold(key, scope.feed)
        again = scope.starts_at(at, plan)
        if again is not None:
            heapq.heappush(waiting, (again, key))


def judge_symbols(panel: Panel, plan: Plan, now_ms: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the symbols whose history is sufficient at ``now_ms``, and what is against the others."""
    good, against = [], {}
    known = panel.until(now_ms)
    for column, symbol in enumerate(panel.symbols):
        candles = _column(known, column)
        if len(candles) == 0:
            continue  # nobody knew of it yet
        stats = history_stats(candles, panel.step_ms, now_ms, round(plan.coverage.target_history_days))
        facts = SymbolFacts(
            symbol=symbol,
            history_start_ms=stats.first_ms,
            last_candle_ms=stats.last_ms,
            candle_count=stats.count,
            expected_count=stats.expected,
            largest_gap_bars=stats.largest_gap_bars,
            unbroken_since_ms=stats.unbroken_since_ms,
            price_break=stats.price_break or "",
        )
        findings = judge(facts, plan.coverage, now_ms).findings
        if findings:
            against[symbol] = findings[0].evidence
        else:
            good.append(symbol)
    return tuple(good), against


@dataclass(slots=True)
class _Scope:
    """What `run_due` and the watch ask about a scope. ``feed`` are the signals of the model that serves it."""

    key: str
    one_symbol: bool = False
    trainable: tuple[str, ...] = ()
    champion: MetaModel | None = None
    feed: SignalFeed | None = None
    covered: frozenset[str] = frozenset()
    trained_ms: int | None = None
    last_run_ms: int | None = None
    failures: int = 0
    since: dict[str, int] = field(default_factory=dict)
    asked_ms: int | None = None
    asked_why: str = ""

    def look(self, trainable: tuple[str, ...], now_ms: int) -> None:
        self.trainable = trainable
        self.since = {symbol: self.since.get(symbol, now_ms) for symbol in trainable}

    def watch(self, account: Account, now_ms: int) -> list[Asked]:
        """Look at the active model as `training_app.watching` does. A model asks once, so it is asked no more then."""
        if self.feed is None or self.trained_ms is None or self.asked_ms is not None:
            return []
        if now_ms - self.trained_ms < EVERY_MS:
            return []
        drift = measure_drift(self.feed.window(now_ms), self.feed.spec.schema.names, self.feed.reference)
        found = judge_watch(drift, account.record(self.feed))
        if not found.wants_training:
            return []
        self.asked_ms, self.asked_why = now_ms, found.text
        return [Asked(now_ms, self.key, found.text)]

    def starts_at(self, now_ms: int, plan: Plan) -> int | None:
        """Return when the next run starts, as far as is known at ``now_ms``; None: nothing is wanted."""
        decision = self.ask(now_ms, plan)
        return None if decision.cause is None else max(now_ms, decision.not_before_ms or now_ms)

    def ask(self, now_ms: int, plan: Plan) -> RunDecision:
        new = [at for symbol, at in self.since.items() if symbol not in self.covered]
        drift_ms = unanswered(self.asked_ms, self.last_run_ms)
        facts = ScopeFacts(
            scope=self.key,
            trainable_symbols=len(self.trainable),
            new_symbols=len(new),
            # A scope of one symbol waits for no other: as in `training_app.services.planning`.
            first_new_ms=None if self.one_symbol else min(new, default=None),
            last_new_ms=None if self.one_symbol else max(new, default=None),
            has_compatible_model=self.champion is not None,
            model_trained_ms=self.trained_ms,
            last_run_ms=self.last_run_ms,
            last_run_ended_ms=self.last_run_ms,
            failures=self.failures,
            drift_ms=drift_ms,
            drift=self.asked_why if drift_ms is not None else "",
        )
        return run_due(facts, now_ms, plan.schedule)

    def note(self, training: Training) -> None:
        self.last_run_ms = training.at_ms
        if not training.passed or training.result is None:
            self.failures += 1
            return
        self.failures, self.trained_ms = 0, training.at_ms
        self.champion, self.asked_ms = training.result.model, None
        # What the run left out comes back by itself, with a back-off; it must not ask for a training every day.
        self.covered = frozenset(training.symbols)


def _train(panel: Panel, plan: Plan, walk: Walk, scope: _Scope, known: Training) -> Training:
    since_ms = known.at_ms - round(plan.coverage.target_history_days) * DAY_MS
    try:
        result = train(
            history(panel, known.symbols, known.at_ms, since_ms),
            plan.training,
            progress=lambda _fraction, _text: None,
            champion=scope.champion,
            gate_bounds=plan.gates,
            looks=list(_looks(walk, scope.key)),
        )
    except TrainingError as error:
        return replace(known, error=str(error))
    return replace(known, result=result)


def _looks(walk: Walk, scope: str) -> Iterator[Look]:
    for training in walk.trainings:
        if training.result is not None and training.scope == scope:
            windows, test = training.result.metrics["windows"], training.result.metrics["test"]
            yield Look(
                test_start_ms=windows["test_start_ms"],
                test_end_ms=windows["test_end_ms"],
                sharpe=test["sharpe"],
            )


def history(panel: Panel, symbols: tuple[str, ...], now_ms: int, since_ms: int = 0) -> Panel:
    """Return what a run at ``now_ms`` reads of ``symbols``: from the first candle since ``since_ms`` on."""
    known = panel.select(symbols).until(now_ms)
    known = known.rows(int(np.searchsorted(known.open_time, since_ms)), known.n_times)
    present = np.flatnonzero(np.isfinite(known.close).any(axis=1))
    return known.rows(int(present[0]) if len(present) else 0, known.n_times)


def _column(panel: Panel, column: int) -> Candles:
    present = np.isfinite(panel.close[:, column])
    return Candles(
        panel.open_time[present],
        *(getattr(panel, name)[present, column] for name in ("open", "high", "low", "close", "volume")),
    )


def _date(time_ms: int) -> str:
    return f"{from_ms(time_ms):%Y-%m-%d}"


def facts(training: Training) -> dict[str, Any]:
    """Return a training as plain values, for the report and for JSON."""
    row: dict[str, Any] = {
        "number": training.number,
        "at": f"{from_ms(training.at_ms):%Y-%m-%d %H:%M}",
        "scope": training.scope,
        "cause": training.cause.value,
        "why": training.text,
        "symbols": len(training.symbols),
        "first_symbol": training.symbols[0],
        "passed": training.passed,
        "error": training.error,
    }
    if training.result is not None:
        row |= {
            "covered": len(training.result.symbols),
            "looks": training.result.metrics["looks"],
            "threshold_overfitting": training.result.metrics["threshold_overfitting"],
            "test": training.result.metrics["test"],
            "gates": [gate.to_dict() for gate in training.result.gates],
        }
    return row

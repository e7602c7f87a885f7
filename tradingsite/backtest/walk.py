"""Plays history forward: judge the symbols, train when it was due, gate, trade until the next training.

Coverage (`quant.policy.judge`), the schedule of trainings (`quant.policy.run_due`), the training itself
(`quant.pipeline.train`), its gates and the trading (`quant.simulation`) are the functions that run live. Looks at the
data are taken once a day, at midnight UTC; live they are every minute. Everything before a look is known to it and
nothing after. Pure: no database, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marketdata.gaps import history_stats
from quant.candles import Candles
from quant.engine import EngineSpec
from quant.features import FeatureState
from quant.features import replay as replay_features
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
from quant.signals import primary_side
from quant.simulation import Signals
from quant.timeframes import DAY_MS, floor_ms, from_ms
from quant.training_spec import TrainingSpec

SCOPE = "multi_symbol:backtest"
Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played: from ``start_ms`` to ``end_ms``, with the rules of the settings."""

    start_ms: int
    end_ms: int
    training: TrainingSpec
    gates: GateBounds
    coverage: CoveragePolicy
    schedule: TrainingPolicy
    engine: EngineSpec
    initial_equity: float
    model_max_age_ms: int = 45 * DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A run of the walk: when, why, over which symbols, and what came of it. ``error`` is set instead of a result."""

    number: int
    at_ms: int
    cause: RunCause
    symbols: tuple[str, ...]
    result: TrainingResult | None
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.result is not None and self.result.gates_passed


@dataclass(slots=True)
class Walk:
    """All trainings in order, and the symbols that were blocked on the last day, with the evidence."""

    trainings: list[Training] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)

    def models(self, *, gated: bool) -> list[tuple[int, MetaModel, TrainingResult]]:
        """Return (from when, model, its training) in order: those that passed, or every one that was trained."""
        return [
            (training.at_ms, training.result.model, training.result)
            for training in self.trainings
            if training.result is not None and (training.passed or not gated)
        ]


def walk_forward(panel: Panel, plan: Plan, *, progress: Progress) -> Walk:
    """Go through the days from ``plan.start_ms`` to its end, and train whenever a training was due."""
    walk, state = Walk(), _Scope()
    for now in range(floor_ms(plan.start_ms + DAY_MS - 1, DAY_MS), plan.end_ms + 1, DAY_MS):
        done = (now - plan.start_ms) / max(plan.end_ms - plan.start_ms, 1)
        progress(done, f"{_date(now)}: {len(walk.trainings)} trainings")
        trainable, walk.blocked = judge_symbols(panel, plan, now)
        due = state.ask(trainable, now, plan.schedule)
        if due.due and due.cause is not None:
            training = _train(panel, plan, walk, state, trainable, now, due.cause)
            walk.trainings.append(training)
            state.note(training, now)
    progress(1.0, f"{len(walk.trainings)} trainings")
    return walk


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
    """What `run_due` asks about the scope."""

    champion: MetaModel | None = None
    covered: frozenset[str] = frozenset()
    trained_ms: int | None = None
    last_run_ms: int | None = None
    failures: int = 0
    since: dict[str, int] = field(default_factory=dict)

    def ask(self, trainable: tuple[str, ...], now_ms: int, schedule: TrainingPolicy) -> RunDecision:
        self.since = {symbol: self.since.get(symbol, now_ms) for symbol in trainable}
        new = [at for symbol, at in self.since.items() if symbol not in self.covered]
        facts = ScopeFacts(
            scope=SCOPE,
            trainable_symbols=len(trainable),
            new_symbols=len(new),
            first_new_ms=min(new, default=None),
            last_new_ms=max(new, default=None),
            has_compatible_model=self.champion is not None,
            model_trained_ms=self.trained_ms,
            last_run_ms=self.last_run_ms,
            last_run_ended_ms=self.last_run_ms,
            failures=self.failures,
        )
        # Symbols that became trainable today have waited for their debounce by the next look.
        return run_due(facts, now_ms + schedule.max_debounce_ms, schedule)

    def note(self, training: Training, now_ms: int) -> None:
        self.last_run_ms = now_ms
        if not training.passed or training.result is None:
            self.failures += 1
            return
        self.failures, self.trained_ms = 0, now_ms
        self.champion = training.result.model
        # What the run left out comes back by itself, with a back-off; it must not ask for a training every day.
        self.covered = frozenset(training.symbols)


def _train(
    panel: Panel,
    plan: Plan,
    walk: Walk,
    state: _Scope,
    symbols: tuple[str, ...],
    now_ms: int,
    cause: RunCause,
) -> Training:
    known = Training(number=len(walk.trainings) + 1, at_ms=now_ms, cause=cause, symbols=symbols, result=None)
    try:
        result = train(
            history(panel, symbols, now_ms, now_ms - round(plan.coverage.target_history_days) * DAY_MS),
            plan.training,
            progress=lambda _fraction, _text: None,
            champion=state.champion,
            gate_bounds=plan.gates,
            looks=list(_looks(walk)),
        )
    except TrainingError as error:
        return replace(known, error=str(error))
    return replace(known, result=result)


def _looks(walk: Walk) -> Iterator[Look]:
    for training in walk.trainings:
        if training.result is not None:
            windows, test = training.result.metrics["windows"], training.result.metrics["test"]
            yield Look(
                test_start_ms=windows["test_start_ms"],
                test_end_ms=windows["test_end_ms"],
                sharpe=test["sharpe"] or 0.0,
            )


def history(panel: Panel, symbols: tuple[str, ...], now_ms: int, since_ms: int = 0) -> Panel:
    """Return what a run at ``now_ms`` reads of ``symbols``: from the first candle since ``since_ms`` on."""
    known = panel.select(symbols).until(now_ms)
    known = known.rows(int(np.searchsorted(known.open_time, since_ms)), known.n_times)
    present = np.flatnonzero(np.isfinite(known.close).any(axis=1))
    return known.rows(int(present[0]) if len(present) else 0, known.n_times)


def signals_of(
    panel: Panel, model: MetaModel, result: TrainingResult, spec: TrainingSpec, *, start_ms: int, end_ms: int
) -> Signals:
    """Return what ``model`` would have traded on the bars that closed after ``start_ms`` and until ``end_ms``."""
    own, features, side = _candidates(panel, model.panel_symbols, spec, end_ms, result.data_start_ms)
    first = int(np.searchsorted(own.open_time, start_ms - own.step_ms, side="right"))
    code = model.codes_for(own.symbols)
    bars, columns = np.nonzero((side[first:] != 0) & (code >= 0)[None, :] & np.isfinite(own.close[first:]))
    bars += first
    rows = features[bars, columns]
    probability = model.predict(rows, code[columns], num_threads=spec.num_threads)
    taken = np.flatnonzero(probability >= model.threshold)
    return _placed(
        panel, own, bars[taken], columns[taken], side, rows[taken], probability[taken], model.threshold,
        promised=result.metrics["test"]["precision"],
    )  # fmt: skip


def every_signal(panel: Panel, symbols: tuple[str, ...], spec: TrainingSpec, *, start_ms: int, end_ms: int) -> Signals:
    """Return every primary signal of ``symbols``, taken at the least size that a model would give it."""
    own, features, side = _candidates(panel, symbols, spec, end_ms)
    first = int(np.searchsorted(own.open_time, start_ms - own.step_ms, side="right"))
    bars, columns = np.nonzero((side[first:] != 0) & np.isfinite(own.close[first:]))
    bars += first
    return _placed(
        panel, own, bars, columns, side, features[bars, columns], np.full(len(bars), 0.5), 0.5, promised=None
    )


def _candidates(
    panel: Panel, symbols: tuple[str, ...], spec: TrainingSpec, end_ms: int, since_ms: int = 0
) -> tuple[Panel, NDArray[np.float32], NDArray[np.int8]]:
    own = history(panel, symbols, end_ms, since_ms)
    features = replay_features(FeatureState.create(spec.schema, own.n_symbols), own)
    return own, features, primary_side(spec.signal, features, spec.schema)


def _placed(
    panel: Panel,
    own: Panel,
    bars: NDArray[np.intp],
    columns: NDArray[np.intp],
    side: NDArray[np.int8],
    features: NDArray[np.float32],
    probability: NDArray[np.float64],
    threshold: float,
    *,
    promised: float | None,
) -> Signals:
    offset = int(own.open_time[0] - panel.open_time[0]) // panel.step_ms
    column_of = {symbol: column for column, symbol in enumerate(panel.symbols)}
    mapped = np.array([column_of[symbol] for symbol in own.symbols], dtype=np.int64)
    return Signals(
        bar=bars.astype(np.int64) + offset,
        column=mapped[columns],
        side=side[bars, columns],
        probability=probability,
        threshold=np.full(len(bars), threshold),
        features=features,
        promised_precision=promised,
    )


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
        "at": _date(training.at_ms),
        "cause": training.cause.value,
        "symbols": len(training.symbols),
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

"""Trades a walk: as it would have happened, with the gates forced open, and without any model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quant.panel import Panel
from quant.simulation import Signals, Simulation
from tradingsite.backtest.walk import Plan, Walk, every_signal, signals_of


def bar_after(panel: Panel, time_ms: int) -> int:
    """Return the first bar that closes after ``time_ms``: the first that a model of that moment decides."""
    return int(np.searchsorted(panel.open_time, time_ms - panel.step_ms, side="right"))


def trade(panel: Panel, plan: Plan, walk: Walk, *, gated: bool) -> Simulation:
    """Trade by the models that were promoted; with ``gated=False`` by every one that was trained."""
    models = [each for each in walk.models(gated=gated) if each[0] < plan.end_ms]
    starts = [at for at, _, _ in models]
    ends = [
        min(end, at + plan.model_max_age_ms)  # an expired model opens nothing
        for at, end in zip(starts, _ends(starts, plan), strict=True)
    ]
    return _simulate(
        panel,
        plan,
        (
            (at, signals_of(panel, model, result, plan.training, start_ms=at, end_ms=end))
            for (at, model, result), end in zip(models, ends, strict=True)
        ),
    )


def trade_every_signal(panel: Panel, plan: Plan, walk: Walk) -> Simulation:
    """Take every primary signal of the symbols that were good enough to train on: what the model must beat."""
    times = [(training.at_ms, training.symbols) for training in walk.trainings if training.at_ms < plan.end_ms]
    ends = _ends([at for at, _ in times], plan)
    return _simulate(
        panel,
        plan,
        (
            (at, every_signal(panel, symbols, plan.training, start_ms=at, end_ms=end))
            for (at, symbols), end in zip(times, ends, strict=True)
        ),
    )


def _ends(starts: list[int], plan: Plan) -> list[int]:
    """When each stretch ends: as the next one starts, the last with the plan."""
    return [*starts[1:], plan.end_ms] if starts else []


def buy_and_hold(panel: Panel, plan: Plan) -> NDArray[np.float64]:
    """Return the worth of the same money in equal parts of all symbols with a candle at the start, float64[bars]."""
    first, last = bar_after(panel, plan.start_ms), bar_after(panel, plan.end_ms)
    close = panel.close[first:last]
    held = np.flatnonzero(np.isfinite(close[0])) if len(close) else np.empty(0, dtype=np.int64)
    if len(held) == 0:
        return np.full(len(close), plan.initial_equity)
    prices = close[:, held]
    seen = np.where(np.isfinite(prices), np.arange(len(prices))[:, None], 0)
    prices = np.take_along_axis(prices, np.maximum.accumulate(seen, axis=0), axis=0)  # the last known price stands
    return plan.initial_equity * np.mean(prices / prices[0], axis=1)


def _simulate(panel: Panel, plan: Plan, stretches: Iterator[tuple[int, Signals]]) -> Simulation:
    simulation = Simulation(
        panel=panel, spec=plan.engine, schema=plan.training.schema, initial_equity=plan.initial_equity
    )
    ready = list(stretches)
    cuts = [bar_after(panel, at) for at, _ in ready]
    first, last = bar_after(panel, plan.start_ms), bar_after(panel, plan.end_ms)
    simulation.run(first, cuts[0] if cuts else last, None)
    for (start, stop), (_, signals) in zip(pairwise([*cuts, last]), ready, strict=True):
        simulation.run(start, stop, signals)
    simulation.finish()
    return simulation

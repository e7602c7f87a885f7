"""Trades a walk once more: with the gates forced open, and without any model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.panel import Panel
from quant.simulation import Simulation
from tradingsite.backtest.account import SignalFeed, bar_after
from tradingsite.backtest.walk import Plan, Training, Walk, feed_of, open_account


def trade_every_model(panel: Panel, plan: Plan, walk: Walk) -> Simulation:
    """Trade by every model that was trained, the refused ones too."""
    account = open_account(panel, plan)
    for training in walk.trainings:
        if training.result is not None:
            account.play(training.at_ms)
            account.hold(training.scope, feed_of(panel, plan, training, training.result))
    return account.finish(plan.end_ms)


def trade_every_signal(panel: Panel, plan: Plan, walk: Walk) -> Simulation:
    """Take every primary signal of the symbols that were good enough to train on: what the model must beat."""
    account, of = open_account(panel, plan), dict[str, tuple[str, ...]]()
    for training in walk.trainings:
        if of.get(training.scope) != training.symbols:
            of[training.scope] = training.symbols
            account.play(training.at_ms)
            account.hold(training.scope, _every_signal(panel, plan, training))
    return account.finish(plan.end_ms)


def _every_signal(panel: Panel, plan: Plan, training: Training) -> SignalFeed:
    return SignalFeed(
        panel=panel,
        spec=plan.training,
        symbols=training.symbols,
        data_start_ms=int(panel.open_time[0]),
        start_ms=training.at_ms,
        end_ms=plan.end_ms,
    )


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

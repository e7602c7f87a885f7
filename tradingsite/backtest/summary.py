"""What a played account amounts to, in plain numbers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.ledger import Trade, trades_hash
from quant.metrics import calibration_curve
from quant.sharpe import SharpeRatio, Trials, deflated_sharpe, least_track_record, probabilistic_sharpe, sharpe_ratio
from quant.simulation import Simulation
from quant.timeframes import DAY_MS, from_ms

DAYS_PER_YEAR = 365
"""Crypto trades every day."""


def summarise(simulation: Simulation, *, trials: int) -> dict[str, Any]:
    """Return the figures of one account; ``trials`` is how many models had been tried by its end."""
    played = np.flatnonzero(np.isfinite(simulation.equity))
    equity = simulation.equity[played]
    worth = simulation.initial_equity + sum(trade.net for trade in simulation.trades)
    times = simulation.panel.open_time[played] + simulation.panel.step_ms
    daily = daily_returns(equity, times, start=simulation.initial_equity)
    trades = simulation.trades
    notional = sum(trade.quantity * (trade.entry_price + trade.exit_price) for trade in trades)
    days = max(len(daily), 1)
    return {
        "final_equity": worth,
        "return": worth / simulation.initial_equity - 1.0,
        "max_drawdown": drawdown(equity),
        "trades": len(trades),
        "win_rate": _mean([trade.net > 0 for trade in trades]),
        "net_per_trade": _mean([trade.net_return for trade in trades]),
        "fees": sum(trade.fees for trade in trades),
        "funding": sum(trade.funding for trade in trades),
        "turnover_per_day": notional / simulation.initial_equity / days,
        "mean_exposure": float(np.mean(simulation.exposure[played] / np.maximum(equity, 1e-9))) if len(equity) else 0.0,
        "days": days,
        **_sharpe(sharpe_ratio(daily), trials),
        "exits": dict(Counter(trade.cause for trade in trades).most_common()),
        "refused": dict(sorted(simulation.refused.items(), key=lambda item: -item[1])),
        "risk_events": [
            {"at": f"{from_ms(int(simulation.panel.open_time[bar])):%Y-%m-%d %H:%M}", "why": why}
            for bar, why in simulation.risk_events
        ],
        "months": months(equity, times, start=simulation.initial_equity),
        "symbols": by_symbol(trades),
        "calibration": _calibration(trades),
        "trades_hash": trades_hash(trades),
    }


def _sharpe(ratio: SharpeRatio | None, trials: int) -> dict[str, float | int | None]:
    if ratio is None:
        return {"sharpe": None, "sharpe_error": None, "probabilistic_sharpe": None, "deflated_sharpe": None,
                "trials": trials, "years_needed": None}  # fmt: skip
    year = math.sqrt(DAYS_PER_YEAR)
    needed = least_track_record(ratio) / DAYS_PER_YEAR
    return {
        "sharpe": ratio.value * year,
        "sharpe_error": ratio.standard_error * year,
        "probabilistic_sharpe": probabilistic_sharpe(ratio),
        "deflated_sharpe": deflated_sharpe(ratio, Trials(max(trials, 1))),
        "trials": trials,
        "years_needed": needed if math.isfinite(needed) else None,
    }


def daily_returns(equity: NDArray[np.float64], times: NDArray[np.int64], *, start: float) -> NDArray[np.float64]:
    """Return the return of each UTC day, from the worth at the day's last close."""
    if len(equity) == 0:
        return np.empty(0)
    day = (times - 1) // DAY_MS
    ends = np.flatnonzero(np.append(np.diff(day) > 0, True))
    worth = np.concatenate([[start], equity[ends]])
    return np.diff(worth) / worth[:-1]


def drawdown(equity: NDArray[np.float64]) -> float:
    """Return the largest fall from a peak, as a fraction."""
    if len(equity) == 0:
        return 0.0
    return float(np.max(1.0 - equity / np.maximum.accumulate(equity)))


def months(equity: NDArray[np.float64], times: NDArray[np.int64], *, start: float) -> dict[str, float]:
    """Return the return of each calendar month, ``2025-06``."""
    last: dict[str, float] = {}
    for time_ms, worth in zip((times - 1).tolist(), equity.tolist(), strict=True):
        last[f"{from_ms(time_ms):%Y-%m}"] = worth
    before, returns = start, {}
    for month, worth in last.items():
        returns[month] = worth / before - 1.0
        before = worth
    return returns


def by_symbol(trades: Sequence[Trade]) -> dict[str, dict[str, float]]:
    """Return trades, win rate and net profit per symbol, most profitable first."""
    grouped: dict[str, list[Trade]] = defaultdict(list)
    for trade in trades:
        grouped[trade.symbol].append(trade)
    rows = {
        symbol: {
            "trades": len(own),
            "win_rate": sum(trade.net > 0 for trade in own) / len(own),
            "net": sum(trade.net for trade in own),
            "net_per_trade": sum(trade.net_return for trade in own) / len(own),
        }
        for symbol, own in grouped.items()
    }
    return dict(sorted(rows.items(), key=lambda item: -item[1]["net"]))


def _calibration(trades: Sequence[Trade]) -> list[dict[str, float]]:
    """Promised probability against the share of trades that paid, over ten groups of equal size."""
    if not trades:
        return []
    paid = np.array([trade.net > 0 for trade in trades], dtype=np.int8)
    return calibration_curve(paid, np.array([trade.probability for trade in trades]))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

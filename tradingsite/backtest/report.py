"""A backtest as one dictionary (for `--json`) and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from django.template.loader import render_to_string
from numpy.typing import NDArray

from quant.panel import Panel
from quant.simulation import Simulation
from quant.timeframes import from_ms
from tradingsite.backtest import charts
from tradingsite.backtest.account import bar_after
from tradingsite.backtest.play import buy_and_hold, trade_every_model, trade_every_signal
from tradingsite.backtest.summary import drawdown, summarise
from tradingsite.backtest.walk import Plan, Progress, Walk, facts, walk_forward

ACCOUNTS = {
    "gated": "as it would have happened: models that passed their gates",
    "ungated": "every trained model, the refused ones too: what the gates kept out",
    "every_signal": "every primary signal, no model",
}
MOST_FEATURES = 15


class Backtest:
    """A played walk with its accounts. Made by `run`."""

    def __init__(self, panel: Panel, plan: Plan, walk: Walk, source: str) -> None:
        self.panel, self.plan, self.walk, self.source = panel, plan, walk, source
        self.accounts: dict[str, Simulation] = {
            "gated": walk.traded,
            "ungated": trade_every_model(panel, plan, walk),
            "every_signal": trade_every_signal(panel, plan, walk),
        }
        self.held = buy_and_hold(panel, plan)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that the page shows, as plain values."""
        trials = sum(training.result is not None for training in self.walk.trainings)
        first, last = bar_after(self.panel, self.plan.start_ms), bar_after(self.panel, self.plan.end_ms)
        return {
            "source": self.source,
            "from": f"{from_ms(self.plan.start_ms):%Y-%m-%d}",
            "to": f"{from_ms(self.plan.end_ms):%Y-%m-%d}",
            "symbols": list(self.panel.symbols),
            "candles": int(np.isfinite(self.panel.close[first:last]).sum()),
            "settings": {
                "training": self.plan.training.to_dict(),
                "label_cost_per_side": self.plan.engine.label.cost_per_side,
                "initial_equity": self.plan.initial_equity,
            },
            "data_hash": self.panel.content_hash(),
            "trainings": [facts(training) for training in self.walk.trainings],
            "asked_by_watches": [
                {"at": f"{from_ms(each.at_ms):%Y-%m-%d}", "scope": each.scope, "why": each.text}
                for each in self.walk.asked
            ],
            "promoted": sum(training.passed for training in self.walk.trainings),
            "trials": trials,
            "accounts": {name: summarise(played, trials=trials) for name, played in self.accounts.items()},
            "buy_and_hold": {
                "return": float(self.held[-1] / self.plan.initial_equity - 1.0) if len(self.held) else 0.0,
                "max_drawdown": drawdown(self.held),
            },
            "importance": self._importance(),
            "blocked_at_the_end": self.walk.blocked,
        }

    def _importance(self) -> dict[str, float]:
        """Mean share of the gain of each feature over all models that were trained, the largest ones."""
        shares: dict[str, float] = {}
        results = [training.result for training in self.walk.trainings if training.result is not None]
        for result in results:
            for name, share in result.metrics["importance"].items():
                shares[name] = shares.get(name, 0.0) + share / len(results)
        return dict(sorted(shares.items(), key=lambda item: -item[1])[:MOST_FEATURES])

    def to_html(self, summary: Mapping[str, Any]) -> str:
        """Return the page; ``summary`` is what `to_dict` returned."""
        first, last = bar_after(self.panel, self.plan.start_ms), bar_after(self.panel, self.plan.end_ms)
        curves: dict[str, NDArray[np.float64]] = {
            name.replace("_", " "): played.equity[first:last] for name, played in self.accounts.items()
        }
        curves["buy and hold"] = self.held
        times = self.panel.open_time[first:last]
        labels = [f"{from_ms(int(times[index])):%Y-%m-%d}" for index in (0, len(times) // 2, -1)]
        falls = {
            name: 100.0 * (curve / np.maximum.accumulate(curve) - 1.0) for name, curve in curves.items() if len(curve)
        }
        context = {
            "report": summary,
            "what": ACCOUNTS,
            "equity_chart": charts.lines(curves, labels, title="Equity"),
            "drawdown_chart": charts.lines(falls, labels, unit=" %", title="Fall from the peak"),
            "importance_chart": charts.bars(summary["importance"], title="Share of the gain, mean over all models"),
            "months": sorted({month for each in summary["accounts"].values() for month in each["months"]}),
        }
        return render_to_string("backtest/report.html", context)


def run(panel: Panel, plan: Plan, *, source: str, progress: Progress) -> Backtest:
    """Walk forward over ``panel`` and trade the walk."""
    walk = walk_forward(panel, plan, progress=progress)
    return Backtest(panel, plan, walk, source)

"""How often a model asks for a training because of drift, in markets that do not change and in ones that do.

    .venv/bin/python -m scripts.drift_rates --seeds 20 --market simulated --symbols 4 --days 150

For each seed: a market; the signals of its first days are the training (its newest part is the test window, as in
`quant.pipeline`), and every day of the next month the watch looks at the signals since, as `training_app.watching`
does. Then the same with all moves after the training scaled. Prints one JSON object. docs/drift.md holds the results.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np

from quant.drift import Drift, make_reference, measure_drift, window_of
from quant.features import FeatureState, replay
from quant.panel import Panel
from quant.pipeline import DRIFT_WINDOW_DAYS
from quant.schema import FeatureSchema
from quant.signals import primary_side
from quant.timeframes import DAY_MS
from quant.training_spec import TrainingSpec
from quant.watch import window_start
from tradingsite.nullmarket.worlds import random_walk, simulated_panel

LOOKS = 30
START = 1_600_000_000_000 // DAY_MS * DAY_MS
LIFE = 7
"""Days after which the schedule trains anyway, by default."""


def random_market(seed: int, symbols: int, days: int) -> Panel:
    """Independent increments: no regime at all."""
    return random_walk(symbols, days, seed)


def simulated_market(seed: int, symbols: int, days: int) -> Panel:
    """The embedded exchange: regimes of volatility, trends, funding."""
    return simulated_panel(symbols=symbols, days=days, seed=seed, learnable=True, end_ms=START + 2_000 * DAY_MS)


def scaled(panel: Panel, since: int, factor: float) -> Panel:
    """The same market with ``factor`` times its moves from a bar on."""
    base, values = panel.close[since - 1], {}
    for name in ("open", "high", "low", "close"):
        column = getattr(panel, name).copy()
        column[since:] = base * np.exp(factor * np.log(column[since:] / base))
        values[name] = column
    return replace(panel, **values)


def looks(panel: Panel, *, trained: int, market_wide: bool, factors: tuple[float, ...]) -> dict[float, list[Drift]]:
    """Return the daily looks after bar ``trained``, by the factor of the moves since then."""
    schema = FeatureSchema(market_wide=market_wide)
    spec = TrainingSpec()
    state = FeatureState.create(schema, panel.n_symbols)
    before = replay(state, panel.rows(0, trained))
    side = primary_side(spec.signal, before, schema)
    bars, columns = np.nonzero(side != 0)
    usable = np.isfinite(before[bars, columns]).all(axis=1)
    first = int(bars[usable][0]) if usable.any() else trained
    fitted = trained - round(spec.test_fraction * (trained - first))
    development = usable & (bars < fitted - spec.embargo_bars)
    t0 = bars[development].astype(np.int64)
    window = window_of(int(t0[-1] - t0[0]) + 1, DRIFT_WINDOW_DAYS * 24)
    reference = make_reference(before[bars, columns][development], schema.names, t0, window=window)
    found: dict[float, list[Drift]] = {}
    for factor in factors:
        after = replay(state.copy(), scaled(panel, trained, factor).rows(trained, panel.n_times))
        features = np.concatenate([before, after])
        fired = primary_side(spec.signal, features, schema) != 0
        found[factor] = []
        for day in range(1, LOOKS + 1):
            now = trained + 24 * day
            since = window_start(reference, fitted_ms=fitted, until_ms=now, step_ms=1)
            rows = features[since:now][fired[since:now]]
            found[factor].append(measure_drift(rows, schema.names, reference))
    return found


def rates(arguments: argparse.Namespace) -> dict[str, Any]:
    make = {"walk": random_market, "simulated": simulated_market}[arguments.market]
    trained = 24 * arguments.days
    seen: dict[float, list[list[Drift]]] = {factor: [] for factor in arguments.factors}
    judged = 0
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        panel = make(seed, arguments.symbols, arguments.days + LOOKS)
        panel = panel.rows(panel.n_times - 24 * (arguments.days + LOOKS), panel.n_times)
        found = looks(panel, trained=trained, market_wide=not arguments.single, factors=tuple(arguments.factors))
        judged += any(each.judged for each in found[arguments.factors[0]])
        for factor, each in found.items():
            seen[factor].append(each)
    return {
        "market": arguments.market, "symbols": arguments.symbols, "days": arguments.days, "single": arguments.single,
        "seeds": [arguments.first_seed, arguments.seeds], "judged_models": judged,
        "factors": {
            str(factor): {
                "asks_within_life": sum(any(d.strong for d in each[:LIFE]) for each in models),
                "asks_within_month": sum(any(d.strong for d in each) for each in models),
                "most_drifted": [max(len(d.drifted) for d in each) for each in models],
                "judged_features": [max(d.judged_features for d in each) for each in models],
                "first_day": [next((day for day, d in enumerate(each, 1) if d.strong), None) for each in models],
            }
            for factor, models in seen.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--market", choices=("walk", "simulated"), default="simulated")
    parser.add_argument("--symbols", type=int, default=4)
    parser.add_argument("--days", type=int, default=150, help="days of the training, its test window included")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--single", action="store_true", help="features of single_symbol mode")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    print(json.dumps(rates(parser.parse_args())))


if __name__ == "__main__":
    main()

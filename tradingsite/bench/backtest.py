"""A model played over the whole history: features, signals, probabilities, and an account with costs and funding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quant.engine import EngineSpec
from quant.features import FeatureState, replay, warm_cache
from quant.model import encode_features
from quant.panel import Panel
from quant.reasons import code_of
from quant.signals import primary_side
from quant.simulation import Simulation
from quant.timeframes import HOUR_MS
from tradingsite.backtest.account import Account, SignalFeed
from tradingsite.bench import worlds
from tradingsite.bench.live import usual_model
from tradingsite.bench.measure import SECONDS, Figure, Scale, cpu_seconds, expect
from training_app import policies

SIZES = (50, 500)
BYTES_PER_CANDLE = 200  # candles, and the rows that have a signal
CANDLES_PER_SECOND = 1e6
"""The goal, of CPU."""
ROWS = 256
DUE_HOURS, RATE = 8, 1e-4


def run(scale: Scale) -> Iterator[Figure]:
    warm_cache()
    panel, training = _funded(worlds.panel(scale)), policies.training_spec()
    model = usual_model(training.schema, panel.symbols)
    start_ms, end_ms = int(panel.open_time[0]), int(panel.open_time[-1]) + panel.step_ms
    out = np.empty((ROWS, scale.symbols, len(training.schema)), dtype=np.float32)
    codes, played, feeds = model.codes_for(panel.symbols), list[Simulation](), list[SignalFeed]()

    def play() -> None:
        account = Account.open(
            panel, engine=EngineSpec(bar_ms=HOUR_MS), training=training, initial_equity=1e6, start_ms=start_ms
        )
        feeds[:] = [
            SignalFeed(
                panel=panel, spec=training, symbols=panel.symbols, data_start_ms=start_ms, start_ms=start_ms,
                end_ms=end_ms, model=model,
            )
        ]  # fmt: skip
        account.hold("bench", feeds[0])
        played[:] = [account.finish(end_ms)]
        expect(len(played[0].trades) > 0, "not one trade")

    def least() -> None:
        state, left = FeatureState.create(training.schema, scale.symbols), feeds[0].asked
        for start in range(0, panel.n_times, ROWS):
            rows = panel.rows(start, min(start + ROWS, panel.n_times))
            features = replay(state, rows, out=out[: rows.n_times])
            bars, columns = (
                each[:left] for each in np.nonzero(primary_side(training.signal, features, training.schema))
            )
            left -= len(bars)
            if len(bars):
                asked = encode_features(
                    features[bars, columns], codes[columns], encoding="index", n_symbols=scale.symbols
                )
                model._booster.predict(asked, raw_score=True, num_threads=1)

    spent = cpu_seconds(play, best_of=2)
    candles = panel.n_times * panel.n_symbols
    yield Figure(
        name="backtest.play", symbols=scale.symbols, unit=SECONDS, value=spent, limit=cpu_seconds(least, best_of=2),
        goal=candles / CANDLES_PER_SECOND,
        versus=f"features, and LightGBM about {feeds[0].asked:,} signals; {candles / spent / 1e6:.2f} M candles/s, "
        f"{_what_happened(played[0])}",
    )  # fmt: skip


def _what_happened(simulation: Simulation) -> str:
    killed = [bar for bar, why in simulation.risk_events if code_of(why) == "KILL_SWITCH"]
    until = f", the last before the kill switch at {killed[0] / simulation.panel.n_times:.0%} of it" if killed else ""
    return f"{len(simulation.trades):,} trades{until}"


def _funded(panel: Panel) -> Panel:
    panel.funding[::DUE_HOURS] = RATE
    return panel

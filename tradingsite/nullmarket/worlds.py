"""Markets of which is known whether there is something to learn: simulated ones, and one whose labels are shuffled.

No Django and no clock: a seed says all.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import numpy as np

from exchanges.simulated.market import SimulatedMarket
from quant.candles import Candles
from quant.panel import Panel
from quant.samples import MakeSamples, Progress, Samples, SampleSet, make_samples
from quant.timeframes import DAY_MS, HOUR_MS, timeframe_ms
from quant.training_spec import TrainingSpec

END_MS = 1_772_755_200_000
"""2026-03-06 00:00 UTC: where every market ends."""


WALK_START_MS = 1_600_000_000_000 // DAY_MS * DAY_MS


class World(StrEnum):
    """What there is to learn: nothing, nothing because the labels are shuffled, or something."""

    NULL = "null"
    SHUFFLED = "shuffled"
    LEARNABLE = "learnable"


def simulated_panel(
    *, symbols: int, days: int, seed: int, learnable: bool, timeframe: str = "1h", end_ms: int = END_MS
) -> Panel:
    """Return candles and funding of ``symbols`` healthy simulated symbols over the ``days`` before ``end_ms``."""
    step_ms, since_ms = timeframe_ms(timeframe), end_ms - days * DAY_MS
    market = SimulatedMarket(seed=seed, now_ms=lambda: end_ms, symbols=symbols, specials=False, learnable=learnable)
    candles, funding = {}, {}
    for instrument in market.instruments():
        pages, since = [Candles.empty()], since_ms
        while len(page := market.candles(instrument.symbol, timeframe, since, market.page_limit)):
            pages.append(page)
            since = int(page.open_time[-1]) + step_ms
        candles[instrument.symbol] = Candles.concat(pages)
        rates = market.funding(instrument.symbol, since_ms, days * 24)
        funding[instrument.symbol] = (
            np.array([rate.time_ms for rate in rates], dtype=np.int64), np.array([rate.rate for rate in rates])
        )  # fmt: skip
    return Panel.from_candles(candles, step_ms, funding=funding)


def random_walk(symbols: int, days: int, seed: int) -> Panel:
    """Return hourly bars of independent increments with a common factor: nothing to be found, by construction."""
    rng = np.random.default_rng(seed)
    shape = (24 * days, symbols)
    change = 0.006 * (rng.standard_normal(shape) + 0.5 * rng.standard_normal((shape[0], 1)))
    close = 100 * np.exp(np.cumsum(change, axis=0))
    opened = np.vstack([np.full(symbols, 100.0), close[:-1]])
    reach = 0.003 * np.abs(rng.standard_normal((2, *shape)))
    funding = np.zeros(shape)
    funding[::8] = 1e-4
    return Panel(
        symbols=tuple(f"S{i:02d}/USDT:USDT" for i in range(symbols)),
        step_ms=HOUR_MS,
        open_time=WALK_START_MS + np.arange(shape[0], dtype=np.int64) * HOUR_MS,
        open=opened,
        high=np.maximum(opened, close) * (1 + reach[0]),
        low=np.minimum(opened, close) * (1 - reach[1]),
        close=close,
        volume=np.exp(10 + 0.5 * rng.standard_normal(shape)),
        funding=funding,
    )


def with_shuffled_labels(seed: int) -> MakeSamples:
    """Return a `quant.samples.make_samples` that gives the labels of each symbol to other times.

    Outcome and net return move together, within the development and within the test window, in pieces of time as long
    as the blocks over which confidence is judged, and in the same order for every symbol. So what overlapping labels
    and a common market make of the noise stays as it was: only what a feature knows about its label is gone.
    """

    def sample(panel: Panel, spec: TrainingSpec, *, progress: Progress) -> SampleSet:
        data = make_samples(panel, spec, progress=progress)
        random = np.random.default_rng(seed)
        piece = max(2 * spec.label.horizon, DAY_MS // panel.step_ms)
        return replace(
            data,
            development=_shuffled(data.development, random, piece),
            test=_shuffled(data.test, random, piece),
        )

    return sample


def _shuffled(samples: Samples, random: np.random.Generator, piece: int) -> Samples:
    pieces = max(2, int(samples.t0[-1] - samples.t0[0] + 1) // piece)
    order = random.permutation(pieces)
    source = np.arange(len(samples))
    for code in np.unique(samples.code):
        rows = np.flatnonzero(samples.code == code)
        parts = np.array_split(rows, pieces)
        source[rows] = np.concatenate([parts[part] for part in order])
    return replace(samples, y=samples.y[source], net_return=samples.net_return[source])

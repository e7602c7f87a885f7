"""What orders pay and get: the one fill model of labels, backtest, simulated, replayed and paper trading.

A market order takes: its price is mid x (1 +- (half spread + impact)) with impact = 0.7 sigma sqrt(quantity / volume),
the square-root law (Almgren et al. 2005; Toth et al. 2011), and at most 10 % of the volume is there to be taken. Volume
and sigma are those of the last hour, or of one bar where bars are longer. A stop becomes a market order as it fires.

A resting limit order fills at its own price, only when a bar trades through it (at the price itself others may have
been first in the queue), gets at most the same share of that bar's volume, and pays the maker's fee. In a bar that
reaches both, the stop was first. `quant.label_kernel` has these rules in its compiled loop; tests hold them together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAKER_FEE_BPS = 5.5
MAKER_FEE_BPS = 2.0
MAX_VOLUME_SHARE = 0.10
IMPACT_COEFFICIENT = 0.7
LIQUIDITY_WINDOW_MS = 3_600_000
VOLATILITY_BARS = 24


def liquidity_bars(step_ms: int) -> int:
    """Return how many candles of ``step_ms`` hold the volume that a taker meets."""
    return max(LIQUIDITY_WINDOW_MS // step_ms, 1)


def volatility(close: NDArray[np.float64], *, step_ms: int) -> float:
    """Return the root mean square of the log returns of the last closes, scaled to the liquidity window."""
    logs = np.log(close)
    returns = logs[1:] - logs[:-1]
    sigma = math.sqrt(float(np.add.reduce(returns * returns)) / len(returns)) if len(returns) else 0.0
    return sigma * liquidity_bars(step_ms) ** 0.5


def impact(quantity: float, *, volume: float, sigma: float) -> float:
    """Return how far a taker of ``quantity`` moves the price against itself, as a fraction."""
    return IMPACT_COEFFICIENT * sigma * math.sqrt(quantity / volume)


def stop_price(*, side: int, trigger: float, opened: float, high: float, low: float) -> float | None:
    """Return the price at which a position of ``side`` is stopped out in a bar, None when the bar does not reach it.

    The worse of trigger and open: a jump over the stop costs what it would have cost.
    """
    if side > 0:
        return min(trigger, opened) if low <= trigger else None
    return max(trigger, opened) if high >= trigger else None


def limit_reached(*, side: int, limit: float, high: float, low: float) -> bool:
    """Tell whether a bar trades through the limit order that takes the profit of a position of ``side``."""
    return high > limit if side > 0 else low < limit

"""What a model promised against what its trades did, with bounds: pure arithmetic, for pages as well."""

from __future__ import annotations

import math
from typing import NamedTuple

Z_95 = 1.959964
"""Two-sided 95 % of the normal distribution."""


class LiveRecord(NamedTuple):
    """The closed trades of a model: how many, how many paid, what it promised of them.

    ``promised_precision`` is the precision of the test window; ``probability_sum`` and ``variance_sum`` add up p and
    p (1 - p) over the probabilities of the ``asked`` trades whose probability is known.
    """

    trades: int = 0
    wins: int = 0
    promised_precision: float | None = None
    asked: int = 0
    asked_wins: int = 0
    probability_sum: float = 0.0
    variance_sum: float = 0.0


def wilson_interval(wins: int, trades: int, *, z: float = Z_95) -> tuple[float, float]:
    """Return the bounds of a share that was measured as ``wins`` of ``trades`` (Wilson 1927), (0, 1) without trades.

    Unlike the mean plus and minus its deviation it stays within 0..1 and holds for few trades and for shares near 0, 1.
    """
    if not 0 <= wins <= trades:
        raise ValueError(f"wins is {wins} and trades {trades}; they must satisfy 0 <= wins <= trades")
    if trades == 0:
        return 0.0, 1.0
    share, spread = wins / trades, z * z / trades
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trades + spread / (4 * trades))
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


class Calibration(NamedTuple):
    """Mean promised probability, share that paid, and the half width of what luck explains of their difference."""

    promised: float
    paid: float
    bound: float

    @property
    def kept(self) -> bool:
        return abs(self.promised - self.paid) <= self.bound


def live_calibration(record: LiveRecord, *, z: float = Z_95) -> Calibration | None:
    """Compare the probabilities of the trades taken with what came of them; None without one.

    Independent trades with probabilities p_i have the standard deviation sqrt(sum p_i (1 - p_i)) / n in their share of
    winners, if the probabilities are true. Trades of one bar move together, so the true bound is wider.
    """
    if record.asked == 0:
        return None
    return Calibration(
        promised=record.probability_sum / record.asked,
        paid=record.asked_wins / record.asked,
        bound=z * math.sqrt(record.variance_sum) / record.asked,
    )

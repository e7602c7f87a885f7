"""What a look at an active model amounts to: does it still fit its market, and does it ask for a training?

The live watch (`training_app.watching`) and the backtest's walk make their facts in their own ways and decide here, so
that a walk retrains when the bot would have. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from quant.promises import LiveRecord, wilson_interval
from quant.reasons import reason
from quant.risk import GUARD_MIN_TRADES, performance_guard
from quant.timeframes import DAY_MS

if TYPE_CHECKING:
    from quant.drift import Drift, PooledDrift

EVERY_MS = DAY_MS
"""An active model is looked at once a market day, for the first time when it is a day old."""


class WatchFinding(StrEnum):
    """What a look at an active model found."""

    STEADY = "steady"
    DRIFTED = "drifted"
    BELOW_PROMISE = "below"
    TOO_LITTLE = "too_little"


class WatchOutcome(NamedTuple):
    """What was found, a sentence ``CODE: key=value`` with its numbers, and the size that the guard leaves (0..1)."""

    finding: WatchFinding
    text: str
    guard: float

    @property
    def wants_training(self) -> bool:
        return self.finding in (WatchFinding.DRIFTED, WatchFinding.BELOW_PROMISE)


def window_start(reference: Mapping[str, Any], *, fitted_ms: int, until_ms: int, step_ms: int) -> int:
    """Return the open time of the first bar whose signals count: a window ago, and nothing the model was fitted on."""
    return max(until_ms - int(reference.get("window", 0)) * step_ms, fitted_ms)


def judge(drift: Drift, live: LiveRecord, pooled: PooledDrift | None = None) -> WatchOutcome:
    """Judge what was measured. Trades below the promise say more than features.

    ``pooled`` is what the models of the market's other symbols saw on the same days, for a model of one symbol.
    """
    guard = performance_guard(promised=live.promised_precision, trades=live.trades, wins=live.wins)
    low, high = wilson_interval(live.wins, live.trades)
    traded = {"trades": live.trades, "precision_low": low, "precision_high": high, "promised": live.promised_precision}
    if guard < 1.0:
        text = reason("BELOW_PROMISE", wins=live.wins, **traded, size_share=guard)
        return WatchOutcome(WatchFinding.BELOW_PROMISE, text, guard)
    drifted = drift.drifted
    if drift.strong:
        worst = drifted[0]
        text = reason(
            "FEATURES_DRIFTED", drifted=len(drifted), features=drift.judged_features, samples=drift.samples,
            worst=worst.name, psi=worst.psi, bound=worst.bound,
        )  # fmt: skip
        return WatchOutcome(WatchFinding.DRIFTED, text, guard)
    if pooled is not None and pooled.strong:
        text = reason(
            "MARKET_DRIFTED", drifted=len(pooled.drifted), features=len(pooled.shares), models=pooled.models,
            worst=pooled.drifted[0], share=pooled.shares[pooled.drifted[0]],
        )  # fmt: skip
        return WatchOutcome(WatchFinding.DRIFTED, text, guard)
    if not drift.judged and live.trades < GUARD_MIN_TRADES:
        why = "too few signals since, or too short a history in training" if drift.features else "no signal to compare"
        text = reason(
            "TOO_LITTLE", samples=drift.samples, trades=live.trades, need_trades=GUARD_MIN_TRADES, features=why
        )
        return WatchOutcome(WatchFinding.TOO_LITTLE, text, guard)
    text = reason(
        "STEADY", drifted=len(drifted), features=drift.judged_features, samples=drift.samples, trades=live.trades
    )
    return WatchOutcome(WatchFinding.STEADY, text, guard)


def unanswered(asked_ms: int | None, last_run_ms: int | None) -> int | None:
    """Return when the watch asked, unless a run was asked for since: whatever it became, it saw what the watch saw."""
    answered = asked_ms is None or (last_run_ms is not None and last_run_ms >= asked_ms)
    return None if answered else asked_ms

"""What a look at a model amounts to: the one decision that the live watch and the walk of a backtest share."""

from __future__ import annotations

import pytest

from quant.drift import Drift, FeatureDrift, PooledDrift
from quant.promises import LiveRecord
from quant.reasons import code_of
from quant.timeframes import DAY_MS, HOUR_MS
from quant.watch import WatchFinding, judge, unanswered, window_start

BELOW = LiveRecord(trades=40, wins=12, promised_precision=0.6)


def drift_of(drifted: int, *, of: int = 20, judged: bool = True) -> Drift:
    features = [FeatureDrift(f"f{n}", 0.9 if n < drifted else 0.01, 0.25, 0.0, 0.0) for n in range(of)]
    return Drift(500, judged, tuple(features))


@pytest.mark.parametrize(
    "drift, record, finding",
    [
        (drift_of(2), LiveRecord(), WatchFinding.STEADY),
        (drift_of(3), LiveRecord(), WatchFinding.DRIFTED),
        (drift_of(9, judged=False), LiveRecord(trades=5, wins=1), WatchFinding.TOO_LITTLE),
        (drift_of(9, judged=False), LiveRecord(trades=25, wins=15), WatchFinding.STEADY),
        (drift_of(0), BELOW, WatchFinding.BELOW_PROMISE),
    ],
)
def test_what_is_found_and_said(drift: Drift, record: LiveRecord, finding: WatchFinding) -> None:
    found = judge(drift, record)
    assert found.finding is finding
    assert found.wants_training == (finding in ("drifted", "below"))
    assert found.guard == (0.0 if record is BELOW else 1.0)
    assert len(found.text) < 300
    assert code_of(found.text)


def test_a_request_is_open_until_a_run_that_came_at_its_time_or_later() -> None:
    assert unanswered(None, None) is None
    assert unanswered(None, 5) is None
    assert unanswered(5, None) == unanswered(5, 4) == 5
    assert unanswered(5, 5) is unanswered(5, 6) is None


def test_the_window_starts_after_what_the_model_was_fitted_on() -> None:
    reference, now = {"window": 720}, 100 * DAY_MS
    assert window_start(reference, fitted_ms=10 * DAY_MS, until_ms=now, step_ms=HOUR_MS) == 70 * DAY_MS
    assert window_start(reference, fitted_ms=90 * DAY_MS, until_ms=now, step_ms=HOUR_MS) == 90 * DAY_MS
    assert window_start({}, fitted_ms=0, until_ms=now, step_ms=HOUR_MS) == now


def test_a_market_that_the_models_of_its_symbols_see_drift_together_asks_unless_trades_say_more() -> None:
    pooled = PooledDrift(models=9, shares={"a": 0.6, "b": 0.9, "c": 0.5, "d": 0.1})
    quiet = Drift(60, False, ())
    found = judge(quiet, LiveRecord(), pooled)
    assert (found.finding, found.wants_training, found.guard) == (WatchFinding.DRIFTED, True, 1.0)
    assert found.text == "MARKET_DRIFTED: drifted=3, features=4, models=9, worst=b, share=0.9"
    assert judge(quiet, LiveRecord(), PooledDrift(models=9, shares={"a": 0.9})).finding is WatchFinding.TOO_LITTLE
    below = LiveRecord(trades=40, wins=12, promised_precision=0.6)
    assert judge(quiet, below, pooled).finding is WatchFinding.BELOW_PROMISE

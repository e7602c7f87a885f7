from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quant.gates import GateBounds, GateResult, UnseenWindow, evaluate_gates
from quant.sharpe import Trials

N = 4_000


def make_window(*, knows: float, seed: int = 0, cost: float = 0.0) -> UnseenWindow:
    """Signals with true probabilities around 0.45; ``knows`` is how much of the truth the model sees (1: all)."""
    rng = np.random.default_rng(seed)
    truth = np.clip(rng.normal(0.45, 0.12, N), 0.05, 0.95)
    y = (rng.uniform(size=N) < truth).astype(np.int8)
    probability = np.clip(0.45 + knows * (truth - 0.45), 0.01, 0.99)
    return UnseenWindow(
        y=y,
        probability=probability,
        net_return=np.where(y == 1, 0.012, -0.009) - cost,
        time=np.arange(N, dtype=np.int64),
        exit_time=np.arange(N, dtype=np.int64) + 12,
        allowed=np.ones(N, dtype=np.bool_),
    )


def judge(window: UnseenWindow, *, looks: int = 1, **bounds: float) -> dict[str, GateResult]:
    gates = evaluate_gates(window, threshold=0.5, block=48, day=24, bounds=GateBounds(**bounds), trials=Trials(looks))
    return {gate.name: gate for gate in gates}


def test_a_model_that_knows_passes_every_gate() -> None:
    gates = judge(make_window(knows=1.0))
    assert list(gates) == ["skill", "trades", "net_return", "deflated_sharpe", "calibration", "plausibility"]
    assert all(gate.passed for gate in gates.values())
    assert all(gate.text for gate in gates.values())


def test_a_model_that_repeats_the_base_rate_has_no_skill_and_no_trades() -> None:
    gates = judge(make_window(knows=0.0))
    assert not gates["skill"].passed
    assert not gates["trades"].passed
    assert not gates["net_return"].passed


def test_a_model_that_is_wrong_with_confidence_fails() -> None:
    gates = judge(make_window(knows=-1.0))
    assert not gates["skill"].passed
    assert not gates["net_return"].passed


def test_probabilities_that_promise_too_much_fail_calibration() -> None:
    window = make_window(knows=1.0)
    boasting = replace(window, probability=np.clip(window.probability + 0.2, 0, 1))
    assert not judge(boasting)["calibration"].passed


def test_skill_that_does_not_pay_its_costs_fails() -> None:
    gates = judge(make_window(knows=1.0, cost=0.01))
    assert gates["skill"].passed
    assert not gates["net_return"].passed


def test_a_lucky_level_is_no_skill() -> None:
    """More signals pay in the window than before it, and the model knows nothing but promises more than before."""
    window = make_window(knows=0.0)
    lucky = replace(window, probability=np.full(N, 0.47), y=(np.arange(N) % 2).astype(np.int8))
    assert not judge(lucky)["skill"].passed


def test_a_result_that_one_look_believes_is_luck_after_many_looks() -> None:
    window = make_window(knows=1.0, cost=0.0022)
    first, later = judge(window)["deflated_sharpe"], judge(window, looks=5_000)["deflated_sharpe"]
    assert first.passed
    assert "at the first look" in first.text
    assert not later.passed
    assert "look number 5000" in later.text


def test_without_a_trade_there_is_no_sharpe_ratio() -> None:
    gate = judge(make_window(knows=0.0))["deflated_sharpe"]
    assert not gate.passed
    assert "no Sharpe ratio" in gate.text


def test_too_few_trades_fail() -> None:
    gates = judge(make_window(knows=1.0), min_trades=N)
    assert not gates["trades"].passed


def test_signals_that_the_regime_refuses_are_no_trades() -> None:
    window = make_window(knows=1.0)
    gates = judge(replace(window, allowed=np.zeros(N, dtype=np.bool_)))
    assert gates["trades"].value == 0
    assert not gates["net_return"].passed


def test_a_challenger_that_is_worse_than_the_champion_fails_and_an_equal_one_passes() -> None:
    window = make_window(knows=1.0)
    better = judge(replace(window, champion=make_window(knows=0.3).probability))["champion"]
    equal = judge(replace(window, champion=window.probability.copy()))["champion"]
    weak = make_window(knows=0.3)
    worse = judge(replace(weak, champion=window.probability))["champion"]
    assert (better.passed, equal.passed, worse.passed) == (True, True, False)
    assert better.value > 2
    assert worse.value < -2


def test_a_champion_that_saw_the_window_is_not_compared_and_that_is_said() -> None:
    window = make_window(knows=1.0)
    champion = np.full(N, np.nan)
    champion[-100:] = 0.9
    gate = judge(replace(window, champion=champion))["champion"]
    assert gate.passed
    assert "not comparable" in gate.text


@pytest.mark.parametrize("changes", [{"min_trades": 1}, {"min_t_stat": -1.0}, {"max_calibration_error": float("nan")}])
def test_a_wrong_gate_bound_is_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        GateBounds(**changes)

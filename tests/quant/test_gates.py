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
    assert list(gates) == [
        "skill",
        "trades",
        "net_return",
        "selection",
        "deflated_sharpe",
        "calibration",
        "plausibility",
    ]
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


def generous(window: UnseenWindow, *, guesses: int) -> UnseenWindow:
    """The same signals where every one pays on average, and a model that guesses which."""
    rng = np.random.default_rng([guesses, 1])
    return replace(
        window,
        net_return=window.net_return + 0.006,
        probability=np.clip(rng.normal(0.45, 0.1, N), 0.01, 0.99),
    )


def test_a_guess_passes_the_gates_of_money_where_every_signal_pays_and_not_that_of_selection() -> None:
    judged = [judge(generous(make_window(knows=0.0, seed=k), guesses=k)) for k in range(40)]
    assert all(gates["net_return"].passed and gates["deflated_sharpe"].passed for gates in judged)
    values = [gates["selection"].value for gates in judged]
    assert sum(gates["selection"].passed for gates in judged) <= 8, "one of fifteen guesses reaches a t of 1.5 by luck"
    assert abs(np.mean(values)) < 0.5
    assert 0.7 < np.std(values) < 1.4


def test_a_model_that_takes_every_signal_selects_nothing_and_one_that_knows_does() -> None:
    window = replace(make_window(knows=1.0), net_return=make_window(knows=1.0).net_return + 0.006)
    blind = judge(replace(window, probability=np.full(N, 0.6)))["selection"]
    assert (blind.passed, blind.value) == (False, 0.0)
    assert "takes all 4000 signals" in blind.text
    knowing = judge(window)["selection"]
    assert knowing.passed
    assert knowing.value > 5
    assert not judge(replace(window, probability=np.full(N, 0.4)))["selection"].passed, "nothing was taken"


def test_signals_that_the_regime_refuses_are_not_what_the_model_selected_from() -> None:
    """The regime keeps the bad half out; the model takes all of the rest and must not be praised for the difference."""
    window = make_window(knows=0.0)
    window = replace(window, probability=np.full(N, 0.6), allowed=window.net_return > 0)
    assert not judge(window)["selection"].passed


@pytest.mark.parametrize("name", ["net_return", "selection"])
def test_two_lucky_days_are_no_evidence_however_well_they_paid(name: str) -> None:
    window = make_window(knows=0.0)
    days = (window.time < 24) | ((window.time >= 2_000) & (window.time < 2_024))
    lucky = replace(
        window,
        probability=np.where(days, 0.6, 0.4),
        net_return=np.where(days, 0.05 + 1e-4 * np.sin(window.time), window.net_return),
    )
    gate = judge(lucky)[name]
    assert "t = " in gate.text
    assert "fewer than 5 blocks are no evidence" in gate.text
    assert (gate.passed, gate.value) == (False, 0.0)


def test_an_edge_in_crowded_bars_only_does_not_pay_a_bot_that_can_hold_a_few_of_their_trades() -> None:
    """The many signals of a crash all pay and the few of calm bars lose: a bot does not earn the mean trade."""
    window = make_window(knows=0.0)
    crowds = 20
    time = np.sort(np.concatenate([np.repeat(np.arange(crowds) * 96, 190), 48 + np.repeat(np.arange(crowds) * 96, 10)]))
    crowded = time % 96 == 0
    time = time + np.where(crowded, 0, np.arange(N) % 10)
    rng = np.random.default_rng(0)
    window = replace(
        window,
        time=time,
        exit_time=time + 12,
        probability=np.full(N, 0.6),
        net_return=np.where(crowded, 0.003, -0.01) + 0.002 * rng.normal(size=N),
    )
    assert window.net_return.mean() > 0
    gate = judge(window)["net_return"]
    assert not gate.passed
    assert gate.value < 0
    calm = judge(replace(window, net_return=np.abs(window.net_return)))["net_return"]
    assert calm.passed


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


@pytest.mark.parametrize(
    "changes",
    [{"min_trades": 1}, {"min_t_stat": -1.0}, {"min_selection_t_stat": -1.0}, {"max_calibration_error": float("nan")}],
)
def test_a_wrong_gate_bound_is_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        GateBounds(**changes)

"""The whole training: deterministic, blind to what comes later, honest about markets with nothing to find."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import samples
from quant.features import FeatureState, replay
from quant.label_spec import LabelSpec
from quant.model import META_FILE, MODEL_FILE, MetaModel
from quant.panel import Panel
from quant.pipeline import Look, TrainingError, TrainingResult, TrainingSpec, choose_threshold, train
from quant.reasons import code_of
from quant.regime import RegimeSpec
from quant.timeframes import DAY_MS, HOUR_MS
from tests.quant.feature_worlds import mixed
from tradingsite.nullmarket.worlds import random_walk, simulated_panel

START = 1_600_000_000_000 // DAY_MS * DAY_MS
SMALL = TrainingSpec.small()


def simulated(n_symbols: int, days: int, seed: int, *, learnable: bool) -> Panel:
    return simulated_panel(symbols=n_symbols, days=days, seed=seed, learnable=learnable)


def run(panel: Panel, spec: TrainingSpec = SMALL, champion: MetaModel | None = None) -> TrainingResult:
    return train(panel, spec, progress=lambda fraction, text: None, champion=champion)


@pytest.fixture(scope="module")
def panel() -> Panel:
    return random_walk(6, 100, seed=1)


@pytest.fixture(scope="module")
def result(panel: Panel) -> TrainingResult:
    return run(panel)


# ------------------------------------------------------------------- what comes out
def test_a_result_is_complete_and_plain(result: TrainingResult, panel: Panel) -> None:
    assert result.symbols == result.panel_symbols == panel.symbols
    assert result.dropped == {}
    assert [gate.name for gate in result.gates] == [
        "skill",
        "trades",
        "net_return",
        "selection",
        "deflated_sharpe",
        "calibration",
        "plausibility",
    ]
    assert (result.data_start_ms, result.data_end_ms) == (START, START + 100 * DAY_MS)
    assert result.data_hash == panel.content_hash()
    assert result.champion_metrics is None
    assert math.isfinite(result.score)
    json.dumps(result.metrics, allow_nan=False)
    windows = result.metrics["windows"]
    assert windows["development_end_ms"] + SMALL.embargo_bars * HOUR_MS < windows["test_start_ms"]
    assert result.model.fit_end_ms == windows["development_end_ms"]


def test_earlier_looks_at_the_test_window_are_counted_and_those_at_older_ones_are_not(
    result: TrainingResult, panel: Panel
) -> None:
    start, end = result.metrics["windows"]["test_start_ms"], result.metrics["windows"]["test_end_ms"]
    looks = [
        Look(test_start_ms=start - DAY_MS, test_end_ms=end - DAY_MS, sharpe=0.1),
        Look(test_start_ms=start, test_end_ms=end, sharpe=-0.1),
        Look(test_start_ms=start - 40 * DAY_MS, test_end_ms=start, sharpe=0.3),
    ]
    again = train(panel, SMALL, progress=lambda fraction, text: None, looks=looks)
    assert result.metrics["looks"] == 1
    assert again.metrics["looks"] == 3
    first, later = ({gate.name: gate for gate in each.gates}["deflated_sharpe"] for each in (result, again))
    assert later.value < first.value
    assert again.model.booster_text == result.model.booster_text  # it is judged more strictly, and is the same model


def test_the_model_that_was_tested_is_the_one_that_is_shipped(result: TrainingResult, tmp_path: Path) -> None:
    result.model.save(tmp_path)
    loaded = MetaModel.load(tmp_path)
    loaded.probe()
    assert loaded.threshold == result.metrics["threshold"]
    assert loaded.facts["schema_hash"] == SMALL.schema.hash
    assert loaded.facts["label_hash"] == SMALL.label.hash
    assert TrainingSpec.from_dict(dict(loaded.facts["spec"])) == SMALL


def test_the_same_data_and_seed_give_the_same_bytes(panel: Panel, result: TrainingResult, tmp_path: Path) -> None:
    for name, each in (("first", result), ("second", run(panel))):
        (tmp_path / name).mkdir()
        each.model.save(tmp_path / name)
    for file in (MODEL_FILE, META_FILE):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def changed_from(panel: Panel, bar: int) -> Panel:
    """Another future: from ``bar`` on, every price and volume is something else."""
    other = random_walk(panel.n_symbols, panel.n_times // 24, seed=99)
    columns = {}
    for name in ("open", "high", "low", "close", "volume", "funding"):
        columns[name] = np.vstack([getattr(panel, name)[:bar], getattr(other, name)[bar:]])
    return replace(panel, **columns)


def test_i14_what_happens_in_the_test_window_changes_nothing_that_was_learned(
    panel: Panel, result: TrainingResult
) -> None:
    test_start = (result.metrics["windows"]["test_start_ms"] - START) // HOUR_MS - 1
    later = run(changed_from(panel, test_start))
    assert later.model.booster_text == result.model.booster_text
    assert later.model.calibration == result.model.calibration
    assert later.model.threshold == result.model.threshold
    assert later.model.symbols == result.model.symbols
    assert later.model.required_features == result.model.required_features
    assert later.metrics["validation"] == result.metrics["validation"]
    assert later.metrics["test"] != result.metrics["test"]


def test_what_happened_before_the_test_window_does_change_it(panel: Panel, result: TrainingResult) -> None:
    test_start = (result.metrics["windows"]["test_start_ms"] - START) // HOUR_MS - 1
    earlier = run(changed_from(panel, test_start - 10 * 24))
    assert earlier.model.booster_text != result.model.booster_text


def test_progress_only_rises_and_may_stop_the_training(panel: Panel) -> None:
    seen: list[float] = []
    train(panel, SMALL, progress=lambda fraction, text: seen.append(fraction))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert len(seen) > 15

    class LeaseLostError(Exception):
        pass

    def stop(fraction: float, text: str) -> None:
        if fraction > 0.3:
            raise LeaseLostError

    with pytest.raises(LeaseLostError):
        train(panel, SMALL, progress=stop)


# ------------------------------------------------------------------- modes and symbols
def test_one_hot_encoding_goes_all_the_way(panel: Panel) -> None:
    spec = replace(SMALL, symbol_encoding="one_hot")
    model = run(panel, spec).model
    model.probe()
    assert model.symbol_encoding == "one_hot"


def test_a_model_of_one_symbol_uses_no_feature_of_the_market() -> None:
    panel = random_walk(1, 250, seed=3)
    spec = TrainingSpec.small(training_mode="single_symbol", min_leaf_samples=20)
    model = run(panel, spec).model
    assert model.symbols == panel.symbols
    assert not any(name.startswith("market_") for name in model.feature_names)


def test_a_young_symbol_is_left_out_with_its_reason_and_the_others_are_trained(panel: Panel) -> None:
    young = panel.n_times - 26 * 24
    columns = {}
    for name in ("open", "high", "low", "close", "volume"):
        values = getattr(panel, name).copy()
        values[:young, 2] = np.nan
        columns[name] = values
    result = run(replace(panel, **columns))
    assert list(result.dropped) == [panel.symbols[2]]
    assert code_of(result.dropped[panel.symbols[2]]) == "TOO_FEW_SAMPLES"
    assert result.symbols == tuple(s for i, s in enumerate(panel.symbols) if i != 2)
    assert result.panel_symbols == panel.symbols


def test_a_feature_that_a_symbol_never_has_is_not_required(panel: Panel, result: TrainingResult) -> None:
    assert "funding_rate" in result.model.required_features
    funding = panel.funding.copy()
    funding[:, 0] = 0.0
    without = run(replace(panel, funding=funding)).model
    assert "funding_rate" not in without.required_features
    assert "rsi_14" in without.required_features


# ------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "days, symbols, changes, code",
    [
        (5, 2, {}, "TOO_FEW_SAMPLES"),
        (40, 2, {}, "TOO_FEW_SAMPLES"),
        (40, 2, {"timeframe": "4h"}, "WRONG_TIMEFRAME"),
        (40, 2, {"training_mode": "single_symbol"}, "ONE_SYMBOL_ONLY"),
    ],
)
def test_r3c_data_that_cannot_be_learned_from_is_refused_with_a_reason(
    days: int, symbols: int, changes: dict, code: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        run(random_walk(symbols, days, seed=0), TrainingSpec.small(**changes))
    assert code_of(str(caught.value)) == code


@pytest.mark.parametrize(
    "changes",
    [
        {"training_mode": "both"},
        {"symbol_encoding": "hash"},
        {"signal": "magic"},
        {"timeframe": "7h"},
        {"test_fraction": 0.0},
        {"stop_fraction": 0.9},
        {"n_splits": 0},
        {"num_leaves": 1},
    ],
)
def test_a_wrong_training_setting_is_named(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainingSpec(**changes)


def test_a_spec_survives_json_and_an_unknown_setting_is_named() -> None:
    spec = TrainingSpec.small(label=LabelSpec(horizon=12), regime=RegimeSpec(min_adx=5.0))
    assert TrainingSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ValueError, match="learning_rat"):
        TrainingSpec.from_dict({"learning_rat": 0.1})


# ------------------------------------------------------------------- threshold
@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), st.floats(-0.02, 0.02)), min_size=1, max_size=40),
    st.integers(2, 10),
)
def test_the_threshold_is_the_best_of_all_that_leave_enough_trades(
    pairs: list[tuple[float, float]], min_trades: int
) -> None:
    p = np.array([pair[0] for pair in pairs])
    net = np.array([pair[1] for pair in pairs])
    chosen = choose_threshold(p, net, np.ones(len(p)), min_trades=min_trades)
    floor = min(min_trades, len(p))
    possible = {t: net[p >= t].sum() for t in set(p.tolist()) if np.count_nonzero(p >= t) >= floor}
    assert chosen in possible
    if max(possible.values()) > 1e-12:
        assert possible[chosen] == pytest.approx(max(possible.values()))


def test_without_a_signal_nothing_reaches_the_threshold() -> None:
    assert choose_threshold(np.empty(0), np.empty(0), np.empty(0), min_trades=5) == 1.0


# ------------------------------------------------------------------- the gates on markets that we know
@pytest.mark.parametrize("seed", range(10))
def test_a_random_walk_is_refused(seed: int) -> None:
    assert not run(random_walk(8, 100, seed=seed)).gates_passed


@pytest.mark.parametrize("seed", range(10))
def test_the_simulated_market_with_nothing_to_learn_is_refused(seed: int) -> None:
    assert not run(simulated(10, 120, seed, learnable=False)).gates_passed


@pytest.mark.parametrize("seed", [0, 1])
def test_the_simulated_market_with_something_to_learn_passes(seed: int) -> None:
    result = run(simulated(20, 500, seed, learnable=True))
    assert result.gates_passed, [gate.text for gate in result.gates]
    assert result.score > 0


def test_a_champion_is_compared_only_on_what_it_has_not_seen() -> None:
    panel = simulated(10, 200, 0, learnable=True)
    champion = run(panel.rows(0, panel.n_times - 7 * 24)).model
    result = run(panel, champion=champion)
    gate = result.gates[-1]
    assert gate.name == "champion"
    assert "that neither has seen" in gate.text
    assert result.champion_metrics is not None
    assert result.champion_metrics["samples"] == result.metrics["test"]["samples"]

    seen_all = replace(champion, fit_end_ms=int(panel.open_time[-1]) + HOUR_MS)
    gate = run(panel, champion=seen_all).gates[-1]
    assert gate.passed
    assert "not comparable" in gate.text


def test_a_champion_with_other_features_cannot_be_compared(panel: Panel, result: TrainingResult) -> None:
    other = replace(result.model, facts={"schema_hash": "other"})
    again = run(panel, champion=other)
    assert "not comparable" in again.gates[-1].text
    assert again.champion_metrics is None


# --------------------------------------------------------------------- a planted leak
@pytest.fixture
def leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one feature be the close of twelve bars later: the mistake that makes every backtest shine."""
    honest = samples.replay

    def leaking(state: FeatureState, panel: Panel, *, threads: int = 1) -> np.ndarray:
        features = honest(state, panel, threads=threads)
        later = np.full(panel.close.shape, np.nan, dtype=np.float32)
        later[:-12] = np.log(panel.close[12:] / panel.close[:-12])
        features[..., state.schema.index("return_1")] = np.nan_to_num(later)
        return features

    monkeypatch.setattr(samples, "replay", leaking)


@pytest.mark.usefixtures("leak")
def test_a_planted_leak_is_found_by_the_gates() -> None:
    gates = {gate.name: gate for gate in run(random_walk(6, 100, seed=1)).gates}
    assert gates["skill"].passed  # it looks wonderful
    assert not gates["plausibility"].passed
    assert "leak" in gates["plausibility"].text


@pytest.mark.usefixtures("leak")
def test_i14_a_planted_leak_is_found_by_changing_the_future() -> None:
    """The same comparison as that of the honest features finds nothing."""
    panel = random_walk(4, 20, seed=1)
    at = 300
    changed = mixed(panel, random_walk(4, 20, seed=2), at)
    before, after = (samples.replay(FeatureState.create(SMALL.schema, 4), each)[: at + 1] for each in (panel, changed))
    assert not np.array_equal(before, after, equal_nan=True)
    honest = (replay(FeatureState.create(SMALL.schema, 4), each)[: at + 1] for each in (panel, changed))
    assert np.array_equal(*honest, equal_nan=True)

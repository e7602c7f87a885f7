from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import fills
from quant.labels import Labels, LabelSpec, triple_barrier, uniqueness_weights
from quant.panel import Panel
from tests.quant.feature_worlds import STEP, mixed, random_panel

FREE = LabelSpec(
    profit_take=2.0, stop_loss=1.0, horizon=3, fee_bps=0, half_spread_bps=0, slippage_bps=0, maker_fee_bps=0
)
seeds = st.integers(0, 2**32 - 1)


def one_symbol(bars: list[tuple[float, float, float, float]], funding: list[float] | None = None) -> Panel:
    """A panel of one symbol from (open, high, low, close)."""
    open_, high, low, close = (np.array(column, dtype=np.float64)[:, None] for column in zip(*bars, strict=True))
    return Panel(
        symbols=("A",),
        step_ms=STEP,
        open_time=STEP * np.arange(len(bars), dtype=np.int64),
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=np.ones_like(close),
        funding=np.array(funding or [0.0] * len(bars), dtype=np.float64)[:, None],
    )


def label_first(panel: Panel, side: int, spec: LabelSpec, atr_pct: float = 0.01) -> Labels:
    sides = np.zeros(panel.close.shape, dtype=np.int8)
    sides[0] = side
    return triple_barrier(panel, sides, np.full(panel.close.shape, atr_pct), spec)


ENTRY = (100.0, 100.0, 100.0, 100.0)
QUIET = (100.0, 100.4, 99.6, 100.0)
NOTHING = (math.nan,) * 4


@pytest.mark.parametrize(
    "side, bars, touch, exit_bar, gross",
    [
        (1, [QUIET, (100, 102.5, 100, 102), QUIET], 1, 2, 0.02),
        (1, [QUIET, (100, 100.5, 98.5, 99), QUIET], -1, 2, -0.01),
        (1, [QUIET, QUIET, (100, 100.5, 99.5, 100.3)], 0, 3, 0.003),
        (-1, [(100, 100.5, 97.5, 98), QUIET, QUIET], 1, 1, 0.02),
        (-1, [(100, 101.5, 99.5, 101), QUIET, QUIET], -1, 1, -0.01),
        (-1, [QUIET, QUIET, (100, 100.5, 99.5, 100.3)], 0, 3, -0.003),
        # Both touched in one bar: nobody knows which came first, so it was the stop.
        (1, [(100, 103, 98, 102), QUIET, QUIET], -1, 1, -0.01),
        (-1, [(100, 103, 97, 98), QUIET, QUIET], -1, 1, -0.01),
        # A bar that opens beyond the stop fills there; one that opens beyond the target gives no gift.
        (1, [(97, 97, 96, 96), QUIET, QUIET], -1, 1, -0.03),
        (-1, [(104, 105, 104, 104), QUIET, QUIET], -1, 1, -0.04),
        (1, [(105, 105, 105, 105), QUIET, QUIET], 1, 1, 0.02),
        # A target that is only touched may find others first in the queue; one tick beyond, and it is filled.
        (1, [QUIET, (100, 102, 100, 101), QUIET], 0, 3, 0.0),
        (1, [QUIET, (100, math.nextafter(102, 103), 100, 101), QUIET], 1, 2, 0.02),
        (-1, [QUIET, (100, 100, 98, 99), QUIET], 0, 3, 0.0),
        (-1, [QUIET, (100, 100, math.nextafter(98, 97), 99), QUIET], 1, 2, 0.02),
        # A stop that is touched fires.
        (1, [QUIET, (100, 100, 99, 99.5), QUIET], -1, 2, -0.01),
        # A missing candle touches nothing.
        (1, [NOTHING, (100, 102.5, 100, 102), QUIET], 1, 2, 0.02),
    ],
)
def test_barriers_by_hand(
    side: int, bars: list[tuple[float, float, float, float]], touch: int, exit_bar: int, gross: float
) -> None:
    labels = label_first(one_symbol([ENTRY, *bars]), side, FREE)
    assert len(labels) == 1
    assert (labels.touch[0], labels.t1_index[0], labels.side[0]) == (touch, exit_bar, side)
    assert labels.net_return[0] == pytest.approx(gross, abs=1e-12)
    assert labels.label[0] == (1 if gross > 0 else 0)


def test_costs_are_charged_on_the_notional_of_both_sides() -> None:
    spec = dataclasses.replace(FREE, fee_bps=5.5, half_spread_bps=1.0, slippage_bps=1.5)  # 8 bps per side
    won = label_first(one_symbol([ENTRY, (100, 102.5, 100, 102), QUIET, QUIET]), 1, spec)
    assert won.net_return[0] == pytest.approx(0.02 - 0.0008, abs=1e-12)  # the makers of FREE pay nothing
    paid = dataclasses.replace(spec, maker_fee_bps=2.0)
    short = label_first(one_symbol([ENTRY, (100, 100.5, 97.5, 98), QUIET, QUIET]), -1, paid)
    assert short.net_return[0] == pytest.approx(0.02 - 0.0008 - 0.0002 * 0.98, abs=1e-12)
    lost = label_first(one_symbol([ENTRY, (100, 100, 98, 98), QUIET, QUIET]), 1, spec)
    assert lost.net_return[0] == pytest.approx(-0.01 - 0.0008 * (1 + 0.99), abs=1e-12)
    # A move smaller than its costs does not pay.
    flat = label_first(one_symbol([ENTRY, QUIET, QUIET, (100, 100.4, 99.6, 100.1)]), 1, spec)
    assert flat.net_return[0] < 0
    assert flat.label[0] == 0


def test_funding_is_paid_by_longs_and_received_by_shorts_while_the_position_is_open() -> None:
    panel = one_symbol([ENTRY, QUIET, (101, 101, 100, 100), QUIET, QUIET], [0.5, 0.5, 0.001, 0.0, 0.5])
    # Bars 0 and 1 are due before or at the entry, bar 4 after the exit; bar 2 is due at its open, at 101.
    paid = 0.001 * 1.01
    assert label_first(panel, 1, FREE).net_return[0] == pytest.approx(-paid, abs=1e-12)
    assert label_first(panel, -1, dataclasses.replace(FREE, stop_loss=5)).net_return[0] == pytest.approx(
        paid, abs=1e-12
    )


@pytest.mark.parametrize("gone", [1, 2])
def test_funding_that_is_due_in_a_missing_candle_is_charged_at_the_last_price(gone: int) -> None:
    bars = [ENTRY, (100, 100.5, 99.5, 100.2), QUIET, QUIET]
    bars[gone] = NOTHING
    labels = label_first(one_symbol(bars, [0, 0, 0.001, 0]), 1, FREE)
    assert labels.net_return[0] == pytest.approx(-0.001 * (1.0 if gone == 1 else 1.002), abs=1e-12)


@pytest.mark.parametrize("missing", ["decision bar", "vertical barrier", "end of data", "ATR"])
def test_a_sample_that_cannot_be_completed_is_dropped_even_if_it_touched_before(missing: str) -> None:
    bars: list[Any] = [ENTRY, (100, 102.5, 100, 102), QUIET, QUIET]
    atr = 0.01
    match missing:
        case "decision bar":
            bars[0] = NOTHING
        case "vertical barrier":
            bars[3] = NOTHING
        case "end of data":
            bars.pop()
        case "ATR":
            atr = math.nan
    assert len(label_first(one_symbol(bars), 1, FREE, atr)) == 0


def slow_reference(panel: Panel, side: np.ndarray, atr_pct: np.ndarray, spec: LabelSpec) -> list[tuple[Any, ...]]:
    """The documented rules, one sample at a time, in plain Python."""
    samples = []
    for t in range(panel.n_times):
        for s in range(panel.n_symbols):
            last = t + spec.horizon
            entry, atr = float(panel.close[t, s]), float(panel.close[t, s] * atr_pct[t, s])
            if not side[t, s] or last >= panel.n_times or math.isnan(panel.close[last, s]) or not atr > 0:
                continue
            direction = int(side[t, s])
            target, stop = entry + direction * spec.profit_take * atr, entry - direction * spec.stop_loss * atr
            touch, t1, price = 0, last, float(panel.close[last, s])
            for j in range(t + 1, last + 1):
                if math.isnan(panel.close[j, s]):
                    continue
                worst, best = (panel.low[j, s], panel.high[j, s])[::direction]
                if (worst - stop) * direction <= 0:
                    touch, t1 = -1, j
                    price = min(stop, panel.open[j, s]) if direction > 0 else max(stop, panel.open[j, s])
                    break
                if (best - target) * direction > 0:
                    touch, t1, price = 1, j, target
                    break
            funding = 0.0
            for j in range(t + 2, t1 + 1):
                seen = panel.close[t:j, s][~np.isnan(panel.close[t:j, s])]
                due = seen[-1] if math.isnan(panel.open[j, s]) else panel.open[j, s]
                funding += panel.funding[j, s] * due / entry
            leaving = spec.target_cost if touch == 1 else spec.cost_per_side
            costs = spec.cost_per_side + leaving * price / entry
            net = direction * (price / entry - 1) - costs - direction * funding
            samples.append((t, s, direction, t1, net, int(net > 0), touch))
    return samples


@settings(max_examples=40)
@given(
    seeds,
    st.integers(1, 30),
    st.floats(0.2, 4),
    st.floats(0.2, 4),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 5),
)
def test_labels_equal_a_slow_reference(
    seed: int, horizon: int, profit_take: float, stop_loss: float, missing: float, kind: type, threads: int
) -> None:
    panel = random_panel(seed, 60, 3, missing=missing)
    random = np.random.default_rng(seed)
    side = random.integers(-1, 2, panel.close.shape).astype(np.int8)
    atr = random.uniform(0.002, 0.03, panel.close.shape).astype(kind)
    atr[random.random(atr.shape) < 0.05] = np.nan
    spec = LabelSpec(profit_take=profit_take, stop_loss=stop_loss, horizon=horizon)
    labels = triple_barrier(panel, side, atr, spec, threads=threads)
    expected = slow_reference(panel, side, atr.astype(np.float64), spec)
    assert len(labels) == len(expected)
    if expected:
        t, s, sides, t1, net, positive, touch = zip(*expected, strict=True)
        assert labels.t_index.tolist() == list(t)
        assert labels.s_index.tolist() == list(s)
        assert labels.side.tolist() == list(sides)
        assert labels.t1_index.tolist() == list(t1)
        assert labels.touch.tolist() == list(touch)
        assert labels.label.tolist() == list(positive)
        np.testing.assert_allclose(labels.net_return, net, atol=1e-12)


@settings(max_examples=30)
@given(seeds, st.integers(0, 119), st.integers(1, 24))
def test_i14_a_label_is_decided_by_the_bars_up_to_its_end_time(seed: int, cut: int, horizon: int) -> None:
    panel = random_panel(seed, 120, 3, missing=0.05)
    changed = mixed(panel, random_panel(seed + 1, 120, 3), cut)
    side = np.random.default_rng(seed).integers(-1, 2, panel.close.shape).astype(np.int8)
    atr = np.full(panel.close.shape, 0.01)
    spec = LabelSpec(horizon=horizon)
    before, after = triple_barrier(panel, side, atr, spec), triple_barrier(changed, side, atr, spec)
    known, still = before.t_index + horizon <= cut, after.t_index + horizon <= cut
    for field in dataclasses.fields(Labels):
        left, right = getattr(before.take(known), field.name), getattr(after.take(still), field.name)
        assert np.array_equal(left, right), field.name
    assert (before.t1_index > before.t_index).all()
    assert (before.t1_index <= before.t_index + horizon).all()


@settings(max_examples=40)
@given(seeds, st.integers(1, 12), st.floats(0.02, 1))
def test_uniqueness_weights_equal_a_brute_force_count(seed: int, horizon: int, density: float) -> None:
    panel = random_panel(seed, 60, 3)
    random = np.random.default_rng(seed)
    side = (random.random(panel.close.shape) < density).astype(np.int8)
    labels = triple_barrier(panel, side, np.full(panel.close.shape, 0.01), LabelSpec(horizon=horizon))
    weights = uniqueness_weights(labels, panel.n_times)
    for i in range(len(labels)):
        same = labels.s_index == labels.s_index[i]
        shares = [
            1 / np.sum(same & (labels.t_index < bar) & (labels.t1_index >= bar))
            for bar in range(labels.t_index[i] + 1, labels.t1_index[i] + 1)
        ]
        assert weights[i] == pytest.approx(np.mean(shares), rel=1e-12)
    assert ((weights > 0) & (weights <= 1 + 1e-12)).all()


def test_a_sample_that_lives_alone_weighs_one_and_twins_of_other_symbols_do_not_share() -> None:
    panel = random_panel(0, 40, 2)
    side = np.zeros(panel.close.shape, dtype=np.int8)
    side[[0, 20]] = 1
    labels = triple_barrier(panel, side, np.full(panel.close.shape, 0.01), LabelSpec(horizon=10))
    assert uniqueness_weights(labels, 40).tolist() == pytest.approx([1.0] * 4)


def test_a_spec_survives_json_and_its_hash_follows_every_field() -> None:
    spec = LabelSpec()
    assert LabelSpec.from_dict(spec.to_dict()) == spec
    assert LabelSpec(horizon=24).hash == LabelSpec.from_dict({**spec.to_dict(), "horizon": 24.0}).hash
    changed = {dataclasses.replace(spec, **{f.name: getattr(spec, f.name) + 1}).hash for f in dataclasses.fields(spec)}
    assert len(changed | {spec.hash}) == len(dataclasses.fields(spec)) + 1
    with pytest.raises(ValueError, match=r"unknown fields \['fee'\]"):
        LabelSpec.from_dict({"fee": 1})


@pytest.mark.parametrize(
    "name, value, rule",
    [("horizon", 0, "above zero"), ("profit_take", -1.0, "above zero"), ("fee_bps", math.nan, "zero or more"),
     ("slippage_bps", -0.1, "zero or more"), ("horizon", 1.5, "whole number")],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused(name: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"label {name} is {value}; it must be .*{rule}"):
        LabelSpec(**{name: value})


def test_costs_are_those_of_the_fill_model() -> None:
    assert (LabelSpec().fee_bps, LabelSpec().maker_fee_bps) == (fills.TAKER_FEE_BPS, fills.MAKER_FEE_BPS)


def test_i12_a_spec_from_before_the_target_had_to_be_traded_through_is_another_one_and_labels_nothing() -> None:
    stored = LabelSpec().to_dict()
    del stored["version"], stored["maker_fee_bps"]
    old = LabelSpec.from_dict(stored)
    assert (old.version, old.hash == LabelSpec().hash) == (1, False)
    with pytest.raises(ValueError, match="label version is 1; this program labels by version 2: train anew"):
        triple_barrier(random_panel(0, 10, 2), np.zeros((10, 2), dtype=np.int8), np.ones((10, 2)), old)


def test_arrays_that_do_not_belong_to_the_panel_are_refused() -> None:
    panel = random_panel(0, 10, 2)
    with pytest.raises(ValueError, match=r"atr_pct has shape \(9, 2\)"):
        triple_barrier(panel, np.zeros((10, 2), dtype=np.int8), np.ones((9, 2)), LabelSpec())

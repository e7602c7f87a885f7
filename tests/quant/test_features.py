from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant import market_kernel
from quant.features import FeatureState, replay, step, warm_cache
from quant.panel import Panel
from quant.schema import FEATURES, MAX_GAP_BARS, FeatureSchema
from tests.quant import scalar_features
from tests.quant.feature_worlds import STEP, mixed, random_panel, without

EVERY = FeatureSchema()
OWN = FeatureSchema(market_wide=False)
N = len(EVERY)
schemas = st.sampled_from([EVERY, OWN])
seeds = st.integers(0, 2**32 - 1)


def features_of(panel: Panel, schema: FeatureSchema = EVERY) -> NDArray[np.float32]:
    return replay(FeatureState.create(schema, panel.n_symbols), panel)


def column(features: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    return features[..., EVERY.index(name)].astype(np.float64)


def assert_same_bits(left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    assert left.shape == right.shape
    differs = left.view(np.uint32) != right.view(np.uint32)
    differs &= ~(np.isnan(left) & np.isnan(right))
    assert not differs.any(), [FEATURES[index].name for index in np.unique(np.nonzero(differs)[-1])]


def troubled_panel(seed: int) -> Panel:
    """Eleven symbols, more than a block of the kernel, with all that a history can have."""
    panel = random_panel(seed, 1000, 11, missing=0.03)
    values = {each: getattr(panel, each).copy() for each in ("open", "high", "low", "close", "volume", "funding")}
    prices, candle = ("open", "high", "low", "close"), ("open", "high", "low", "close", "volume")
    for name in candle:
        values[name][:300, 1] = np.nan  # listed late
        values[name][700:, 2] = np.nan  # delisted
        values[name][400 : 400 + MAX_GAP_BARS + 1, 3] = np.nan  # long gap: starts again
        values[name][:, 7] = values[name][:, 6]  # twins, which tie in every rank
        values[name][600:660, :9] = np.nan  # a market of two symbols is none
        values[name][:, 10] = np.nan  # never listed
    for name in prices:
        values[name][500:, 4] *= 5000.0  # another asset
        values[name][200:420, 5] = values["close"][200, 6]  # stands still
    values["volume"][200:420, 5] = 0.0
    values["close"][100::150, 8] = 0.0  # bad candles
    values["funding"][:, 9] = 0.0  # a spot pair
    return dataclasses.replace(panel, **values)


def test_every_bit_is_that_of_one_symbol_and_candle_after_the_other() -> None:
    panel = troubled_panel(21)
    features = features_of(panel)
    assert_same_bits(features, scalar_features.features_of(panel))
    assert np.isfinite(features).any(axis=(0, 1)).all()


@settings(max_examples=15)
@given(seeds, schemas, st.integers(1, 400), st.integers(0, 400), st.integers(2, 4))
def test_i13_two_threads_give_the_bits_of_one(
    seed: int, schema: FeatureSchema, n_times: int, split: int, threads: int
) -> None:
    panel = random_panel(seed, n_times, 11, missing=0.1)
    state, split = FeatureState.create(schema, 11), min(split, n_times)
    parts = [replay(state, part, threads=threads) for part in (panel.rows(0, split), panel.rows(split, n_times))]
    assert_same_bits(np.concatenate(parts), features_of(panel, schema))


@settings(max_examples=15)
@given(seeds, schemas, st.integers(0, 700), st.sampled_from([0.0, 0.1, 0.6]))
def test_i13_stepping_live_gives_the_bits_of_the_replay(
    seed: int, schema: FeatureSchema, split: int, missing: float
) -> None:
    panel = random_panel(seed, 700, 4, missing=missing)
    expected = features_of(panel, schema)
    state = FeatureState.create(schema, 4)
    stored = replay(state, panel.rows(0, split))
    live = [step(state, **panel.row(t)._asdict()) for t in range(split, panel.n_times)]
    assert_same_bits(np.concatenate([stored, np.array(live, dtype=np.float32).reshape(-1, 4, len(schema))]), expected)


@settings(max_examples=10)
@given(seeds, st.integers(1, 699))
def test_i13_a_step_on_a_copy_leaves_the_state_alone(seed: int, at: int) -> None:
    panel = random_panel(seed, 700, 3, missing=0.05)
    state = FeatureState.create(EVERY, 3)
    replay(state, panel.rows(0, at))
    tried = step(state.copy(), **panel.row(at)._asdict())
    assert_same_bits(step(state, **panel.row(at)._asdict()), tried)


@settings(max_examples=25)
@given(seeds, seeds, st.integers(0, 699), schemas)
def test_i14_no_feature_depends_on_a_later_candle(seed: int, other: int, row: int, schema: FeatureSchema) -> None:
    panel = random_panel(seed, 700, 4, missing=0.05)
    changed = mixed(panel, random_panel(other, 700, 4, missing=0.2), row)
    assert_same_bits(features_of(changed, schema)[: row + 1], features_of(panel, schema)[: row + 1])


@settings(max_examples=15)
@given(seeds, st.permutations(range(6)))
def test_the_order_of_the_symbols_does_not_matter(seed: int, order: list[int]) -> None:
    panel = random_panel(seed, 650, 6, missing=0.05)
    # Two symbols with the same candles tie in every rank.
    twins = {name: getattr(panel, name).copy() for name in ("open", "high", "low", "close", "volume", "funding")}
    for values in twins.values():
        values[:, 5] = values[:, 2]
    panel = dataclasses.replace(panel, **twins)
    features = features_of(panel)
    assert_same_bits(features_of(panel.select([panel.symbols[index] for index in order])), features[:, order])
    assert_same_bits(features[:, 5], features[:, 2])


@settings(max_examples=10)
@given(seeds, st.integers(0, 3))
def test_without_market_features_a_symbol_does_not_depend_on_the_others(seed: int, index: int) -> None:
    panel = random_panel(seed, 650, 4, missing=0.05)
    alone = panel.select([panel.symbols[index]])
    assert_same_bits(features_of(alone, OWN)[:, 0], features_of(panel, OWN)[:, index])
    assert_same_bits(features_of(panel)[..., : len(OWN)], features_of(panel, OWN))


def test_each_feature_is_nan_until_its_warm_up_ends_and_defined_from_then_on() -> None:
    features = features_of(random_panel(3, 700, 5))
    counted_otherwise = {"funding_rate", "funding_mean_168", "beta_168", "residual_return_1", "residual_return_24"}
    for index, spec in enumerate(FEATURES):
        defined = ~np.isnan(features[..., index])
        if spec.market_wide:
            assert defined[EVERY.warmup + 48 :].all(), spec.name
            assert not defined[0].any(), spec.name
            continue
        if spec.name not in counted_otherwise:
            assert not defined[: spec.warmup - 1].any(), spec.name
        assert defined[spec.warmup :].all(), spec.name


@settings(max_examples=20)
@given(seeds, st.integers(100, 500), st.integers(1, MAX_GAP_BARS))
def test_a_short_gap_gives_nan_and_leaves_the_state_as_it_was(seed: int, at: int, length: int) -> None:
    panel = random_panel(seed, 600, 1)
    mask = np.zeros((600, 1), dtype=np.bool_)
    mask[at : at + length] = True
    with_gap = without(panel, mask)
    closed_up = dataclasses.replace(
        panel.rows(0, 600 - length),
        **{
            name: np.delete(getattr(with_gap, name), slice(at, at + length), axis=0)
            for name in ("open", "high", "low", "close", "volume", "funding")
        },
    )
    gap, seamless = features_of(with_gap, OWN), features_of(closed_up, OWN)
    assert np.isnan(gap[at : at + length]).all()
    calendar = [OWN.index(name) for name in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")]
    rest = np.delete(np.arange(len(OWN)), calendar)
    assert_same_bits(np.delete(gap, slice(at, at + length), axis=0)[..., rest], seamless[..., rest])


@pytest.mark.parametrize("length, restarts", [(MAX_GAP_BARS, False), (MAX_GAP_BARS + 1, True)])
def test_a_long_gap_starts_the_symbol_again_from_nothing(length: int, restarts: bool) -> None:
    panel = random_panel(1, 900, 1)
    mask = np.zeros((900, 1), dtype=np.bool_)
    mask[200 : 200 + length] = True
    after = features_of(without(panel, mask), OWN)[200 + length :]
    fresh = features_of(panel.rows(200 + length, 900), OWN)
    if restarts:
        assert_same_bits(after, fresh)
    else:
        assert not np.isnan(after[0, 0, OWN.index("rsi_14")])


def test_a_price_a_thousand_times_away_is_another_asset() -> None:
    panel = random_panel(1, 900, 1)
    factor = np.where(np.arange(900) < 300, 1.0, 5000.0)[:, None]
    jumped = dataclasses.replace(
        panel, **{name: getattr(panel, name) * factor for name in ("open", "high", "low", "close")}
    )
    # The candle of the jump opens at its own price level, so only the closes tell.
    assert_same_bits(features_of(jumped, OWN)[300:], features_of(jumped.rows(300, 900), OWN))


@pytest.mark.parametrize(
    "name, value",
    [
        ("close", 0.0), ("close", -1.0), ("close", np.inf), ("open", np.nan), ("high", 0.0), ("low", np.inf),
        ("high", np.inf), ("low", 1e-9), ("high", 1e12), ("volume", -1.0), ("volume", np.inf), ("volume", np.nan),
    ],
)  # fmt: skip
def test_a_bad_candle_counts_as_a_missing_one(name: str, value: float) -> None:
    panel = random_panel(2, 400, 1)
    mask = np.zeros((400, 1), dtype=np.bool_)
    mask[250] = True
    values = getattr(panel, name).copy()
    values[250] = value
    assert_same_bits(features_of(dataclasses.replace(panel, **{name: values})), features_of(without(panel, mask)))


def test_a_zero_volume_candle_is_a_fact_and_not_a_gap() -> None:
    panel = random_panel(2, 800, 1)
    volume = panel.volume.copy()
    volume[750] = 0.0
    features = features_of(dataclasses.replace(panel, volume=volume))
    assert column(features, "volume_zscore_24")[750, 0] < -1
    assert np.isfinite(features[750, 0, : len(OWN)]).all()


def test_a_symbol_that_does_not_move_has_no_rsi_instead_of_zero() -> None:
    panel = random_panel(2, 700, 1)
    flat = np.ones((700, 1))
    still = dataclasses.replace(panel, open=flat, high=flat, low=flat, close=flat, volume=flat * 0)
    features = features_of(still)
    for name in ("rsi_14", "macd_hist", "bollinger_position_20", "donchian_position", "money_flow_24", "candle_body"):
        assert np.isnan(column(features, name)).all(), name
    assert column(features, "atr_pct")[-1, 0] == 0.0
    assert not np.isinf(features).any()


@pytest.mark.parametrize("name", ["volume", "close"])
def test_one_huge_outlier_is_forgotten(name: str) -> None:
    panel = random_panel(4, 4000, 1)
    values = {each: getattr(panel, each).copy() for each in ("high", "close", "volume")}
    if name == "volume":
        values["volume"][1000] = max(values["volume"][1000], 1.0) * 1e6
    else:
        values["high"][1000] *= 500
        values["close"][1000] = values["high"][1000]
    calm, shaken = features_of(panel, OWN), features_of(dataclasses.replace(panel, **values), OWN)
    assert not np.allclose(calm[1000:1010], shaken[1000:1010], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(shaken[-200:], calm[-200:], rtol=2e-5, atol=2e-6)


def test_ranks_run_from_zero_to_one_and_ties_share_their_mean() -> None:
    panel = random_panel(9, 300, 5)
    names = ("open", "high", "low", "close", "volume")
    values = {name: getattr(panel, name).copy() for name in names}
    for each in values.values():
        each[:, 1] = each[:, 0]
    features = features_of(dataclasses.replace(panel, **values))
    returns, ranks = column(features, "return_24")[-1], column(features, "return_24_rank")[-1]
    below = (returns[None, :] < returns[:, None]).sum(1)
    ties = (returns[None, :] == returns[:, None]).sum(1)
    np.testing.assert_allclose(ranks, (below + (ties - 1) / 2) / 4, rtol=1e-6)
    assert ties.tolist()[:2] == [2, 2]


@pytest.mark.parametrize("n_symbols", [3, 4, 5, 300])
def test_ranks_are_exact_where_numbers_differ_in_their_last_bits_only(n_symbols: int) -> None:
    random = np.random.default_rng(n_symbols)
    out = np.full((40, n_symbols, N), np.nan, dtype=np.float32)
    near = random.integers(0, 40, (40, n_symbols)).astype(np.uint32) + np.float32(0.01).view(np.uint32)
    some = np.array([-np.inf, -0.5, -0.0, 0.0, 1e-40, 0.5, np.inf, np.nan], dtype=np.float32)
    ranked = [EVERY.index(name) for name in ("return_24", "volatility_24", "volume_zscore_24")]
    out[..., ranked[0]] = near.view(np.float32)
    out[..., ranked[1]] = -near.view(np.float32)
    out[..., ranked[2]] = random.choice(some, (40, n_symbols))
    values = np.ascontiguousarray(out[..., ranked].transpose(0, 2, 1))
    keys = np.empty(values.shape, dtype=np.uint32)
    market_kernel.pack_keys(values, keys)
    keys.sort(axis=-1)
    market_kernel.write_ranks(values, keys, len(OWN), out)
    for position, source in enumerate(ranked):
        values = out[..., source].astype(np.float64)
        known = np.isfinite(values) | np.isinf(values)
        below = (values[:, None, :] < values[:, :, None]).sum(-1)
        ties = (values[:, None, :] == values[:, :, None]).sum(-1)
        count = known.sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(known & (count >= 3), (below + (ties - 1) / 2) / (count - 1), np.nan)
        np.testing.assert_allclose(out[..., N - 3 + position], expected, rtol=1e-6)


def test_channels_are_exact_from_the_first_candle_on_and_count_from_the_newest_of_equal_prices() -> None:
    panel = random_panel(12, 700, 3)
    names = ("open", "high", "low", "close")
    prices = {name: getattr(panel, name) / panel.close.mean(axis=0) * 100 for name in names}
    # On so coarse a grid most highs are equal to others.
    prices["high"], prices["low"] = high, low = np.ceil(prices["high"]), np.floor(prices["low"])
    features = features_of(dataclasses.replace(panel, **prices), OWN)
    counted = ("bars_since_high_168", "bars_since_low_168", "donchian_width_24")
    since_highs, since_lows, widths = (features[..., OWN.index(name)] for name in counted)
    for t in range(168, 700):
        for s in range(3):
            tops, bottoms = high[t - 167 : t + 1, s], low[t - 167 : t + 1, s]
            since_high, since_low = np.argmax(tops[::-1]), np.argmin(bottoms[::-1])
            assert since_highs[t, s] == pytest.approx(since_high / 168)
            assert since_lows[t, s] == pytest.approx(since_low / 168)
            width = tops[-24:].max() - bottoms[-24:].min()
            assert widths[t, s] == pytest.approx(width / prices["close"][t, s])


def test_market_features_equal_their_formulas() -> None:
    panel = random_panel(5, 900, 6)
    features = features_of(panel)
    returns = np.diff(np.log(panel.close), axis=0)
    market = returns.mean(axis=1)
    np.testing.assert_allclose(column(features, "market_return_1")[1:, 0], market, rtol=1e-4, atol=1e-9)
    summed = np.convolve(market, np.ones(24))[23 : len(market)]
    np.testing.assert_allclose(column(features, "market_return_24")[24:, 3], summed, rtol=1e-4, atol=1e-8)
    product, square = np.zeros(6), 0.0
    for t, (own, common) in enumerate(zip(returns, market, strict=True), start=1):
        weight = max(1 / t, 2 / 169)
        product += weight * (own * common - product)
        square += weight * (common * common - square)
    beta = product / square
    np.testing.assert_allclose(column(features, "beta_168")[-1], beta, rtol=1e-5)
    residual = column(features, "residual_return_24")[-1]
    expected = column(features, "return_24")[-1] - column(features, "beta_168")[-2] * summed[-1]
    np.testing.assert_allclose(residual, expected, rtol=1e-4, atol=1e-7)


def test_a_market_of_two_symbols_is_no_market() -> None:
    features = features_of(random_panel(5, 900, 2))
    assert np.isnan(features[..., len(OWN) :]).all()


def test_a_state_refuses_a_bar_twice_a_gap_in_the_grid_and_the_wrong_shape() -> None:
    panel = random_panel(5, 5, 2)
    state = FeatureState.create(EVERY, 2)
    replay(state, panel)
    with pytest.raises(ValueError, match="each bar is stepped once, in order"):
        step(state, **panel.row(4)._asdict())
    late = panel.row(4)._replace(open_time_ms=int(panel.open_time[4]) + 2 * STEP)
    with pytest.raises(ValueError, match="step the bars between"):
        step(state, **late._asdict())
    with pytest.raises(ValueError, match=r"close has shape \(1,\)"):
        step(state, **late._replace(close=np.ones(1))._asdict())
    with pytest.raises(ValueError, match="panel has 2 symbols and the state 3"):
        replay(FeatureState.create(EVERY, 3), panel)
    with pytest.raises(ValueError, match="must be float32"):
        replay(FeatureState.create(EVERY, 2), panel, out=np.empty((5, 2, N)))
    with pytest.raises(ValueError, match="use one timeframe"):
        replay(FeatureState.create(EVERY, 2, step_ms=STEP // 2), panel)


def test_replay_writes_into_the_given_array_and_compiling_ahead_works() -> None:
    warm_cache()
    panel = random_panel(5, 5, 2)
    out = np.empty((5, 2, N), dtype=np.float32)
    assert replay(FeatureState.create(EVERY, 2), panel, out=out) is out
    assert_same_bits(out, features_of(panel))

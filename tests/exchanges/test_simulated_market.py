"""The simulated market is a pure function of seed, symbol and time, and looks like a market."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchanges.errors import ConfigurationError
from exchanges.simulated import SimulatedMarket
from exchanges.simulated.hashing import normal_row, smooth_normal, stream_key, uniform
from exchanges.simulated.roster import GENESIS_DAY, LATE_BY_MS, Roster, core_name
from exchanges.simulated.world import World
from marketdata.gaps import history_stats
from quant.candles import Candles
from quant.timeframes import DAY_MS, HOUR_MS, TIMEFRAMES
from tests.exchanges.conftest import START_MS, Clock

COLUMNS = ("open_time", "open", "high", "low", "close", "volume")
NOW = START_MS + 11 * HOUR_MS


def market(seed: int = 7, symbols: int = 4, *, now: int = NOW, learnable: bool = True) -> SimulatedMarket:
    return SimulatedMarket(seed=seed, symbols=symbols, learnable=learnable, now_ms=lambda: now)


def equal(a: Candles, b: Candles) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


def history(data: SimulatedMarket, symbol: str, days: int, timeframe: str = "1h") -> Candles:
    pages, since = [], data.now_ms() - days * DAY_MS
    while len(page := data.candles(symbol, timeframe, since, data.page_limit)):
        pages.append(page)
        since = int(page.open_time[-1]) + 1
    return Candles.concat(pages)


# --- One function of (seed, symbol, time) ---


@settings(max_examples=15)
@given(
    start_hours=st.integers(0, 24 * 60),
    count=st.integers(1, 24 * 12),
    timeframe=st.sampled_from(["5m", "15m", "1h", "4h"]),
    which=st.integers(0, 12),
)
def test_any_window_is_equal_to_the_bit_to_the_same_part_of_a_longer_one(
    start_hours: int, count: int, timeframe: str, which: int
) -> None:
    one, other = market(symbols=2), market(symbols=2)
    symbols = [each.symbol for each in one.instruments()]
    symbol = symbols[which % len(symbols)]
    since = NOW - 70 * DAY_MS + start_hours * HOUR_MS
    window = one.candles(symbol, timeframe, since, count)
    whole = other.candles(symbol, timeframe, NOW - 71 * DAY_MS, 5_000)
    rest = whole.between(since, NOW)
    if len(whole) < 5_000:
        assert equal(window, rest.take(slice(0, count)))
    else:
        shared = min(len(window), len(rest))
        assert equal(window.take(slice(0, shared)), rest.take(slice(0, shared)))


def test_prices_are_the_same_on_every_machine_and_in_every_version() -> None:
    """A golden value: whoever changes the market changes what all results in the documents were measured on."""
    data = market(seed=1, symbols=2)
    candles = data.candles(data.instruments()[0].symbol, "1h", NOW - 20 * DAY_MS, 400)
    digest = hashlib.sha256(np.round(np.log(candles.close), 6).tobytes()).hexdigest()
    assert (len(candles), digest[:12]) == (400, "577db5068fb7")


def test_seeds_and_symbols_give_different_prices() -> None:
    a, b = market(seed=1), market(seed=2)
    first, second = (each.symbol for each in a.instruments()[:2])
    since = NOW - 5 * DAY_MS
    returns = [
        np.diff(np.log(data.candles(symbol, "1h", since, 100).close))
        for data, symbol in ((a, first), (a, second), (b, first))
    ]
    assert np.corrcoef(returns[0], returns[2])[0, 1] < 0.4
    assert not np.allclose(returns[0], returns[1])


@pytest.mark.parametrize("timeframe", ["15m", "1h", "4h", "1d"])
def test_timeframes_aggregate_the_five_minute_bars_exactly(timeframe: str) -> None:
    data = market()
    symbol = data.instruments()[0].symbol
    since, per = NOW // DAY_MS * DAY_MS - 6 * DAY_MS, TIMEFRAMES[timeframe] // TIMEFRAMES["5m"]
    fine = data.candles(symbol, "5m", since, 5 * 288)
    coarse = data.candles(symbol, timeframe, since, 5 * 288 // per)
    assert np.array_equal(coarse.open, fine.open[::per])
    assert np.array_equal(coarse.close, fine.close[per - 1 :: per])
    assert np.array_equal(coarse.high, fine.high.reshape(-1, per).max(axis=1))
    assert np.array_equal(coarse.low, fine.low.reshape(-1, per).min(axis=1))
    assert np.allclose(coarse.volume, fine.volume.reshape(-1, per).sum(axis=1), atol=0.01 * per)


def test_each_candle_opens_where_the_last_one_closed() -> None:
    data = market()
    candles = history(data, f"{core_name(1)}/USDT:USDT", 60)
    assert np.allclose(candles.open[1:], candles.close[:-1], rtol=1e-5)


# --- It looks like a market ---


def test_returns_have_fat_tails_clustered_volatility_and_no_memory() -> None:
    world = World(seed=5, specs=Roster(5, 6, specials=False).permanent(), learnable=False)
    close = world.bars(np.arange(6), GENESIS_DAY + 1_200, 730).close.reshape(6, -1)[:, 11::12]
    returns = np.diff(close, axis=1)
    centred = returns - returns.mean(axis=1, keepdims=True)
    kurtosis = (centred**4).mean(axis=1) / (centred**2).mean(axis=1) ** 2
    size = np.abs(centred) - np.abs(centred).mean(axis=1, keepdims=True)
    clustering = (size[:, 1:] * size[:, :-1]).mean(axis=1) / (size**2).mean(axis=1)
    memory = (centred[:, 1:] * centred[:, :-1]).mean(axis=1) / (centred**2).mean(axis=1)
    assert ((kurtosis > 5) & (kurtosis < 18)).all(), kurtosis
    assert ((clustering > 0.11) & (clustering < 0.42)).all(), clustering
    assert (np.abs(memory) < 0.025).all(), memory  # three standard errors of 17,500 returns
    daily = close[:, ::24][:, 1:] - close[:, ::24][:, :-1]
    assert ((daily.std(axis=1) > 0.02) & (daily.std(axis=1) < 0.08)).all()


def test_the_variance_of_a_day_is_that_of_its_bars() -> None:
    """The bug that makes a null world predictable: then squared daily and summed squared 5-minute returns differ."""
    world = World(seed=9, specs=Roster(9, 8, specials=False).permanent(), learnable=False)
    close = world.bars(np.arange(8), GENESIS_DAY + 900, 700).close.reshape(8, -1)
    returns = np.diff(close, axis=1)[:, 287:]
    returns = returns[:, : returns.shape[1] // 288 * 288].reshape(8, -1, 288)
    ratio = (returns.sum(axis=2) ** 2).mean() / (returns**2).sum(axis=2).mean()
    assert abs(ratio - 1) < 0.08, ratio
    for lag in (1, 12, 144):
        flat = returns.reshape(8, -1)
        correlation = (flat[:, lag:] * flat[:, :-lag]).mean() / (flat**2).mean()
        assert abs(correlation) < 0.006, (lag, correlation)


def test_turnover_follows_volatility() -> None:
    data = market()
    candles = history(data, data.instruments()[0].symbol, 200)
    turnover, size = np.log(candles.volume * candles.close), np.log(candles.high / candles.low)
    assert np.corrcoef(turnover, size)[0, 1] > 0.4


# --- Learnable, or not ---


def walk_forward_t(*, learnable: bool, seed: int) -> float:
    """t-statistic of the information coefficient of a ridge regression, fitted on the past, tested on the future.

    Features: momentum over several windows, plain and times relative turnover. Target: the next 12 hours' return.
    Scores are summed over the symbols and by blocks of two days: neither overlap nor the market factor counts twice.
    """
    world = World(seed=seed, specs=Roster(seed, 20, specials=False).permanent(), learnable=learnable)
    bars = world.bars(np.arange(20), GENESIS_DAY + 1_000, 365)
    close = bars.close.reshape(20, -1)[:, 11::12]
    turnover = np.log((bars.volume * np.exp(bars.close)).reshape(20, -1, 12).sum(axis=2))
    total = np.cumsum(turnover, axis=1)
    t = np.arange(240, close.shape[1] - 12, 3)
    busy = (total[:, t] - total[:, t - 24]) / 24 - (total[:, t] - total[:, t - 240]) / 240
    scale = np.diff(close, axis=1).std(axis=1)[:, None]
    momentum = [np.tanh((close[:, t] - close[:, t - k]) / (scale * k**0.5)) for k in (3, 6, 12, 24, 48)]
    features = np.stack([*momentum, *(each * busy for each in momentum)], axis=-1)
    target = (close[:, t + 12] - close[:, t]) / scale
    scores = np.full(target.shape, np.nan)
    edges = np.linspace(0, len(t), 6, dtype=int)
    for first, last in itertools.pairwise(edges):
        known = features[:, : first - 8].reshape(-1, features.shape[-1])  # 24 hours of purge
        gram = known.T @ known + 50.0 * np.eye(known.shape[1])
        weights = np.linalg.solve(gram, known.T @ target[:, : first - 8].reshape(-1))
        scores[:, first:last] = features[:, first:last] @ weights * target[:, first:last]
    blocks = np.nansum(scores, axis=0)[edges[1] :]
    blocks = blocks[: len(blocks) // 16 * 16].reshape(-1, 16).sum(axis=1)
    return float(blocks.mean() / blocks.std() * np.sqrt(len(blocks)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_model_finds_an_edge_in_a_learnable_world_and_none_in_a_null_world(seed: int) -> None:
    """`quant.pipeline` and its gates agree (10 symbols x 150 days, seeds 1-8: all pass; null worlds: none does)."""
    assert walk_forward_t(learnable=True, seed=seed) > 4
    assert abs(walk_forward_t(learnable=False, seed=seed)) < 2


def test_switching_learning_off_changes_the_drift_alone() -> None:
    on, off = market(learnable=True), market(learnable=False)
    symbol = on.instruments()[0].symbol
    a, b = (np.diff(np.log(history(each, symbol, 30).close)) for each in (on, off))
    drift = a - b
    assert np.abs(drift).max() < 0.01  # per hour
    assert np.corrcoef(a, b)[0, 1] > 0.9


# --- Listings and oddities ---


def test_symbols_come_and_go_and_the_future_is_not_known(clock: Clock) -> None:
    data = SimulatedMarket(seed=7, symbols=3, now_ms=clock)
    seen: set[str] = set()
    appeared, ended = [], []
    for _ in range(120):
        clock.now += DAY_MS
        instruments = data.instruments()
        names = {each.symbol for each in instruments}
        appeared += sorted(names - seen) if seen else []
        seen |= names
        for each in instruments:
            assert each.listed_ms is not None
            assert each.listed_ms <= clock.now
            assert each.delisted_ms is None or each.delisted_ms <= clock.now
            assert each.active == (each.delisted_ms is None)
            if not each.active and each.symbol not in ended:
                ended.append(each.symbol)
                assert each.symbol not in data.tickers()
                assert len(data.candles(each.symbol, "1h", each.delisted_ms or 0, 10)) == 0
    assert 2 <= len(appeared) <= 6, "about one listing a month"
    assert 2 <= len(ended) <= 8


def test_whatever_the_clock_says_some_symbol_is_young(clock: Clock) -> None:
    data = SimulatedMarket(seed=7, symbols=3, now_ms=clock)
    for week in range(0, 104, 4):
        clock.now = START_MS + week * 7 * DAY_MS
        ages = [(clock.now - (each.listed_ms or 0)) / DAY_MS for each in data.instruments() if each.active]
        assert min(ages) < 75


def test_a_new_listing_has_no_candle_before_its_listing() -> None:
    data = market()
    young = max(data.instruments(), key=lambda each: each.listed_ms or 0)
    candles = data.candles(young.symbol, "4h", 0, 10)
    assert young.listed_ms is not None
    assert 0 <= candles.open_time[0] - young.listed_ms < TIMEFRAMES["4h"]


def test_the_gappy_symbol_lacks_candles_and_pages_never_end_in_a_gap() -> None:
    data = market()
    candles = history(data, "GAPPY/USDT:USDT", 730)
    stats = history_stats(candles, HOUR_MS, NOW, 730)
    assert 0.85 < stats.coverage < 0.95
    assert stats.largest_gap_bars >= 48
    assert stats.last_ms is not None
    assert NOW - stats.last_ms < 4 * DAY_MS


def test_the_swapped_symbol_has_a_price_break_within_two_years() -> None:
    stats = history_stats(history(market(), "SWAPPED/USDT:USDT", 730), HOUR_MS, NOW, 730)
    assert stats.price_break is not None
    assert "gap_bars=144" in stats.price_break


def test_the_late_symbol_is_always_eight_hours_behind() -> None:
    candles = history(market(), "LATE/USDT:USDT", 10)
    assert NOW - (candles.open_time[-1] + HOUR_MS) == LATE_BY_MS


def test_the_thin_symbol_has_little_turnover_and_a_wide_spread() -> None:
    tickers = market().tickers()
    thin = tickers["THIN/USDT:USDT"]
    others = [each for symbol, each in tickers.items() if symbol != thin.symbol]
    assert thin.quote_volume_24h < 0.05 * min(each.quote_volume_24h for each in others)
    assert (thin.ask - thin.bid) / thin.last > 0.004


def test_healthy_symbols_have_no_gap_and_no_price_break() -> None:
    data = market(symbols=3)
    for index in range(3):
        stats = history_stats(history(data, f"{core_name(index)}/USDT:USDT", 730), HOUR_MS, NOW, 730)
        assert (stats.coverage, stats.largest_gap_bars, stats.price_break) == (1.0, 0, None)


def test_core_names_are_unique() -> None:
    assert len({core_name(index) for index in range(4_900)}) == 4_900


# --- Hashing ---


def test_hashed_numbers_are_uniform_and_normal() -> None:
    key = np.array([stream_key(1, "test")], dtype=np.uint64)
    u = uniform(key, np.arange(200_000))
    assert np.allclose(np.histogram(u, bins=20, range=(0, 1))[0] / 10_000, 1, atol=0.05)
    z = normal_row(key, np.zeros(1, dtype=np.int64), 200_000)[0]
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z**4).mean() - 3) < 0.1
    assert abs((z[1:] * z[:-1]).mean()) < 0.01
    smooth = smooth_normal(np.arange(500, dtype=np.uint64)[:, None] * np.uint64(77), np.arange(40), 10)
    assert np.allclose(smooth.std(axis=0), 1, atol=0.12)


# --- Bad input ---


def test_an_impossible_number_of_symbols_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="symbols=0"):
        market(symbols=0)


def test_a_clock_before_the_worlds_first_day_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="begins on 2020-01-01"):
        market(now=0).instruments()

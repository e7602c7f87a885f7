"""Gap maths and price breaks: pure rules, and the real cases that they were made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchanges.archive import Archive
from marketdata.gaps import HistoryStats, continued_stats, find_price_break, history_stats
from quant.candles import Candles
from quant.timeframes import DAY_MS, HOUR_MS, TIMEFRAMES

START = 1_704_067_200_000  # 2024-01-01 UTC


def candles_at(hours: list[int] | np.ndarray, price: np.ndarray | float = 100.0) -> Candles:
    index = np.array(hours, dtype=np.int64)
    close = np.broadcast_to(np.asarray(price, dtype=np.float64), index.shape)
    return Candles(START + index * HOUR_MS, close, close * 1.01, close * 0.99, close, close)


# --- Coverage and gaps ---


def test_a_whole_history_has_full_coverage() -> None:
    stats = history_stats(candles_at(np.arange(240)), HOUR_MS, START + 240 * HOUR_MS, 30)
    assert stats == HistoryStats(START, START + 239 * HOUR_MS, 240, 240, 1.0, 0, None, None, None)


def test_no_candles_is_no_history() -> None:
    assert history_stats(Candles.empty(), HOUR_MS, START, 30) == HistoryStats(
        None, None, 0, 0, 0.0, 0, None, None, None
    )


@pytest.mark.parametrize(
    "gaps, since",
    [
        ([(100, 168)], None),  # seven days are an outage
        ([(100, 169)], 269),
        ([(100, 200), (400, 180), (700, 24)], 580),
    ],
)
def test_history_begins_anew_after_a_gap_of_more_than_seven_days(
    gaps: list[tuple[int, int]], since: int | None
) -> None:
    hours = np.arange(1000)
    for start, bars in gaps:
        hours = hours[(hours < start) | (hours >= start + bars)]
    stats = history_stats(candles_at(hours), HOUR_MS, START + 1000 * HOUR_MS, 100)
    assert stats.unbroken_since_ms == (None if since is None else START + since * HOUR_MS)


def test_the_largest_gap_is_found_with_its_first_missing_candle() -> None:
    stats = history_stats(candles_at([0, 1, 2, 10, 11, 14]), HOUR_MS, START + 15 * HOUR_MS, 30)
    assert (stats.count, stats.expected, stats.largest_gap_bars) == (6, 15, 7)
    assert stats.largest_gap_at_ms == START + 3 * HOUR_MS


def test_candles_that_stopped_are_a_gap_until_now() -> None:
    stats = history_stats(candles_at(np.arange(10)), HOUR_MS, START + 60 * HOUR_MS + 5, 30)
    assert (stats.count, stats.expected, stats.largest_gap_bars) == (10, 60, 50)
    assert stats.last_ms == START + 9 * HOUR_MS


def test_the_window_ends_the_past_and_the_running_candle_is_no_candle() -> None:
    stats = history_stats(candles_at(np.arange(24 * 40)), HOUR_MS, START + 39 * DAY_MS + 1_000, 10)
    assert stats.first_ms == START
    assert stats.last_ms == START + 39 * DAY_MS - HOUR_MS
    assert stats.count == stats.expected == 239


def test_a_gap_at_the_beginning_of_the_window_counts() -> None:
    hours = np.arange(24 * 40)
    candles = candles_at(hours[(hours < 24) | (hours >= 24 * 35)])
    stats = history_stats(candles, HOUR_MS, START + 40 * DAY_MS, 10)
    assert (stats.count, stats.largest_gap_bars) == (120, 120)
    assert stats.largest_gap_at_ms == START + 30 * DAY_MS


@given(present=st.sets(st.integers(0, 199), min_size=1), now=st.integers(0, 260), window=st.integers(1, 9))
def test_counts_and_gaps_add_up(present: set[int], now: int, window: int) -> None:
    stats = history_stats(candles_at(sorted(present)), HOUR_MS, START + now * HOUR_MS, window)
    closed = [hour for hour in sorted(present) if hour < now]
    start = max(closed[0], now - 24 * window) if closed else now
    missing = [hour for hour in range(start, now) if hour not in present]
    assert stats.expected - stats.count == len(missing)
    assert 0 <= stats.coverage <= 1
    longest = run = 0
    for hour in range(start, now):
        run = 0 if hour in present else run + 1
        longest = max(longest, run)
    assert stats.largest_gap_bars == longest


@given(
    gaps=st.sets(st.integers(0, 99), max_size=3),
    jump=st.integers(0, 400),
    first_look=st.integers(1, 99),
    later=st.integers(0, 30),
    late=st.integers(0, 3),
    window=st.integers(1, 5),
)
def test_a_continued_measurement_says_what_a_whole_one_says(
    gaps: set[int], jump: int, first_look: int, later: int, late: int, window: int
) -> None:
    def at(look: int) -> tuple[int, int, Candles]:
        """(now, since, what is stored from there on) at a look; the last `late` candles are not there yet."""
        now = START + look * HOUR_MS + 5_000
        since = (now - window * DAY_MS) // HOUR_MS * HOUR_MS
        hours = np.array([hour for hour in range(look - late) if hour not in gaps], dtype=np.int64)
        price = np.where(hours < jump, 100.0, 500.0)
        return now, since, candles_at(hours, price).between(since, now)

    now, _, candles = at(first_look)
    before = history_stats(candles, HOUR_MS, now, window)
    now, since, candles = at(first_look + later)
    tail = candles.between(before.last_ms or 0, now)
    continued = continued_stats(before, tail, HOUR_MS, now, window, since)
    if continued is not None:
        assert continued == history_stats(candles, HOUR_MS, now, window)
    elif not gaps and not late and jump >= first_look + later:
        assert later >= 24 * window, "an unbroken history is continued without looking at all of it"


def test_a_window_of_no_days_is_refused() -> None:
    with pytest.raises(ValueError, match="window_days=0"):
        history_stats(candles_at([1]), HOUR_MS, START, 0)


# --- Price breaks ---


@given(
    factor=st.floats(2.8, 1e6),
    down=st.booleans(),
    gap=st.integers(24, 900),
    at=st.integers(1, 60),
)
def test_a_token_swap_across_a_suspension_is_found(factor: float, down: bool, gap: int, at: int) -> None:
    hours = np.concatenate([np.arange(at), np.arange(at + gap, at + gap + 40)])
    price = np.where(hours < at, 100.0, 100.0 / factor if down else 100.0 * factor)
    evidence = find_price_break(candles_at(hours, price), HOUR_MS)
    assert evidence is not None
    assert evidence.startswith("PRICE_BREAK: broken_at=")
    assert f"gap_bars={gap}" in evidence


@given(
    seed=st.integers(0, 10_000),
    volatility=st.floats(0.001, 0.15),
    crash=st.floats(0.0, 2.5),
)
def test_prices_that_trade_through_what_they_pass_never_break(seed: int, volatility: float, crash: float) -> None:
    """However wild: each candle opens where the last one closed."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, volatility, 300)
    steps[150] -= crash
    close = 100 * np.exp(np.cumsum(steps))
    opened = np.concatenate([[100.0], close[:-1]])
    times = START + np.arange(300, dtype=np.int64) * HOUR_MS
    candles = Candles(times, opened, np.maximum(opened, close), np.minimum(opened, close), close, close)
    assert find_price_break(candles, HOUR_MS) is None


def test_a_break_that_has_left_the_window_is_forgiven() -> None:
    hours = np.concatenate([np.arange(48), np.arange(24 * 10, 24 * 60)])
    candles = candles_at(hours, np.where(hours < 48, 1.0, 50.0))
    now = START + 60 * DAY_MS
    assert history_stats(candles, HOUR_MS, now, 59).price_break is not None
    assert history_stats(candles, HOUR_MS, now, 40).price_break is None


# --- The real cases ---


def real(archive: Path, market: str, symbol: str) -> Candles:
    return Archive(archive, market).candles(symbol, "1h")


def judged(candles: Candles, window_days: int = 3_000) -> HistoryStats:
    return history_stats(candles, HOUR_MS, int(candles.open_time[-1]) + HOUR_MS, window_days)


@pytest.mark.archive
@pytest.mark.parametrize("symbol, gap, at", [("LUNA/USDT", 437, "2022-05-31"), ("VIDT/USDT", 221, "2022-11-09")])
def test_token_swaps_are_price_breaks(candle_archive: Path, symbol: str, gap: int, at: str) -> None:
    evidence = judged(real(candle_archive, "binance_spot", symbol)).price_break
    assert evidence is not None
    assert f"broken_at={at}" in evidence
    assert f"gap_bars={gap}" in evidence


@pytest.mark.archive
def test_a_long_suspension_without_a_swap_is_a_gap_only(candle_archive: Path) -> None:
    stats = judged(real(candle_archive, "binance_spot", "KEY/USDT"))
    assert (stats.largest_gap_bars, stats.price_break) == (677, None)


@pytest.mark.archive
@pytest.mark.parametrize("symbol, coverage", [("CVC/USDT", 0.845), ("USDC/USDT", 0.833)])
def test_low_coverage_is_measured(candle_archive: Path, symbol: str, coverage: float) -> None:
    assert judged(real(candle_archive, "binance_spot", symbol)).coverage == pytest.approx(coverage, abs=0.0006)


@pytest.mark.archive
def test_a_wick_of_52_percent_is_no_break(candle_archive: Path) -> None:
    candles = real(candle_archive, "binance_um", "ADA/USDT:USDT")
    wick = int(np.flatnonzero(candles.open_time == 1_582_909_200_000)[0])  # 2020-02-28 17:00
    assert candles.low[wick] < 0.5 * candles.open[wick]
    assert judged(candles).price_break is None


@pytest.mark.archive
def test_bitcoin_lacks_14_hours_in_seven_outages(candle_archive: Path) -> None:
    candles = real(candle_archive, "binance_spot", "BTC/USDT")
    stats = judged(candles)
    assert stats.expected - stats.count == 14
    assert int((np.diff(candles.open_time) > HOUR_MS).sum()) == 7
    assert stats.coverage > 0.999


@pytest.mark.archive
def test_nothing_but_the_two_swaps_is_a_price_break(candle_archive: Path) -> None:
    broken = set()
    for market in ("binance_um", "binance_spot", "bybit_linear", "hyperliquid"):
        archive = Archive(candle_archive, market)
        for symbol in archive.symbols:
            for timeframe in archive.timeframes(symbol):
                if find_price_break(archive.candles(symbol, timeframe), TIMEFRAMES[timeframe]) is not None:
                    broken.add((market, symbol))
    assert broken == {("binance_spot", "LUNA/USDT"), ("binance_spot", "VIDT/USDT")}

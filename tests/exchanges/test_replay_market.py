"""Replay: real candles, and nothing from after the clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchanges.archive import parse_stem
from exchanges.errors import ConfigurationError, MarketDataError
from exchanges.replay import ReplayMarket
from quant.candles import Candles
from quant.timeframes import DAY_MS, HOUR_MS, TIMEFRAMES
from tests.exchanges.conftest import START_MS, Clock, write_candles, write_funding

NOW_2025_06 = 1_748_772_180_000  # 2025-06-01 10:03 UTC


def candles_of(hours: np.ndarray, seed: int, step: int = HOUR_MS) -> Candles:
    """Candles at the given offsets (in steps) from START_MS."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, len(hours))))
    opened = close * np.exp(rng.normal(0, 0.002, len(hours)))
    return Candles(
        START_MS + hours.astype(np.int64) * step,
        opened,
        np.maximum(opened, close) * 1.001,
        np.minimum(opened, close) * 0.999,
        close,
        rng.uniform(1, 9, len(hours)),
    )


def everything_visible(data: ReplayMarket) -> list[object]:
    """All that the port tells, as comparable values."""
    told: list[object] = [data.instruments(), data.tickers()]
    for instrument in data.instruments():
        told.append(data.funding(instrument.symbol, 0, 10**9))
        for timeframe in ("1h", "2h", "4h", "1d"):
            candles = data.candles(instrument.symbol, timeframe, 0, 10**9)
            told.append(
                [column.tolist() for column in (candles.open_time, candles.high, candles.close, candles.volume)]
            )
    return told


@settings(max_examples=12)
@given(
    now_hours=st.integers(-3, 24 * 75),
    minutes=st.integers(0, 59),
    gap=st.tuples(st.integers(0, 24 * 40), st.integers(0, 24 * 35)),
)
def test_an_archive_tells_the_same_as_one_that_was_cut_at_the_clock(
    tmp_path_factory: pytest.TempPathFactory, now_hours: int, minutes: int, gap: tuple[int, int]
) -> None:
    """I14: whatever stands after the clock, nobody can tell."""
    root = tmp_path_factory.mktemp("cut")
    now = START_MS + now_hours * HOUR_MS + minutes * 60_000
    hours = np.arange(24 * 70)
    series = {
        "AAAUSDT": candles_of(hours, 1),
        "BBBUSDT": candles_of(hours[(hours < gap[0]) | (hours >= gap[0] + gap[1])], 2),
        "NEWUSDT": candles_of(hours[hours >= 24 * 20], 3),
    }
    for stem, candles in series.items():
        write_candles(root / "whole_um" / "1h" / f"{stem}.parquet", candles)
        known = candles.between(0, now - HOUR_MS + 1)
        write_candles(root / "cut_um" / "1h" / f"{stem}.parquet", known)
        times = [START_MS + i * 8 * HOUR_MS for i in range(200)]
        write_funding(root / "whole_um" / "funding" / f"{stem}.parquet", times, [0.0001 * i for i in range(200)])
        past = [time for time in times if time <= now]
        write_funding(root / "cut_um" / "funding" / f"{stem}.parquet", past, [0.0001 * i for i in range(len(past))])
    whole, cut = (ReplayMarket(archive=root, market=name, now_ms=lambda: now) for name in ("whole_um", "cut_um"))
    assert everything_visible(whole) == everything_visible(cut)


def test_a_symbol_is_listed_from_its_first_candle_and_gone_thirty_days_after_its_last(
    tmp_path: Path, clock: Clock
) -> None:
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", candles_of(np.arange(48), 1))
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    last_close = START_MS + 48 * HOUR_MS
    clock.now = START_MS + HOUR_MS - 1
    assert data.instruments() == []
    clock.now = START_MS + HOUR_MS
    assert [(each.listed_ms, each.active) for each in data.instruments()] == [(START_MS, True)]
    clock.now = last_close + 30 * DAY_MS
    assert data.instruments()[0].active
    assert "AAA/USDT:USDT" in data.tickers()
    clock.now += 1
    assert (data.instruments()[0].active, data.instruments()[0].delisted_ms) == (False, last_close)
    assert data.tickers() == {}


def test_missing_timeframes_are_aggregated_and_stored_ones_are_not(tmp_path: Path, clock: Clock) -> None:
    hourly = candles_of(np.arange(24 * 3), 1)
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", hourly)
    four = candles_of(np.arange(18), 5, step=4 * HOUR_MS)  # disagrees with 1h, as real exchanges' bars sometimes do
    write_candles(tmp_path / "x_um" / "4h" / "AAAUSDT.parquet", four)
    clock.now = START_MS + 3 * DAY_MS
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    assert np.array_equal(data.candles("AAA/USDT:USDT", "4h", 0, 100).close, four.close)
    two = data.candles("AAA/USDT:USDT", "2h", START_MS, 100)
    assert np.array_equal(two.open, hourly.open[::2])
    assert np.array_equal(two.close, hourly.close[1::2])
    assert np.array_equal(two.high, hourly.high.reshape(-1, 2).max(axis=1))
    assert np.array_equal(two.low, hourly.low.reshape(-1, 2).min(axis=1))
    assert np.allclose(two.volume, hourly.volume.reshape(-1, 2).sum(axis=1))


def test_a_running_aggregate_is_not_shown(tmp_path: Path, clock: Clock) -> None:
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", candles_of(np.arange(24), 1))
    clock.now = START_MS + 7 * HOUR_MS
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    assert data.candles("AAA/USDT:USDT", "4h", 0, 10).open_time.tolist() == [START_MS]


def test_aggregated_pages_are_full_across_gaps(tmp_path: Path, clock: Clock) -> None:
    hours = np.arange(24 * 30)
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", candles_of(hours[(hours < 8) | (hours >= 24 * 20)], 1))
    clock.now = START_MS + 30 * DAY_MS
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    page = data.candles("AAA/USDT:USDT", "4h", START_MS, 5)
    assert ((page.open_time - START_MS) // HOUR_MS).tolist() == [0, 4, 480, 484, 488]


def test_what_it_hands_out_cannot_be_changed_by_the_caller(tmp_path: Path, clock: Clock) -> None:
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", candles_of(np.arange(24), 1))
    clock.now = START_MS + DAY_MS
    candles = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock).candles("AAA/USDT:USDT", "1h", 0, 10)
    with pytest.raises(ValueError, match="read-only"):
        candles.close[0] = 1.0


# --- Names ---


@pytest.mark.parametrize(
    "stem, market, symbol",
    [
        ("BTCUSDT", "binance_um", "BTC/USDT:USDT"),
        ("1000PEPEUSDT", "bybit_linear", "1000PEPE/USDT:USDT"),
        ("BTCUSDT", "binance_spot", "BTC/USDT"),
        ("USDCUSDT", "binance_spot", "USDC/USDT"),
        ("kPEPEUSDC", "hyperliquid", "kPEPE/USDC:USDC"),
    ],
)
def test_file_names_become_unified_symbols(stem: str, market: str, symbol: str) -> None:
    assert parse_stem(stem, market).symbol == symbol


# --- Bad input ---


def test_a_missing_archive_is_named(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(ConfigurationError, match=r"CANDLE_ARCHIVE=.*nowhere is not a folder; set it to"):
        ReplayMarket(archive=tmp_path / "nowhere", market="x_um", now_ms=clock)


def test_an_unknown_market_is_refused_with_those_that_exist(small_archive: Path, clock: Clock) -> None:
    with pytest.raises(ConfigurationError, match=r"EXCHANGE_MARKET='kraken'.*choose one of: sim_um"):
        ReplayMarket(archive=small_archive, market="kraken", now_ms=clock)


def test_a_market_without_candles_is_refused(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "x_um" / "7m").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="holds no candles"):
        ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)


def test_a_file_with_a_strange_name_is_named(tmp_path: Path, clock: Clock) -> None:
    write_candles(tmp_path / "x_um" / "1h" / "notes.parquet", candles_of(np.arange(3), 1))
    with pytest.raises(ConfigurationError, match=r"notes\.parquet.*name files like BTCUSDT\.parquet"):
        ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)


def test_a_broken_file_stops_its_symbol_and_no_other(tmp_path: Path, clock: Clock) -> None:
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", candles_of(np.arange(24), 1))
    broken = tmp_path / "x_um" / "1h" / "BADUSDT.parquet"
    broken.write_bytes((tmp_path / "x_um" / "1h" / "AAAUSDT.parquet").read_bytes()[:-20])
    clock.now = START_MS + DAY_MS
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    good, bad = data.instruments()
    assert (good.symbol, good.trouble) == ("AAA/USDT:USDT", "")
    # It is listed with its trouble: one that vanished would be taken for delisted.
    assert (bad.symbol, bad.delisted_ms) == ("BAD/USDT:USDT", None)
    assert "BADUSDT.parquet cannot be read" in bad.trouble
    assert data.troubles() == [f"BAD/USDT:USDT: {bad.trouble}"]
    broken.write_bytes((tmp_path / "x_um" / "1h" / "AAAUSDT.parquet").read_bytes())
    assert [each.trouble for each in data.instruments()] == ["", ""], "a mended file is found by the same process"
    broken.write_bytes(b"")
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    assert list(data.tickers()) == ["AAA/USDT:USDT"]
    with pytest.raises(MarketDataError, match=r"BAD/USDT:USDT: .*BADUSDT\.parquet cannot be read"):
        data.candles("BAD/USDT:USDT", "1h", 0, 10)
    assert list(data.candles_many(["AAA/USDT:USDT", "BAD/USDT:USDT"], "1h", 0, 10)) == ["AAA/USDT:USDT"]


SOUND_ROW: dict[str, object] = {
    "timestamp": START_MS,
    "open": 1.0,
    "high": 1.0,
    "low": 1.0,
    "close": 1.0,
    "volume": 1.0,
}


@pytest.mark.parametrize(
    "row, text",
    [
        ({"time": 1, "price": 1.0}, "lacks the columns timestamp, open, high, low, close, volume"),
        (SOUND_ROW | {"timestamp": "2025-01-01"}, "column timestamp holds object; it must hold whole numbers"),
        (SOUND_ROW | {"open": "1"}, "column open holds object; it must hold numbers"),
        (SOUND_ROW | {"open": float("nan")}, "opens at nan; it must be above zero"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_rule(
    tmp_path: Path, clock: Clock, row: dict[str, object], text: str
) -> None:
    path = tmp_path / "x_um" / "1h" / "BADUSDT.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), path)
    clock.now = START_MS + DAY_MS
    (bad,) = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock).instruments()
    assert text in bad.trouble


def test_the_bounds_of_an_archive_come_from_its_footers(small_archive: Path, clock: Clock) -> None:
    data = ReplayMarket(archive=small_archive, market="sim_um", now_ms=clock)
    end = START_MS + 30 * DAY_MS
    assert data.bounds_ms() == (end - 120 * DAY_MS + HOUR_MS, end)
    assert data._archive._candles == {}, "no candle was read for it"


def test_grids_stay_as_they_are_whatever_the_price_does(tmp_path: Path, clock: Clock) -> None:
    """A position of today's lots must fit tomorrow's: else what is left is less than one lot and cannot be closed."""
    falling = candles_of(np.arange(500), 1)
    scale = np.geomspace(1, 1e-3, 500)
    columns = (falling.open, falling.high, falling.low, falling.close)
    candles = Candles(falling.open_time, *(column * scale for column in columns), falling.volume)
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", candles)
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    grids = set()
    for hours in (1, 100, 300, 500):
        clock.now = START_MS + hours * HOUR_MS
        (each,) = data.instruments()
        grids.add((each.tick_size, each.lot_size, each.min_quantity))
    assert len(grids) == 1
    assert float(each.tick_size) < 1e-3 * candles.close[-1], "fine enough also for the last price"


def test_unsorted_timestamps_are_named(tmp_path: Path, clock: Clock) -> None:
    write_candles(tmp_path / "x_um" / "1h" / "AAAUSDT.parquet", candles_of(np.array([0, 2, 1]), 1))
    data = ReplayMarket(archive=tmp_path, market="x_um", now_ms=clock)
    with pytest.raises(MarketDataError, match="in row 2 does not ascend"):
        data.candles("AAA/USDT:USDT", "1h", 0, 10)


def test_a_timeframe_that_cannot_be_had_is_refused_with_those_that_can(small_archive: Path, clock: Clock) -> None:
    data = ReplayMarket(archive=small_archive, market="sim_um", now_ms=clock)
    with pytest.raises(ConfigurationError, match=r"timeframe='5m'.*it holds 1h"):
        data.candles(data.instruments()[0].symbol, "5m", 0, 10)


# --- The real archive ---


@pytest.mark.archive
def test_the_summer_of_2025_starts_with_39_binance_perpetuals(candle_archive: Path) -> None:
    data = ReplayMarket(archive=candle_archive, market="binance_um", now_ms=lambda: NOW_2025_06)
    instruments = data.instruments()
    assert len(instruments) == 39
    assert all(each.active and each.market_type == "swap" for each in instruments)
    ticker = data.tickers()["BTC/USDT:USDT"]
    assert 90_000 < ticker.last < 120_000
    assert 1e9 < ticker.quote_volume_24h < 1e11
    assert ticker.time_ms == NOW_2025_06 // HOUR_MS * HOUR_MS
    assert max(each.listed_ms or 0 for each in instruments) <= NOW_2025_06


@pytest.mark.archive
def test_five_hyperliquid_symbols_are_delisted_and_two_not_yet_listed(candle_archive: Path) -> None:
    data = ReplayMarket(archive=candle_archive, market="hyperliquid", now_ms=lambda: NOW_2025_06)
    by_name = {each.base: each for each in data.instruments()}
    assert {name for name, each in by_name.items() if not each.active} == {"AI", "BADGER", "CATI", "ILV", "NTRN"}
    assert "PUMP" not in by_name


@pytest.mark.archive
def test_a_gap_of_28_days_is_no_delisting(candle_archive: Path) -> None:
    clock = Clock()
    data = ReplayMarket(archive=candle_archive, market="binance_spot", now_ms=clock)
    clock.now = 1_675_994_400_000 + 677 * HOUR_MS  # the last hour of KEYUSDT's gap, from 2023-02-10 02:00
    assert {each.symbol: each.active for each in data.instruments()}["KEY/USDT"]


@pytest.mark.archive
def test_funding_keeps_its_changing_intervals(candle_archive: Path) -> None:
    data = ReplayMarket(archive=candle_archive, market="bybit_linear", now_ms=lambda: NOW_2025_06)
    times = [rate.time_ms for rate in data.funding("WIF/USDT:USDT", 0, 10**9)]
    assert {4 * HOUR_MS, 8 * HOUR_MS} <= {int(step) for step in np.diff(times)}


@pytest.mark.archive
def test_every_timeframe_it_claims_can_be_had_for_bitcoin(candle_archive: Path) -> None:
    data = ReplayMarket(archive=candle_archive, market="bybit_linear", now_ms=lambda: NOW_2025_06)
    for timeframe in data.capabilities.timeframes:
        candles = data.candles("BTC/USDT:USDT", timeframe, NOW_2025_06 - 20 * DAY_MS, 3_000)
        candles.validate(TIMEFRAMES[timeframe])
        assert (
            candles.open_time[-1]
            == NOW_2025_06 // TIMEFRAMES[timeframe] * TIMEFRAMES[timeframe] - TIMEFRAMES[timeframe]
        )

"""A replay that cannot work is refused at set-up and start: the value, the rule, the fix, and nothing written."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from coverage_app import checks, facts, market, services
from coverage_app.models import Block, Symbol
from ops_app import clock
from ops_app.models import JobRun, MarketClock

HOUR_MS, DAYS = 3_600_000, 120
BEGIN = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
END = BEGIN + dt.timedelta(days=DAYS)
GOOD = "AAA/USDT:USDT"


def write(path: Path, *, bars: int = DAYS * 24, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    close = 100 + np.sin(np.arange(bars) / 9)
    opened = np.concatenate([close[:1], close[:-1]])
    table = {
        "timestamp": int(BEGIN.timestamp() * 1000) + np.arange(bars) * HOUR_MS,
        "open": opened,
        "high": np.maximum(opened, close) + 0.1,
        "low": np.minimum(opened, close) - 0.1,
        "close": close,
        "volume": np.full(bars, 1e6),
    }
    pq.write_table(pa.table(table | columns), path)


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """An archive of one sound symbol; the settings name it."""
    folder = tmp_path / "archive" / "x_um" / "1h"
    write(folder / "AAAUSDT.parquet")
    settings.EXCHANGE, settings.EXCHANGE_MARKET = "replay", "x_um"
    settings.CANDLE_ARCHIVE = tmp_path / "archive"
    settings.REPLAY_FROM, settings.TIMEFRAME = "2025-04-20", "1h"
    settings.CANDLES_DIR = tmp_path / "candles"
    market.reset()
    yield folder
    market.reset()


def messages() -> list[str]:
    return [f"{each.id} {each.msg} {each.hint or ''}" for each in checks.check_archive(None)]


def test_a_sound_archive_has_no_message(folder: Path) -> None:
    assert messages() == []


def test_other_exchanges_have_no_archive_to_check(folder: Path, settings: Any) -> None:
    settings.EXCHANGE, settings.CANDLE_ARCHIVE = "simulated", None
    assert messages() == []


def test_a_folder_that_is_missing_is_named(folder: Path, settings: Any, tmp_path: Path) -> None:
    settings.CANDLE_ARCHIVE = tmp_path / "nowhere"
    (text,) = messages()
    assert "coverage.E001" in text
    assert "nowhere is not a folder; set it to" in text


def test_an_unknown_market_is_named_with_those_that_exist(folder: Path, settings: Any) -> None:
    settings.EXCHANGE_MARKET = "y_um"
    (text,) = messages()
    assert "EXCHANGE_MARKET='y_um' is not in the archive" in text
    assert "choose one of: x_um" in text


def test_a_market_without_parquet_is_named(folder: Path) -> None:
    (folder / "AAAUSDT.parquet").unlink()
    (text,) = messages()
    assert "holds no candles; it needs <timeframe>/<SYMBOL>.parquet" in text


def test_a_market_without_a_readable_file_is_an_error(folder: Path) -> None:
    (folder / "AAAUSDT.parquet").write_bytes(b"PAR1")
    (text,) = messages()
    assert "coverage.E001" in text
    assert "no file of the archive's market x_um can be read; first: AAA/USDT:USDT" in text


def test_one_file_that_cannot_be_read_is_a_warning_with_its_name(folder: Path) -> None:
    whole = (folder / "AAAUSDT.parquet").read_bytes()
    (folder / "BADUSDT.parquet").write_bytes(whole[: len(whole) // 2])
    (text,) = messages()
    assert "coverage.W001 1 files of the candle archive cannot be used" in text
    assert "BADUSDT.parquet cannot be read" in text


def test_a_timeframe_that_cannot_be_made_is_named_with_those_that_can(folder: Path, settings: Any) -> None:
    settings.TIMEFRAME = "15m"
    (text,) = messages()
    assert "coverage.E002 TIMEFRAME='15m' cannot be had from the archive of x_um" in text
    assert "Use one of: 1h, 2h, 4h" in text


@pytest.mark.parametrize(
    "value, rule",
    [
        ("2024-12-31", "is before the first candle has closed"),
        ("2025-05-01", "is not before the last candle has closed"),
        ("2025-02-30", "is not a date of the calendar"),
    ],
)
def test_a_start_outside_the_archive_is_named_with_its_bounds(
    folder: Path, settings: Any, value: str, rule: str
) -> None:
    settings.REPLAY_FROM = value
    (text,) = messages()
    assert value in text
    assert rule in text
    if "calendar" not in rule:
        assert "goes from 2025-01-01 01:00 to 2025-05-01 00:00 UTC" in text


@pytest.mark.django_db
@pytest.mark.parametrize("command", ["setup", "runall"])
def test_setup_and_runall_refuse_before_they_write_anything(folder: Path, settings: Any, command: str) -> None:
    settings.REPLAY_FROM = "2026-01-01"
    with pytest.raises(SystemCheckError, match=r"REPLAY_FROM=2026-01-01 is not before the last candle"):
        call_command(command, skip_checks=False, stdout=io.StringIO())
    assert not MarketClock.objects.exists()
    assert not JobRun.objects.exists()


# --- What only shows later stops its symbol, with the reason


def judge_everything() -> services.IngestReport:
    assert services.refresh_universe().error == ""
    report = services.ingest(symbol_ids=list(Symbol.objects.values_list("pk", flat=True)), budget_seconds=None)
    services.evaluate_due()
    return report


def evidence(code: str) -> dict[str, str]:
    return dict(Block.objects.open().filter(symbol__code=code).values_list("reason", "evidence"))


@pytest.mark.django_db
def test_a_file_that_cannot_be_read_blocks_its_symbol_until_it_is_mended(folder: Path) -> None:
    whole = (folder / "AAAUSDT.parquet").read_bytes()
    (folder / "BADUSDT.parquet").write_bytes(whole[:-100])
    with clock.simulated(END - dt.timedelta(days=2, minutes=-1)) as sim:
        judge_everything()
        assert evidence(GOOD) == {}
        assert "UNREADABLE" in evidence("BAD/USDT:USDT")["NOT_IN_UNIVERSE"]
        assert "BADUSDT.parquet" in evidence("BAD/USDT:USDT")["NOT_IN_UNIVERSE"]
        (folder / "BADUSDT.parquet").write_bytes(whole)
        sim.advance(dt.timedelta(hours=2))
        judge_everything()
        assert evidence("BAD/USDT:USDT") == {}


@pytest.mark.django_db
def test_a_file_that_breaks_under_a_running_bot_is_no_delisting(folder: Path) -> None:
    write(folder / "BBBUSDT.parquet")
    with clock.simulated(END - dt.timedelta(days=2, minutes=-1)) as sim:
        judge_everything()
        (folder / "BBBUSDT.parquet").write_bytes(b"PAR1")
        market.reset()  # another process, which has not read the file before
        sim.advance(dt.timedelta(hours=2))
        judge_everything()
        symbol = Symbol.objects.get(base="BBB")
        assert (symbol.active, symbol.delisted_at) == (True, None)
        assert "UNREADABLE" in evidence(symbol.code)["NOT_IN_UNIVERSE"]
        assert "DELISTED" not in evidence(symbol.code)


@pytest.mark.django_db
def test_candles_that_break_their_order_stop_the_symbol_and_only_sound_pages_are_stored(folder: Path) -> None:
    high = 100 + np.sin(np.arange(DAYS * 24) / 9) + 0.2
    high[2_500] = 1.0
    write(folder / "BADUSDT.parquet", high=high)
    with clock.simulated(END - dt.timedelta(days=2, minutes=-1)):
        report = judge_everything()
        assert "high is 1.0; it must not be below open or close" in report.failed["BAD/USDT:USDT"]
        assert "BAD_CANDLES" in evidence("BAD/USDT:USDT")["EXCHANGE_ERROR"]
        assert evidence(GOOD) == {}
        assert "BAD/USDT:USDT" not in market.candle_store().last_open_times("x_um", "1h")


# --- A fast clock


@pytest.mark.django_db
def test_on_a_fast_clock_the_time_of_our_own_work_makes_no_symbol_stale(settings: Any) -> None:
    settings.TIMEFRAME = "1h"
    assert facts.coverage_policy().stale_after_bars == 3
    MarketClock.objects.create(market="x_um", source="replay", market_start=BEGIN, real_start=BEGIN, speed=3600.0)
    clock.forget()
    try:
        assert facts.coverage_policy().stale_after_bars == 63, "a minute of real time is 60 bars"
    finally:
        clock.forget()

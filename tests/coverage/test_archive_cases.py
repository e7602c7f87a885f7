"""Real candles with real oddities: each symbol of the archive gets the block reason that its history deserves."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Sum

from coverage_app import market, services
from coverage_app.models import Block, Symbol
from ops_app import clock
from ops_app.clock import SimulatedClock
from ops_app.models import Alert

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

SPOT_MOMENT = dt.datetime(2023, 12, 30, 21, 0, 10, tzinfo=dt.UTC)
ONLY_4H = "no 1h candles in the archive; it has 4h"
PERPETUAL_MOMENT = dt.datetime(2025, 7, 26, 4, 0, 10, tzinfo=dt.UTC)


@pytest.fixture
def replay(candle_archive: Path, tmp_path: Path, settings: Any) -> Iterator[Any]:
    """`replay(market, moment)`: the clock stands at that moment of that market; everything visible is ingested."""
    settings.EXCHANGE = "replay"
    settings.CANDLE_ARCHIVE = candle_archive
    settings.CANDLES_DIR = tmp_path / "candles"
    settings.UNIVERSE_MIN_VOLUME = 0.0
    stack: list[Any] = []

    def start(name: str, moment: dt.datetime) -> SimulatedClock:
        settings.EXCHANGE_MARKET = name
        market.reset()
        context = clock.simulated(moment)
        stack.append(context)
        simulated = context.__enter__()
        judge_everything()
        return simulated

    yield start
    for context in stack:
        context.__exit__(None, None, None)
    market.reset()


def judge_everything() -> None:
    assert services.refresh_universe().error == ""
    report = services.ingest(symbol_ids=list(Symbol.objects.values_list("pk", flat=True)), budget_seconds=None)
    assert all(error.endswith(ONLY_4H) for error in report.failed.values())
    services.evaluate_due()


def reasons() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {
        code.partition("/")[0]: set() for code in Symbol.objects.values_list("code", flat=True)
    }
    for code, reason in Block.objects.open().values_list("symbol__code", "reason"):
        found[code.partition("/")[0]].add(reason)
    return found


def evidence(base: str, reason: str) -> str:
    return Block.objects.open().get(symbol__base=base, reason=reason).evidence


def test_binance_spot_at_the_end_of_2023(replay: Any) -> None:
    replay("binance_spot", SPOT_MOMENT)
    found = reasons()
    assert found["BTC"] == found["ZIL"] == set(), "healthy ones are not blocked"
    assert found["LUNA"] == {"PRICE_BREAK"}
    assert "gap_bars" in evidence("LUNA", "PRICE_BREAK")
    assert found["VIDT"] == {"PRICE_BREAK"}
    assert found["CVC"] == {"LOW_COVERAGE"}
    assert found["USDC"] == {"LOW_COVERAGE"}
    assert "largest_gap_bars=3995" in evidence("USDC", "LOW_COVERAGE")
    for base in ("BTT", "NANO", "ANC", "HNT", "KEEP", "ANY"):
        assert "DELISTED" in found[base], base
    assert found["1000SATS"] == {"SHORT_HISTORY"}
    assert "have_days=18" in evidence("1000SATS", "SHORT_HISTORY")
    # A gap of 28 days is shown, but 97 % of the history is there and the price goes on where it stopped.
    key = Symbol.objects.get(base="KEY")
    assert found["KEY"] == set()
    assert key.largest_gap_bars == 677
    assert 0.95 < key.history_coverage < 0.98
    # The listing of tomorrow is not known today.
    assert not Symbol.objects.filter(listed_at__gt=SPOT_MOMENT).exists()


def test_history_begins_anew_after_a_suspension_of_28_days(replay: Any) -> None:
    """KEYUSDT was suspended from 2023-02-10 03:00 to 2023-03-10 08:00: 90 days after that it counts again."""
    back = dt.datetime(2023, 2, 10, 3, tzinfo=dt.UTC) + dt.timedelta(hours=677)
    simulated = replay("binance_spot", back + dt.timedelta(days=40))
    assert reasons()["KEY"] == {"SHORT_HISTORY"}
    text = evidence("KEY", "SHORT_HISTORY")
    assert "have_days=40" in text
    assert f"since_at={back:%Y-%m-%dT%H:%MZ}, rule=history begins anew after a long gap" in text
    assert Block.objects.open().get(symbol__base="KEY").recheck_at == back + dt.timedelta(days=90)
    assert Symbol.objects.get(base="KEY").history_days > 700, "what is stored stays"
    simulated.advance(dt.timedelta(days=50, minutes=10))
    judge_everything()
    assert reasons()["KEY"] == set()


def test_the_end_of_an_archive_is_the_end_of_its_symbols(replay: Any) -> None:
    simulated = replay("hyperliquid", PERPETUAL_MOMENT)
    assert reasons()["BTC"] == set()
    simulated.advance(dt.timedelta(days=1))
    judge_everything()
    assert reasons()["BTC"] == {"STALE_DATA"}
    simulated.advance(dt.timedelta(days=30))
    judge_everything()
    assert all("DELISTED" in found for found in reasons().values())
    assert not Symbol.objects.filter(in_universe=True).exists()
    assert "Every symbol of hyperliquid has ended" in Alert.objects.get(key="universe:hyperliquid").text
    evaluations = Symbol.objects.aggregate(sum=Sum("evaluations"))["sum"]
    for _ in range(24):
        simulated.advance(dt.timedelta(hours=1))
        judge_everything()
    assert Symbol.objects.aggregate(sum=Sum("evaluations"))["sum"] - evaluations <= 2 * Symbol.objects.count()


def test_hyperliquid_in_the_summer_of_2025(replay: Any) -> None:
    replay("hyperliquid", PERPETUAL_MOMENT)
    found = reasons()
    assert found["BTC"] == found["ETH"] == set()
    for base in ("AI", "BADGER", "CATI", "ILV", "NTRN"):
        assert "DELISTED" in found[base], base
    assert found["PUMP"] == found["SYRUP"] == {"SHORT_HISTORY"}
    assert found["LINK"] == {"EXCHANGE_ERROR", "SHORT_HISTORY"}
    assert ONLY_4H in evidence("LINK", "EXCHANGE_ERROR")
    block = Block.objects.open().get(symbol__base="PUMP")
    assert block.recheck_at == Symbol.objects.get(base="PUMP").history_start + dt.timedelta(days=90)


def test_a_series_that_stopped_is_stale_at_first_and_delisted_after_thirty_days(replay: Any) -> None:
    """ILV's last candle on Hyperliquid is of 2025-04-03 18:00."""
    simulated = replay("hyperliquid", dt.datetime(2025, 4, 3, 19, 0, 10, tzinfo=dt.UTC))
    assert reasons()["ILV"] == set()
    simulated.advance(dt.timedelta(hours=6))
    judge_everything()
    assert reasons()["ILV"] == {"STALE_DATA"}
    simulated.advance(dt.timedelta(days=31))
    judge_everything()
    assert "DELISTED" in reasons()["ILV"]
    assert "STALE_DATA" not in reasons()["ILV"]


def test_a_young_symbol_becomes_ready_when_it_is_old_enough(replay: Any, settings: Any) -> None:
    """INIT on Hyperliquid begins on 2025-04-24 11:00: 90 days later its block ends by itself."""
    began = dt.datetime(2025, 4, 24, 11, tzinfo=dt.UTC)
    simulated = replay("hyperliquid", began + dt.timedelta(days=60))
    assert reasons()["INIT"] == {"SHORT_HISTORY"}
    simulated.advance(dt.timedelta(days=30, hours=1))
    judge_everything()
    assert reasons()["INIT"] == set()
    closed = Block.objects.get(symbol__base="INIT", reason="SHORT_HISTORY")
    assert closed.recheck_at == began + dt.timedelta(days=90)
    assert closed.closed_at == simulated.now

"""Candles and funding on their way into the store: resumable, one symbol's error its own, figures with every write."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from coverage_app import market, selectors, services, tasks
from coverage_app.models import Block, Symbol
from coverage_app.services import candles as ingest_module
from exchanges.errors import ExchangeUnavailableError, MarketDataError
from marketdata.errors import StoreError
from marketdata.gaps import history_stats
from marketdata.store import CandleStore
from ops_app import leases
from ops_app.clock import SimulatedClock
from ops_app.models import Alert
from ops_app.queue import Message
from quant.candles import Candles
from quant.timeframes import from_ms, to_ms
from tests.coverage.scripted_market import PAGE, ScriptedMarket
from tests.factories import DAY, EPOCH, HOUR, SymbolFactory

pytestmark = pytest.mark.django_db

MINUTE = dt.timedelta(minutes=1)
TARGET = 100  # days
CODES = ("AAA/USDT:USDT", "BBB/USDT:USDT", "CCC/USDT:USDT")
FLUSH = PAGE * 2


@pytest.fixture
def exchange(settings: Any, store: CandleStore) -> ScriptedMarket:
    settings.HISTORY_TARGET_DAYS = TARGET
    scripted = ScriptedMarket(*CODES)
    market.use(scripted)
    return scripted


@pytest.fixture
def symbols(sim: SimulatedClock) -> list[Symbol]:
    return [SymbolFactory(fresh=True, code=code) for code in CODES]


def ingest_all() -> services.IngestReport:
    return services.ingest(symbol_ids=list(Symbol.objects.values_list("pk", flat=True)))


def test_a_backfill_brings_the_target_history_and_its_figures(
    exchange: ScriptedMarket, symbols: list[Symbol], store: CandleStore
) -> None:
    report = ingest_all()
    assert (report.symbols, report.backfilled, report.failed) == (3, 3, {})
    assert report.candles == 3 * TARGET * 24
    for symbol in Symbol.objects.all():
        assert symbol.history_start == EPOCH - TARGET * DAY
        assert symbol.last_candle_at == EPOCH - HOUR
        assert (symbol.candle_count, symbol.expected_count, symbol.history_coverage) == (TARGET * 24, TARGET * 24, 1.0)
        assert symbol.history_days == TARGET
        assert symbol.backfilled
        assert symbol.ingest_due_at == EPOCH + HOUR + 5 * MINUTE / 60
    stored = store.read("simulated", "1h")
    assert {code: len(candles) for code, candles in stored.items()} == dict.fromkeys(CODES, TARGET * 24)
    times, rates = store.read_funding("simulated")[CODES[0]]
    assert len(times) == TARGET * 3 + 1
    assert set(rates) == {1e-4}


def test_only_the_newest_candle_is_asked_for_later(
    exchange: ScriptedMarket, symbols: list[Symbol], sim: SimulatedClock
) -> None:
    ingest_all()
    exchange.asked.clear()
    assert services.ring_ingest() == 0, "nothing is due before the next close"
    sim.advance(HOUR + MINUTE)
    assert services.ring_ingest() == 3
    assert ingest_all().candles == 3
    assert exchange.asked == [(code, to_ms(EPOCH)) for code in CODES]
    assert set(Symbol.objects.values_list("last_candle_at", flat=True)) == {EPOCH}


def test_figures_that_follow_an_unbroken_history_are_those_of_a_whole_look(
    exchange: ScriptedMarket, symbols: list[Symbol], sim: SimulatedClock, store: CandleStore, settings: Any
) -> None:
    settings.HISTORY_TARGET_DAYS = 3
    exchange.trouble[CODES[1]] = lambda page: page.take(page.open_time % (7 * to_ms(from_ms(0) + HOUR)) != 0)
    whole = to_ms(from_ms(0) + HOUR)
    for _ in range(30):
        ingest_all()
        for symbol in Symbol.objects.filter(last_candle_at=sim.now - HOUR):  # measured when a candle came
            now, since = to_ms(sim.now), to_ms(sim.now - 3 * DAY) // whole * whole
            stored = store.read("simulated", "1h", symbols=[symbol.code], since_ms=since)[symbol.code]
            stats = history_stats(stored, whole, now, 3)
            assert (symbol.candle_count, symbol.expected_count, symbol.largest_gap_bars) == (
                stats.count, stats.expected, stats.largest_gap_bars
            )  # fmt: skip
            assert (to_ms(symbol.history_start or EPOCH), to_ms(symbol.last_candle_at or EPOCH)) == (
                stats.first_ms, stats.last_ms
            )  # fmt: skip
        sim.advance(HOUR)
    gappy = Symbol.objects.get(code=CODES[1])
    assert gappy.candle_count < gappy.expected_count, "one of them has gaps"


def test_an_exchange_with_bulk_candles_is_asked_in_bulk(
    exchange: ScriptedMarket, symbols: list[Symbol], sim: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange.capabilities = ScriptedMarket(bulk=True).capabilities
    ingest_all()
    sim.advance(2 * HOUR)
    calls: list[list[str]] = []
    many = exchange.candles_many

    def counted(codes: Any, *arguments: Any) -> dict[str, Candles]:
        calls.append(list(codes))
        return many(codes, *arguments)

    monkeypatch.setattr(exchange, "candles_many", counted)
    assert ingest_all().candles == 6
    assert calls == [list(CODES)]


def test_a_killed_backfill_goes_on_where_the_store_ends(
    exchange: ScriptedMarket, symbols: list[Symbol], store: CandleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "FLUSH_CANDLES", FLUSH)
    pages = 0

    def killed_after_three(page: Candles) -> Candles:
        nonlocal pages
        pages += 1
        if pages > 3:
            raise KeyboardInterrupt
        return page

    exchange.trouble[CODES[0]] = killed_after_three
    with pytest.raises(KeyboardInterrupt):
        ingest_all()
    symbol = Symbol.objects.get(code=CODES[0])
    assert symbol.candle_count == FLUSH, "two pages were stored, the third was in memory"
    assert not symbol.backfilled
    assert len(store.read("simulated", "1h")[CODES[0]]) == FLUSH

    exchange.trouble.clear()
    exchange.asked.clear()
    ingest_all()
    resumed = to_ms(symbol.last_candle_at) + to_ms(from_ms(0) + HOUR)
    assert exchange.asked[0] == (CODES[0], resumed)
    symbol.refresh_from_db()
    assert (symbol.candle_count, symbol.backfilled) == (TARGET * 24, True)


def test_progress_shows_while_a_backfill_runs(
    exchange: ScriptedMarket, symbols: list[Symbol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "FLUSH_SYMBOLS", 1)
    seen: list[tuple[int, int]] = []

    def look(page: Candles) -> Candles:
        progress = selectors.backfill_progress("simulated")
        seen.append((progress.done, progress.total))
        return page

    exchange.trouble = dict.fromkeys(CODES, look)
    ingest_all()
    assert sorted(set(seen)) == [(0, 3), (1, 3), (2, 3)]
    assert selectors.backfill_progress("simulated").fraction == 1.0


def test_r4_one_symbols_error_stops_only_that_symbol_and_is_asked_for_again(
    exchange: ScriptedMarket, symbols: list[Symbol], sim: SimulatedClock
) -> None:
    def refuse(_: Candles) -> Candles:
        raise MarketDataError(CODES[0], "HTTP 500")

    exchange.trouble[CODES[0]] = refuse
    report = ingest_all()
    assert report.failed == {CODES[0]: "MARKET_DATA: error=HTTP 500"}
    assert report.symbols == 2
    services.evaluate_due()
    assert set(Block.objects.open().values_list("symbol__code", "reason")) == {
        (CODES[0], "EXCHANGE_ERROR"),
        (CODES[0], "SHORT_HISTORY"),
    }
    waits = []
    for _ in range(4):
        broken = Symbol.objects.get(code=CODES[0])
        assert broken.ingest_due_at is not None
        waits.append(broken.ingest_due_at - sim.now)
        sim.advance(waits[-1])
        services.ingest(symbol_ids=[broken.pk])
    assert waits == sorted(waits)
    assert waits[-1] >= 4 * waits[0] * 0.9

    exchange.trouble.clear()
    sim.advance(HOUR)
    ingest_all()
    sim.advance(6 * HOUR)
    ingest_all()
    services.evaluate_due()
    assert not Block.objects.open().exists()
    assert Symbol.objects.get(code=CODES[0]).ingest_failures == 0


def test_candles_that_break_a_rule_are_named_and_nothing_of_their_page_is_stored(
    exchange: ScriptedMarket, symbols: list[Symbol], store: CandleStore
) -> None:
    pages = 0

    def high_below_low(page: Candles) -> Candles:
        nonlocal pages
        pages += 1
        if pages != 2:
            return page
        high = page.high.copy()
        high[7] = page.low[7] / 2
        return Candles(page.open_time, page.open, high, page.low, page.close, page.volume)

    exchange.trouble[CODES[1]] = high_below_low
    report = ingest_all()
    error = report.failed[CODES[1]]
    assert error.startswith("BAD_CANDLES: ")
    assert "candle 7 at " in error
    assert "high" in error
    stored = store.read("simulated", "1h")
    assert len(stored[CODES[1]]) == PAGE, "the sound page before it stays"
    assert len(stored[CODES[0]]) == len(stored[CODES[2]]) == TARGET * 24


def test_an_exchange_that_is_down_blames_no_symbol_and_is_left_in_peace(
    exchange: ScriptedMarket, symbols: list[Symbol], sim: SimulatedClock
) -> None:
    exchange.outage = ExchangeUnavailableError("maintenance", retry_after_ms=10 * 60_000)
    report = ingest_all()
    assert report.unavailable == "maintenance"
    assert len(exchange.asked) == 1
    assert not Symbol.objects.exclude(ingest_error="").exists()
    assert set(Symbol.objects.values_list("ingest_due_at", flat=True)) == {EPOCH + 10 * MINUTE}
    assert Alert.objects.get().key == "exchange:simulated"
    assert services.ring_ingest() == 0
    exchange.outage = None
    sim.advance(10 * MINUTE)
    assert ingest_all().symbols == 3
    assert Alert.objects.get().resolved_at is not None


def test_a_late_newest_candle_is_asked_for_again_soon_and_a_left_out_one_is_not(
    exchange: ScriptedMarket, symbols: list[Symbol], sim: SimulatedClock
) -> None:
    ingest_all()
    exchange.trouble = dict.fromkeys(CODES, lambda page: page.take(slice(0, 0)))
    sim.advance(HOUR + MINUTE)
    ingest_all()
    assert set(Symbol.objects.values_list("ingest_due_at", flat=True)) == {sim.now + MINUTE}
    sim.advance(10 * MINUTE)
    ingest_all()
    assert min(Symbol.objects.values_list("ingest_due_at", flat=True)) > EPOCH + 2 * HOUR


def test_shards_are_sent_once_and_a_killed_one_is_sent_again(
    sim: SimulatedClock, store: CandleStore, messages: list[Message]
) -> None:
    SymbolFactory.create_batch(120, ingest_due_at=EPOCH)
    assert services.ring_ingest() == 120
    assert [len(message.args[0].split(",")) for message in messages] == [100, 20]
    assert services.ring_ingest() == 0
    sim.advance(dt.timedelta(seconds=121))
    assert services.ring_ingest() == 120


def test_a_shard_rings_the_evaluation_with_a_cause(
    exchange: ScriptedMarket, symbols: list[Symbol], messages: list[Message]
) -> None:
    ids = ",".join(str(symbol.pk) for symbol in symbols)
    assert tasks.ingest_task(ids).startswith("3 symbols")
    assert [(message.dotted, message.args[0]) for message in messages] == [("ops_app.jobs.run_job", "evaluate")]
    assert tasks.ingest_task(ids) == "", "the same bell, rung twice"
    assert len(messages) == 1


def test_a_task_gives_its_symbols_back_when_its_time_is_over(
    exchange: ScriptedMarket, symbols: list[Symbol], sim: SimulatedClock
) -> None:
    exchange.trouble[CODES[0]] = lambda page: (sim.advance(dt.timedelta(seconds=40)), page)[1]
    report = ingest_all()
    assert (report.symbols, report.postponed) == (1, 2)
    assert Symbol.objects.filter(ingest_due_at=EPOCH).count() == 2
    assert services.ring_ingest() == 2


def test_nothing_is_written_while_another_process_writes(
    exchange: ScriptedMarket, symbols: list[Symbol], store: CandleStore
) -> None:
    other = leases.acquire("candles:simulated", holder="another", ttl=dt.timedelta(hours=1))
    assert other is not None
    with pytest.raises(leases.LeaseBusy):
        ingest_all()
    assert store.read("simulated", "1h") == {}
    leases.release(other)
    ingest_all()
    assert len(store.read("simulated", "1h")) == 3


def test_a_torn_file_is_named_alerted_and_fetched_again_after_it_was_moved_away(
    exchange: ScriptedMarket, symbols: list[Symbol], store: CandleStore, sim: SimulatedClock
) -> None:
    ingest_all()
    torn = store.root / "simulated" / "1h" / "2025-05.parquet"
    torn.write_bytes(torn.read_bytes()[:1000])
    sim.advance(HOUR + MINUTE)
    with pytest.raises(StoreError, match=r"2025-05\.parquet"):
        ingest_all()
    assert Alert.objects.get(key="candles:simulated").severity == "critical"
    torn.unlink()
    assert sorted(services.forget_lost_history()) == sorted(CODES)
    ingest_all()
    assert set(Symbol.objects.values_list("history_coverage", flat=True)) == {1.0}
    assert Alert.objects.get(key="candles:simulated").resolved_at is not None
    stored = store.read("simulated", "1h")[CODES[0]]
    assert np.all(np.diff(stored.open_time) == 3_600_000)


def test_symbols_that_left_the_universe_are_kept_up_and_delisted_ones_are_not(
    exchange: ScriptedMarket, sim: SimulatedClock
) -> None:
    SymbolFactory(code=CODES[0], in_universe=False)
    SymbolFactory(code=CODES[1], delisted_at=EPOCH - DAY)
    SymbolFactory(code=CODES[2], fresh=True, in_universe=False)
    assert list(Symbol.objects.ingestible().values_list("code", flat=True)) == [CODES[0]]

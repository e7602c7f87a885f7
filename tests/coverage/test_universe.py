"""Which symbols are in the universe, why the others are not, and what a failed look at the exchange leaves behind."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coverage_app import market, services, tasks
from coverage_app.exceptions import UniverseError
from coverage_app.models import Block, Symbol, UniverseRefresh
from coverage_app.universe import UniverseRules, choose, explain_empty
from exchanges.errors import ExchangeUnavailableError
from exchanges.port import Ticker
from marketdata.store import CandleStore
from ops_app import leases
from ops_app.clock import SimulatedClock
from ops_app.models import Alert, Event
from quant.reasons import code_of
from quant.timeframes import to_ms
from tests.coverage.scripted_market import ScriptedMarket, instrument
from tests.factories import DAY, EPOCH, HOUR, SymbolFactory

MINUTE = dt.timedelta(minutes=1)
NOW = to_ms(EPOCH)
A, B, C, D = (f"{name}/USDT:USDT" for name in ("AAA", "BBB", "CCC", "DDD"))


def ticker(code: str, volume: float = 5e6, bid: float = 99.99, ask: float = 100.01) -> Ticker:
    return Ticker(code, bid, ask, (bid + ask) / 2, volume, NOW)


def why(rules: UniverseRules, *instruments: Any, tickers: Any = None, **options: Any) -> dict[str, str]:
    prices = {each.symbol: ticker(each.symbol) for each in instruments} | (tickers or {})
    reasons = choose(instruments, {k: v for k, v in prices.items() if v}, rules, now_ms=NOW, **options)
    return {code: code_of(text) for code, text in reasons.items()}


class TestAutomatic:
    def test_each_rule_gives_its_reason(self) -> None:
        rules = UniverseRules(
            exclude=frozenset({"EXC/USDT:USDT"}), min_volume=1e5, max_spread_bps=30, min_age_days=10, max_symbols=2
        )
        instruments = [
            instrument(A), instrument(B), instrument(C), instrument("EXC/USDT:USDT"), instrument("THIN/USDT:USDT"),
            instrument("WIDE/USDT:USDT"), instrument("MUTE/USDT:USDT"), instrument("ZERO/USDT:USDT"),
            instrument("NEW/USDT:USDT", listed_ms=NOW - 86_400_000), instrument("OFF/USDT:USDT", active=False),
            instrument("GONE/USDT:USDT", delisted_ms=NOW - 1, active=False),
            instrument("SOON/USDT:USDT", delisted_ms=NOW + 1),
        ]  # fmt: skip
        tickers = {
            A: ticker(A, 9e6), B: ticker(B, 8e6), C: ticker(C, 7e6), "THIN/USDT:USDT": ticker("THIN/USDT:USDT", 9e4),
            "WIDE/USDT:USDT": ticker("WIDE/USDT:USDT", bid=99, ask=101), "MUTE/USDT:USDT": None,
            "ZERO/USDT:USDT": ticker("ZERO/USDT:USDT", bid=0.0), "SOON/USDT:USDT": ticker("SOON/USDT:USDT", 6e6),
        }  # fmt: skip
        assert why(rules, *instruments, tickers=tickers) == {
            A: "", B: "", C: "RANK_TOO_LOW", "SOON/USDT:USDT": "RANK_TOO_LOW", "EXC/USDT:USDT": "EXCLUDED",
            "THIN/USDT:USDT": "VOLUME_TOO_LOW", "WIDE/USDT:USDT": "SPREAD_TOO_WIDE", "MUTE/USDT:USDT": "NO_TICKER",
            "ZERO/USDT:USDT": "NO_PRICE", "NEW/USDT:USDT": "TOO_YOUNG", "OFF/USDT:USDT": "INACTIVE",
            "GONE/USDT:USDT": "DELISTED",
        }  # fmt: skip

    def test_who_is_in_stays_in_a_little_below_the_rules(self) -> None:
        rules = UniverseRules(min_volume=1e6, max_symbols=1)
        both = (instrument(A), instrument(B))
        tickers = {A: ticker(A, 9e5), B: ticker(B, 9.5e5)}
        assert why(rules, *both, tickers=tickers) == {A: "VOLUME_TOO_LOW", B: "VOLUME_TOO_LOW"}
        assert why(rules, *both, tickers=tickers, inside={A})[A] == ""
        tickers = {A: ticker(A, 2.0e6), B: ticker(B, 2.2e6)}
        assert why(rules, *both, tickers=tickers, inside={A}) == {A: "", B: "RANK_TOO_LOW"}
        assert why(rules, *both, tickers=tickers, inside={B}) == {A: "RANK_TOO_LOW", B: ""}

    @given(
        volumes=st.lists(st.floats(0, 1e9), min_size=1, max_size=30),
        places=st.integers(1, 20),
        inside=st.sets(st.integers(0, 29)),
    )
    def test_the_universe_is_never_too_large_and_leaves_nobody_out_without_a_reason(
        self, volumes: list[float], places: int, inside: set[int]
    ) -> None:
        codes = [f"S{i:02d}/USDT:USDT" for i in range(len(volumes))]
        rules = UniverseRules(min_volume=1e5, max_symbols=places)
        reasons = choose(
            [instrument(code) for code in codes],
            {code: ticker(code, volume) for code, volume in zip(codes, volumes, strict=True)},
            rules,
            now_ms=NOW,
            inside={codes[i] for i in inside if i < len(codes)},
        )
        assert reasons.keys() == set(codes)
        chosen = [code for code, text in reasons.items() if not text]
        eligible = [text for text in reasons.values() if code_of(text) in ("", "RANK_TOO_LOW")]
        assert len(chosen) == min(places, len(eligible))


class TestFixed:
    def test_the_list_decides_whatever_the_volume(self) -> None:
        rules = UniverseRules(symbols=(A, C), min_volume=1e12)
        assert why(rules, instrument(A), instrument(B), instrument(C, active=False)) == {
            A: "", B: "NOT_IN_LIST", C: "INACTIVE",
        }  # fmt: skip

    def test_an_unknown_code_is_an_error_that_names_the_nearest(self) -> None:
        rules = UniverseRules(symbols=(A, "BTCUSDT", "QQQQQQQQ"))
        with pytest.raises(UniverseError) as caught:
            why(rules, instrument(A), instrument("BTC/USDT:USDT"), instrument("ETH/USDT:USDT"))
        assert "'BTCUSDT' is not listed (did you mean BTC/USDT:USDT" in str(caught.value)
        assert "'QQQQQQQQ' is not listed (nothing is near)" in str(caught.value)
        assert A not in str(caught.value).partition("'BTCUSDT'")[0]

    def test_a_code_that_was_listed_once_is_not_unknown(self) -> None:
        assert why(UniverseRules(symbols=(A, B)), instrument(A), known={B}) == {A: ""}


def test_an_empty_universe_is_explained_with_the_rule_that_stops_most() -> None:
    reasons = {A: "VOLUME_TOO_LOW: volume=1", B: "VOLUME_TOO_LOW: volume=2", C: "EXCLUDED: setting=UNIVERSE_EXCLUDE"}
    text = explain_empty(reasons, UniverseRules(min_volume=1e5), "simulated")
    assert "2 VOLUME_TOO_LOW, 1 EXCLUDED" in text
    assert "UNIVERSE_MIN_VOLUME=100000" in text
    assert "lists no instrument at all" in explain_empty({}, UniverseRules(), "simulated")


@pytest.mark.django_db
class TestRefresh:
    @pytest.fixture
    def exchange(self, sim: SimulatedClock, store: CandleStore) -> ScriptedMarket:
        scripted = ScriptedMarket(A, B, C)
        market.use(scripted)
        return scripted

    def test_what_is_listed_becomes_rows_with_rules_and_reasons(self, exchange: ScriptedMarket, settings: Any) -> None:
        settings.UNIVERSE_EXCLUDE = (C,)
        row = services.refresh_universe()
        assert (row.error, row.found, row.added, row.in_universe, row.entered) == ("", 3, 3, 2, 2)
        assert row.next_refresh_at == EPOCH + HOUR
        symbol = Symbol.objects.get(code=A)
        assert symbol.in_universe
        assert (symbol.base, symbol.quote, symbol.market_type) == ("AAA", "USDT", "swap")
        assert symbol.tick_size == exchange.listed[A].tick_size
        assert symbol.spread_bps == pytest.approx(2.0)
        assert symbol.next_evaluation_at is None
        assert Symbol.objects.get(code=C).universe_reason == "EXCLUDED: setting=UNIVERSE_EXCLUDE"
        assert not Symbol.objects.filter(in_universe=False, universe_reason="").exists()
        assert Event.objects.filter(kind="universe_entered").count() == 2

    def test_nothing_changed_writes_no_symbol(
        self, exchange: ScriptedMarket, django_assert_max_num_queries: Any
    ) -> None:
        services.refresh_universe()
        events = Event.objects.count()
        with django_assert_max_num_queries(20):
            row = services.refresh_universe()
        assert (row.added, row.entered, row.left, row.delisted) == (0, 0, 0, 0)
        assert Event.objects.count() == events

    def test_it_is_done_once_an_hour_of_market_time(self, exchange: ScriptedMarket, sim: SimulatedClock) -> None:
        assert tasks.universe_task() == "3 of 3 in the universe, 3 entered, 0 left"
        for _ in range(59):
            sim.advance(MINUTE)
            assert tasks.universe_task() == ""
        sim.advance(MINUTE)
        assert tasks.universe_task()
        assert UniverseRefresh.objects.count() == 2

    def test_a_symbol_that_leaves_is_judged_soon_and_says_why(
        self, exchange: ScriptedMarket, sim: SimulatedClock
    ) -> None:
        services.refresh_universe()
        Symbol.objects.update(last_evaluated_at=EPOCH, next_evaluation_at=EPOCH + DAY)
        exchange.prices[B] = ticker(B, 1000.0)
        sim.advance(HOUR)
        row = services.refresh_universe()
        assert (row.left, row.entered) == (1, 0)
        symbol = Symbol.objects.get(code=B)
        assert symbol.next_evaluation_at == sim.now
        assert Symbol.objects.get(code=A).next_evaluation_at == EPOCH + DAY
        services.evaluate_due()
        block = Block.objects.get(symbol=symbol, reason="NOT_IN_UNIVERSE")
        assert "VOLUME_TOO_LOW" in block.evidence
        assert Event.objects.filter(kind="universe_left", subject=f"symbol:{B}").exists()

    def test_a_delisted_symbol_is_blocked_for_good(self, exchange: ScriptedMarket, sim: SimulatedClock) -> None:
        services.refresh_universe()
        services.evaluate_due()
        sim.advance(HOUR)
        exchange.listed[B] = instrument(B, delisted_ms=to_ms(sim.now) - 60_000, active=False)
        assert services.refresh_universe().delisted == 1
        symbol = Symbol.objects.get(code=B)
        assert symbol.delisted_at == sim.now - MINUTE
        services.evaluate_due()
        block = Block.objects.open().get(symbol=symbol, reason="DELISTED")
        assert block.permanent
        assert block.recheck_at is None

    def test_a_symbol_that_the_list_no_longer_has_is_delisted_and_may_come_back(
        self, exchange: ScriptedMarket, sim: SimulatedClock
    ) -> None:
        services.refresh_universe()
        kept = exchange.listed.pop(B)
        sim.advance(HOUR)
        assert services.refresh_universe().delisted == 1
        symbol = Symbol.objects.get(code=B)
        assert (symbol.active, symbol.in_universe, symbol.delisted_at) == (False, False, sim.now)
        exchange.listed[B] = kept
        sim.advance(HOUR)
        services.refresh_universe()
        symbol.refresh_from_db()
        assert (symbol.active, symbol.in_universe, symbol.delisted_at) == (True, True, None)

    def test_a_list_that_lacks_most_symbols_is_a_broken_answer(
        self, exchange: ScriptedMarket, sim: SimulatedClock
    ) -> None:
        services.refresh_universe()
        del exchange.listed[B], exchange.listed[C]
        sim.advance(HOUR)
        row = services.refresh_universe()
        assert "lacks 2 of 3 symbols" in row.error
        assert Symbol.objects.filter(in_universe=True).count() == 3

    def test_an_empty_universe_is_an_error_and_nothing_is_half_written(
        self, exchange: ScriptedMarket, sim: SimulatedClock, settings: Any
    ) -> None:
        services.refresh_universe()
        exchange.listed[D] = instrument(D)
        exchange.prices[D] = ticker(D)
        settings.UNIVERSE_MIN_VOLUME = 1e12
        sim.advance(HOUR)
        row = services.refresh_universe()
        assert "3 VOLUME_TOO_LOW" in row.error or "4 VOLUME_TOO_LOW" in row.error
        assert "UNIVERSE_MIN_VOLUME=1e+12" in row.error
        assert Symbol.objects.filter(in_universe=True).count() == 3
        assert not Symbol.objects.filter(code=D).exists()
        assert Alert.objects.get(key="universe:simulated").resolved_at is None
        settings.UNIVERSE_MIN_VOLUME = 1e5
        sim.advance(HOUR)
        assert services.refresh_universe().error == ""
        assert Alert.objects.get(key="universe:simulated").resolved_at is not None

    def test_an_exchange_that_does_not_answer_is_asked_less_and_less_often(
        self, exchange: ScriptedMarket, sim: SimulatedClock
    ) -> None:
        services.refresh_universe()
        exchange.outage = ExchangeUnavailableError("no route")
        sim.advance(HOUR)
        waits = []
        for _ in range(9):
            row = services.refresh_if_due()
            assert row is not None
            assert row.error == "no route"
            waits.append(row.next_refresh_at - sim.now)
            assert services.refresh_if_due() is None
            sim.advance(waits[-1])
        assert waits[:4] == [MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE]
        assert waits[-1] == HOUR
        assert Symbol.objects.filter(in_universe=True).count() == 3
        exchange.outage = None
        row = services.refresh_if_due()
        assert row is not None
        assert row.next_refresh_at == sim.now + HOUR

    def test_a_refresh_that_was_killed_counts_as_a_failure_and_is_tried_again(
        self, exchange: ScriptedMarket, sim: SimulatedClock
    ) -> None:
        exchange.outage = KeyboardInterrupt()  # type: ignore[assignment]  # the kill
        with pytest.raises(KeyboardInterrupt):
            services.refresh_universe()
        exchange.outage = None
        assert services.refresh_if_due() is None, "its next time was stored before it began"
        sim.advance(MINUTE)
        assert services.refresh_if_due() is not None

    def test_two_refreshes_at_once_are_one(self, exchange: ScriptedMarket) -> None:
        assert leases.acquire("universe:simulated", holder="another", ttl=dt.timedelta(minutes=1)) is not None
        assert services.refresh_if_due() is None
        assert not UniverseRefresh.objects.exists()

    def test_a_timeframe_that_the_exchange_lacks_is_named(self, exchange: ScriptedMarket, settings: Any) -> None:
        settings.TIMEFRAME = "5m"
        row = services.refresh_universe()
        assert row.error == "TIMEFRAME='5m' cannot be had from simulated; use one of: 1h"
        assert not Symbol.objects.exists()

    def test_known_symbols_of_another_market_are_left_alone(self, exchange: ScriptedMarket) -> None:
        other = SymbolFactory(market="elsewhere", code=A)
        services.refresh_universe()
        other.refresh_from_db()
        assert other.active
        assert Symbol.objects.count() == 4

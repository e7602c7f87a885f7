"""Rotation of the universe: few symbols at a time, the thinnest first, and none in which a position is open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coverage_app import market, services
from coverage_app.models import Symbol
from coverage_app.services.universe import held_codes
from coverage_app.universe import UniverseRules, choose, rotate
from exchanges.port import Ticker
from ops_app.clock import SimulatedClock
from ops_app.models import Event
from quant.reasons import code_of
from quant.timeframes import to_ms
from tests.coverage.scripted_market import ScriptedMarket, instrument
from tests.factories import EPOCH, HOUR, PositionFactory

NOW = to_ms(EPOCH)
A, B, C, D, E = (f"{name}/USDT:USDT" for name in ("AAA", "BBB", "CCC", "DDD", "EEE"))


def tickers(**volumes: float) -> dict[str, Ticker]:
    named = {f"{name}/USDT:USDT": volume for name, volume in volumes.items()}
    return {code: Ticker(code, 99.99, 100.01, 100.0, volume, NOW) for code, volume in named.items()}


def rotated(rules: UniverseRules, prices: dict[str, Ticker], inside: set[str], held: set[str] | None = None) -> Any:
    why = choose([instrument(code) for code in prices], prices, rules, now_ms=NOW, inside=inside)
    return rotate(why, prices, rules, inside=inside, held=held or set())


def test_few_leave_at_one_refresh_and_the_thinnest_go_first() -> None:
    rules = UniverseRules(min_volume=100, max_rotation=0.25)
    prices = tickers(AAA=500, BBB=30, CCC=10, DDD=20)
    done = rotated(rules, prices, {A, B, C, D})
    assert {code for code, text in done.why.items() if text} == {C}
    assert done.waiting == (D, B)
    assert str(done) == f"2 leave at the next refreshes, like {D}"
    assert {code for code, text in rotated(rules, prices, {A, B, D}).why.items() if not text} == {A, B}


def test_who_wants_in_waits_for_a_place_and_the_largest_gets_it() -> None:
    rules = UniverseRules(max_symbols=2, max_rotation=0.5)
    done = rotated(rules, tickers(AAA=1, BBB=2, CCC=900, DDD=800), {A, B})
    assert {code for code, text in done.why.items() if not text} == {B, C}, "one leaves, one enters"
    assert code_of(done.why[A]) == "RANK_TOO_LOW"
    assert code_of(done.why[D]) in {"RANK_TOO_LOW", "NO_PLACE_YET"}


def test_an_open_position_holds_its_symbol_and_a_fact_does_not_wait() -> None:
    rules = UniverseRules(min_volume=100, max_rotation=1.0)
    prices = tickers(AAA=500, BBB=10, CCC=10)
    done = rotated(rules, prices, {A, B, C}, {B})
    assert (done.why[A], done.why[B], code_of(done.why[C])) == ("", "", "VOLUME_TOO_LOW")
    assert done.held == (B,)
    why = choose([instrument(A), instrument(B, active=False)], prices, rules, now_ms=NOW, inside={A, B})
    assert code_of(rotate(why, prices, rules, inside={A, B}, held={B}).why[B]) == "INACTIVE"


def test_a_list_is_followed_at_once() -> None:
    rules = UniverseRules(symbols=(A,), max_rotation=0.0)
    done = rotated(rules, tickers(AAA=1, BBB=1, CCC=1), {A, B, C}, {B})
    assert {code for code, text in done.why.items() if not text} == {A}


@given(
    volumes=st.lists(st.floats(0, 1e6), min_size=2, max_size=12),
    members=st.sets(st.integers(0, 11)),
    held=st.sets(st.integers(0, 11)),
    places=st.integers(1, 12),
    share=st.floats(0, 1),
)
def test_rotation_is_bounded_keeps_what_is_held_and_comes_to_the_rules_in_the_end(
    volumes: list[float], members: set[int], held: set[int], places: int, share: float
) -> None:
    codes = [f"C{number:02d}/USDT:USDT" for number in range(len(volumes))]
    prices = {code: Ticker(code, 99.99, 100.01, 100.0, v, NOW) for code, v in zip(codes, volumes, strict=True)}
    inside = {codes[number] for number in members if number < len(codes)}
    holding = {codes[number] for number in held if number < len(codes)}
    rules = UniverseRules(min_volume=1000, max_symbols=places, max_rotation=share)
    now = inside
    for _ in range(len(codes) + 1):
        after = {code for code, text in rotated(rules, prices, now, holding).why.items() if not text}
        assert len(now - after) <= max(1, int(share * len(now)))
        assert now & holding <= after
        assert len(after) <= max(len(now), places), "nobody enters where there is no place"
        now = after
    wanted = choose([instrument(code) for code in codes], prices, rules, now_ms=NOW, inside=now)
    assert {code for code in now if wanted[code]} <= holding, "in the end only held symbols are in against the rules"


@pytest.mark.django_db
def test_a_symbol_leaves_only_when_its_position_is_closed(sim: SimulatedClock, settings: Any) -> None:
    settings.UNIVERSE_MIN_VOLUME, settings.UNIVERSE_MAX_ROTATION, settings.UNIVERSE_MODE = 1e5, 1.0, "automatic"
    data = ScriptedMarket(A, B, C)
    market.use(data)
    services.refresh_universe()
    position = PositionFactory(symbol=Symbol.objects.get(code=B))
    assert held_codes(Symbol.objects.get(code=B).market) == {B}
    for code in (B, C):
        data.prices[code] = Ticker(code, 99.99, 100.01, 100.0, 10.0, NOW)
    sim.advance(2 * HOUR)
    services.refresh_universe()
    assert set(Symbol.objects.filter(in_universe=True).values_list("code", flat=True)) == {A, B}
    assert f"1 left; 1 stay until their position is closed, like {B}" in Event.objects.get(kind="universe_rotated").text
    position.closed_at = sim.now
    position.save()
    sim.advance(2 * HOUR)
    services.refresh_universe()
    assert set(Symbol.objects.filter(in_universe=True).values_list("code", flat=True)) == {A}

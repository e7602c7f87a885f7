"""Market data that is silent, a model that changes while a bar is decided, and a bot that is dead (F20, F34, F40)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exchanges.simulated import SimulatedMarket
from ops_app import clock
from ops_app.models import Alert
from quant.candles import Candles
from quant.timeframes import to_ms
from tests.trading.conftest import HOUR, StandIn, World
from trading_app.bot import BotRunner
from trading_app.choices import OrderPurpose
from trading_app.models import Decision, Fill, Order, Position

pytestmark = pytest.mark.django_db


def enter(world: World, **changes: Any) -> BotRunner:
    runner = world.runner(**changes)
    if not runner.tick().entries:
        world.until_entry(runner)
    return runner


def test_f20_a_source_that_answers_with_nothing_new_opens_nothing_and_keeps_no_exit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We poll: what a stuck websocket would be is an answer without an error that stays old."""
    data = SimulatedMarket(seed=7, now_ms=clock.market_now_ms, symbols=len(world.codes), specials=False)
    runner = enter(world, data=data)
    position = Position.objects.open().first()
    assert position is not None
    newest, fresh = to_ms(world.sim.now), data.candles_many

    def stuck(symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        found = fresh(symbols, timeframe, since_ms, limit)
        return {code: candles.between(0, newest - 3_600_000) for code, candles in found.items()}

    entries = Order.objects.filter(purpose=OrderPurpose.ENTRY).count()
    silent_since = world.sim.now
    monkeypatch.setattr(data, "candles_many", stuck)
    for _ in range(30):
        world.sim.advance(HOUR)
        runner.tick()
    assert Order.objects.filter(purpose=OrderPurpose.ENTRY).count() == entries
    decided = Decision.objects.filter(created_at__gt=silent_since)
    assert decided.filter(outcome="NO_DATA").exists()
    assert not decided.filter(outcome="ENTER").exists()
    position.refresh_from_db()
    assert position.closed_at is not None, "its time barrier needs no candle"


def test_f34_a_model_that_is_swapped_while_a_bar_is_decided_serves_from_the_next_bar_on(world: World) -> None:
    class Swapping(StandIn):
        def predict(self, features: np.ndarray, symbol_codes: np.ndarray, *, num_threads: int = 1) -> np.ndarray:
            found = super().predict(features, symbol_codes, num_threads=num_threads)
            if len(self.asked) == 1:
                world.activate()  # an activation commits while this bar is scored
            return found

    swapping = Swapping(world.codes, world.codes)
    old = world.activate(swapping).generation
    runner = world.runner()
    for _ in range(48):
        if swapping.asked:
            break
        world.pass_bars(runner, 1)
    assert len(swapping.asked) == 1, "the new model is asked from the next bar on"
    bar = Decision.objects.order_by("-bar_at").values_list("bar_at", flat=True)[0]
    rows = Decision.objects.filter(bar_at=bar)
    assert set(rows.values_list("generation", flat=True)) == {old}
    (report,) = world.pass_bars(runner, 1)
    assert report.models_loaded == 1
    newer = Decision.objects.filter(bar_at=report.bar_at)
    assert set(newer.values_list("generation", flat=True)) == {old + 1}
    assert set(newer.values_list("artifact", flat=True)).isdisjoint(rows.values_list("artifact", flat=True))


def test_f40_with_the_bot_dead_for_an_hour_the_stop_at_the_exchange_closes_every_position(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = enter(world)
    held = {each.symbol: each.quantity for each in world.matching.positions()}
    assert held
    stops = {order.symbol: order for order in world.matching.open_orders() if order.kind == "stop_market"}
    assert {code: abs(quantity) for code, quantity in held.items()} == {
        code: stop.quantity for code, stop in stops.items()
    }, "every position has its stop before the bot dies"
    assert all(stop.reduce_only for stop in stops.values())
    died = to_ms(world.sim.now)
    runner._session = None  # killed: nothing is given back, nobody looks
    fresh = world.data.candles_many

    def falling(symbols: Iterable[str], timeframe: str, since_ms: int, limit: int) -> dict[str, Candles]:
        """The market goes against each position by a third in the candles that close after the death."""
        found = fresh(symbols, timeframe, since_ms, limit)
        for code, candles in found.items():
            factor = np.where(candles.open_time >= died, 2 / 3 if held.get(code, 0) > 0 else 4 / 3, 1.0)
            columns = {name: getattr(candles, name) * factor for name in ("open", "high", "low", "close")}
            found[code] = replace(candles, **columns)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(world.data, "candles_many", falling)
        world.sim.advance(HOUR + dt.timedelta(minutes=1))
        assert world.matching.positions() == [], "no process of ours ran"
    closing = {fill.client_order_id for fill in world.matching.fills_since(died + 1) if fill.kind == "trade"}
    assert closing == {stop.client_order_id for stop in stops.values()}
    positions = list(Position.objects.open())
    world.sim.advance(dt.timedelta(hours=12))  # the dead one's lease ends
    world.keep_fresh()
    again = world.runner()
    again.tick()
    for position in positions:
        position.refresh_from_db()
        assert position.closed_at is not None
        assert position.close_reason.startswith("STOP")
    assert Fill.objects.filter(client_order_id__in=closing).count() >= len(positions)
    assert not Alert.objects.filter(key__startswith="stop_missing").exists()

"""After a stop, or when the exchange took a position away, the symbol rests before it is entered again."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exchanges.port import OrderRequest, VenueFill
from quant.reasons import code_of, details_of
from quant.timeframes import HOUR_MS, from_ms, to_ms
from tests.trading.conftest import World
from trading_app import deciding
from trading_app.bot import BotRunner
from trading_app.models import Bot, Decision, Position

pytestmark = pytest.mark.django_db
CLOSES = "closes1"


def enter(world: World) -> tuple[BotRunner, Position]:
    runner = world.runner()
    world.until_entry(runner)
    position = Position.objects.open().order_by("id").first()
    assert position is not None
    return runner, position


def close(world: World, monkeypatch: pytest.MonkeyPatch, runner: BotRunner, position: Position, **told: Any) -> None:
    """Close it at the exchange by a fill about which the exchange tells `told`, and let the bot read it."""
    side = "sell" if position.quantity > 0 else "buy"
    world.matching.place(
        OrderRequest(
            CLOSES, position.symbol.code, side, abs(position.quantity).normalize(), time_ms=world.data.now_ms(),
            reduce_only=True,
        )
    )  # fmt: skip
    read = world.matching.fills_since

    def fills_since(time_ms: int) -> list[VenueFill]:
        return [replace(each, **told) if each.client_order_id == CLOSES else each for each in read(time_ms)]

    monkeypatch.setattr(world.matching, "fills_since", fills_since)
    for _ in range(12):
        world.sim.advance(dt.timedelta(minutes=1))
        runner.tick()
    position.refresh_from_db()
    assert position.closed_at is not None


@pytest.mark.parametrize(
    "told, cause, bars",
    [
        ({"client_order_id": "", "attached": True}, "STOP", 4),
        ({"client_order_id": "", "cause": "liquidation"}, "LIQUIDATION", 24),
        ({}, "EXTERNAL", 0),
    ],
)
def test_a_symbol_rests_after_its_stop_and_for_a_day_after_the_exchange_took_it_away(
    world: World, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], cause: str, bars: int
) -> None:
    monkeypatch.setattr(deciding, "primary_side", lambda signal, features, schema: np.ones(len(features), np.int8))
    runner, position = enter(world)
    close(world, monkeypatch, runner, position, **told)
    assert code_of(position.close_reason) == cause
    assert position.closed_at is not None
    world.pass_bars(runner, bars + 2)
    first = to_ms(position.closed_at) // HOUR_MS * HOUR_MS
    since = Decision.objects.filter(symbol=position.symbol, bar_at__gte=from_ms(first)).order_by("bar_at")
    decided = list(since.values_list("reason_code", "reason", "outcome"))
    assert len(decided) == bars + 2
    assert [code for code, _, _ in decided].count("COOLDOWN") == bars
    for code, reason, outcome in decided[:bars]:
        assert (code, outcome) == ("COOLDOWN", "REFUSED")
        until = f"{from_ms(first + (bars + 1) * HOUR_MS):%Y-%m-%dT%H:%MZ}"
        assert details_of(reason) == {"after": cause, "until": until}


def test_the_cooldown_is_the_bots_own_and_a_person_can_switch_it_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bot.objects.update(cooldown_bars=0)
    runner, position = enter(world)
    close(world, monkeypatch, runner, position, client_order_id="", attached=True)
    world.pass_bars(runner, 3)
    assert not Decision.objects.filter(reason_code="COOLDOWN").exists()


def test_a_cooldown_outlives_the_bots_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "primary_side", lambda signal, features, schema: np.ones(len(features), np.int8))
    runner, position = enter(world)
    close(world, monkeypatch, runner, position, client_order_id="", attached=True)
    runner.release()
    world.pass_bars(world.runner(), 1)
    newest = Decision.objects.filter(symbol=position.symbol).latest("bar_at")
    assert newest.reason_code == "COOLDOWN"

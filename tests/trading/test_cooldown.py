"""After a stop, or when the exchange took a position away, the symbol rests before it is entered again."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from django.core.exceptions import ValidationError

from exchanges.port import OrderRequest, VenueFill
from quant.reasons import code_of, details_of
from quant.timeframes import HOUR_MS, from_ms, to_ms
from tests.trading.conftest import World
from trading_app import deciding
from trading_app.bot import BotRunner
from trading_app.models import Bot, Decision, Position
from trading_app.protection import close_position

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


@pytest.mark.parametrize("bars", [1, 4])
def test_a_stop_that_fires_at_the_exchange_rests_its_symbol_for_as_many_bars_as_in_a_backtest(
    world: World, monkeypatch: pytest.MonkeyPatch, bars: int
) -> None:
    """From the bar whose candle reached the stop on."""
    Bot.objects.update(cooldown_bars=bars)
    runner, _ = enter(world)
    monkeypatch.setattr(deciding, "primary_side", lambda signal, features, schema: np.ones(len(features), np.int8))
    world.pass_bars(runner, 24)
    stopped = [
        each for each in Position.objects.filter(closed_at__isnull=False) if code_of(each.close_reason) == "STOP"
    ]
    assert stopped, "no stop fired in a day of six symbols"
    for each in stopped:
        assert each.closed_at is not None
        first = to_ms(each.closed_at) // HOUR_MS * HOUR_MS
        since = from_ms(first - HOUR_MS)
        decided = Decision.objects.filter(symbol=each.symbol, bar_at__gte=since).order_by("bar_at")
        before, *codes = decided.values_list("reason_code", flat=True)
        assert before != "COOLDOWN", "the bar before that of the stop knows nothing of it"
        assert set(codes[:bars]) == {"COOLDOWN"}
        assert len(codes) <= bars or codes[bars] != "COOLDOWN"


def test_what_the_exchange_took_a_part_of_rests_for_a_day_whoever_closed_the_other_part(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, position = enter(world)
    half = (abs(position.quantity) / 2).quantize(Decimal(1))
    side = "sell" if position.quantity > 0 else "buy"
    world.matching.place(
        OrderRequest("taken1", position.symbol.code, side, half, time_ms=world.data.now_ms(), reduce_only=True)
    )
    read = world.matching.fills_since

    def fills_since(time_ms: int) -> list[VenueFill]:
        taken = {"client_order_id": "", "cause": "adl"}
        return [replace(each, **taken) if each.client_order_id == "taken1" else each for each in read(time_ms)]  # type: ignore[arg-type]

    monkeypatch.setattr(world.matching, "fills_since", fills_since)
    world.sim.advance(dt.timedelta(minutes=1))
    runner.tick()
    close(world, monkeypatch, runner, position)
    assert code_of(position.close_reason) == "ADL"


def test_a_cause_is_found_behind_what_kept_the_order_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, position = enter(world)
    exit_order = close_position(runner._session.desk, position, "UNKNOWN: why=timeout | STOP: close=1, stop=2")  # type: ignore[union-attr]
    assert exit_order is not None
    for _ in range(6):
        world.sim.advance(dt.timedelta(minutes=1))
        runner.tick()
    position.refresh_from_db()
    assert position.close_reason == "STOP: close=1, stop=2"


def test_a_cooldown_without_an_end_is_refused_where_it_is_typed(world: World) -> None:
    bot = Bot.objects.get()
    bot.cooldown_bars = 100_000_000
    with pytest.raises(ValidationError, match="cooldown_bars"):
        bot.full_clean()


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

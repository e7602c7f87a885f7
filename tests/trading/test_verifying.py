"""Decisions that the bot stored are what the candle store says (I13), and a changed one is found."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from ops_app import clock
from quant.timeframes import HOUR_MS, to_ms
from tests.factories import EPOCH, MARKET
from tests.trading.conftest import World
from tests.trading.test_models_and_features import activate_real
from trading_app.models import Decision
from trading_app.verifying import Verification, verify_decisions
from training_app import artifacts

pytestmark = pytest.mark.django_db
BARS = 30


@pytest.fixture(params=[0, 710], ids=["from the first candle", "from a later one"])
def traded(request: pytest.FixtureRequest, make_world: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    """A bot that decided some bars with a real model, and a store that has taken in the same candles since."""
    world: World = make_world()
    artifact = activate_real(world).artifact
    artifact.data_start += dt.timedelta(days=request.param)
    artifact.save()
    world.pass_bars(world.runner(load=artifacts.load), BARS)
    now = clock.market_now_ms()
    since = to_ms(EPOCH) - HOUR_MS
    world.store.write(MARKET, "1h", {code: world.data.candles(code, "1h", since, BARS + 1) for code in world.codes})
    funding = {}
    for code in world.codes:
        rates = [rate for rate in world.data.funding(code, since, BARS) if rate.time_ms < now]
        funding[code] = (
            np.array([rate.time_ms for rate in rates], dtype=np.int64),
            np.array([rate.rate for rate in rates], dtype=np.float64),
        )
    world.store.write_funding(MARKET, funding)
    monkeypatch.setattr("trading_app.verifying.candle_store", lambda: world.store)
    return world


def verify(world: World) -> Verification:
    return verify_decisions(world.bot, EPOCH - dt.timedelta(days=1), EPOCH + dt.timedelta(days=5))


def test_i13_stored_decisions_are_what_the_stored_candles_say(traded: World) -> None:
    found = verify(traded)
    assert found.differences == []
    assert found.compared == Decision.objects.exclude(artifact=None).count() > 50
    assert Decision.objects.filter(probability__isnull=False).count() > 10
    assert found.late == found.unstored == 0


@pytest.mark.parametrize(
    "change, said",
    [
        ({"probability": 0.123}, "the probability was 0.123"),
        ({"price": 1.0}, "the bot saw the price 1.0"),
    ],
)
def test_a_decision_that_was_changed_is_found(traded: World, change: dict[str, float], said: str) -> None:
    asked = Decision.objects.filter(probability__isnull=False).first()
    assert asked is not None
    Decision.objects.filter(pk=asked.pk).update(**change)
    (sentence,) = verify(traded).differences
    assert sentence.startswith(asked.symbol.code)
    assert said in sentence


def test_a_candle_that_was_changed_is_found(traded: World) -> None:
    code = traded.codes[0]
    since = to_ms(EPOCH) + 3 * HOUR_MS
    candle = traded.data.candles(code, "1h", since, 1)
    candle.close[0] *= 1.0001
    candle.high[0] = max(candle.high[0], candle.close[0])
    traded.store.write(MARKET, "1h", {code: candle})
    assert any(sentence.startswith(code) and "price" in sentence for sentence in verify(traded).differences)


def test_a_bar_that_was_decided_without_a_late_candle_is_no_difference(traded: World) -> None:
    asked = Decision.objects.filter(probability__isnull=False).first()
    assert asked is not None
    Decision.objects.filter(pk=asked.pk).update(
        reason_code="NO_CANDLE", reason="NO_CANDLE", outcome="NO_DATA", probability=None, price=None, side=0
    )
    found = verify(traded)
    assert found.differences == []
    assert found.late == Decision.objects.filter(bar_at=asked.bar_at).exclude(artifact=None).count()


def test_the_command_says_what_it_compared_and_ends_with_a_code(
    traded: World, capsys: pytest.CaptureFixture[str]
) -> None:
    day = f"{EPOCH:%Y-%m-%d}"
    call_command("verify_decisions", "--day", day, "--days", "3", "--json")
    assert json.loads(capsys.readouterr().out)["differences"] == []
    call_command("verify_decisions", "--day", day)
    assert "decisions compared, 0 differences" in capsys.readouterr().out
    Decision.objects.filter(probability__isnull=False).update(probability=0.5)
    with pytest.raises(SystemExit, match="1"):
        call_command("verify_decisions", "--day", day)
    assert "the probability was 0.5" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        call_command("verify_decisions", "--day", "2001-01-01")
    with pytest.raises(CommandError, match="must be a day"):
        call_command("verify_decisions", "--day", "yesterday")


def test_without_decisions_the_next_step_is_said() -> None:
    with pytest.raises(CommandError, match="run the bot first"):
        call_command("verify_decisions")

"""Fills whose times cannot be count from when they can; and a fill that the exchange itself made says why."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import pytest

from exchanges.port import VenueFill
from ops_app.models import Alert
from quant.timeframes import DAY_MS, to_ms
from tests.trading.conftest import World
from trading_app.bot import BotRunner
from trading_app.choices import OrderPurpose
from trading_app.models import Bot, Fill, Order, Position, RiskEvent

pytestmark = pytest.mark.django_db

YEAR_MS = 365 * DAY_MS


def shift(world: World, monkeypatch: pytest.MonkeyPatch, by: Callable[[VenueFill], int]) -> None:
    honest = world.matching.fills_since
    monkeypatch.setattr(
        world.venue, "fills_since",
        lambda since: [replace(fill, time_ms=fill.time_ms + by(fill)) for fill in honest(since)],
    )  # fmt: skip


def enter_and_close(world: World) -> tuple[BotRunner, Position]:
    runner = world.runner()
    world.until_entry(runner)
    position = Position.objects.get()
    Bot.objects.update(desired_state="close_only")
    world.sim.advance(dt.timedelta(minutes=3))
    runner.tick()
    position.refresh_from_db()
    return runner, position


@pytest.mark.parametrize("ahead_ms", [5 * 60_000, 10**17])
def test_f14_fills_of_the_future_count_from_when_they_were_read_and_hide_none_that_follow(
    world: World, monkeypatch: pytest.MonkeyPatch, ahead_ms: int
) -> None:
    shift(world, monkeypatch, lambda fill: ahead_ms)
    _, position = enter_and_close(world)
    assert position.closed_at is not None, "the exit's fill was read after one that claims to be of the future"
    assert position.opened_at <= position.closed_at <= world.sim.now + dt.timedelta(seconds=1)
    bot = Bot.objects.get()
    assert bot.last_fill_at is not None
    assert bot.last_fill_at <= world.sim.now
    honest = sum((fill.quantity * fill.price * (1 if fill.side == "sell" else -1))
                 for fill in world.matching.fills_since(0) if fill.kind == "trade")  # fmt: skip
    assert abs(position.realised_pnl - honest) < 1e-6
    assert "away from when that can be" in Alert.objects.get(key="fill_time:main").text


def test_f10_fills_of_the_future_that_are_read_together_keep_their_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = world.venue.fills_since
    runner = world.runner()
    runner.tick()
    monkeypatch.setattr(world.venue, "fills_since", lambda since: [])
    world.until_entry(runner)
    entry = Order.objects.filter(purpose=OrderPurpose.ENTRY).latest("id")
    code = entry.symbol.code
    template = honest(0)[0]
    half = entry.filled / 2
    made = [
        replace(template, symbol=code, trade_id=trade_id, client_order_id=client_id, side=side, quantity=half,
                price=price, time_ms=to_ms(world.sim.now) + YEAR_MS + later)
        for later, (trade_id, client_id, side, price) in enumerate(
            [("z", entry.client_order_id or "", entry.side, entry.filled * 0 + 100),
             ("a", "", "sell" if entry.side == "buy" else "buy", entry.filled * 0 + 110)]
        )
    ]  # fmt: skip
    monkeypatch.setattr(world.venue, "fills_since", lambda since: made)
    session = runner._session
    assert session is not None
    session.reconciler.sync_fills()
    position = Position.objects.get(symbol__code=code)
    assert position.side == (1 if entry.side == "buy" else -1), "opened by the entry, closed by what came after it"
    assert position.entry_price == 100
    first, second = Fill.objects.filter(position=position).order_by("filled_at")
    assert (first.trade_id, second.trade_id) == ("z", "a")


def test_a_fill_from_before_its_order_counts_from_when_the_order_was_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift(world, monkeypatch, lambda fill: -90 * 60_000)
    _, position = enter_and_close(world)
    for fill in Fill.objects.exclude(order=None).select_related("order"):
        assert fill.order is not None
        assert fill.filled_at == fill.order.sent_at
    entry = Order.objects.get(position=position, purpose=OrderPurpose.ENTRY)
    assert position.opened_at == entry.sent_at
    assert position.closed_at is not None
    assert position.closed_at > position.opened_at


def test_times_that_differ_by_seconds_stay_as_the_exchange_says_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift(world, monkeypatch, lambda fill: 2_000)
    _, _ = enter_and_close(world)
    said = {fill.trade_id: fill.time_ms for fill in world.venue.fills_since(0)}
    assert {fill.trade_id: to_ms(fill.filled_at) for fill in Fill.objects.all()} == said
    assert not Alert.objects.filter(key="fill_time:main").exists()


@pytest.mark.parametrize("cause", ["liquidation", "delivery"])
def test_f16_a_position_that_the_exchange_closed_says_why(
    world: World, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    runner = world.runner()
    world.until_entry(runner)
    position = Position.objects.get()
    honest = world.matching.fills_since
    entry = honest(0)[-1]
    close = replace(
        entry, trade_id="bust1", client_order_id="", side="sell" if position.quantity > 0 else "buy",
        quantity=abs(position.quantity), time_ms=entry.time_ms + 1_000, cause=cause,  # type: ignore[arg-type]
    )  # fmt: skip
    monkeypatch.setattr(world.venue, "fills_since", lambda since: [*honest(since), close])
    session = runner._session
    assert session is not None
    session.reconciler.sync_fills()
    position.refresh_from_db()
    assert position.closed_at is not None
    assert position.close_reason.startswith(f"{cause.upper()}: price=")
    assert RiskEvent.objects.filter(kind="foreign", evidence__startswith=f"{cause.upper()}: symbol=").exists()

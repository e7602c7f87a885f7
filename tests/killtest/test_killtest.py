"""The kill test itself: its judge has teeth, and a small dose of it finds nothing."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ops_app import clock
from tests.conventions.walker import ROOT
from tests.factories import BotFactory, DecisionFactory, FillFactory, OrderFactory, PositionFactory, SymbolFactory
from trading_app.choices import OrderState
from trading_app.models import Bot, Order
from tradingsite.killtest.books import Differences, compare, sent_since, unprotected
from tradingsite.killtest.lane import Lane, Process
from tradingsite.killtest.report import KillReport

LINK = "abcdef0001{:07d}"


@pytest.fixture
def bot(db: None) -> Bot:
    return BotFactory(name="main")


def order(bot: Bot, number: int = 1, **changes: Any) -> Order:
    symbol = changes.pop("symbol", None) or SymbolFactory(code="BTC/USDT:USDT")
    fields = {"state": OrderState.FILLED, "filled": 1, "quantity": 1, "client_order_id": LINK.format(number)}
    return OrderFactory(bot=bot, symbol=symbol, **(fields | changes))


def seen(number: int = 1, **changes: Any) -> dict[str, Any]:
    fields = {"link_id": LINK.format(number), "status": "Filled", "filled": "1", "sequence": number, "age_ms": 3}
    return fields | changes


def judge(bot: Bot, *orders: dict[str, Any], **books: Any) -> Differences:
    whole = {"orders": list(orders), "executions": [], "positions": [], "episodes": []} | books
    return compare(bot, whole, first_row=0, last_row=10**9, window_ms=1000)


def test_books_that_agree_have_no_difference(bot: Bot) -> None:
    placed = order(bot)
    order(bot, 2, symbol=placed.symbol, state=OrderState.NOT_PLACED, filled=0)
    FillFactory(order=placed, trade_id="e1")
    PositionFactory(bot=bot, symbol=placed.symbol, quantity=1)
    held = {"symbol": "BTCUSDT", "qty": "1"}
    assert judge(bot, seen(), executions=[{"exec_id": "e1"}], positions=[held]) == Differences()


@pytest.mark.parametrize(
    "row, picture, said",
    [
        (None, seen(), "no row does"),
        ({}, None, "the exchange does not know it"),
        ({"state": OrderState.NOT_PLACED, "filled": 0}, seen(), "NOT_PLACED"),
        ({"filled": 0, "state": OrderState.ACKED}, seen(), "says filled=0"),
        ({"state": OrderState.CANCELLED, "filled": 0}, seen(status="New", filled="0"), "the exchange says New"),
    ],
    ids=["no row", "not there", "given up", "fill missed", "still open"],
)
def test_a_lost_order_is_found(bot: Bot, row: dict[str, Any] | None, picture: dict[str, Any] | None, said: str) -> None:
    if row is not None:
        order(bot, **row)
    [sentence] = judge(bot, *([picture] if picture else [])).lost.values()
    assert said.lower() in sentence.lower()


def test_a_lost_fill_and_a_position_that_differs_are_found(bot: Bot) -> None:
    found = judge(bot, executions=[{"exec_id": "e9"}], positions=[{"symbol": "BTCUSDT", "qty": "2"}])
    assert [sentence.split()[0] for sentence in found.lost.values()] == ["execution", "BTC/USDT:USDT:"]


def test_a_decision_that_was_sent_twice_is_found(bot: Bot) -> None:
    first = order(bot)
    first.decision = DecisionFactory(bot=bot, symbol=first.symbol)
    first.save()
    order(bot, 2, symbol=first.symbol, decision=first.decision)
    [sentence] = judge(bot, seen(), seen(2)).doubled
    assert "sent 2 times" in sentence
    assert judge(bot, seen(), seen(2, status="Rejected", filled="0")).doubled == []


def test_a_stale_order_is_found(bot: Bot) -> None:
    young, old = f"abcdef0002{2:07d}", LINK.format(3)
    found = judge(bot, seen(age_ms=2000), seen(2, link_id=young), seen(3, link_id=old)).stale
    assert len(found) == 2
    assert "2000 ms" in found[0]
    assert "accepted after one of 0002" in found[1]


def test_a_position_without_a_stop_is_found() -> None:
    episodes = [{"symbol": "BTCUSDT", "naked_longest_ms": 900}, {"symbol": "ETHUSDT", "naked_longest_ms": 1100}]
    assert unprotected({"episodes": episodes}, deadline_ms=1000) == ["ETHUSDT had no stop for 1100 ms"]


def test_an_order_of_a_bot_that_woke_without_its_account_is_found() -> None:
    orders = [seen(1, accepted_ms=50), seen(2, accepted_ms=70), seen(3, accepted_ms=70, link_id="abcdef0002aaaaaaa")]
    [sentence] = sent_since({"orders": orders}, "0001", 60)
    assert LINK.format(2) in sentence


def test_what_differs_until_the_end_is_lost_and_what_only_lags_is_not(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = Lane(
        bot=bot, codes=(), url="", speed=1, seed=1, log=io.StringIO(), deadline_seconds=1, window_seconds=1,
        report=KillReport(),
    )  # fmt: skip
    pictures = [{"e1": "e1 has no row", "e2": "e2 has no row"}, *[{"e1": "e1 has no row", "e3": "e3 has no row"}] * 400]
    with clock.simulated(dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) as simulated:

        def listen(_lane: Lane, _process: Process, seconds: float) -> bool:
            simulated.advance(dt.timedelta(seconds=seconds))
            return True

        monkeypatch.setattr(Lane, "_listen", listen)
        monkeypatch.setattr(Lane, "_compare", lambda _lane: Differences(lost=pictures.pop(0)))
        assert lane._judge(Process(0, io.StringIO()))
    assert lane.report.sentences == ["lost: e1 has no row"]


def killed(*arguments: str) -> dict[str, Any]:
    """Run the command as a person would, in processes of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "DATABASE_"))}
    done = subprocess.run(
        [sys.executable, "manage.py", "killtest", "--json", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.slow
def test_thirty_kills_lose_double_and_bare_nothing() -> None:
    report = killed("--runs", "30", "--seed", "7", "--lanes", "5", "--pauses", "1")
    zeros = {name: report[name] for name in ("lost", "doubled", "unprotected", "stale", "errors")}
    assert set(zeros.values()) == {0}, report["sentences"]
    assert (report["runs"], report["pauses"]) == (30, 5)
    assert report["orders"] > 50
    assert len(report["hooks"]) >= 5
    assert report["seconds_to_reconciled"]["median"] is not None

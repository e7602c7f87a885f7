"""`explain` and the other faces: they say why, they ask services, and they import nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from coverage_app.choices import BlockReason
from ops_app import metrics
from ops_app.doctor import Level
from tests.factories import (
    EPOCH,
    ArtifactFactory,
    BlockFactory,
    BotFactory,
    PositionFactory,
    SymbolFactory,
    UserFactory,
)
from tests.trading.conftest import HOUR, World
from trading_app import doctor_checks, metrics_sources, selectors
from trading_app.explaining import UnknownCodeError, explain
from trading_app.models import Bot, Decision, Position, RiskEvent
from training_app import watching

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]


def test_explain_names_the_block_its_evidence_and_when_it_is_looked_at_again(sim: Any) -> None:
    symbol = SymbolFactory(code="NEW/USDT:USDT")
    BlockFactory(symbol=symbol, reason=BlockReason.SHORT_HISTORY, evidence="SHORT_HISTORY: days=12, needed=90")
    found = explain("new/usdt")
    assert found.state == "BLOCKED"
    assert found.verdict == (
        "Not traded: BLOCKED, SHORT_HISTORY: days=12, needed=90. Looked at again at 2025-06-01 01:00 UTC."
    )
    assert [block.evidence for block in found.blocks] == ["SHORT_HISTORY: days=12, needed=90"]


def test_explain_says_what_was_decided_last_and_why(world: World) -> None:
    runner = world.runner()
    runner.tick()
    world.pass_bars(runner, 2)
    row = Decision.objects.exclude(outcome__in=("ENTER", "HOLD")).order_by("-bar_at").first()
    assert row is not None
    if Position.objects.open().filter(symbol=row.symbol).exists():
        pytest.fail("a symbol that holds a position was not held: the engine changed")
    found = explain(row.symbol.code)
    assert row.reason in found.verdict
    assert found.decisions[0].reason == row.reason
    out = StringIO()
    call_command("explain", row.symbol.code, stdout=out)
    assert row.reason in out.getvalue()
    out = StringIO()
    call_command("explain", row.symbol.code, "--json", stdout=out)
    assert json.loads(out.getvalue())["verdict"] == found.verdict


def test_explain_of_an_unknown_symbol_names_the_nearest_codes(sim: Any) -> None:
    for code in ("BTC/USDT:USDT", "ETH/USDT:USDT", "BTCDOM/USDT:USDT"):
        SymbolFactory(code=code)
    with pytest.raises(UnknownCodeError, match="Did you mean BTC/USDT:USDT") as caught:
        explain("BTX/USDT:USDT")
    assert "ETH/USDT:USDT" not in caught.value.nearest
    with pytest.raises(CommandError, match="is no symbol of the market simulated"):
        call_command("explain", "QQQQQQQ")


def test_explain_takes_the_base_alone_where_one_symbol_has_it_and_else_names_those_that_have(sim: Any) -> None:
    for code in ("BABAX/USDT:USDT", "BABAXY/USDT:USDT", "ETH/USDT:USDT", "ETH/USDC:USDC"):
        SymbolFactory(code=code)
    assert explain("babax").code == "BABAX/USDT:USDT"
    with pytest.raises(UnknownCodeError) as caught:
        explain("ETH")
    assert set(caught.value.nearest) == {"ETH/USDT:USDT", "ETH/USDC:USDC"}


def test_a_look_that_is_due_is_called_so(sim: Any) -> None:
    block = BlockFactory(recheck_at=EPOCH - HOUR)
    assert explain(block.symbol.code).verdict.endswith("Due to be looked at since 2025-05-31 23:00 UTC.")


def test_explain_says_that_a_position_is_foreign_or_has_no_stop(sim: Any) -> None:
    bot = BotFactory(name="main")
    position = PositionFactory(bot=bot, foreign=True)
    found = explain(position.symbol.code)
    assert "not this bot's" in found.verdict
    assert found.position is not None
    assert not found.position.has_live_stop


def test_todays_decisions_count_the_reasons_why_not(world: World) -> None:
    runner = world.runner()
    runner.tick()
    world.pass_bars(runner, 3)
    day = selectors.decisions_today(Bot.objects.get(), world.sim.now)
    assert day.total == Decision.objects.filter(bar_at__gte=EPOCH).count() == 3 * len(world.codes)
    assert sum(count for _, count in day.why_not) == sum(
        count for outcome, count in day.outcomes.items() if outcome in selectors.WHY_NOT_OUTCOMES
    )
    assert day.last_bar_at == EPOCH + 2 * HOUR
    series = selectors.equity_series(Bot.objects.get())
    assert [row.at for row in series] == sorted(row.at for row in series)


def test_the_promise_is_compared_with_what_the_trades_made(world: World) -> None:
    runner = world.runner()
    runner.tick()
    world.pass_bars(runner, 40)
    (promise,) = selectors.promises(Bot.objects.get())
    closed = Position.objects.filter(closed_at__isnull=False)
    assert promise.trades == closed.count() > 0
    assert promise.wins == sum(each.realised_pnl > each.fees for each in closed)
    assert promise.net_pnl == sum(each.realised_pnl - each.fees for each in closed)
    assert (promise.promised_precision, promise.promised_net_return) == (0.6, 0.002)
    said = [each.entry_decision.probability for each in closed if each.entry_decision is not None]
    assert promise.calibration is not None
    assert promise.calibration.promised == pytest.approx(sum(said) / len(said))
    assert promise.calibration.paid == promise.live_precision
    low, high = promise.interval
    assert 0 <= low <= promise.wins / promise.trades <= high <= 1
    assert selectors.live_records in watching._live_sources, "the watch of the models asks here"
    assert selectors.live_records([promise.artifact_id]) == {promise.artifact_id: promise.record}
    assert selectors.live_records([]) == {}
    exported = metrics.text().decode()
    name = f'{{model="v{promise.version} (#{promise.artifact_id})"}}'
    assert f"tradingbot_model_live_precision{name} {promise.live_precision}" in exported
    assert f"tradingbot_model_guard{name} {promise.guard}" in exported
    # What the bot asks at every bar: of the models that it holds only.
    other = ArtifactFactory(created_at=EPOCH - HOUR)
    bot = Bot.objects.get()
    assert selectors.promises(bot, artifact_ids={promise.artifact_id, other.pk}) == [promise]
    assert selectors.promises(bot, artifact_ids={other.pk}) == []
    assert selectors.promises(bot, artifact_ids=set()) == []


# --- admin


@pytest.fixture
def admin(client: Any, sim: Any) -> Any:
    client.force_login(UserFactory(username="root", is_staff=True, is_superuser=True))
    return client


@pytest.mark.parametrize(
    "action, state",
    [("pause", "pause"), ("close_only", "close_only"), ("stop", "stop"), ("start", "run")],
)
def test_the_admins_actions_ask_the_services_and_say_what_they_did(admin: Any, action: str, state: str) -> None:
    bot = BotFactory(desired_state="pause" if state == "run" else "run")
    answer = admin.post(
        reverse("admin:trading_app_bot_changelist"), {"action": action, "_selected_action": [bot.pk]}, follow=True
    )
    assert answer.status_code == 200
    bot.refresh_from_db()
    assert bot.desired_state == state
    event = RiskEvent.objects.get(kind="desired_state")
    assert event.user is not None
    assert event.user.username == "root"


def test_the_kill_switch_is_pulled_and_reset_in_the_admin_by_name(admin: Any) -> None:
    bot = BotFactory()
    url = reverse("admin:trading_app_bot_changelist")
    for action, pulled in (("pull_kill_switch", True), ("reset_kill_switch", False)):
        admin.post(url, {"action": action, "_selected_action": [bot.pk]}, follow=True)
        bot.refresh_from_db()
        assert (bot.kill_switch_at is not None) == pulled
    assert [event.user.username for event in RiskEvent.objects.all() if event.user] == ["root", "root"]


@pytest.mark.parametrize("model", ["bot", "decision", "order", "fill", "position", "equitypoint", "riskevent"])
def test_every_admin_page_of_money_opens_and_nothing_can_be_added_or_deleted(admin: Any, model: str) -> None:
    assert admin.get(reverse(f"admin:trading_app_{model}_changelist")).status_code == 200
    assert admin.get(reverse(f"admin:trading_app_{model}_add")).status_code == 403


def test_a_limit_changed_in_the_admin_leaves_the_running_bots_columns_alone(admin: Any) -> None:
    bot = BotFactory()
    url = reverse("admin:trading_app_bot_change", args=[bot.pk])
    limits = {
        "max_leverage": 1.5, "max_correlated": 1.2, "max_position": 0.1, "max_positions": 4, "cooldown_bars": 2,
        "daily_loss_limit": 0.04, "max_drawdown": 0.2, "on_kill_switch": "close", "volatility_target": 0.01,
    }  # fmt: skip
    Bot.objects.update(reloads=7)
    assert admin.post(url, limits).status_code == 302
    bot.refresh_from_db()
    assert (bot.max_positions, bot.cooldown_bars, bot.reloads, bot.desired_state) == (4, 2, 7, "run")
    assert bot.history.latest().history_user.username == "root"


# --- The doctor, the metrics and what is imported


def test_the_doctor_names_a_position_without_a_stop(sim: Any) -> None:
    position = PositionFactory()
    (finding,) = doctor_checks.stops()
    assert finding.level is Level.PROBLEM
    assert position.symbol.code in finding.text
    assert [each.level for each in doctor_checks.orders()] == [Level.OK]
    assert "does not run" in next(each.text for each in doctor_checks.bot())


def test_metrics_tell_equity_positions_and_the_kill_switch(world: World) -> None:
    world.runner().tick()
    found = {family.name: family.samples for family in metrics_sources.trading()}
    assert found["tradingbot_equity"][0].labels == {"bot": "main"}
    assert found["tradingbot_kill_switch"][0].value == 0.0
    assert found["tradingbot_positions_open"][0].value == Position.objects.open().count()


def test_what_the_web_imports_of_trading_loads_no_heavy_library() -> None:
    code = (
        "import django, sys; django.setup()\n"
        "import trading_app.admin, trading_app.services, trading_app.selectors, trading_app.explaining\n"
        "import trading_app.doctor_checks, trading_app.metrics_sources\n"
        "print([name for name in ('ccxt', 'lightgbm', 'numba', 'sklearn', 'pandas') if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
        env={"DJANGO_SETTINGS_MODULE": "tradingsite.settings", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert out.stdout.strip() == "[]"

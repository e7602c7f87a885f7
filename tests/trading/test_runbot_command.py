"""`manage.py runbot`: one bot per account, a clear refusal, and a quick start after a kill."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from ops_app import clock, leases
from ops_app.models import Heartbeat, Lease
from tests.trading.conftest import World
from trading_app import takeover
from trading_app.models import Bot, Decision

pytestmark = pytest.mark.django_db
TTL = dt.timedelta(seconds=20)


@pytest.fixture
def settled(world: World, settings: Any) -> World:
    """A world that the command finds through the settings alone."""
    settings.BOT_NAME, settings.SIM_SEED, settings.SIM_SYMBOLS = "main", 7, len(world.codes)
    from training_app.models import ActiveModel

    ActiveModel.objects.all().delete()  # the command loads real files only
    return world


def test_once_does_one_pass_says_what_it_did_and_gives_the_account_back(settled: World) -> None:
    out = StringIO()
    call_command("runbot", "--once", stdout=out)
    assert "decisions=" in out.getvalue()
    assert Decision.objects.exists()
    lease = Lease.objects.get(name="account:simulated:main")
    assert (lease.holder, lease.expires_at) == ("", None)
    assert not Heartbeat.objects.filter(kind="bot").exists(), "nobody should miss a bot that was told to stop"


def test_max_ticks_ends_the_loop(settled: World) -> None:
    call_command("runbot", "--max-ticks", "3", "--interval", "60", stdout=StringIO())
    assert Bot.objects.get().started_at is not None


def test_a_second_bot_on_the_account_is_refused_with_who_trades_it(settled: World, monkeypatch: Any) -> None:
    other = takeover.take(settled.bot, holder="bot@elsewhere:1:abcd", ttl=TTL)
    assert other is not None

    def sleep(seconds: float) -> None:
        settled.sim.advance(dt.timedelta(seconds=seconds))
        leases.renew(other)

    monkeypatch.setattr(clock, "sleep", sleep)
    with pytest.raises(CommandError, match="is traded by bot@elsewhere:1:abcd") as caught:
        call_command("runbot", "--once", stdout=StringIO())
    assert caught.value.returncode == 3
    assert not Decision.objects.exists()


def test_the_lease_of_a_holder_that_died_elsewhere_is_waited_for(settled: World) -> None:
    assert takeover.take(settled.bot, holder="bot@elsewhere:1:abcd", ttl=TTL) is not None
    before = settled.sim.now
    lease = takeover.wait_for_account(settled.bot, holder="bot@here:2:efgh", ttl=TTL)
    assert lease is not None
    assert lease.token == 2
    assert settled.sim.now - before >= TTL


def test_a_holder_that_was_killed_on_this_host_is_not_waited_for(settled: World) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = leases.holder_name("bot").replace(f":{os.getpid()}:", f":{ended.pid}:")
    assert takeover.take(settled.bot, holder=holder, ttl=TTL) is not None
    before = settled.sim.now
    lease = takeover.wait_for_account(settled.bot, holder="bot@here:2:efgh", ttl=TTL)
    assert lease is not None
    assert settled.sim.now - before < dt.timedelta(seconds=1)


@pytest.mark.parametrize("option, value", [("--max-ticks", "0"), ("--interval", "-1")])
def test_a_senseless_number_is_refused_with_the_rule(settled: World, option: str, value: str) -> None:
    with pytest.raises(CommandError, match=f"{option} is .*: it must be above 0"):
        call_command("runbot", option, value)


def test_an_unknown_bot_names_the_ones_there_are(settled: World) -> None:
    with pytest.raises(CommandError, match="bot 'mian' does not exist; there are: main"):
        call_command("runbot", "--bot", "mian", "--once")

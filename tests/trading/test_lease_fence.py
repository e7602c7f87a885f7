"""The bot's part of the lock protocol: what the last owner may still send, and when a new one begins (B4, B5)."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from exchanges.port import OrderRequest, PlaceOutcome
from ops_app import leases
from ops_app.leases import LeaseLost
from tests.trading.conftest import World
from trading_app import takeover
from trading_app.choices import OrderPurpose, OrderState
from trading_app.orders import NewOrder
from trading_app.venue import RECEIVE_WINDOW

pytestmark = pytest.mark.django_db
TTL = dt.timedelta(seconds=20)
SECOND = dt.timedelta(seconds=1)


def entry(world: World) -> NewOrder:
    return NewOrder(
        symbol=world.codes[0],
        purpose=OrderPurpose.ENTRY,
        side="buy",
        quantity=Decimal(1000),
        reason="TEST: made_by=test",
    )


def owner(world: World) -> takeover.LeaseToken:
    lease = takeover.take(world.bot, holder=leases.holder_name("bot"), ttl=TTL)
    assert lease is not None
    return lease


@pytest.mark.parametrize("left, sent", [(RECEIVE_WINDOW + SECOND, True), (RECEIVE_WINDOW, False), (-SECOND, False)])
def test_f37_b4_an_order_is_sent_only_if_its_whole_receive_window_lies_within_the_lease(
    world: World, monkeypatch: pytest.MonkeyPatch, left: dt.timedelta, sent: bool
) -> None:
    runner = world.runner(lease_ttl=TTL)
    runner.adopt(owner(world))
    assert runner._session is not None
    desk = runner._session.desk
    monkeypatch.setattr(leases, "keep", lambda _: None)  # the renewal did not get through
    held = leases.held

    def paused(lease: leases.LeaseToken) -> bool:
        """The database says that the lease is held; then the process stands still until little of it is left."""
        answer = held(lease)
        world.sim.advance(TTL - left)
        return answer

    with transaction.atomic():
        (order,) = desk.write([entry(world)])
    monkeypatch.setattr(leases, "held", paused)
    if sent:
        assert desk.send(order).state == OrderState.FILLED
    else:
        with pytest.raises(LeaseLost, match="ends too soon to send"):
            desk.send(order)
    assert len(world.venue.placed) == int(sent)


def test_b5_after_a_holder_that_did_not_give_it_back_a_new_owner_waits_out_what_may_still_arrive(world: World) -> None:
    owner(world)
    world.sim.advance(TTL + SECOND)
    runner = world.runner(lease_ttl=TTL)
    waited = dt.timedelta(0)
    while runner.tick().waiting == "RECEIVE_WINDOW":
        assert not world.venue.placed
        world.sim.advance(SECOND)
        waited += SECOND
    assert waited >= RECEIVE_WINDOW + dt.timedelta(seconds=1)


def test_b5_an_account_that_was_given_back_is_traded_at_once(world: World) -> None:
    leases.release(owner(world))
    assert world.runner(lease_ttl=TTL).tick().waiting != "RECEIVE_WINDOW"


def in_between_and_expired(world: World) -> None:
    owner(world)
    world.sim.advance(TTL + SECOND)


def in_between_and_killed_here(world: World) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = leases.holder_name("bot").replace(f":{os.getpid()}:", f":{ended.pid}:")
    assert takeover.take(world.bot, holder=holder, ttl=TTL) is not None


@pytest.mark.parametrize("in_between", [in_between_and_expired, in_between_and_killed_here])
def test_b5_an_owner_who_comes_and_dies_while_another_waits_counts_as_the_last_one(
    world: World, in_between: Callable[[World], None]
) -> None:
    leases.release(owner(world))  # nobody held it when the other one began to wait
    in_between(world)
    lease = takeover.wait_for_account(world.bot, holder="bot@here:2:efgh", ttl=TTL)
    assert lease is not None
    assert lease.left_by not in ("", "bot@here:2:efgh")
    runner = world.runner(lease_ttl=TTL)
    runner.adopt(lease)
    assert runner.tick().waiting == "RECEIVE_WINDOW"


def test_b5_an_owner_that_is_stopped_while_it_waits_leaves_the_wait_to_the_next(world: World) -> None:
    owner(world)
    world.sim.advance(TTL + SECOND)
    first = world.runner(lease_ttl=TTL)
    assert first.tick().waiting == "RECEIVE_WINDOW"
    first.release()
    assert world.runner(lease_ttl=TTL).tick().waiting == "RECEIVE_WINDOW", "and nobody waits for a lease that ended"


def test_b5_who_takes_the_account_of_a_dead_one_that_another_process_found_waits_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_between_and_killed_here(world)
    quicker = world.runner(lease_ttl=TTL)
    reports = []
    take = takeover.take

    def late(*args: Any, **kwargs: Any) -> takeover.LeaseToken | None:
        """The first look finds the dead one; before the second, another process has taken the account."""
        found = take(*args, **kwargs)
        monkeypatch.setattr(takeover, "take", overtaken)
        return found

    def overtaken(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(takeover, "take", take)
        reports.append(quicker.tick())

    monkeypatch.setattr(takeover, "take", late)
    waiting = takeover.wait_for_account(world.bot, holder="bot@here:2:efgh", ttl=TTL, stopped=lambda: bool(reports))
    assert waiting is None
    assert reports[0].waiting == "RECEIVE_WINDOW"


def test_f37_who_wakes_with_an_answer_to_an_order_that_the_new_owner_settled_has_lost_the_account(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen between request and answer; meanwhile another bot took the account and found the order."""
    world.activate()
    runner = world.runner(lease_ttl=TTL)
    place = world.matching.place
    others = []

    def frozen(request: OrderRequest) -> PlaceOutcome:
        outcome = place(request)
        if not others:
            others.append(world.runner(lease_ttl=TTL, holder="bot@there:2:efgh"))
            world.sim.advance(TTL + SECOND)
            assert others[0].tick().lease == "taken"
        return outcome

    monkeypatch.setattr(world.matching, "place", frozen)
    for _ in range(48):
        world.sim.advance(dt.timedelta(seconds=1))
        if runner.tick().lease == "lost":
            break
        world.sim.advance(dt.timedelta(hours=1))
        world.keep_fresh()
    assert others, "it never sent anything"
    assert runner.tick().lease == "busy"

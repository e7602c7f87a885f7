"""A database or a disk that fails around a send (F28, F29, F30): nothing is sent unrecorded, no answer is lost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from exchanges.port import Ack, PlaceOutcome, Rejected, Throttled, Unknown, VenueOrder
from ops_app import leases
from ops_app.models import Alert
from tests.trading import venues
from tests.trading.conftest import World
from trading_app.bot import BotRunner
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Order, Position
from trading_app.orders import OrderDesk
from trading_app.spool import RESERVED_BYTES, Spool

ORDER = VenueOrder(
    "abc", "O1", "BTC/USDT:USDT", "buy", "market", Decimal("1.50"), Decimal("0.5"), Decimal(100), "open", None, None,
    False, 7,
)  # fmt: skip
OUTCOMES: list[PlaceOutcome] = [Ack(ORDER), Rejected("CODE", "why not"), Throttled(9), Unknown("read timed out")]


def lost(*_: Any, **__: Any) -> None:
    raise OperationalError("database or disk is full")


def until_it_fails(world: World, runner: BotRunner) -> None:
    with pytest.raises(OperationalError):
        world.pass_bars(runner, 48)


@pytest.fixture
def sent_unwritten(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[World, BotRunner]:
    """A bot whose first order was sent, and whose database was lost before the answer could be written."""
    runner = world.runner()
    with monkeypatch.context() as patch:
        patch.setattr(OrderDesk, "apply_outcome", lost)
        until_it_fails(world, runner)
    return world, runner


@pytest.mark.django_db
@pytest.mark.parametrize("place", ["write", "send"])
def test_f28_with_the_database_lost_before_the_send_nothing_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    runner = world.runner()
    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr(OrderDesk, "write", lost)
        else:
            keep = leases.keep
            # The bar is written; the lease cannot be checked any more when the first order is about to leave.
            patch.setattr(leases, "keep", lambda lease: lost() if Order.objects.exists() else keep(lease))
        until_it_fails(world, runner)
    assert not world.venue.placed
    written = list(Order.objects.values_list("pk", flat=True))
    assert bool(written) == (place == "send")
    world.sim.advance(dt.timedelta(seconds=10))
    runner.tick()
    states = set(Order.objects.filter(pk__in=written).values_list("state", flat=True))
    assert states <= {OrderState.NOT_PLACED}, "a stale intent is never replayed"


def kept_in_memory(runner: BotRunner, world: World) -> BotRunner:
    return runner


def kept_in_the_file(runner: BotRunner, world: World) -> BotRunner:
    """The process died meanwhile: only the file knows."""
    runner.release()
    return world.runner()


@pytest.mark.django_db
@pytest.mark.parametrize("goes_on", [kept_in_memory, kept_in_the_file])
def test_f29_an_answer_that_could_not_be_written_is_written_when_the_database_is_back(
    sent_unwritten: tuple[World, BotRunner], goes_on: Callable[[BotRunner, World], BotRunner]
) -> None:
    world, runner = sent_unwritten
    sent = len(world.venue.placed)
    assert sent == 1, "the orders behind it stay unsent"
    order = Order.objects.get(client_order_id=world.venue.placed[0].client_order_id)
    assert order.state == OrderState.SENDING
    assert world.matching.positions(), "the exchange has the position, the tables do not know it"
    bot = goes_on(runner, world)
    assert len(bot.spool) == 1
    world.venue.blind_to = {order.client_order_id or ""}  # even if the exchange forgot the order, its answer is known
    world.sim.advance(dt.timedelta(seconds=5))
    bot.tick()
    order.refresh_from_db()
    assert order.state in (OrderState.FILLED, OrderState.CANCELLED)
    assert len(bot.spool) == 0
    position = Position.objects.open().get(symbol=order.symbol)
    assert Order.objects.filter(position=position, purpose=OrderPurpose.STOP, state=OrderState.ACKED).exists()
    ids = venues.client_ids(world.venue.placed)
    assert len(ids) == len(set(ids)), "nothing was sent a second time"
    assert "could not be written" in Alert.objects.get(key__startswith="database:").text


@pytest.mark.django_db
def test_f29_f30_while_nothing_can_be_written_nothing_is_decided_and_nothing_sent(
    sent_unwritten: tuple[World, BotRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, runner = sent_unwritten
    with monkeypatch.context() as patch:
        patch.setattr(OrderDesk, "apply_outcome", lost)
        for _ in range(5):
            with pytest.raises(OperationalError):
                world.pass_bars(runner, 1)
    assert len(world.venue.placed) == 1, "entries are halted; the exchange's own stops are the exits"
    assert len(runner.spool) == 1


@pytest.mark.django_db
def test_f29_a_bot_that_waited_for_the_account_writes_what_the_one_before_it_could_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, runner = world.runner(), world.runner()
    with monkeypatch.context() as patch:
        patch.setattr(OrderDesk, "apply_outcome", lost)
        until_it_fails(world, runner)
    runner.release()
    order = Order.objects.get(client_order_id=world.venue.placed[0].client_order_id)
    world.venue.blind_to = {order.client_order_id or ""}
    waiting.tick()
    order.refresh_from_db()
    assert order.state in (OrderState.FILLED, OrderState.CANCELLED)


# --- the file


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_f29_every_answer_comes_back_from_the_file_as_it_was(tmp_path: Path, outcome: PlaceOutcome) -> None:
    path = tmp_path / "spool" / "account.jsonl"
    first = Spool(path)
    first.keep("abc", outcome)
    first.keep("def", Unknown("another"))
    assert Spool(path).kept() == {"abc": outcome, "def": Unknown("another")}
    again = Spool(path)
    again.clear()
    again.keep("ghi", outcome)
    assert Spool(path).kept() == {"ghi": outcome}


def test_f29_half_a_line_of_a_kill_costs_that_answer_only(tmp_path: Path) -> None:
    path = tmp_path / "account.jsonl"
    spool = Spool(path)
    spool.keep("abc", OUTCOMES[0])
    size = spool._size
    spool.keep("def", OUTCOMES[1])
    written = path.read_bytes()
    path.write_bytes(written[: size + 10].ljust(len(written), b"\0"))
    torn = Spool(path)
    assert set(torn.kept()) == {"abc"}
    torn.keep("ghi", OUTCOMES[2])
    assert set(Spool(path).kept()) == {"abc", "ghi"}


def test_f29_lines_that_two_processes_wrote_over_each_other_stop_no_bot_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "account.jsonl"
    old_picture, owner = Spool(path), Spool(path)
    owner.keep("abc", Unknown("x" * 120))
    owner.keep("def", OUTCOMES[0])
    old_picture.keep("ghi", OUTCOMES[1])
    path.write_bytes(path.read_bytes().replace(b'"0.5"', b'"0,5"', 1))  # and a disk that changed a byte
    again = Spool(path)
    assert set(again.kept()) == {"ghi"}
    again.keep("jkl", OUTCOMES[2])
    assert set(Spool(path).kept()) == {"ghi", "jkl"}


def test_f30_a_file_that_is_gone_or_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "account.jsonl"
    spool = Spool(path)
    spool.keep("abc", OUTCOMES[0])
    path.unlink()
    path.mkdir()
    spool.clear()
    spool.keep("def", OUTCOMES[1])
    assert spool.kept() == {"def": OUTCOMES[1]}


def test_f30_the_room_is_taken_before_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "account.jsonl"
    spool = Spool(path)
    before = path.stat()
    assert before.st_size == RESERVED_BYTES
    assert before.st_blocks * 512 >= RESERVED_BYTES, "a hole would need its blocks when the disk is full"
    for number in range(100):
        spool.keep(f"{number:017}", Ack(ORDER))
    after = path.stat()
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)


def test_f30_a_disk_that_takes_nothing_leaves_the_answer_in_memory(tmp_path: Path) -> None:
    full = tmp_path / "account.jsonl"
    full.symlink_to("/dev/full")  # a real ENOSPC at each write
    spool = Spool(full)
    spool.keep("abc", OUTCOMES[0])
    assert spool.kept() == {"abc": OUTCOMES[0]}
    spool.clear()
    assert not spool.kept()

"""The bot that is killed: a forked process, with the hook at which it kills itself.

It is forked from a process that has imported everything and used nothing of it (no thread, no connection, no kernel),
so that it is there in a tenth of a second instead of three.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from django.db import connections

from exchanges.port import OrderRequest, PlaceOutcome, Venue
from ops_app.process import die_with_parent
from trading_app import positions, takeover
from trading_app.bot import BotRunner
from trading_app.models import Bot, Order
from trading_app.orders import OrderDesk
from trading_app.report import TickReport
from tradingsite.killtest.world import EagerModel

PASS_SECONDS = 0.1
RANDOM = "random"
HOOKS = (
    "after_intent",  # the row is committed, nothing is sent (F01)
    "before_send",  # the row says that it is being sent
    "in_flight",  # somewhere between the request and its answer
    "after_send",  # the exchange has answered, nobody has written it down (F02)
    "after_ack",  # the answer is written down
    "during_fill",  # inside the transaction that books a fill
)


@dataclass(frozen=True, slots=True)
class Fate:
    """Where a bot kills itself: the `nth` time that it comes to `hook`, in flight `seconds` after the request."""

    hook: str = RANDOM
    nth: int = 0
    seconds: float = 0.0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _DeadlyVenue:
    """The venue, and a death around `place`."""

    def __init__(self, venue: Venue, fate: Fate, count: Callable[[], bool]) -> None:
        self._venue, self._fate, self._count = venue, fate, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._venue, name)

    def place(self, request: OrderRequest) -> PlaceOutcome:
        return self._send(self._venue.place, request)

    def place_stop(self, request: OrderRequest) -> PlaceOutcome:
        return self._send(self._venue.place_stop, request)

    def _send(self, send: Callable[[OrderRequest], PlaceOutcome], request: OrderRequest) -> PlaceOutcome:
        now = self._count()
        if now and self._fate.hook == "before_send":
            die()
        if now and self._fate.hook == "in_flight":
            threading.Timer(self._fate.seconds, die).start()
        outcome = send(request)
        if now and self._fate.hook == "after_send":
            die()
        return outcome


def arm(runner: BotRunner, fate: Fate) -> None:
    """Let this process kill itself where `fate` says."""
    hook, left = fate.hook, fate.nth

    def count() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    assert runner.venue is not None  # noqa: S101 - for the type checker: the runner opened it
    if hook in ("before_send", "in_flight", "after_send"):
        runner.venue = _DeadlyVenue(runner.venue, fate, count)
    elif hook in ("after_intent", "after_ack"):
        send = OrderDesk.send

        def deadly_send(desk: OrderDesk, order: Order) -> Order:
            now = count()
            if now and hook == "after_intent":
                die()
            sent = send(desk, order)
            if now:
                die()
            return sent

        OrderDesk.send = deadly_send  # type: ignore[assignment, method-assign]
    elif hook == "during_fill":
        fold = positions.fold_position

        def deadly_fold(*arguments: Any, **more: Any) -> Any:
            folded = fold(*arguments, **more)
            if count():
                die()
            return folded

        positions.fold_position = deadly_fold


def run(bot: Bot, codes: tuple[str, ...], *, parent: int, fate: Fate, out: IO[str], log_fd: int) -> None:
    """Be the bot until killed: one JSON line a pass on `out`. SIGTERM ends it after a pass, its lease given back.

    It dies with its `parent`, also while it is frozen.
    """
    die_with_parent(parent)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    connections.close_all()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model = EagerModel(codes)
        runner = _SpokenRunner(bot, load=lambda _artifact: model)
        runner.out = out
        arm(runner, fate)
        lease = takeover.wait_for_account(bot, holder=runner.holder, ttl=runner.lease_ttl, stopped=stopping.is_set)
        if lease is None:
            os._exit(0)
        runner.adopt(lease)
        runner.run(interval=PASS_SECONDS, stopped=stopping.is_set)
        runner.release()
    except BaseException:  # noqa: BLE001 - the fork must never return into the code of its parent
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


class _SpokenRunner(BotRunner):
    """A bot that says after each pass what it did."""

    out: IO[str]

    def tick(self) -> TickReport:
        report = super().tick()
        _say(self.out, report)
        return report


def _say(out: IO[str], report: TickReport) -> None:
    said = {
        "reconciled": report.reconciled, "waiting": report.waiting, "sent": report.orders_sent,
        "lease": report.lease, "errors": report.errors,
    }  # fmt: skip
    out.write(json.dumps(said) + "\n")
    out.flush()

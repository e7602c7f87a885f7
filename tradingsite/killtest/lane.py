"""One account: its exchange is another process, its bot is forked, killed and forked again."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from django.db import connection, connections
from django.db.models import Max

from ops_app import clock
from ops_app.models import Lease
from trading_app.client_ids import TOKEN_CHARS, base36
from trading_app.models import Bot, Fill, Order
from trading_app.takeover import fence, lease_name
from tradingsite.killtest import bot as child
from tradingsite.killtest import faults
from tradingsite.killtest.books import Differences, compare, sent_since, unprotected
from tradingsite.killtest.report import KillReport

RUN_SECONDS, LONG_RUN_SECONDS = 4.0, 60.0
"""A bot that is killed at a random moment has traded for up to so long; the long one where orders are counted."""
HOOK_SECONDS = 30.0
MOST_NTH = 4
IN_FLIGHT_SECONDS = 0.02
NEVER = child.Fate()
AGREE_SECONDS = START_SECONDS = 150.0
"""A bot reads an exchange that trades on, and is silent for a minute, or twice, when it is asked for it."""
PAUSED_AFTER_SECONDS = 2.0
TAIL = 3000
"""Letters of a bot's log that are shown when it went wrong."""


@dataclass(slots=True)
class Process:
    """A forked bot, and the lines that it says."""

    pid: int
    said: IO[str]
    buffer: str = ""

    def lines(self, seconds: float) -> list[dict[str, Any]] | None:
        """Return what it said within `seconds` at most; None: it has ended."""
        ready, _, _ = select.select([self.said], [], [], seconds)
        if not ready:
            return []
        data = os.read(self.said.fileno(), 65536)
        if not data:
            return None
        *whole, self.buffer = (self.buffer + data.decode()).split("\n")
        return [json.loads(line) for line in whole if line]

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self, number: int) -> bool:
        """End it if it lives; returns False if it had ended with an error of its own."""
        self.signal(number)
        _, status = os.waitpid(self.pid, 0)
        self.said.close()
        return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0


@dataclass(slots=True)
class Lane:
    """Runs of one account. `url` is the exchange, `speed` its milliseconds per real one.

    `log` takes what the bots say.
    """

    bot: Bot
    codes: tuple[str, ...]
    url: str
    speed: float
    seed: int
    log: IO[str]
    deadline_seconds: float
    window_seconds: float
    report: KillReport
    say: Callable[[str], None] = lambda _text: None
    _random: np.random.Generator = field(init=False)
    _killed_at: float | None = None
    _seconds: float = RUN_SECONDS
    _row: int = 0
    _judged: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def run(self, *, runs: int, orders: int = 0, pauses: int = 0, with_faults: bool = False) -> KillReport:
        """Kill `runs` times, and go on until the exchange has `orders`; then end the bot in peace and compare all."""
        if with_faults:
            faults.start(self.url, self.seed)
        self._seconds = LONG_RUN_SECONDS if orders else RUN_SECONDS
        pause_at = {round((number + 1) * runs / (pauses + 1)) for number in range(pauses)}
        while self.report.runs < runs or self._orders() < orders:
            if self.report.runs in pause_at:
                pause_at.discard(self.report.runs)
                self._pause()
            hook = str(self._random.choice((child.RANDOM,) if orders else (child.RANDOM, *child.HOOKS)))
            self._run(hook)
            self.report.runs += 1
            if self.report.runs % 10 == 0:
                self.say(f"{self.report.runs} runs, {self._orders()} orders, {len(self.report.sentences)} violations")
        self._finish()
        return self.report

    # --- one run

    def _run(self, hook: str) -> None:
        fate = child.Fate(
            hook, int(self._random.integers(1, MOST_NTH, endpoint=True)), self._random.uniform(0, IN_FLIGHT_SECONDS)
        )
        process = self._fork(fate)
        alive = self._until_reconciled(process)
        if alive and self._killed_at is not None:
            self.report.reconciled.append(clock.monotonic() - self._killed_at)
            alive = self._judge(process)
        if alive and hook == child.RANDOM:
            self._listen(process, fence().total_seconds() + self._random.uniform(0, self._seconds))
        elif alive:
            alive = self._listen(process, HOOK_SECONDS)
            hook = hook if not alive else child.RANDOM  # nothing brought it there: it dies here
        self.report.hooks[hook] += 1
        self._end(process)
        self._killed_at = clock.monotonic()
        self._row = self._newest_row()

    def _end(self, process: Process, number: int = signal.SIGKILL) -> None:
        if not process.end(number):
            self._report("errors", [f"a bot ended by itself; the end of its log:\n{_tail(self.log)}"])

    def _fork(self, fate: child.Fate = NEVER) -> Process:
        connections.close_all()
        reader, writer = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            child.run(
                self.bot, self.codes, parent=parent, fate=fate, out=os.fdopen(writer, "w"), log_fd=self.log.fileno()
            )
        os.close(writer)
        return Process(pid, os.fdopen(reader))

    def _until_reconciled(self, process: Process) -> bool:
        """Wait until the bot has read the whole exchange; False: it is dead."""
        until = clock.monotonic() + START_SECONDS
        while clock.monotonic() < until:
            said = process.lines(0.2)
            if said is None:
                return False
            if any(line["reconciled"] and not line["errors"] for line in said):
                return True
        self._report("errors", [f"a bot did not reconcile within {START_SECONDS:.0f} s:\n{_tail(self.log)}"])
        return True

    def _listen(self, process: Process, seconds: float) -> bool:
        """Let the bot trade; returns whether it is still alive."""
        until = clock.monotonic() + seconds
        while (left := until - clock.monotonic()) > 0:
            if process.lines(min(left, 0.5)) is None:
                return False
        return True

    # --- a pause

    def _pause(self) -> None:
        """Freeze the bot until another has the account and trades; then it wakes and must send nothing."""
        frozen = self._fork()
        self._until_reconciled(frozen)
        self._listen(frozen, fence().total_seconds() + self._random.uniform(0.5, RUN_SECONDS))
        self._freeze(frozen)
        token = base36(Lease.objects.get(name=lease_name(self.bot)).token, TOKEN_CHARS)
        other = self._fork()
        self._until_reconciled(other)
        self._listen(other, fence().total_seconds() + PAUSED_AFTER_SECONDS)
        woken_ms = self._books()["now_ms"]
        frozen.signal(signal.SIGCONT)
        until = clock.monotonic() + PAUSED_AFTER_SECONDS
        while clock.monotonic() < until and frozen.lines(0.2) is not None:
            other.lines(0)
        self._report("stale", sent_since(self._books(), token, woken_ms))
        self._end(frozen)
        self._end(other)
        self.report.pauses += 1
        self._killed_at = None
        self._row = self._newest_row()

    def _freeze(self, process: Process) -> None:
        """Stop it where it does not hold SQLite's only lock: nobody could take the account, or do anything, then."""
        while True:
            process.signal(signal.SIGSTOP)
            if connection.vendor != "sqlite" or _writable(str(connection.settings_dict["NAME"])):
                return
            process.signal(signal.SIGCONT)
            self._listen(process, self._random.uniform(0, 0.2))

    # --- judging

    def _judge(self, process: Process) -> bool:
        """Compare the books with the tables until nothing is left that differed at first; False: the bot died.

        What begins to differ meanwhile comes from trading on, and the next one judges it.
        """
        until = clock.monotonic() + AGREE_SECONDS
        found = self._compare()
        lost = found.lost
        while lost and clock.monotonic() < until:
            if not self._listen(process, 0.5):
                return False  # it died at its hook: the next one has to explain what is open
            found = self._compare()
            lost = {subject: sentence for subject, sentence in found.lost.items() if subject in lost}
        self._report("lost", list(lost.values()))
        self._report("doubled", found.doubled)
        self._report("stale", found.stale)
        self._judged = self._row
        return True

    def _compare(self) -> Differences:
        books = self._books()
        return compare(
            self.bot,
            books,
            first_row=self._judged,
            last_row=self._row,
            window_ms=self.window_seconds * 1000 * self.speed,
        )

    def _report(self, kind: str, sentences: list[str]) -> None:
        self.report.say(kind, sentences)
        for sentence in sentences:
            self.say(f"{kind}: {sentence}")

    def _finish(self) -> None:
        process = self._fork()
        self._until_reconciled(process)
        self._row = self._newest_row()
        self._listen(process, fence().total_seconds() + RUN_SECONDS)
        self._judged = 0  # all rows, once
        self._judge(process)
        self._end(process, signal.SIGTERM)
        books = self._books()
        self._report("unprotected", unprotected(books, deadline_ms=self.deadline_seconds * 1000 * self.speed))
        longest = max((each["naked_longest_ms"] for each in books["episodes"]), default=0)
        self.report.longest_naked_seconds = round(longest / 1000 / self.speed, 2)
        self.report.faults.update(faults.happened(self.url))
        self.report.orders = self._orders()
        self.report.fills = Fill.objects.filter(bot=self.bot).count()

    def _orders(self) -> int:
        return Order.objects.filter(bot=self.bot).exclude(venue_order_id="").count()

    def _newest_row(self) -> int:
        return Order.objects.filter(bot=self.bot).aggregate(newest=Max("pk"))["newest"] or 0

    def _books(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/control/books", timeout=30) as answer:  # noqa: S310 - our own server
            books: dict[str, Any] = json.load(answer)
        return books


def open_log(folder: Path) -> IO[str]:
    return (folder / "bots.log").open("a")


def _writable(path: str) -> bool:
    """Tell whether a transaction can begin in the SQLite file within half a second."""
    with closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
    return True


def _tail(log: IO[str]) -> str:
    return Path(log.name).read_text(errors="replace")[-TAIL:]

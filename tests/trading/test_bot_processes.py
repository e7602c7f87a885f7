"""Real bot processes on one database: killed, frozen, doubled (I15, I16). Leases and kills are real."""

from __future__ import annotations

import datetime as dt
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection

from exchanges.matching import MatchingVenue
from exchanges.simulated import SimulatedMarket
from ops_app import clock
from ops_app.models import Lease
from quant.timeframes import to_ms
from tests.trading.conftest import N_SYMBOLS, World
from trading_app.choices import OrderPurpose, OrderState
from trading_app.models import Decision, Fill, Order, Position

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TTL = 12
PATIENCE = 240.0


class Processes:
    """Starts bots, reads what they say, and ends what it started."""

    def __init__(self, world: World, tmp_path: Path) -> None:
        self.world, self.tmp_path = world, tmp_path
        self.time_file = tmp_path / "now"
        self.set_time(world.sim.now)
        self.running: list[subprocess.Popen[str]] = []
        self._reports: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._readers: list[threading.Thread] = []
        self.log_path = tmp_path / "stderr"
        self.log = self.log_path.open("w")

    def set_time(self, now: dt.datetime) -> None:
        self.world.sim.now = now
        written = self.time_file.with_suffix(".new")
        written.write_text(now.isoformat())
        written.replace(self.time_file)

    def start(self, *, die: dict[str, str] | None = None) -> subprocess.Popen[str]:
        names = ("ARTIFACTS_DIR", "CANDLES_DIR", "LEDGER_DIR", "EXCHANGE_MARKET", "TIMEFRAME", "TRAINING_MODE")
        config = connection.settings_dict
        arguments = {
            "settings": {name: str(getattr(django_settings, name)) for name in names},
            "database": {key: str(config[key]) for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT")},
            "time_file": str(self.time_file), "n_symbols": N_SYMBOLS, "codes": list(self.world.codes),
            "ledger": str(self.tmp_path / "account.sqlite3"), "ttl": TTL, "die": die,
        }  # fmt: skip
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tradingsite.settings", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("bot_process.py")), json.dumps(arguments)],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        self.running.append(process)
        self._reports[process.pid] = queue.SimpleQueue()
        # Read all the time: a pipe that nobody empties is full after a minute, and then the bot stands still.
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        self._readers.append(reader)
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        reports = self._reports[process.pid]
        for line in process.stdout:
            if line.startswith("{") and line.endswith("}\n"):
                reports.put(json.loads(line))
        reports.put(None)  # it has ended

    def says(self, process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Take reports until one is `wanted`; the process prints up to ten a second."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            try:
                report = self._reports[process.pid].get(timeout=left)
            except queue.Empty:
                break
            if report is None:
                raise AssertionError(f"the bot ended with {process.wait()}: {self.log_path.read_text()[-3000:]}")
            if wanted(report):
                return report
        raise AssertionError(f"the bot did not say it in {PATIENCE} s")

    def forget(self, process: subprocess.Popen[str]) -> None:
        """Drop the reports up to now."""
        while not self._reports[process.pid].empty():
            self._reports[process.pid].get()

    def pass_hours(self, over: Callable[[], bool]) -> None:
        """Let bar after bar close until `over`: when the market gives a signal is the market's business."""
        for _ in range(48):
            until(lambda: over() or self.has_decided(), f"a decision on the bar before {self.world.sim.now}")
            deadline = time.monotonic() + 1  # what follows from the decision
            while time.monotonic() < deadline:
                if over():
                    return
                time.sleep(0.05)
            self.set_time(self.world.sim.now + dt.timedelta(hours=1))
        raise AssertionError("48 bars passed and it did not happen")

    def has_decided(self) -> bool:
        hour = self.world.sim.now.replace(minute=0, second=0, microsecond=0)
        return Decision.objects.filter(bar_at=hour - dt.timedelta(hours=1)).exists()

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)
        for process in self.running:
            if process.stdout is not None:
                process.stdout.close()
        self.log.close()


@pytest.fixture
def processes(world: World, tmp_path: Path) -> Iterator[Processes]:
    # Leases and polling need real time here: only the market's time is the file's.
    with real_time(), shared_database(tmp_path / "shared.sqlite3"):
        made = Processes(world, tmp_path)
        try:
            yield made
        finally:
            made.end()


@contextmanager
def real_time() -> Iterator[None]:
    before = clock._active
    clock._active = clock._system
    try:
        yield
    finally:
        clock._active = before


@contextmanager
def shared_database(path: Path) -> Iterator[None]:
    """SQLite's test database lives in this process's memory: put it, rows and all, into a file that others can open."""
    if connection.vendor != "sqlite":
        yield
        return
    connection.ensure_connection()
    in_memory, name = connection.connection, connection.settings_dict["NAME"]
    with closing(sqlite3.connect(path)) as file:
        in_memory.backup(file)
    connection.connection = None
    connection.settings_dict["NAME"] = str(path)
    try:
        yield
    finally:
        connection.close()
        connection.connection, connection.settings_dict["NAME"] = in_memory, name


def until(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if check():
            return
        time.sleep(0.05)
    raise AssertionError(f"not in {PATIENCE} s: {what}")


def orders() -> dict[str, str]:
    return dict(Order.objects.exclude(client_order_id=None).values_list("client_order_id", "state"))


@pytest.mark.parametrize(
    "when, kind",
    [
        ("before", "market"),
        ("after", "market"),
        ("before", "stop_market"),
        ("after", "stop_market"),
        ("after", "limit"),
    ],
)
def test_f01_f02_r9_i16_a_bot_killed_around_a_send_adopts_or_buries_the_order_and_never_sends_it_twice(
    processes: Processes, when: str, kind: str, tmp_path: Path
) -> None:
    killed = processes.start(die={"when": when, "kind": kind})
    processes.pass_hours(lambda: killed.poll() is not None)
    assert killed.wait(timeout=PATIENCE) == -signal.SIGKILL, processes.log_path.read_text()[-3000:]
    left = [state for state in orders().values() if state == OrderState.SENDING]
    assert left == [OrderState.SENDING], "the row was committed before anything was sent"
    second = processes.start()
    processes.says(second, lambda report: report["lease"] == "taken")
    processes.says(second, lambda report: report["lease"] == "held" and not report["waiting"])
    # The settle time is market time, which stands still until it is moved.
    for _ in range(8):
        processes.set_time(processes.world.sim.now + dt.timedelta(seconds=40))
        time.sleep(0.5)
    until(lambda: OrderState.UNKNOWN not in orders().values(), "every order is known")
    until(lambda: all_protected(), "every position has its stop")
    now_ms = to_ms(processes.world.sim.now)  # this process's own clock would let years pass at the venue
    data = SimulatedMarket(seed=7, now_ms=lambda: now_ms, symbols=N_SYMBOLS, specials=False)
    venue = MatchingVenue(data=data, ledger_path=tmp_path / "account.sqlite3", account=processes.world.bot.account)
    there = {position.symbol: position.quantity for position in venue.positions()}
    here = {position.symbol.code: position.quantity for position in Position.objects.open()}
    venue.close()
    assert here == there
    assert Decision.objects.values("bar_at", "symbol").distinct().count() == Decision.objects.count()
    entries = Order.objects.filter(purpose=OrderPurpose.ENTRY)
    assert entries.values("symbol").distinct().count() == entries.count(), "no entry was tried a second time"
    if when == "before" and kind == "market":
        assert OrderState.NOT_PLACED in orders().values()
    assert Fill.objects.values("trade_id").distinct().count() == Fill.objects.count()


def all_protected() -> bool:
    open_positions = Position.objects.open()
    stops = Order.objects.filter(purpose=OrderPurpose.STOP, state=OrderState.ACKED, position__in=open_positions)
    return {stop.position_id for stop in stops} == {position.pk for position in open_positions}


def freeze(process: subprocess.Popen[str]) -> None:
    """Stop it between two transactions: inside one it would keep SQLite locked for as long as it is frozen."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        process.send_signal(signal.SIGSTOP)
        if not somebody_holds_a_lock():
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.03)
    raise AssertionError(f"it was in a transaction for {PATIENCE} s")


def somebody_holds_a_lock() -> bool:
    if connection.vendor == "sqlite":
        with closing(sqlite3.connect(connection.settings_dict["NAME"], timeout=0.5, isolation_level=None)) as file:
            try:
                file.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            file.execute("ROLLBACK")
            return False
    others = "datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE {others})")
        return bool(cursor.fetchone()[0])


def test_f35_i15_a_second_bot_on_the_account_sends_nothing_while_the_first_lives(processes: Processes) -> None:
    first = processes.start()
    processes.says(first, lambda report: report["lease"] == "held")
    second = processes.start()
    reports = [processes.says(second, lambda _: True) for _ in range(10)]
    assert {report["lease"] for report in reports} == {"busy"}
    assert sum(report["sent"] for report in reports) == 0
    assert Lease.objects.get(name=f"account:{processes.world.bot.account}").token == 1


def test_f37_i15_b4_a_frozen_bot_that_wakes_after_another_took_over_sends_nothing(processes: Processes) -> None:
    first = processes.start()
    processes.pass_hours(lambda: Order.objects.filter(purpose=OrderPurpose.STOP).exists())
    freeze(first)
    account = Lease.objects.filter(name=f"account:{processes.world.bot.account}")
    last_of_first = account.get().token  # 1, or more where a busy machine let the lease lapse meanwhile
    second = processes.start()
    processes.says(second, lambda report: report["lease"] == "taken")
    processes.says(second, lambda report: report["lease"] == "held" and not report["waiting"])
    assert account.get().token > last_of_first
    sent_by_first = Order.objects.filter(fencing_token__lte=last_of_first).count()
    # A new bar is due: both would like to trade it.
    processes.set_time(processes.world.sim.now + dt.timedelta(hours=1))
    processes.forget(first)
    first.send_signal(signal.SIGCONT)
    processes.says(first, lambda report: report["lease"] == "busy")
    processes.says(second, lambda report: bool(report["bar"]))
    assert Order.objects.filter(fencing_token__lte=last_of_first).count() == sent_by_first
    assert Decision.objects.values("bar_at", "symbol").distinct().count() == Decision.objects.count()

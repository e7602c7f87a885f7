"""`manage.py killtest`: kill a bot that trades on a loopback exchange again and again, and compare the books."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from ops_app import clock
from ops_app.own_database import new_database
from ops_app.process import ROOT, manage_command, spawn
from tradingsite.killtest.report import KillReport

INNER = "KILLTEST_INNER"
SPEED = 200.0
"""Market seconds per real second: a 5-minute candle closes every 1.5 s."""
DEADLINE_SECONDS = 10.0
FILL_SLICES = 2
"""Executions that make one fill of a taker, so that positions grow in parts."""
ACCOUNT = ("loopback-key", "loopback-secret")
SECRETS = ("DATABASE_URL", "REDIS_URL", "API_KEY", "API_SECRET", "API_PASSPHRASE")
"""What the caller's own account and database are reached by: no lane may see them."""
SIGNAL = ROOT / "tradingsite" / "killtest" / "always.py"


class Command(BaseCommand):
    help = (
        "Kill -9 a bot that trades on a loopback exchange (its own process), at random moments and at each hook, "
        "restart it, and compare the exchange's books with the tables: nothing may be lost, doubled or unprotected."
    )
    requires_migrations_checks = False
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--runs", type=int, default=30, help="Kills (default: 30).")
        parser.add_argument("--seed", type=int, default=1, help="Seed of hooks, moments and faults.")
        parser.add_argument("--lanes", type=int, default=2, help="Accounts that are tested at once, each on its own.")
        parser.add_argument("--orders", type=int, default=0, help="Go on until the exchanges have so many orders.")
        parser.add_argument("--pauses", type=int, default=1, help="Bots per lane that are frozen and woken too late.")
        parser.add_argument("--faults", action="store_true", help="The exchange fails at random in every known way.")
        parser.add_argument("--symbols", type=int, default=8, help="Symbols that are traded.")
        parser.add_argument(
            "--database", default="", metavar="URL",
            help="PostgreSQL, like postgresql://user@host/name: each lane makes and drops a database beside that one. "
            "Default: SQLite files.",
        )  # fmt: skip
        parser.add_argument(
            "--keep", type=Path, metavar="FOLDER", help="Keep logs and SQLite files in this new folder."
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object; what happens goes to stderr")

    def handle(self, **options: Any) -> None:
        if os.environ.get(INNER):
            self._lane(json.loads(os.environ[INNER]))
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that exchanges and lanes are ended
        for name in ("runs", "lanes", "symbols"):
            if options[name] < 1:
                raise CommandError(f"--{name} is {options[name]}: it must be 1 or more.")
        report = KillReport(
            {name: options[name] for name in ("runs", "seed", "lanes", "orders", "pauses", "faults", "symbols")}
            | {"database": "postgresql" if options["database"] else "sqlite", "speed": SPEED}
        )
        with ExitStack() as stack:
            lanes = [stack.enter_context(self._start(number, options)) for number in range(options["lanes"])]
            for number, lane in enumerate(lanes):
                out, _ = lane.communicate()
                if lane.returncode not in (0, 1) or not out.strip():
                    raise CommandError(f"lane {number} ended with {lane.returncode}: see above what it said.")
                report.add(json.loads(out.splitlines()[-1]))
        if options["json"]:
            self.stdout.write(json.dumps(report.to_dict(), indent=1))
        else:
            for name, value in report.to_dict().items():
                self.stdout.write(f"{name}: {value}")
        if not report.ok:
            sys.exit(1)

    # --- the outer process: exchanges, databases, lanes

    @contextmanager
    def _start(self, number: int, options: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        """Start the exchange of a lane and the process that kills its bots."""
        share = [
            options[name] // options["lanes"] + (number < options[name] % options["lanes"])
            for name in ("runs", "orders")
        ]
        origin, real_origin = dt.datetime(2025, 6, 1, tzinfo=dt.UTC), clock.real_now()
        seed = options["seed"] * 1000 + number
        with ExitStack() as stack:
            if options["keep"] is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="killtest-"))
            else:
                folder = str(options["keep"] / f"lane{number}")
                Path(folder).mkdir(parents=True)
            url = stack.enter_context(_exchange(Path(folder), options, seed, origin, real_origin))
            database = stack.enter_context(new_database(f"killtest_{number}", options["database"]))
            lane = {
                "runs": share[0], "orders": share[1], "pauses": options["pauses"], "seed": seed, "number": number,
                "symbols": options["symbols"], "origin": origin.isoformat(), "real_origin": real_origin.isoformat(),
                "faults": options["faults"],
            }  # fmt: skip
            environment = {
                **{name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in SECRETS},
                INNER: json.dumps(lane),
                "DATA_DIR": folder,
                "DATABASE_URL": database,
                "EXCHANGE": "live",
                "EXCHANGE_MARKET": "bybit",
                "EXCHANGE_URL": url,
                "EXCHANGE_SANDBOX": "0",
                "MARGIN_MODE": "",
                "LIVE_TRADING_CONFIRM": "main",
                "BOT_NAME": "main",
                "API_KEY": ACCOUNT[0],
                "API_SECRET": ACCOUNT[1],
                "TIMEFRAME": "5m",
                "PRIMARY_SIGNAL": str(SIGNAL),
                "BOT_LEASE_SECONDS": "10",
                "LOG_LEVEL": "info",
                "OMP_NUM_THREADS": "1",
            }
            yield stack.enter_context(
                _child(spawn(manage_command("killtest"), environment=environment, stdout=subprocess.PIPE))
            )

    # --- the inner process: one lane

    def _lane(self, lane: dict[str, Any]) -> None:
        call_command("migrate", verbosity=0)
        import trading_app.bot  # noqa: F401 - here, so that no forked bot has to
        from coverage_app.models import Symbol
        from trading_app.venue import RECEIVE_WINDOW
        from tradingsite.killtest.lane import Lane, open_log
        from tradingsite.killtest.world import prepare, warm_up

        origin, real_origin = (dt.datetime.fromisoformat(lane[name]) for name in ("origin", "real_origin"))
        bot = prepare(seed=lane["seed"], symbols=lane["symbols"], origin=origin, real_origin=real_origin, speed=SPEED)
        warm_up()
        codes = tuple(Symbol.objects.order_by("code").values_list("code", flat=True))
        report = KillReport()
        with open_log(Path(settings.DATA_DIR)) as log:
            test = Lane(
                bot=bot, codes=codes, url=os.environ["EXCHANGE_URL"], speed=SPEED, seed=lane["seed"], log=log,
                deadline_seconds=DEADLINE_SECONDS, window_seconds=RECEIVE_WINDOW.total_seconds(), report=report,
                say=lambda text: self.stderr.write(f"lane {lane['number']}: {text}"),
            )  # fmt: skip
            test.run(runs=lane["runs"], orders=lane["orders"], pauses=lane["pauses"], with_faults=lane["faults"])
        self.stdout.write(json.dumps(report.to_dict(whole=True)))


@contextmanager
def _exchange(
    folder: Path, options: dict[str, Any], seed: int, origin: dt.datetime, real_origin: dt.datetime
) -> Iterator[str]:
    """Start a loopback exchange; gives its address."""
    arguments = {
        "port": 0, "state": folder / "exchange.sqlite3", "seed": seed, "symbols": options["symbols"], "speed": SPEED,
        "origin-ms": round(origin.timestamp() * 1000), "real-origin": round(real_origin.timestamp() * 1000),
        "fill-slices": FILL_SLICES, "balance": 1_000_000, "api-key": ACCOUNT[0], "api-secret": ACCOUNT[1],
    }  # fmt: skip
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    with _child(
        spawn([sys.executable, "-m", "tests.bybit", "--no-specials", *words], stdout=subprocess.PIPE)
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        line = process.stdout.readline().decode()
        if not line.startswith("listening on "):
            raise CommandError(f"the loopback exchange did not start; it said {line!r}. Try: python -m tests.bybit")
        yield line.removeprefix("listening on ").strip()


@contextmanager
def _child(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End the process with the block; `spawn` lets it die with this one in any case."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()

"""`manage.py soak`: months of the whole system in minutes, and a list of what broke."""

from __future__ import annotations

import gc
import json
import sys
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand

from ops_app import own_database, process

MANY_SYMBOLS = 50


class Command(BaseCommand):
    help = (
        "Run the real coverage, training and bot code on a simulated clock, in passes of 60 simulated seconds, on a "
        "database of its own that is thrown away. Exits 1 if an invariant broke."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--days", type=positive, default=30, help="simulated days (default 30)")
        parser.add_argument("--symbols", type=positive, default=10, help="ordinary symbols (default 10)")
        parser.add_argument("--seed", type=int, default=1, help="seed of the market and of the accidents")
        parser.add_argument(
            "--chaos",
            action="store_true",
            help="failing and hanging trainings, refused models, dead workers, lost and doubled messages",
        )
        parser.add_argument("--null", action="store_true", help="a market with nothing to learn")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")

    def handle(self, **options: Any) -> None:
        if not own_database.is_own("soak"):
            own_database.restart_on_own_database("soak", own_settings(options))
        call_command("migrate", verbosity=0)
        from tradingsite.soak.driver import Soak
        from tradingsite.soak.report import Day

        progress = self.stderr if options["json"] else self.stdout

        def show(day: Day) -> None:
            shown = "  ".join(f"{name} {value}" for name, value in day.to_dict().items() if name != "date")
            progress.write(f"{day.date}  {shown}", lambda text: text)
            for sentence in day.violations:  # at once: a year is long
                progress.write(sentence)
            progress.flush()

        told_to_stop = threading.Event()
        # What was imported stays for ever, and a pass makes little that is circular: look through less, and less often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        with process.on_stop(told_to_stop.set):
            report = Soak(
                days=options["days"],
                seed=options["seed"],
                chaos=options["chaos"],
                on_day=show,
                stopped=told_to_stop.is_set,
            ).run()
        if options["json"]:
            self.stdout.write(json.dumps(report.to_dict(), indent=1))
        else:
            totals = report.to_dict()
            for name in ("totals", "chaos", "queries_per_idle_pass"):
                self.stdout.write(f"{name}: {totals[name]}")
            self.stdout.write("\n".join(report.violations) or "No invariant broke.")
        if not report.ok:
            sys.exit(1)


def own_settings(options: dict[str, Any]) -> dict[str, str]:
    """Return what the process that soaks needs in its environment, beside a database of its own."""
    return {
        "EXCHANGE": "simulated",
        "EXCHANGE_MARKET": "",
        "SIM_SYMBOLS": str(options["symbols"]),
        "SIM_SEED": str(options["seed"]),
        "SIM_SPEED": "1",  # the simulated clock is the real one here
        "SIM_LEARNABLE": "0" if options["null"] else "1",
        "UNIVERSE_MAX_SYMBOLS": str(options["symbols"] + 50),
        # Trainings of many symbols would cost more than all else together; how often they happen is as in real life.
        "HISTORY_TARGET_DAYS": "150" if options["symbols"] <= MANY_SYMBOLS else "120",
        "TRAIN_TREES": "60" if options["symbols"] <= MANY_SYMBOLS else "40",
        "TRAIN_THREADS": "1",
        # The market can be learned: with a fifth of the equity in a position, 10,000 becomes 113 million in 280 days,
        # whose trades outgrow the order book and need nine orders instead of four. A day's cost is to show our growth.
        "RISK_MAX_POSITION": "0.02",
        # A pass is a minute: shorter leases would lapse between passes, although nobody was late.
        "BOT_LEASE_SECONDS": "150",
        "TRAIN_LEASE_SECONDS": "150",
    }


def positive(text: str) -> int:
    """Parse a whole number above 0. Raises ValueError, which argparse turns into a message."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value

"""`manage.py locktest`: does the lock protocol hold when its processes are killed and frozen? (docs/locks.md)"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ops_app import clock, own_database
from ops_app.progress import bar

NEWS_SECONDS = 10.0
MOST_PROCESSES = 64
#: A market whose hours pass in a second, so that every back-off of the real policies ends while the hammer looks on.
ENVIRONMENT = {
    "EXCHANGE": "simulated",
    "EXCHANGE_MARKET": "",
    "SIM_SPEED": "20000",
    "TRAINING_MODE": "multi_symbol",
    "TRAIN_MIN_INTERVAL_HOURS": "0.1",
    "TRAIN_INTERVAL_HOURS": "1",
    "TRAIN_MAX_ATTEMPTS": "3",
    "OPENBLAS_NUM_THREADS": "1",  # threads do not survive the fork
}


class Command(BaseCommand):
    help = (
        "Hammer the run protocol from several processes that are killed and frozen at random, on a database of its own "
        "that is thrown away (beside DATABASE_URL's on PostgreSQL). Exits 1 if an invariant broke."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--processes", type=int, default=8, help="hammering processes, 2 to 64 (default 8)")
        parser.add_argument("--seconds", type=float, default=120.0, help="how long, before all may end (default 120)")
        parser.add_argument("--kill", action="store_true", help="kill -9 and SIGSTOP processes at random moments")
        parser.add_argument("--lease", type=float, default=1.0, help="seconds of a run's lease (default 1)")
        parser.add_argument("--seed", type=int, default=1, help="seed of the draws (their order is the machine's)")
        parser.add_argument(
            "--no-fence",
            action="store_true",
            help="the control: the hammering processes ignore tokens, so violations must be found (exit code 1)",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")

    def handle(self, **options: Any) -> None:
        if not 2 <= options["processes"] <= MOST_PROCESSES:
            raise CommandError(f"--processes is {options['processes']}; take 2 to {MOST_PROCESSES}.")
        if not options["seconds"] > 0 or not options["lease"] > 0:
            raise CommandError("--seconds and --lease must be more than 0.")
        if not own_database.is_own("locktest"):
            own_database.restart_on_own_database("locktest", ENVIRONMENT, beside=True)
        from training_app.locktest.hammer import Hammer, Plan

        plan = Plan(
            processes=options["processes"],
            seconds=options["seconds"],
            kill=options["kill"],
            lease=options["lease"],
            seed=options["seed"],
            fence=not options["no_fence"],
        )
        self.shown_at = clock.monotonic()
        report = Hammer(plan, self.show).run()
        if options["json"]:
            self.stdout.write(json.dumps(report, indent=1))
        else:
            for name, value in report.items():
                if name not in ("found", "crashed"):
                    self.stdout.write(f"{name:<22} {value}")
            self.stdout.write("\n".join([*report["crashed"], *report["found"]]) or "Nothing broke.")
        if report["violations"] or report["crashed"]:
            sys.exit(1)

    def show(self, share: float, text: str) -> None:
        """Show how far it is: one line that changes on a terminal, elsewhere a line every ten seconds."""
        line = f"{bar(share)} {text}"
        if self.stderr.isatty():
            self.stderr.write(f"\r{line}", ending="\n" if share >= 1 else "")
        elif share >= 1 or clock.monotonic() - self.shown_at >= NEWS_SECONDS:
            self.shown_at = clock.monotonic()
            self.stderr.write(line)

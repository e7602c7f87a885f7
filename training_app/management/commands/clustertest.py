"""`manage.py clustertest`: do several worker clusters on one database do every job exactly once, and how fast?"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from ops_app import clock, own_database
from ops_app.progress import bar

NEWS_SECONDS = 10.0
MOST_WORKERS = 16
ENVIRONMENT = {
    "EXCHANGE": "simulated",
    "EXCHANGE_MARKET": "",
    "SIM_SPEED": "1",
    "SIM_SYMBOLS": "5",
    "TIMEFRAME": "1h",
    "TRAINING_MODE": "single_symbol",
    "TRAINING_WORKERS": "1",
    "TRAIN_THREADS": "1",
    "TRAIN_LEASE_SECONDS": "15",
    "QUEUE_WORKERS": "1",
    "LOG_LEVEL": "warning",
}


class Command(BaseCommand):
    help = (
        "Train single symbols on 1, 2, 3 ... worker clusters of one database of its own (SQLite, or beside "
        "DATABASE_URL's on PostgreSQL), and judge by the rows that every run had exactly one effect. Exits 1 if not."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--workers", type=int, nargs="+", default=[1, 2, 3], metavar="N",
            help="numbers of training clusters, a stage for each (default 1 2 3)",
        )  # fmt: skip
        parser.add_argument("--trainings", type=int, default=200, help="single-symbol trainings a stage (default 200)")
        parser.add_argument(
            "--broker", choices=("orm", "redis"), default="orm",
            help="redis: the database of REDIS_URL, whose queues must be empty (default orm)",
        )  # fmt: skip
        parser.add_argument(
            "--broker-chaos", action="store_true", help="empty, double, delay, reorder and repeat messages on purpose"
        )
        parser.add_argument(
            "--namespaces", action="store_true",
            help="each cluster in a network namespace, as a host; one is cut off in the middle. Needs root, PostgreSQL",
        )  # fmt: skip
        parser.add_argument(
            "--job-minutes", type=int, default=0, help="afterwards let light clusters run the periodic jobs so long"
        )
        parser.add_argument("--seed", type=int, default=1, help="seed of the market and of the accidents")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")

    def handle(self, **options: Any) -> None:
        if not own_database.is_own("clustertest"):
            self._check(options)
            redis = settings.OPTIONS["REDIS_URL"] if options["broker"] == "redis" else ""
            own_database.restart_on_own_database("clustertest", {**ENVIRONMENT, "REDIS_URL": redis}, beside=True)
        from training_app.clustertest.driver import ClusterTest, Plan

        self.shown_at = clock.monotonic()
        plan = Plan(
            workers=tuple(options["workers"]),
            trainings=options["trainings"],
            chaos=options["broker_chaos"],
            namespaces=options["namespaces"],
            job_minutes=options["job_minutes"],
            seed=options["seed"],
        )
        report = ClusterTest(plan, self.show).run()
        if options["json"]:
            self.stdout.write(json.dumps(report, indent=1))
        else:
            for stage in report["stages"]:
                self.stdout.write("  ".join(f"{name} {value}" for name, value in stage.items()))
            self.stdout.write(f"jobs: {report['jobs']}")
            self.stdout.write("\n".join(report["found"]) or "Every run had exactly one effect.")
        if report["violations"]:
            sys.exit(1)

    def _check(self, options: dict[str, Any]) -> None:
        """Raise CommandError for what cannot be done."""
        wrong = [count for count in options["workers"] if not 1 <= count <= MOST_WORKERS]
        if wrong or len(set(options["workers"])) != len(options["workers"]):
            raise CommandError(f"--workers is {options['workers']}; give different numbers from 1 to {MOST_WORKERS}.")
        if options["trainings"] < 1 or options["job_minutes"] < 0:
            raise CommandError("--trainings must be at least 1, --job-minutes at least 0.")
        if options["namespaces"]:
            from training_app.clustertest.hosts import require_namespaces

            require_namespaces()
            if not settings.OPTIONS["DATABASE_URL"]:
                raise CommandError("--namespaces needs PostgreSQL: hosts cannot share SQLite's file. Set DATABASE_URL.")
        if options["broker"] == "redis":
            self._require_empty_redis()

    def _require_empty_redis(self) -> None:
        from ops_app import queue

        if not settings.OPTIONS["REDIS_URL"]:
            raise CommandError("--broker redis needs REDIS_URL: name a database of it that nobody else uses.")
        waiting = {name: count for name in queue.queues() if (count := queue.waiting(name))}
        if waiting:
            raise CommandError(f"messages wait in REDIS_URL: {waiting}. Name a database that nobody else uses.")

    def show(self, share: float, text: str) -> None:
        """Show how far it is: one line that changes on a terminal, elsewhere a line every ten seconds."""
        line = f"{bar(share)} {text}"
        if self.stderr.isatty():
            self.stderr.write(f"\r{line}", ending="\n" if share >= 1 else "")
        elif clock.monotonic() - self.shown_at >= NEWS_SECONDS:
            self.shown_at = clock.monotonic()
            self.stderr.write(line)

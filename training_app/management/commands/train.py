"""`manage.py train`: ask for a training, and wait for it if wanted."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from coverage_app.models import Symbol
from ops_app import clock, leases
from training_app import execution, registry, selectors, services
from training_app.choices import OPEN_STATES, RunState
from training_app.exceptions import RunLost, RunRefused
from training_app.models import TrainingRun

POLL_SECONDS = 0.5


class Command(BaseCommand):
    help = (
        "Request training runs now. A scope that trained a short time ago gets a run that waits; one with an open run "
        "keeps it. Exit code: 0 all well, 1 refused, failed or rejected."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--symbols", nargs="+", metavar="CODE", help="single_symbol mode: only these, like BTC/USDT:USDT"
        )
        waiting = parser.add_mutually_exclusive_group()
        waiting.add_argument("--wait", action="store_true", help="wait until a worker has ended the runs")
        waiting.add_argument("--here", action="store_true", help="train in this process, without a worker")
        parser.add_argument("--json", action="store_true", help="print the runs as JSON")

    def handle(self, **options: Any) -> None:
        try:
            runs = services.train_now(symbols=self._ids(options["symbols"]))
        except RunRefused as error:
            raise CommandError(str(error)) from error
        if options["here"]:
            for run in runs:
                self._execute(run)
        elif options["wait"]:
            self._wait(runs, quiet=options["json"])
        for run in runs:
            run.refresh_from_db()
        self._print(runs, as_json=options["json"])
        if any(run.state in (RunState.FAILED, RunState.REJECTED) for run in runs):
            raise SystemExit(1)

    def _ids(self, codes: list[str] | None) -> list[int] | None:
        if codes is None:
            return None
        if selectors.training_mode() == registry.MULTI_SYMBOL:
            raise CommandError("--symbols is for TRAINING_MODE=single_symbol: a multi_symbol run trains all symbols")
        found = dict(Symbol.objects.filter(market=selectors.market(), code__in=codes).values_list("code", "pk"))
        unknown = [code for code in codes if code not in found]
        if unknown:
            raise CommandError(
                f"unknown symbols: {', '.join(unknown)}; use codes like BTC/USDT:USDT of {selectors.market()}"
            )
        return list(found.values())

    def _execute(self, run: TrainingRun) -> None:
        if run.not_before > clock.market_now():
            self.stderr.write(f"run {run.pk} waits until {run.not_before:%Y-%m-%d %H:%M}: {run.cause}")
            return
        try:
            execution.execute(run.pk, leases.holder_name("train"), threaded=True)
        except RunLost as error:
            raise CommandError(str(error)) from error

    def _wait(self, runs: list[TrainingRun], *, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
            tasks = {run.pk: bar.add_task(f"run {run.pk}", total=1.0, stage=run.state) for run in runs}
            open_ids = set(tasks)
            while open_ids:
                for run in TrainingRun.objects.filter(pk__in=open_ids):
                    bar.update(tasks[run.pk], completed=run.progress, stage=f"{run.state} {run.stage}")
                    if run.state not in OPEN_STATES:
                        open_ids.discard(run.pk)
                if open_ids:
                    clock.sleep(POLL_SECONDS)

    def _print(self, runs: list[TrainingRun], *, as_json: bool) -> None:
        if as_json:
            rows = [
                {
                    "id": run.pk,
                    "scope": run.scope.key,
                    "run_no": run.run_no,
                    "state": run.state,
                    "not_before": run.not_before.isoformat(),
                    "cause": run.cause,
                    "error": run.error,
                }
                for run in runs
            ]
            self.stdout.write(json.dumps(rows, indent=1))
            return
        for run in runs:
            self.stdout.write(f"run {run.pk} of {run.scope.key}: {run.get_state_display()}: {run.error or run.cause}")

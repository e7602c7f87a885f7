"""`manage.py bench`: what the work costs, beside what of it cannot be avoided, on this machine now."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.table import Table

from ops_app import own_database
from tradingsite.bench import registry
from tradingsite.bench.measure import MEGABYTES, SECONDS, WALL_SECONDS, Figure, MemoryTooSmallError
from tradingsite.management.commands.soak import positive


class Command(BaseCommand):
    help = (
        "Measure the work (CPU seconds, queries) beside a limit that is measured in the same run, on a database and a "
        "data folder of its own that are thrown away: SQLite, or beside the one of DATABASE_URL on PostgreSQL. "
        f"Benchmarks: {', '.join(registry.NAMES)}."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", choices=[*registry.NAMES, []], help="all, if none")
        parser.add_argument("--symbols", type=positive, nargs="+", help="numbers of symbols instead of each one's own")
        parser.add_argument(
            "--days",
            type=positive,
            default=730,
            help="days of hourly candles (default 730), or what half of the free memory holds",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")

    def handle(self, **options: Any) -> None:
        if not own_database.is_own("bench"):
            own_database.restart_on_own_database("bench", own_settings(options), beside=True)
        call_command("migrate", verbosity=0)
        names = options["names"] or registry.NAMES
        table = None if options["json"] else _table()
        figures: list[Figure] = []
        try:
            for figure in registry.run(names, symbols=options["symbols"], days=options["days"]):
                figures.append(figure)
                days = "" if figure.days is None else f" x {figure.days} days"
                text = f"{figure.name} at {figure.symbols} symbols{days}: {shown(figure.value, figure.unit)}"
                self.stderr.write(text)
                if table is not None:
                    table.add_row(*_row(figure))
        except MemoryTooSmallError as error:
            raise CommandError(str(error)) from error
        if table is not None:
            console = Console(width=None if self.stdout.isatty() else 160)
            with console.capture() as printed:
                console.print(table)
            self.stdout.write(printed.get())
            return
        from django.db import connection

        machine = {"database": connection.vendor, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        told = {**machine, "days": options["days"], "figures": [figure.to_dict() for figure in figures]}
        self.stdout.write(json.dumps(told, indent=1))


def own_settings(options: dict[str, Any]) -> dict[str, str]:
    """Return what the process that measures needs in its environment, beside a database of its own."""
    return {
        "EXCHANGE": "simulated",
        "EXCHANGE_MARKET": "",
        "SIM_SYMBOLS": "10",
        "SIM_SPEED": "1",
        "TIMEFRAME": "1h",
        "HISTORY_TARGET_DAYS": str(options["days"]),
        "HISTORY_MIN_DAYS": str(min(90, options["days"])),
        "TRAIN_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "STORAGE_URL": "",
    }


def shown(value: float, unit: str) -> str:
    """Return the value as a person reads it: 12.3 ms, 1.85 s, 9 queries."""
    if unit == MEGABYTES:
        return f"{value:,.0f} MB"
    if unit not in (SECONDS, WALL_SECONDS):
        return f"{value:g} {unit}"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _table() -> Table:
    table = Table(title="CPU of this process (two_threads: wall), best of a few; the limit is of the same run")
    for name in ("what", "symbols", "days", "measured", "limit", "ratio", "goal", ""):
        table.add_column(name, justify="left" if name in ("what", "") else "right", overflow="fold")
    return table


def _row(figure: Figure) -> tuple[str, ...]:
    unit = figure.unit
    met = "" if figure.met is None else ("met" if figure.met else "MISSED")
    ratio = f"{figure.ratio:,.1f} x" + (" faster" if figure.rival else "")
    goal = "" if figure.goal is None else f"{shown(figure.goal, unit)} {met}"
    days = "" if figure.days is None else str(figure.days)
    return (
        figure.name, f"{figure.symbols:,}", days, shown(figure.value, unit), shown(figure.limit, unit), ratio, goal,
        figure.versus,
    )  # fmt: skip

"""Fetch the history of symbols now, in this process, with a progress bar."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coverage_app import selectors, services
from coverage_app.choices import RefreshTrigger
from coverage_app.models import Symbol
from marketdata.errors import StoreError
from ops_app import clock
from ops_app.guards import require_migrated
from ops_app.leases import LeaseBusy

GROUP = 10
"""Symbols per step of the bar."""


class Command(BaseCommand):
    help = (
        "Bring candles and funding of the universe up to date: what is stored stays, what is missing is fetched, also "
        "months whose file was moved away. Can be stopped at any time. Exit code 1: some symbols failed."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--symbols", nargs="+", metavar="CODE", help="Like BTC/USDT:USDT. Default: the universe.")
        parser.add_argument("--json", action="store_true", help="For machines: no bar, a document at the end.")

    def handle(self, *_args: Any, **options: Any) -> None:
        require_migrated()
        market = settings.EXCHANGE_MARKET
        if selectors.newest_refresh(market) is None:
            self._refresh()
        symbols = self._chosen(market, options["symbols"])
        lost = services.forget_lost_history(market=market, codes=[symbol.code for symbol in symbols])
        report = services.IngestReport()
        with self._bar(quiet=options["json"]) as bar:
            task = bar.add_task("backfill", total=len(symbols))
            for start in range(0, len(symbols), GROUP):
                group = symbols[start : start + GROUP]
                self._ingest([symbol.pk for symbol in group], report)
                bar.update(task, advance=len(group))
                if report.unavailable:
                    break
        evaluation = services.evaluate_due(market=market)
        document = {
            "symbols": report.symbols,
            "candles": report.candles,
            "fetched_again": lost,
            "failed": report.failed,
            "unavailable": report.unavailable,
            "evaluated": evaluation.evaluated,
        }
        self.stdout.write(json.dumps(document, indent=1) if options["json"] else f"{report}. {evaluation}")
        if report.failed or report.unavailable:
            for code, error in () if options["json"] else report.failed.items():
                self.stderr.write(f"{code}: {error}")
            sys.exit(1)

    def _refresh(self) -> None:
        row = services.refresh_universe(trigger=RefreshTrigger.MANUAL)
        if row.error:
            raise CommandError(f"The universe could not be found: {row.error}")

    def _chosen(self, market: str, codes: list[str] | None) -> list[Symbol]:
        symbols = Symbol.objects.of_market(market).ingestible()
        if not codes:
            return list(symbols.order_by("code"))
        known = {symbol.code: symbol for symbol in symbols.filter(Q(code__in=codes) | Q(base__in=codes))}
        by_base = {symbol.base: symbol for symbol in known.values()}
        chosen = []
        for code in codes:
            symbol = known.get(code) or by_base.get(code)
            if symbol is None:
                raise CommandError(
                    f"--symbols {code!r}: it is not in the universe of {market}; "
                    "`manage.py coverage` lists the symbols and why some are left out"
                )
            chosen.append(symbol)
        return chosen

    def _ingest(self, ids: list[int], report: services.IngestReport) -> None:
        try:
            part = services.ingest(symbol_ids=ids, budget_seconds=None)
        except (StoreError, LeaseBusy) as error:
            raise CommandError(str(error)) from error
        report.symbols += part.symbols
        report.candles += part.candles
        report.backfilled += part.backfilled
        report.failed |= part.failed
        report.unavailable = part.unavailable

    def _bar(self, *, quiet: bool) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=Console(stderr=True), disable=quiet, get_time=clock.monotonic)

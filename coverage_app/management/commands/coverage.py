"""What is in the universe, what is blocked, and why."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db.models import Prefetch
from rich.console import Console
from rich.table import Table

from coverage_app import selectors
from coverage_app.models import Block, Symbol
from ops_app.guards import require_migrated

PIPE_WIDTH = 1000


class Command(BaseCommand):
    help = "Show the coverage of the market: counts by reason, and each symbol with its history and its open blocks."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--market", default="", help="Market key. Default: EXCHANGE_MARKET.")
        parser.add_argument("--reason", default="", help="Only symbols with an open block of this reason.")
        parser.add_argument("--json", action="store_true", help="For machines.")

    def handle(self, *_args: Any, **options: Any) -> None:
        require_migrated()
        market = options["market"] or settings.EXCHANGE_MARKET
        summary = selectors.coverage_summary(market)
        symbols = Symbol.objects.of_market(market).prefetch_related(
            Prefetch("blocks", queryset=Block.objects.open().order_by("opened_at"), to_attr="open_block_list")
        )
        if options["reason"]:
            symbols = symbols.filter(pk__in=Block.objects.open().filter(reason=options["reason"]).values("symbol_id"))
        rows = [_row(symbol) for symbol in symbols.order_by("code")]
        if options["json"]:
            self.stdout.write(json.dumps({"summary": asdict(summary), "symbols": rows}, default=str, indent=1))
            return
        self._print(summary, rows)

    def _print(self, summary: selectors.CoverageSummary, rows: list[dict[str, Any]]) -> None:
        console = Console(file=self.stdout)  # type: ignore[arg-type]  # Django's OutputWrapper has what rich needs
        if not console.is_terminal:  # a file or a pipe has no width: rich would cut at 80 columns
            console = Console(file=self.stdout, width=PIPE_WIDTH)  # type: ignore[arg-type]  # as above
        console.print(
            f"{summary.market}: {summary.symbols} symbols, {summary.in_universe} in the universe,"
            f" {summary.ready} ready, {summary.blocked} blocked;"
            f" history of {summary.backfill.done} of {summary.backfill.total} fetched"
        )
        counts = Table("Reason", "Open blocks")
        for reason, count in summary.by_reason.items():
            counts.add_row(reason, str(count))
        if summary.by_reason:
            console.print(counts)
        table = Table("Symbol", "Universe", "History", "Coverage", "Last candle", "Against it")
        for row in rows:
            table.add_row(
                row["code"],
                "in" if row["in_universe"] else "out",
                f"{row['history_days']:.0f} d",
                f"{row['history_coverage']:.1%}",
                row["last_candle_at"] or "-",
                "\n".join(block["evidence"] for block in row["blocks"]) or "-",
            )
        console.print(table)


def _row(symbol: Symbol) -> dict[str, Any]:
    def moment(value: Any) -> str | None:
        return None if value is None else f"{value:%Y-%m-%dT%H:%MZ}"

    return {
        "code": symbol.code,
        "in_universe": symbol.in_universe,
        "universe_reason": symbol.universe_reason,
        "history_days": round(symbol.history_days, 2),
        "history_coverage": round(symbol.history_coverage, 6),
        "last_candle_at": moment(symbol.last_candle_at),
        "next_evaluation_at": moment(symbol.next_evaluation_at),
        "blocks": [
            {
                "reason": block.reason,
                "evidence": block.evidence,
                "permanent": block.permanent,
                "opened_at": moment(block.opened_at),
                "recheck_at": moment(block.recheck_at),
            }
            for block in getattr(symbol, "open_block_list")  # noqa: B009 - set by the prefetch, unknown to the type checker
        ],
    }

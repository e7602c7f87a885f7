"""`manage.py nullmarket`: the live pipeline and its gates on markets of which is known what there is to learn."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tradingsite.management.commands.soak import positive
from training_app import policies, registry

if TYPE_CHECKING:
    from quant.training_spec import TrainingSpec
    from tradingsite.nullmarket.judging import SeedResult, Verdict
    from tradingsite.nullmarket.worlds import World


class Command(BaseCommand):
    help = (
        "Train by the live pipeline, with the settings and gates of this installation, on simulated markets without "
        "anything to learn, one for each seed. Exits 1 if a model was promoted, or if the scores rank what comes later "
        "better or worse than chance. Needs no database."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--seeds", type=positive, default=10, help="number of markets (default %(default)s)")
        parser.add_argument("--first-seed", type=int, default=0, help="seed of the first market (default %(default)s)")
        parser.add_argument("--symbols", type=positive, default=20, help="symbols of a market (default %(default)s)")
        parser.add_argument("--days", type=positive, default=365, help="days of candles (default %(default)s)")
        world = parser.add_mutually_exclusive_group()
        world.add_argument(
            "--shuffle", action="store_true", help="markets with something to learn, their labels shuffled in time"
        )
        world.add_argument(
            "--control", action="store_true", help="markets with something to learn: most must be promoted"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")

    def handle(self, **options: Any) -> None:
        from tradingsite.nullmarket.judging import judge  # numba, LightGBM and scikit-learn: only when it really runs
        from tradingsite.nullmarket.worlds import World

        if settings.TRAINING_MODE != registry.MULTI_SYMBOL:
            raise CommandError(
                f"TRAINING_MODE={settings.TRAINING_MODE}: a market is judged by one model over all its symbols; set "
                "TRAINING_MODE=multi_symbol"
            )
        world = World.SHUFFLED if options["shuffle"] else World.LEARNABLE if options["control"] else World.NULL
        spec = replace(policies.training_spec(), num_threads=1)
        results = list(self._run(world, spec, options))
        verdict = judge(world, results)
        if options["json"]:
            told = {
                "symbols": options["symbols"], "days": options["days"], "spec": spec.to_dict(),
                "load": os.getloadavg()[0], "results": [result.to_dict() for result in results],
                "verdict": verdict.to_dict(),
            }  # fmt: skip
            self.stdout.write(json.dumps(told, indent=1))
        else:
            self._print(results, verdict)
        if not verdict.kept:
            sys.exit(1)

    def _run(self, world: World, spec: TrainingSpec, options: dict[str, Any]) -> Iterator[SeedResult]:
        from quant.samples import TrainingError
        from tradingsite.nullmarket.judging import run_seed

        seeds = range(options["first_seed"], options["first_seed"] + options["seeds"])
        console = Console(stderr=True)
        for seed in track(seeds, description=f"{world} markets", console=console, disable=not console.is_terminal):
            try:
                yield run_seed(
                    world, seed, symbols=options["symbols"], days=options["days"], spec=spec,
                    bounds=policies.gate_bounds(),
                )  # fmt: skip
            except TrainingError as error:
                raise CommandError(f"seed {seed}: {error}; take more --symbols or more --days", returncode=2) from error

    def _print(self, results: Sequence[SeedResult], verdict: Verdict) -> None:
        table = Table(title=f"{verdict.world} markets: the test window of each")
        for name in ("seed", "IC", "t", "skill t", "trades", "a trade", "all signals", "refused by", "", "CPU s"):
            table.add_column(name, justify="left" if name in ("refused by", "") else "right", overflow="fold")
        for each in results:
            table.add_row(*_row(each))
        console = Console(width=None if self.stdout.isatty() else 160)
        with console.capture() as printed:
            console.print(table)
        self.stdout.write(printed.get())
        self.stdout.write(
            f"{len(verdict.promoted)} of {verdict.seeds} promoted; pooled IC {verdict.pooled_ic:+.4f}, "
            f"t = {verdict.pooled_t:+.2f}; {len(verdict.exceeding)} seeds with |t| >= 2 "
            f"(as many or more by chance: p = {verdict.chance:.2f})"
        )
        for sentence in verdict.broken or ("what was promised holds",):
            self.stdout.write(f"BROKEN: {sentence}" if verdict.broken else sentence)


def _row(each: SeedResult) -> tuple[str, ...]:
    return (
        str(each.seed),
        f"{each.ic:+.4f}",
        f"{each.ic_t:+.2f}",
        f"{each.skill_t:+.2f}",
        f"{each.trades:,}",
        "" if each.net_return is None else f"{each.net_return:+.3%}",
        f"{each.net_return_of_all:+.3%}",
        ", ".join(gate.name for gate in each.gates if not gate.passed),
        "PROMOTED" if each.promoted else "flat" if each.flat else "",
        f"{each.seconds:.1f}",
    )

"""`manage.py backtest`: what the bot would have learnt, promoted and traded."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from coverage_app.facts import coverage_policy
from coverage_app.market import candle_store
from exchanges.archive import Archive
from exchanges.errors import ExchangeError
from quant.engine import EngineSpec
from quant.panel import Panel
from quant.timeframes import DAY_MS, from_ms, timeframe_ms, to_ms
from trading_app import equity, services
from trading_app.choices import KillPolicy
from trading_app.models import Bot
from training_app import policies, registry


class Command(BaseCommand):
    help = (
        "Walk forward through stored or archived candles with the settings of this installation: judge the symbols, "
        "watch the models, train when it was due, promote what passes its gates, trade by the bot's engine; with "
        "TRAINING_MODE=single_symbol one model per symbol, all on one account. Prints a summary; exit "
        "code 0 also when nothing was promoted, since that is a result."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--archive", type=Path, help="folder of Parquet candles (default: this bot's candle store)")
        parser.add_argument("--market", help="folder of the archive or market of the store (default: EXCHANGE_MARKET)")
        parser.add_argument("--from", dest="start", metavar="DATE", help="first day, like 2024-06-01")
        parser.add_argument("--to", dest="end", metavar="DATE", help="day after the last (default: the last candle)")
        parser.add_argument("--symbols", nargs="+", metavar="CODE", help="only these, like BTC/USDT:USDT")
        parser.add_argument("--report", type=Path, metavar="FILE.html", help="write the report page here")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, **options: Any) -> None:
        from tradingsite.backtest import report  # numba, LightGBM and scikit-learn: only when it really runs
        from tradingsite.backtest.walk import Plan

        panel, source = self._read(options)
        start_ms, end_ms = self._span(panel, options)
        began = max(int(panel.open_time[0]), start_ms - settings.HISTORY_TARGET_DAYS * DAY_MS)
        panel = panel.rows(int((began - panel.open_time[0]) // panel.step_ms), panel.n_times).until(end_ms)
        bot = Bot(**services.risk_settings())  # the limits that a new bot gets; nothing is stored
        plan = Plan(
            start_ms=start_ms,
            end_ms=end_ms,
            training=policies.training_spec(),
            gates=policies.gate_bounds(),
            coverage=coverage_policy(speed=1.0),  # history has no work of ours to wait for
            schedule=policies.training_policy(),
            engine=EngineSpec(
                bar_ms=panel.step_ms,
                label=registry.label_spec(),
                limits=equity.limits_of(bot),
                sizing=equity.sizing_of(bot),
                close_on_kill=bot.on_kill_switch == KillPolicy.CLOSE,
            ),
            initial_equity=settings.INITIAL_BALANCE,
            model_max_age_ms=round(settings.MODEL_MAX_AGE_DAYS * DAY_MS),
            scope=registry.slot_key(market=options["market"] or settings.EXCHANGE_MARKET),
        )
        seconds = time.process_time()
        with self._progress(quiet=options["json"]) as bar:
            task = bar.add_task("walk", total=1.0)
            done = report.run(
                panel,
                plan,
                source=source,
                progress=lambda share, text: bar.update(task, completed=share, description=text),
            )
        summary = done.to_dict() | {"cpu_seconds": time.process_time() - seconds}
        if options["report"] is not None:
            options["report"].parent.mkdir(parents=True, exist_ok=True)
            options["report"].write_text(done.to_html(summary), encoding="utf-8")
        if options["json"]:
            self.stdout.write(json.dumps(summary, sort_keys=True))
        else:
            self._print(summary, options["report"])

    def _read(self, options: dict[str, Any]) -> tuple[Panel, str]:
        market = options["market"] or settings.EXCHANGE_MARKET
        if options["archive"] is None:
            store, wanted = candle_store(), options["symbols"]
            panel = store.read_panel(
                market, settings.TIMEFRAME, symbols=wanted or sorted(store.last_open_times(market, settings.TIMEFRAME))
            )
            source = f"candle store, {market} {settings.TIMEFRAME}"
        else:
            panel, source = self._read_archive(options["archive"], market, options["symbols"])
        if panel.n_times == 0:
            raise CommandError(
                f"there are no candles of {market or 'this market'}: run the bot first, or name --archive"
            )
        return panel, source

    def _read_archive(self, folder: Path, market: str, wanted: list[str] | None) -> tuple[Panel, str]:
        try:
            archive = Archive(folder, market)
            there = [symbol for symbol in sorted(archive.symbols) if settings.TIMEFRAME in archive.timeframes(symbol)]
            unknown = sorted(set(wanted or []) - set(there))
            if unknown:
                raise CommandError(f"not in {folder}/{market}/{settings.TIMEFRAME}: {', '.join(unknown)}")
            chosen = wanted or there
            candles = {symbol: archive.candles(symbol, settings.TIMEFRAME) for symbol in chosen}
            funding = {symbol: archive.funding(symbol) for symbol in chosen}
        except ExchangeError as error:
            raise CommandError(str(error)) from error
        panel = Panel.from_candles(candles, timeframe_ms(settings.TIMEFRAME), funding=funding)
        return panel, f"{market} {settings.TIMEFRAME} of the archive"

    def _span(self, panel: Panel, options: dict[str, Any]) -> tuple[int, int]:
        first, last = int(panel.open_time[0]), int(panel.open_time[-1]) + panel.step_ms
        start = _day("--from", options["start"]) if options["start"] else first + settings.HISTORY_MIN_DAYS * DAY_MS
        end = min(_day("--to", options["end"]), last) if options["end"] else last
        if not first < start < end:
            raise CommandError(
                f"nothing to play from {from_ms(start):%Y-%m-%d} to {from_ms(end):%Y-%m-%d}: the candles go from "
                f"{from_ms(first):%Y-%m-%d} to {from_ms(last):%Y-%m-%d}, and something to learn from must come before"
            )
        return start, end

    def _progress(self, *, quiet: bool) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        return Progress(*columns, console=Console(stderr=True), disable=quiet)

    def _print(self, summary: dict[str, Any], report: Path | None) -> None:
        self.stdout.write(
            f"{summary['source']}, {summary['from']} to {summary['to']}: {len(summary['trainings'])} trainings, "
            f"{summary['promoted']} promoted"
        )
        for name, account in summary["accounts"].items():
            sharpe = "–" if account["sharpe"] is None else f"{account['sharpe']:.2f} ± {account['sharpe_error']:.2f}"
            self.stdout.write(
                f"  {name:<13} return {account['return']:8.2%}  largest fall {account['max_drawdown']:7.2%}  "
                f"trades {account['trades']:5d}  Sharpe a year {sharpe}"
            )
        held = summary["buy_and_hold"]
        self.stdout.write(f"  buy and hold  return {held['return']:8.2%}  largest fall {held['max_drawdown']:7.2%}")
        if report is not None:
            self.stdout.write(f"report: {report}")


def _show(bar: Progress, task: TaskID, share: float, text: str) -> None:
    bar.update(task, completed=share, description=text)


def _day(option: str, text: str) -> int:
    try:
        return to_ms(dt.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=dt.UTC))
    except ValueError as error:
        raise CommandError(f"{option} is {text!r}; it must be a day like 2024-06-01") from error

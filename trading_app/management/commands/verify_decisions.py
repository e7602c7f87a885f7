"""`manage.py verify-decisions`: compute stored decisions again from the stored candles."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from trading_app import selectors


class Command(BaseCommand):
    help = (
        "Compute the bot's decisions of a day (market time) again from the candle store and compare them to the bit. "
        "Exit code: 0 all equal, 1 some differ, 2 there was nothing to compare."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--day", help="UTC day of the market's time, like 2025-06-01 (default: the newest)")
        parser.add_argument("--days", type=int, default=1, help="how many days from there on (default 1)")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, **options: Any) -> None:
        from trading_app import verifying  # numba and LightGBM: only when it really runs

        bot = selectors.main_bot()
        day = _day(options["day"]) if options["day"] else (verifying.newest_day(bot) if bot is not None else None)
        if bot is None or day is None:
            raise CommandError("there are no decisions yet: run the bot first (manage.py runall)", returncode=2)
        start = dt.datetime.combine(day, dt.time(), tzinfo=dt.UTC)
        found = verifying.verify_decisions(bot, start, start + dt.timedelta(days=options["days"]))
        if options["json"]:
            self.stdout.write(json.dumps({"day": f"{day}", "days": options["days"], **dataclasses.asdict(found)}))
        else:
            self.stdout.write(
                f"{day}: {found.compared} decisions compared, {len(found.differences)} differences; not compared: "
                f"{found.late} in bars with a late candle, {found.without_model} without a model, "
                f"{found.unstored} not in the store"
            )
            for sentence in found.differences:
                self.stdout.write(f"  {sentence}")
        if found.differences:
            raise SystemExit(1)
        if not found.compared:
            raise SystemExit(2)


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"--day is {text!r}; it must be a day like 2025-06-01") from error

"""Runs one bot in a process of its own, for tests that kill and freeze it. Arguments are JSON on the command line.

The market stands still at the time that the parent names in a file, so both processes agree on it; the account is a
ledger file; leases are real, on the database's clock.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any


def main(arguments: dict[str, Any]) -> None:
    import django
    from django.conf import settings

    django.setup()
    for name, value in arguments["settings"].items():
        setattr(settings, name, Path(value) if name.endswith("_DIR") else value)
    settings.DATABASES["default"].update(arguments["database"])

    from django.db import connections

    connections["default"].settings_dict.update(arguments["database"])

    from exchanges.matching import MatchingVenue
    from exchanges.simulated import SimulatedMarket
    from marketdata.store import CandleStore
    from ops_app import clock
    from tests.trading.conftest import StandIn
    from tests.trading.venues import DyingVenue
    from trading_app.bot import BotRunner
    from trading_app.models import Bot

    time_file = Path(arguments["time_file"])

    def now() -> dt.datetime:
        return dt.datetime.fromisoformat(time_file.read_text().strip())

    clock._system.market_now = now  # type: ignore[method-assign]  # lease time stays the database's
    data = SimulatedMarket(seed=7, now_ms=clock.market_now_ms, symbols=arguments["n_symbols"], specials=False)
    codes = tuple(arguments["codes"])
    bot = Bot.objects.get(name="main")
    venue: Any = MatchingVenue(data=data, ledger_path=arguments["ledger"], account=bot.account)
    if arguments.get("die"):
        venue = DyingVenue(venue, **arguments["die"])
    runner = BotRunner(
        bot, data=data, store=CandleStore(settings.CANDLES_DIR), venue=venue, load=lambda _: StandIn(codes, codes),
        lease_ttl=dt.timedelta(seconds=arguments["ttl"]),
    )  # fmt: skip
    while True:
        report = runner.tick()
        line = {
            "lease": report.lease, "sent": report.orders_sent, "bar": str(report.bar_at or ""),
            "waiting": report.waiting,
        }  # fmt: skip
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        clock.sleep(0.1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

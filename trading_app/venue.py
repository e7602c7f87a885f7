"""Opens the account of a bot. Only the bot's process imports this: web pages never call an exchange."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace

from django.conf import settings

from coverage_app.market import exchange_config
from coverage_app.models import Symbol
from exchanges.factory import venue as make_venue
from exchanges.port import Instrument, MarketData, Venue
from ops_app import clock
from ops_app.leases import LeaseToken
from ops_app.prepared import Prepared
from trading_app.models import Bot

RECEIVE_WINDOW = dt.timedelta(seconds=5)
"""Real time. The venue refuses an older request: what a frozen process sends after waking is not accepted (B4)."""

_symbols = Prepared(lambda market: Symbol.objects.of_market(market).values_list("code", "id"))


@dataclass(slots=True)
class Account:
    """Everything that an order needs: whose it is, where it goes, and the right to send it.

    `lease` is replaced when the account is taken anew; everything that writes or sends checks it.
    """

    bot: Bot
    venue: Venue
    lease: LeaseToken
    instruments: dict[str, Instrument] = field(default_factory=dict)
    symbol_ids: dict[str, int] = field(default_factory=dict)
    codes: dict[int, str] = field(default_factory=dict)

    def code_of(self, symbol_id: int) -> str:
        """Return the code of a symbol id. Raises KeyError for one of another market."""
        return self.codes[symbol_id]

    def refresh_symbols(self) -> None:
        """Read the symbols of the market again (1 query): new listings get rows while the bot runs."""
        self.symbol_ids = dict(_symbols.rows(self.bot.market))
        self.codes = {symbol_id: code for code, symbol_id in self.symbol_ids.items()}


def ledger_name(account: str) -> str:
    """Return the name of the file in LEDGER_DIR that is the memory of the simulated exchange."""
    return "".join(letter if letter.isalnum() else "_" for letter in account) + ".sqlite3"


def open_venue(bot: Bot, data: MarketData) -> Venue:
    """Return the account of `bot`, matched against `data`, with its ledger in a file that survives a kill."""
    settings.LEDGER_DIR.mkdir(parents=True, exist_ok=True)
    ledger = settings.LEDGER_DIR / ledger_name(bot.account)
    config = replace(
        exchange_config(), market=bot.market, ledger_path=ledger, account=bot.account,
        receive_window_ms=round(RECEIVE_WINDOW.total_seconds() * 1000 * clock.speed()),  # requests bear market time
    )  # fmt: skip
    return make_venue(config, clock.market_now_ms, data=data)

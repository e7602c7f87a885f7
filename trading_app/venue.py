"""Opens the account of a bot. Only the bot's process imports this: web pages never call an exchange."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace

import structlog
from django.conf import settings
from django.db import DatabaseError

from coverage_app.market import exchange_config
from coverage_app.models import Symbol
from exchanges.errors import ConfigurationError, ExchangeError
from exchanges.factory import live_venue
from exchanges.factory import venue as make_venue
from exchanges.keys import Keys, Secret
from exchanges.port import Instrument, MarketData, Venue
from ops_app import alerts, clock
from ops_app.choices import Severity
from ops_app.leases import LeaseToken
from ops_app.prepared import Prepared
from trading_app import services
from trading_app.choices import REAL_MODES
from trading_app.models import Bot

log = structlog.get_logger(__name__)

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

    def rules_of(self, code: str) -> Instrument | None:
        """Return the rules that orders in a symbol are rounded by; None while there are none to be had that can be
        right: an exit or a stop is sent unrounded then, and the venue judges it.
        """
        found = self.instruments.get(code)
        return None if found is None or found.flaw else found

    def refresh_symbols(self) -> None:
        """Read the symbols of the market again (1 query): new listings get rows while the bot runs."""
        self.symbol_ids = dict(_symbols.rows(self.bot.market))
        self.codes = {symbol_id: code for code, symbol_id in self.symbol_ids.items()}


def ledger_name(account: str) -> str:
    """Return the name of the file in LEDGER_DIR that is the memory of the simulated exchange."""
    return "".join(letter if letter.isalnum() else "_" for letter in account) + ".sqlite3"


def receive_window_ms() -> int:
    """Return RECEIVE_WINDOW in market time, which the requests bear."""
    return round(RECEIVE_WINDOW.total_seconds() * 1000 * clock.speed())


def open_venue(bot: Bot, data: MarketData) -> Venue:
    """Return the account of `bot`: a real one, or one matched against `data` whose ledger survives a kill.

    Raises ConfigurationError for a real account that must not be traded.
    """
    if bot.mode in REAL_MODES:
        return _open_live(bot, data)
    settings.LEDGER_DIR.mkdir(parents=True, exist_ok=True)
    ledger = settings.LEDGER_DIR / ledger_name(bot.account)
    config = replace(
        exchange_config(), market=bot.market, ledger_path=ledger, account=bot.account,
        receive_window_ms=receive_window_ms(),
    )  # fmt: skip
    return make_venue(config, clock.market_now_ms, data=data)


def read_keys() -> Keys:
    """Read the keys of the live account: only here, in the process that trades. Raises ConfigurationError."""
    values = (settings.API_KEY, settings.API_SECRET, settings.API_PASSPHRASE)
    return Keys(*(value.read() if isinstance(value, Secret) else value for value in values))


def _open_live(bot: Bot, data: MarketData) -> Venue:
    if settings.EXCHANGE != "live" or bot.name != settings.LIVE_TRADING_CONFIRM:
        raise ConfigurationError(
            f"bot {bot.name!r} would send real orders: that needs EXCHANGE=live and LIVE_TRADING_CONFIRM={bot.name}, "
            f"but they are EXCHANGE={settings.EXCHANGE} and LIVE_TRADING_CONFIRM={settings.LIVE_TRADING_CONFIRM}"
        )
    if bot.mode != services.mode_of_settings():
        raise ConfigurationError(
            f"bot {bot.name!r} is a {bot.mode} bot, and EXCHANGE_SANDBOX={int(settings.EXCHANGE_SANDBOX)} asks for "
            "another exchange: its rows are of another account. Set it back, or use another DATA_DIR"
        )
    if clock.market_clock() is not None and not settings.EXCHANGE_URL:
        # Its speed would stretch the receive window (B4); only a loopback exchange may run by such a clock.
        raise ConfigurationError(
            f"bot {bot.name!r} would send real orders, but this database runs by the clock of a simulated or replayed "
            "market: use another DATA_DIR (or DATABASE_URL) for EXCHANGE=live"
        )
    config = replace(
        exchange_config(), market=bot.market, keys=read_keys(), margin_mode=settings.MARGIN_MODE,
        receive_window_ms=receive_window_ms(),
    )  # fmt: skip

    def notify(key: str, text: str) -> None:
        try:
            alerts.raise_alert(f"account:{bot.name}:{key}", f"{bot.name}: {text}", Severity.CRITICAL)
        except DatabaseError:  # it comes with an order's outcome, which must not be lost for it (F29)
            log.exception("notice_not_written", key=key, text=text)

    venue = live_venue(config, clock.market_now_ms, data=data, notify=notify)
    try:
        venue.verify()
    except ConfigurationError:
        raise
    except ExchangeError as error:  # it does not answer now: the account is looked at before its first use
        log.warning("account_not_verified_yet", account=bot.account, error=str(error))
    return venue

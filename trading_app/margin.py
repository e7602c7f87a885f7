"""What a symbol's margin must be at the exchange before an entry is sent. Exits and stops never wait for it (I20)."""

from __future__ import annotations

import math
from decimal import Decimal

from exchanges.errors import ExchangeError
from exchanges.port import Instrument
from ops_app import alerts
from ops_app.choices import Severity
from quant.reasons import reason
from trading_app.models import Bot
from trading_app.venue import Account


def wanted_leverage(bot: Bot, instrument: Instrument) -> Decimal:
    """Return the whole number above the bot's own limit, at most the symbol's maximum.

    So the exchange refuses what is far beyond the limit, whatever is wrong here, and leaves room for fees below it; and
    an isolated position is liquidated far behind its stop.
    """
    return min(Decimal(math.floor(bot.max_leverage) + 1), instrument.max_leverage)


def bad_rules(instrument: Instrument) -> str:
    name, _, value = instrument.flaw.partition("=")
    return reason("BAD_RULES", symbol=instrument.symbol, **{name: value})


class EntryMargin:
    """Sets margin mode and leverage before entries, and remembers in this process what is set."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._set: dict[str, Decimal] = {}

    def refusal(self, symbol: str) -> str | None:
        """Return why no entry may be sent in a symbol, as ``CODE: key=value``; None: its margin is as it must be."""
        instrument = self.account.instruments.get(symbol)
        if instrument is None:  # no entry is written without rules (`trading_app.deciding`), and the venue refuses one
            return None
        if instrument.flaw:
            return bad_rules(instrument)
        if instrument.market_type == "spot":
            return None
        wanted = wanted_leverage(self.account.bot, instrument)
        if self._set.get(symbol) == wanted:
            return None
        key = f"leverage:{self.account.bot.name}:{symbol}"
        try:
            self.account.venue.set_leverage(symbol, wanted)
        except (ExchangeError, ValueError) as error:
            why = reason("LEVERAGE_NOT_SET", symbol=symbol, wanted=wanted, error=f"{type(error).__name__}: {error}")
            alerts.raise_alert(
                key,
                f"{symbol}: margin mode and leverage {wanted} could not be set at the exchange ({error}). No entry is "
                "sent there until they can; exits and stops are. Set them by hand, or look at the key's rights.",
                Severity.WARNING,
            )
            return why
        alerts.resolve_alert(key)
        self._set[symbol] = wanted
        return None

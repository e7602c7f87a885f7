"""Errors of the exchange port. Each message names the value, the rule and the fix."""

from __future__ import annotations


class ExchangeError(Exception):
    """Anything an exchange, or our access to it, may do wrong."""


class ConfigurationError(ExchangeError, ValueError):
    """A setting cannot work: unknown market, unreadable archive, wrong timeframe, ... A retry cannot help."""


class MarketDataError(ExchangeError):
    """Market data of one symbol could not be had. Only this symbol is affected; a later retry may help."""

    def __init__(self, symbol: str, detail: str) -> None:
        super().__init__(f"{symbol}: {detail}")
        self.symbol = symbol
        self.detail = detail


class UnknownSymbolError(MarketDataError):
    """The exchange does not list this symbol (now). Retrying is pointless until the universe was refreshed."""


class ExchangeUnavailableError(ExchangeError):
    """The exchange as a whole does not answer (network, maintenance, rate limit). Back off, then retry."""

    def __init__(self, detail: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(detail)
        self.retry_after_ms = retry_after_ms


class LedgerError(ExchangeError):
    """The account file of the matching venue cannot be used: unreadable, or made for another account."""

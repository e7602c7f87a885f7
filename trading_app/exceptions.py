"""Errors of trading. Each message names the value, the rule and the fix."""


class TradingError(Exception):
    """Something that a person asked of the bot cannot be done."""


class AccountBusyError(TradingError):
    """Another live process holds the account's lease (I15)."""


class OrderStateError(Exception):
    """A transition that the table of order states does not have: a bug, never an answer of the exchange."""


class OrderTakenError(OrderStateError):
    """Another process changed the order: this one has lost the account, perhaps while it was frozen."""

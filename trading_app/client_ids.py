"""Client order ids: whose an order is, under which right it was sent, and which row it is (B6)."""

from __future__ import annotations

import hashlib

from django.conf import settings

from trading_app.models import Bot

ACCOUNT_CHARS, DEPLOYMENT_CHARS, TOKEN_CHARS, ROW_CHARS = 3, 3, 4, 7
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int, width: int) -> str:
    """Return `number` in `width` digits of base 36; the highest digits are dropped when it does not fit."""
    digits = ""
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits


def account_prefix(bot: Bot) -> str:
    """Return the part of a client order id that every bot on this account shares, whatever its database (F36)."""
    return base36(int.from_bytes(hashlib.sha256(bot.account.encode()).digest()[:8], "big"), ACCOUNT_CHARS)


def own_prefix(bot: Bot) -> str:
    """Return the part that only this deployment's bot uses: two databases must not make equal ids."""
    secret = f"{settings.SECRET_KEY}:{bot.account}".encode()
    digest = int.from_bytes(hashlib.sha256(secret).digest()[:8], "big")
    return account_prefix(bot) + base36(digest, DEPLOYMENT_CHARS)


def client_order_id(bot: Bot, *, token: int, order_id: int) -> str:
    """Return account, deployment, fencing token and row in 17 letters and digits (B6)."""
    return own_prefix(bot) + base36(token, TOKEN_CHARS) + base36(order_id, ROW_CHARS)


def is_a_bots(client_id: str) -> bool:
    """Tell whether an id has the form of the ones made here, by whatever bot. People's orders have no id, or longer."""
    width = ACCOUNT_CHARS + DEPLOYMENT_CHARS + TOKEN_CHARS + ROW_CHARS
    return len(client_id) == width and set(client_id) <= set(_DIGITS)

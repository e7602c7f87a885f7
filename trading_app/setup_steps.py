"""What trading adds to `manage.py setup`: the row of the bot."""

from __future__ import annotations

from django.conf import settings
from django.core.management.base import CommandError

from ops_app.setup_steps import ROWS, register
from trading_app.exceptions import TradingError
from trading_app.models import Bot
from trading_app.services import ensure_bot


def create_bot() -> str:
    known = Bot.objects.filter(name=settings.BOT_NAME).exists()
    try:
        bot = ensure_bot()
    except TradingError as error:
        raise CommandError(str(error)) from error
    return "" if known else f"bot {bot.name} on account {bot.account}"


register("bot", create_bot, order=ROWS + 5)

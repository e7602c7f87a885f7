"""The exchange's test net is another market with other money: its rows are never taken for live ones."""

from __future__ import annotations

from typing import Any

import pytest

from exchanges.errors import ConfigurationError
from trading_app.choices import BotMode
from trading_app.exceptions import TradingError
from trading_app.models import Bot
from trading_app.services import ensure_bot
from trading_app.venue import open_venue

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("sandbox", [True, False])
@pytest.mark.parametrize("name", ["main", "another"])
def test_a_database_of_the_sandbox_is_refused_for_the_live_account_and_the_other_way_round(
    settings: Any, sandbox: bool, name: str
) -> None:
    settings.EXCHANGE, settings.EXCHANGE_MARKET, settings.EXCHANGE_SANDBOX = "live", "bybit", sandbox
    made = ensure_bot(name="main")
    assert made.mode == (BotMode.SANDBOX if sandbox else BotMode.LIVE)
    assert ensure_bot(name="main") == made
    settings.EXCHANGE_SANDBOX = not sandbox
    with pytest.raises(TradingError, match=r"this database belongs to the .* account of bybit, .* another DATA_DIR"):
        ensure_bot(name=name)
    assert Bot.objects.get() == made


def test_no_bot_of_the_sandbox_opens_the_live_account(settings: Any) -> None:
    settings.EXCHANGE, settings.EXCHANGE_MARKET, settings.EXCHANGE_SANDBOX = "live", "bybit", True
    bot = ensure_bot(name="main")
    settings.LIVE_TRADING_CONFIRM, settings.EXCHANGE_SANDBOX = "main", False
    with pytest.raises(ConfigurationError, match="bot 'main' is a sandbox bot, and EXCHANGE_SANDBOX=0"):
        open_venue(bot, None)  # type: ignore[arg-type]  # refused before it is looked at

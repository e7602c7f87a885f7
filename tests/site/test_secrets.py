"""Planted keys of an account are shown nowhere: not in logs, errors, tables, pages, answers, commands or reprs."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.test import Client

from coverage_app import market
from exchanges.ccxt_data import CcxtMarketData
from exchanges.ccxt_venue import CcxtVenue
from exchanges.errors import ConfigurationError, ExchangeError
from exchanges.factory import ExchangeConfig
from exchanges.keys import Keys, Secret
from exchanges.simulated import SimulatedMarket
from ops_app import alerts, clock
from ops_app.models import MarketClock
from tests.bybit import BybitServer, Fault
from tests.site.conftest import World
from tests.site.test_access import paths
from trading_app.choices import BotMode
from trading_app.venue import open_venue, read_keys
from tradingsite.logs import logging_config
from tradingsite.options import load_options

KEY, SECRET, PASSPHRASE = "PLANTEDkey7731", "PLANTEDsecret9157", "PLANTEDphrase4402"
PLANTED = (KEY, SECRET, PASSPHRASE)
LIVE = {"EXCHANGE": "live", "EXCHANGE_MARKET": "bybit", "LIVE_TRADING_CONFIRM": "main"}


def leaks(text: str) -> list[str]:
    return [value for value in PLANTED if value in text]


@pytest.fixture
def key_files(tmp_path: Path) -> dict[str, str]:
    """The environment of a bot: each secret in a file of its own."""
    environment = {}
    for name, value in zip(("API_KEY", "API_SECRET", "API_PASSPHRASE"), PLANTED, strict=True):
        path = tmp_path / name.lower()
        path.write_text(value + "\n")
        path.chmod(0o600)
        environment[f"{name}_FILE"] = str(path)
    return environment


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Everything that is logged at DEBUG, as machines get it."""
    stream = io.StringIO()
    before = logging.getLogger().handlers[:], logging.getLogger().level
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        logging_config(level="debug", style="json")
    yield stream
    logging_config(level="info", style="console")
    logging.getLogger().handlers[:], logging.getLogger().level = before[0], before[1]


@pytest.fixture
def account(
    world: World, settings: Any, key_files: dict[str, str], logged: io.StringIO
) -> Iterator[tuple[BybitServer, CcxtVenue]]:
    values = load_options(environment=LIVE | key_files)
    for name in ("API_KEY", "API_SECRET", "API_PASSPHRASE", "LIVE_TRADING_CONFIRM", "EXCHANGE"):
        setattr(settings, name, values[name])
    world.bot.mode = BotMode.LIVE
    truth = SimulatedMarket(seed=7, symbols=2, now_ms=clock.market_now_ms)
    with BybitServer(truth, api_key=KEY, api_secret=SECRET) as server:
        settings.EXCHANGE_URL, world.bot.market = server.url, "bybit"
        settings.EXCHANGE_MARKET = "bybit"
        config = market.exchange_config()
        data = CcxtMarketData(
            exchange_id=config.ccxt_id, market="bybit", now_ms=clock.market_now_ms, options=config.ccxt_options
        )
        venue = open_venue(world.bot, data)
        assert isinstance(venue, CcxtVenue)
        settings.EXCHANGE_MARKET = world.symbol.market
        yield server, venue


def test_planted_keys_are_shown_nowhere(
    account: tuple[BybitServer, CcxtVenue], logged: io.StringIO, client: Client, settings: Any
) -> None:
    server, venue = account
    log = structlog.get_logger("test")
    assert venue.balance().equity == 10_000
    quotes = f"error sign! origin_string[1{KEY}5000], secret {SECRET}"
    server.faults.rules = [Fault("ret_code", "wallet-balance", code=10004, message=quotes)]
    with pytest.raises(ExchangeError) as refusal:
        venue.balance()
    try:
        raise refusal.value
    except ExchangeError:
        log.exception("exchange_failed", error=str(refusal.value), venue=venue, config=market.exchange_config())
    shown = {"log": logged.getvalue()}
    assert "origin_string" in shown["log"]  # the error is there, with its traceback
    assert "/v5/account/wallet-balance" not in shown["log"]  # what ccxt says of its requests is not
    logging.getLogger().setLevel(logging.WARNING)  # at DEBUG, Django logs a traceback for each variable of a template

    output = io.StringIO()
    call_command("dumpdata", stdout=output)
    shown["database"] = output.getvalue()
    assert "origin_string" in shown["database"]  # as an alert
    boss = User.objects.create_superuser("boss", password="a-long-password-of-tests")
    client.force_login(boss)
    for path in paths():
        answer = client.get(path)
        shown[path] = answer.content.decode() if not answer.streaming else ""
        if path == "/admin/logout/":
            client.force_login(boss)
    for name in ("doctor", "options"):
        output = io.StringIO()
        try:
            call_command(name, "--json", stdout=output)
        except (CommandError, SystemExit) as error:  # the doctor finds a site without workers ill
            output.write(str(error))
        shown[name] = output.getvalue()
        assert shown[name]
    shown["reprs"] = repr([read_keys(), settings.API_KEY, venue.link.keys, vars(venue.link), vars(venue)])
    assert {where: found for where, text in shown.items() if (found := leaks(text))} == {}


def test_the_search_would_find_a_leak() -> None:
    assert leaks(json.dumps({"headers": {"X-BAPI-API-KEY": KEY}})) == [KEY]


def test_neither_a_config_nor_a_key_shows_or_copies_what_it_holds() -> None:
    keys = Keys(*PLANTED)
    assert leaks(repr(ExchangeConfig(keys=keys)) + str(keys) + f"{keys!r}") == []
    assert keys.hide(f"{KEY}/{SECRET}/{PASSPHRASE}") == "***/***/***"
    secret = Secret("API_KEY", lambda: KEY)
    assert leaks(f"{secret} {secret!r} {vars(secret)}") == []
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="API_KEY is a secret"):
            copied(secret)


def test_keys_are_not_read_before_somebody_asks(key_files: dict[str, str]) -> None:
    for path in key_files.values():
        Path(path).unlink()
    values = load_options(environment=LIVE | key_files)  # as a worker without a right to them
    with pytest.raises(ConfigurationError, match=r"API_KEY_FILE=.*cannot be read"):
        values["API_KEY"].read()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_file_that_others_may_read_is_refused_with_the_cure(key_files: dict[str, str], mode: int) -> None:
    path = Path(key_files["API_SECRET_FILE"])
    path.chmod(mode)
    secret = load_options(environment=LIVE | key_files)["API_SECRET"]
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        secret.read()
    path.chmod(0o600)
    assert secret.read() == SECRET


def test_keys_in_the_env_file_want_it_private_too(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"API_KEY={KEY}\n")
    env_file.chmod(0o644)
    secret = load_options(environment={}, env_file=env_file)["API_KEY"]
    with pytest.raises(ConfigurationError, match="chmod 600"):
        secret.read()
    env_file.chmod(0o600)
    assert secret.read() == KEY
    assert load_options(environment={"API_KEY": SECRET}, env_file=env_file)["API_KEY"].read() == SECRET


def test_live_trading_wants_its_keys_and_says_which(settings: Any) -> None:
    settings.API_KEY, settings.API_SECRET = "k", ""
    with pytest.raises(ConfigurationError, match=r"^API_SECRET: not set.*API_SECRET_FILE"):
        read_keys()


def test_nobody_gets_to_a_real_account_by_one_setting(world: World, settings: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="LIVE_TRADING_CONFIRM=main"):
        load_options(environment={"EXCHANGE": "live", "EXCHANGE_MARKET": "bybit"})
    with pytest.raises(ImproperlyConfigured, match="LIVE_TRADING_CONFIRM=other"):
        load_options(environment=LIVE | {"BOT_NAME": "other"})
    world.bot.mode = BotMode.LIVE
    settings.EXCHANGE, settings.LIVE_TRADING_CONFIRM = "live", "another"
    with pytest.raises(ConfigurationError, match="would send real orders"):
        open_venue(world.bot, None)  # type: ignore[arg-type]  # refused before it is looked at


def test_b4_no_real_orders_by_the_clock_of_a_simulated_market(
    world: World, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot of another name in the database of a simulation: its receive window would last for minutes."""
    world.bot.mode = BotMode.LIVE
    settings.EXCHANGE, settings.LIVE_TRADING_CONFIRM = "live", world.bot.name
    monkeypatch.setattr(clock, "market_clock", lambda: MarketClock(speed=60.0))
    with pytest.raises(ConfigurationError, match="another DATA_DIR"):
        open_venue(world.bot, None)  # type: ignore[arg-type]  # as above


def test_f29_a_notice_that_the_database_cannot_take_costs_no_orders_outcome(
    account: tuple[BybitServer, CcxtVenue], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(alerts, "raise_alert", lost)
    _, venue = account
    venue.link.notices["clock"] = "this host's clock is 3000 ms ahead"
    assert venue.balance().currency == "USDT"
    assert not venue.link.notices


@pytest.mark.parametrize(
    "change, message",
    [
        ({"EXCHANGE_URL": "http://example.org:80"}, "must be https"),
        ({"EXCHANGE_URL": "127.0.0.1:8000"}, "must be like http"),
        ({"EXCHANGE_URL": "http://127.0.0.1:8000", "EXCHANGE": "simulated"}, "only for EXCHANGE=paper"),
        ({"EXCHANGE_URL": "http://127.0.0.1:8000", "EXCHANGE_SANDBOX": "1"}, "name two exchanges"),
        ({"EXCHANGE_MARKET": ""}, "EXCHANGE_MARKET is empty"),
        ({"MARGIN_MODE": "both"}, "must be one of cross, isolated"),
    ],
)
def test_settings_of_a_real_account_that_cannot_be_meant(change: dict[str, str], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        load_options(environment=LIVE | change)

"""The factory: settings in, exchange out, or a message that says what to set."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from exchanges.errors import ConfigurationError
from exchanges.factory import ExchangeConfig, market_data, venue
from exchanges.port import MarketData, Venue
from tests.exchanges.conftest import Clock


def test_the_default_is_a_simulated_exchange_of_40_symbols_and_some_odd_ones(clock: Clock) -> None:
    data = market_data(ExchangeConfig(), clock)
    assert isinstance(data, MarketData)
    assert data.simulated
    names = {each.base for each in data.instruments()}
    assert len([name for name in names if len(name) == 5 and name.endswith("X")]) == 40
    assert {"GAPPY", "SWAPPED", "LATE", "THIN"} <= names
    assert len([name for name in names if name.startswith("NEW")]) >= 5


def test_a_replay_is_not_labelled_simulated(small_archive: Path, clock: Clock) -> None:
    data = market_data(ExchangeConfig(kind="replay", market="sim_um", archive=small_archive), clock)
    assert (data.market, data.simulated) == ("sim_um", False)


def test_a_venue_shares_the_data_it_is_given(clock: Clock, tmp_path: Path) -> None:
    config = ExchangeConfig(symbols=2, ledger_path=tmp_path / "a" / "ledger.sqlite3", initial_balance=Decimal(500))
    data = market_data(config, clock)
    account = venue(config, clock, data=data)
    assert isinstance(account, Venue)
    assert account.data is data  # type: ignore[attr-defined]  # of the matching venue
    assert account.balance().equity == 500
    assert (tmp_path / "a" / "ledger.sqlite3").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "kraken"}, "EXCHANGE='kraken' is unknown; choose one of simulated, replay, ccxt"),
        ({"kind": "replay"}, "CANDLE_ARCHIVE is not set"),
        ({"symbols": -1}, "symbols=-1"),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_its_fix(clock: Clock, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        market_data(ExchangeConfig(**change), clock)

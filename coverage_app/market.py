"""The market data and the candle store of this process, made once from the settings.

Workers and the bot use them. Pages may read candles through `candle_store()`; they never open the market data.
"""

from __future__ import annotations

import functools
from decimal import Decimal

from django.conf import settings

from exchanges.factory import ExchangeConfig, ExchangeKind, ccxt_id_of, ccxt_options
from exchanges.factory import market_data as open_market_data
from exchanges.port import MarketData
from marketdata.bucket import Bucket
from marketdata.store import CandleStore
from ops_app import clock

KINDS: dict[str, ExchangeKind] = {"simulated": "simulated", "replay": "replay", "paper": "ccxt", "live": "ccxt"}


def exchange_config() -> ExchangeConfig:
    """Return what the settings say about the exchange. Ledger and keys are added by whoever trades."""
    return ExchangeConfig(
        kind=KINDS[settings.EXCHANGE],
        market=settings.EXCHANGE_MARKET,
        archive=settings.CANDLE_ARCHIVE,
        seed=settings.SIM_SEED,
        learnable=settings.SIM_LEARNABLE,
        symbols=settings.SIM_SYMBOLS,
        ccxt_id=ccxt_id_of(settings.EXCHANGE_MARKET),
        ccxt_options=ccxt_options(url=settings.EXCHANGE_URL, sandbox=settings.EXCHANGE_SANDBOX),
        initial_balance=Decimal(str(settings.INITIAL_BALANCE)),
    )


_opened: dict[str, MarketData] = {}


def market_data() -> MarketData:
    """Return this process's market data; it follows the clock of `ops_app.clock`, also a simulated one."""
    if "data" not in _opened:
        _opened["data"] = open_market_data(exchange_config(), clock.market_now_ms)
    return _opened["data"]


def use(data: MarketData) -> None:
    """Let this process read `data` instead: for tests, and for the soak that puts faults in between."""
    _opened["data"] = data


@functools.cache
def candle_store() -> CandleStore:
    """Return the candle store that STORAGE_URL names; without it, the one below DATA_DIR."""
    if settings.STORAGE_BUCKET is None:
        return CandleStore(settings.CANDLES_DIR)
    return CandleStore(Bucket(settings.STORAGE_BUCKET / "candles"))


def reset() -> None:
    """Forget both: for tests and the soak, which change settings."""
    _opened.clear()
    candle_store.cache_clear()

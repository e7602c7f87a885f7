"""The one place that turns settings into an exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from exchanges.errors import ConfigurationError
from exchanges.port import MarketData, Venue

ExchangeKind = Literal["simulated", "replay", "ccxt"]
KINDS: tuple[str, ...] = ("simulated", "replay", "ccxt")
IN_MEMORY = ":memory:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """Everything needed to open an exchange.

    `market` is the archive's folder (replay), `simulated`, or a free name for ccxt data (`bybit_linear`).
    `ledger_path` is the account's SQLite file, or ":memory:" for an account that lives as long as its venue.
    `receive_window_ms` (market time): requests that are older are refused; None accepts any age.
    """

    kind: ExchangeKind = "simulated"
    market: str = "simulated"
    archive: Path | None = None
    seed: int = 7
    learnable: bool = True
    symbols: int = 40
    specials: bool = True
    ccxt_id: str = "bybit"
    ccxt_options: dict[str, object] | None = None
    ledger_path: Path | str = IN_MEMORY
    initial_balance: Decimal = Decimal(10_000)
    account: str = "main"
    receive_window_ms: int | None = None


def market_data(config: ExchangeConfig, now_ms: Callable[[], int]) -> MarketData:
    """Open public data. `now_ms` is market time; ccxt data follows the exchange's own clock instead."""
    if config.kind == "simulated":
        from exchanges.simulated import SimulatedMarket

        return SimulatedMarket(
            seed=config.seed,
            symbols=config.symbols,
            specials=config.specials,
            learnable=config.learnable,
            market=config.market,
            now_ms=now_ms,
        )
    if config.kind == "replay":
        from exchanges.replay import ReplayMarket

        if config.archive is None:
            raise ConfigurationError(
                "CANDLE_ARCHIVE is not set, and EXCHANGE=replay reads real candles from a folder; "
                "set CANDLE_ARCHIVE to the folder that holds <market>/<timeframe>/<SYMBOL>.parquet"
            )
        return ReplayMarket(archive=config.archive, market=config.market, now_ms=now_ms)
    if config.kind == "ccxt":
        from exchanges.ccxt_data import CcxtMarketData

        return CcxtMarketData(
            exchange_id=config.ccxt_id, market=config.market, now_ms=now_ms, options=config.ccxt_options or {}
        )
    raise ConfigurationError(f"EXCHANGE={config.kind!r} is unknown; choose one of {', '.join(KINDS)}")


def venue(config: ExchangeConfig, now_ms: Callable[[], int], *, data: MarketData | None = None) -> Venue:
    """Open the account that is matched against our own market data (sim, replay and paper trading).

    Pass `data` to share one `MarketData` (and its cache) between the bot and its venue.
    """
    from exchanges.matching import MatchingVenue

    return MatchingVenue(
        data=market_data(config, now_ms) if data is None else data,
        ledger_path=config.ledger_path,
        account=config.account,
        initial_balance=config.initial_balance,
        receive_window_ms=config.receive_window_ms,
    )

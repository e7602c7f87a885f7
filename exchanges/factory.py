"""The one place that turns settings into an exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exchanges.errors import ConfigurationError
from exchanges.keys import Keys
from exchanges.port import MarketData, Venue

if TYPE_CHECKING:
    from exchanges.ccxt_venue import CcxtVenue

Notify = Callable[[str, str], None]
ExchangeKind = Literal["simulated", "replay", "ccxt"]
KINDS: tuple[str, ...] = ("simulated", "replay", "ccxt")
IN_MEMORY = ":memory:"
_MARKET_KINDS = ("_linear", "_spot")
_URL_NAMES = ("public", "private", "spot", "futures", "v2")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """Everything needed to open an exchange.

    `market` is the archive's folder (replay), `simulated`, or a free name for ccxt data (`bybit_linear`).
    `ledger_path` is the account's SQLite file, or ":memory:" for an account that lives as long as its venue.
    `receive_window_ms` (market time): requests that are older are refused; None accepts any age.
    `keys` and `margin_mode` ("cross", "isolated", "" leaves it) belong to a real account (`live_venue`).
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
    keys: Keys | None = field(default=None, repr=False)
    margin_mode: str = ""


def ccxt_id_of(market: str) -> str:
    """Return ccxt's id of the exchange in a market key: `bybit`, `bybit_linear` and `bybit_spot` are all bybit."""
    for suffix in _MARKET_KINDS:
        if market.endswith(suffix):
            return market.removesuffix(suffix)
    return market


def ccxt_options(*, url: str = "", sandbox: bool = False) -> dict[str, object]:
    """Return ccxt's options for an exchange at another address, or for its test net."""
    options: dict[str, object] = {}
    if url:
        options["urls"] = {"api": dict.fromkeys(_URL_NAMES, url)}
    if sandbox:
        options["sandbox"] = True
    return options


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


def live_venue(
    config: ExchangeConfig, now_ms: Callable[[], int], *, data: MarketData | None = None, notify: Notify | None = None
) -> CcxtVenue:
    """Open a real account. `notify(key, text)` is called for what a person must know (a refused key, a wrong clock).

    Raises ConfigurationError without keys, for an exchange that was not proven, and for a spot market. Nothing is
    asked of the exchange yet: see `CcxtVenue.verify`.
    """
    from exchanges.ccxt_data import CcxtMarketData
    from exchanges.ccxt_rules import rules_of
    from exchanges.ccxt_venue import CcxtVenue

    rules = rules_of(config.ccxt_id)
    if rules is None or not rules.proven:
        raise ConfigurationError(
            f"EXCHANGE_MARKET={config.market!r} cannot be traded live: only bybit was proven against a loopback "
            "exchange. Use EXCHANGE=paper for another one."
        )
    if config.market.endswith("spot"):
        raise ConfigurationError(f"EXCHANGE_MARKET={config.market!r}: only perpetuals are traded live; write bybit")
    if config.keys is None:
        raise ConfigurationError("a live account needs keys: set API_KEY_FILE and API_SECRET_FILE")
    if not isinstance(data, CcxtMarketData):
        opened = market_data(config, now_ms)
        assert isinstance(opened, CcxtMarketData)  # noqa: S101 - for the type checker: the kind is ccxt
        data = opened
    return CcxtVenue(
        data=data,
        rules=rules,
        keys=config.keys,
        now_ms=now_ms,
        options=config.ccxt_options,
        receive_window_ms=config.receive_window_ms,
        margin_mode=config.margin_mode,
        notify=notify,
    )

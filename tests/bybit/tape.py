"""The truth of prices: any `MarketData`, by Bybit's names, with what a control event has changed about a symbol."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from exchanges.errors import MarketDataError
from exchanges.fill_model import Liquidity, measure_liquidity
from exchanges.port import FundingRate, Instrument, MarketData, Ticker
from quant.candles import Candles
from quant.fills import VOLATILITY_BARS
from quant.timeframes import DAY_MS, TIMEFRAMES, floor_ms, timeframe_ms

_FRESH_MS = 300_000
_RECENT_MS = 2 * DAY_MS


@dataclass(frozen=True, slots=True)
class Contract:
    """An instrument with its state on the venue: Trading, Closed, or ReduceOnly (in our words: 110023)."""

    name: str
    instrument: Instrument
    status: str
    max_qty: Decimal = Decimal("1e12")


@dataclass(frozen=True, slots=True)
class Bar:
    """One closed candle of one symbol, and the funding that fell due in it."""

    name: str
    opened_ms: int
    closed_ms: int
    opened: float
    high: float
    low: float
    close: float
    volume: float
    funding: tuple[FundingRate, ...]


class Tape:
    """Contracts, tickers, liquidity and closed bars of `data`. `changes` maps a name to what events changed."""

    def __init__(self, data: MarketData, changes: Callable[[], dict[str, dict[str, Any]]]) -> None:
        self.data = data
        self._changes = changes
        self._contracts: dict[str, Contract] = {}
        self._at = -1
        self._version: Any = None
        known = data.capabilities.timeframes
        self.timeframe = min((each for each in known if TIMEFRAMES[each] >= _FRESH_MS), key=TIMEFRAMES.__getitem__)
        self.step = timeframe_ms(self.timeframe)
        self._liquidity: dict[str, tuple[int, Liquidity]] = {}

    def now_ms(self) -> int:
        return self.data.now_ms()

    # ------------------------------------------------------------------ contracts
    def contracts(self) -> dict[str, Contract]:
        changes = self._changes()
        slot = self.now_ms() // _FRESH_MS
        if slot != self._at or changes != self._version:
            self._contracts = {}
            for each in self.data.instruments():
                name = each.base + each.quote
                self._contracts[name] = _changed(name, each, changes.get(name, {}))
            self._at, self._version = slot, {name: dict(change) for name, change in changes.items()}
        return self._contracts

    def contract(self, name: str) -> Contract | None:
        return self.contracts().get(name)

    def tickers(self) -> dict[str, Ticker]:
        """Of what trades, by Bybit's name."""
        found = self.data.tickers()
        names = ((name, each.instrument.symbol) for name, each in self.contracts().items() if each.status != "Closed")
        return {name: found[symbol] for name, symbol in names if symbol in found}

    def ticker(self, name: str) -> Ticker | None:
        contract = self.contract(name)
        return None if contract is None else self.data.tickers().get(contract.instrument.symbol)

    def last(self, name: str) -> Decimal | None:
        """The last price; of what trades no longer, the close of its last candle, if that is not long ago."""
        ticker = self.ticker(name)
        if ticker is not None:
            return Decimal(repr(ticker.last))
        try:
            candles = self._candles(name, self.now_ms() - _RECENT_MS, self.data.page_limit)
        except MarketDataError:
            return None
        return Decimal(repr(float(candles.close[-1]))) if len(candles) else None

    # ------------------------------------------------------------------- candles
    def liquidity(self, name: str) -> Liquidity:
        """What the last closed candles say; none, if they cannot be had."""
        now = self.now_ms()
        slot = now // self.step
        if name in self._liquidity and self._liquidity[name][0] == slot:
            return self._liquidity[name][1]
        try:
            since = now - (VOLATILITY_BARS + 1) * self.step
            candles = self._candles(name, since, VOLATILITY_BARS + 1)
        except MarketDataError:
            return Liquidity(volume=0.0, sigma=0.0)
        measured = measure_liquidity(candles, self.step)
        self._liquidity[name] = (slot, measured)
        return measured

    def _candles(self, name: str, since: int, limit: int) -> Candles:
        contract = self.contract(name)
        if contract is None:
            return Candles.empty()
        return self.data.candles(contract.instrument.symbol, self.timeframe, since, limit)

    def start_of_bar(self) -> int:
        return floor_ms(self.now_ms(), self.step)

    def bars(self, cursors: dict[str, int]) -> Iterator[Bar]:
        """Every bar that closed since each symbol's cursor, in the order of time (all symbols together)."""
        yield from heapq.merge(
            *(self._bars_of(name, since) for name, since in sorted(cursors.items())),
            key=lambda bar: (bar.closed_ms, bar.name),
        )

    def _bars_of(self, name: str, since: int) -> Iterable[Bar]:
        contract = self.contract(name)
        if contract is None or since + self.step > self.now_ms():
            return
        rates: list[FundingRate] = []
        if self.data.capabilities.funding:
            rates = self.data.funding(contract.instrument.symbol, since, self.data.page_limit)
        while since + self.step <= self.now_ms():
            candles = self._candles(name, since, self.data.page_limit)
            if not len(candles):
                return
            for row in range(len(candles)):
                opened = int(candles.open_time[row])
                closed = opened + self.step
                due = tuple(rate for rate in rates if rate.time_ms < closed)
                rates = rates[len(due) :]
                yield Bar(
                    name, opened, closed, float(candles.open[row]), float(candles.high[row]),
                    float(candles.low[row]), float(candles.close[row]), float(candles.volume[row]), due,
                )  # fmt: skip
            since = int(candles.open_time[-1]) + self.step


def _changed(name: str, instrument: Instrument, change: dict[str, Any]) -> Contract:
    steps: dict[str, Any] = {
        field: Decimal(str(change[key]))
        for key, field in (
            ("tickSize", "tick_size"),
            ("qtyStep", "lot_size"),
            ("minOrderQty", "min_quantity"),
            ("minNotionalValue", "min_notional"),
            ("maxLeverage", "max_leverage"),
        )
        if key in change
    }
    status = str(change.get("status", "Trading" if instrument.active else "Closed"))
    most = Decimal(str(change.get("maxOrderQty", "1e12")))
    return Contract(name, replace(instrument, **steps) if steps else instrument, status, most)

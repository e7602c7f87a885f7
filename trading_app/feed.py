"""Features of a panel that keep up with the market: replayed once from where its training began, then stepped (I13).

A bar is stepped once, with what had arrived by then; a missing candle is NaN. A candle that comes later, or comes
again with another price, never changes a decision (F23): it marks the state as stale, and the next bar starts from a
new replay, so that live features and those of training become equal again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from exchanges.errors import ExchangeError, MarketDataError
from exchanges.port import MarketData
from marketdata.store import CandleStore
from quant.candles import CandleError, Candles
from quant.features import FeatureState, replay, step
from quant.panel import Panel
from quant.schema import FeatureSchema
from quant.timeframes import HOUR_MS, from_ms, timeframe_ms

log = structlog.get_logger(__name__)

REPLAY_ROWS = 256
"""Bars replayed at a time: their features are thrown away, so memory does not grow with the history."""
RECENT_BARS = 3
"""Bars before the newest that are fetched again with it, to notice candles that came late."""
STORE_OVERLAP_BARS = 48
DEFAULT_FUNDING_MS = 8 * HOUR_MS


@dataclass(frozen=True, slots=True)
class BarRow:
    """One stepped bar. ``features`` float32[S, F] and ``close`` float64[S] in the order of ``symbols``."""

    open_time_ms: int
    symbols: tuple[str, ...]
    features: NDArray[np.float32]
    close: NDArray[np.float64]


@dataclass(slots=True)
class _Funding:
    """When a symbol's funding was last paid and how often it is."""

    last_ms: int
    interval_ms: int = DEFAULT_FUNDING_MS


@dataclass(slots=True)
class FeatureFeed:
    """Steps the panel bar by bar. `stale` says why the state must be replayed before the next bar, if it must.

    `since_ms` maps each symbol of the panel, in order, to the open time of the first bar that its model's training
    read: what is stored of before is not replayed, for the state remembers everything.
    """

    data: MarketData
    store: CandleStore
    market: str
    timeframe: str
    schema: FeatureSchema
    since_ms: Mapping[str, int]
    panel_symbols: tuple[str, ...] = field(init=False)
    state: FeatureState = field(init=False)
    stale: str = field(init=False, default="NOT_REPLAYED")
    replays: int = field(init=False, default=0)
    _row: BarRow | None = field(init=False, default=None)
    _recent: deque[tuple[int, NDArray[np.float64]]] = field(init=False)
    _noticed: set[tuple[int, str]] = field(init=False, default_factory=set)
    _funding: dict[str, _Funding] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.panel_symbols = tuple(self.since_ms)
        self.state = FeatureState.create(self.schema, len(self.panel_symbols), step_ms=self.step_ms)
        self._recent = deque(maxlen=RECENT_BARS)

    @property
    def step_ms(self) -> int:
        return timeframe_ms(self.timeframe)

    @property
    def last_open_ms(self) -> int | None:
        return self.state.last_open_ms

    # --- what has arrived

    def fetch(self, open_ms: int) -> dict[str, Candles]:
        """Return the candles of the bars that were not stepped yet, up to `open_ms`, and of a few before them.

        Raises ExchangeError when the market data as a whole cannot be had.
        """
        since = open_ms - RECENT_BARS * self.step_ms
        if self.last_open_ms is not None:
            since = min(since, self.last_open_ms + self.step_ms)
        return self._pages(self.panel_symbols, since, open_ms)

    def waiting_for(self, open_ms: int, arrived: Mapping[str, Candles]) -> tuple[str, ...]:
        """Return the symbols that had the candle before this one, so that they may be expected to have this one too."""
        if not self._recent:
            return ()
        _, close = self._recent[-1]
        return tuple(
            symbol
            for symbol, before in zip(self.panel_symbols, close.tolist(), strict=True)
            if before == before and not _has(arrived.get(symbol), open_ms)  # NaN is not equal to itself
        )

    # --- stepping

    def advance(self, open_ms: int, arrived: Mapping[str, Candles]) -> BarRow:
        """Step every bar up to `open_ms` with what arrived, return the last one. A stale state is replayed first."""
        if self._row is not None and self._row.open_time_ms == open_ms == self.last_open_ms:
            return self._row  # the pass that stepped it was cut off before it could write its decisions
        self._notice_late(arrived)
        if self.stale:
            self.rebuild(open_ms - self.step_ms)
        first = open_ms if self.last_open_ms is None else self.last_open_ms + self.step_ms
        panel = self._lay(arrived, first, open_ms)
        features = np.empty((len(self.panel_symbols), len(self.schema)), dtype=np.float32)
        for index in range(panel.n_times):
            row = panel.row(index)
            features = step(self.state, **row._asdict())
            self._recent.append((row.open_time_ms, row.close.copy()))
        self._row = BarRow(open_ms, self.panel_symbols, features, panel.close[-1].copy())
        return self._row

    def rebuild(self, until_open_ms: int) -> None:
        """Replay from `since_ms` to the bar `until_open_ms`, with what the store lacks from the exchange.

        Raises ExchangeError or StoreError; the state is then as it was.
        """
        why, step_ms = self.stale, self.step_ms
        oldest_ms = min(self.since_ms.values())
        stored = self.store.read(self.market, self.timeframe, symbols=self.panel_symbols, since_ms=oldest_ms)
        funding = self.store.read_funding(self.market, symbols=self.panel_symbols, since_ms=oldest_ms)
        fetched = self._missing(stored, until_open_ms)
        # The stored candle wins: it is what training saw and will see.
        candles = {
            symbol: Candles.concat([part for part in (fetched.get(symbol), stored.get(symbol)) if part is not None])
            for symbol in stored.keys() | fetched.keys()
        }
        # What the store holds beyond this bar is not stepped yet, so the live steps must ask for it again.
        end_ms = until_open_ms + step_ms
        candles = {symbol: each.between(self.since_ms[symbol], end_ms) for symbol, each in candles.items()}
        funding = {
            symbol: (times[kept], rates[kept])
            for symbol, (times, rates) in funding.items()
            for kept in [(times >= self.since_ms[symbol]) & (times < end_ms)]
        }
        self._funding = {
            symbol: _Funding(int(times[-1]), _interval(times)) for symbol, (times, _) in funding.items() if len(times)
        }
        complete = self._extend_funding(funding, end_ms)
        panel = Panel.from_candles(candles, step_ms, funding=funding, symbols=self.panel_symbols)
        state = FeatureState.create(self.schema, len(self.panel_symbols), step_ms=step_ms)
        out = np.empty((REPLAY_ROWS, len(self.panel_symbols), len(self.schema)), dtype=np.float32)
        for start in range(0, panel.n_times, REPLAY_ROWS):
            rows = panel.rows(start, min(start + REPLAY_ROWS, panel.n_times))
            replay(state, rows, out=out[: rows.n_times])
        self._recent.clear()
        for index in range(max(panel.n_times - RECENT_BARS, 0), panel.n_times):
            self._recent.append((int(panel.open_time[index]), panel.close[index].copy()))
        self.state = state
        if state.last_open_ms is not None:
            self._step_empty(until_open_ms)
        self.stale = "" if complete else "FUNDING_MISSING"
        self.replays += 1
        log.info("features_replayed", why=why, bars=panel.n_times, symbols=len(self.panel_symbols))

    def _step_empty(self, until_open_ms: int) -> None:
        """Step bars for which nobody has a candle: they are bars all the same."""
        nothing = np.full(len(self.panel_symbols), np.nan)
        zero = np.zeros(len(self.panel_symbols))
        while self.state.last_open_ms is not None and self.state.last_open_ms < until_open_ms:
            at = self.state.last_open_ms + self.step_ms
            step(
                self.state, open_time_ms=at, open=nothing, high=nothing, low=nothing, close=nothing, volume=nothing,
                funding=zero,
            )  # fmt: skip
            self._recent.append((at, nothing))

    def _notice_late(self, arrived: Mapping[str, Candles]) -> None:
        oldest = self._recent[0][0] if self._recent else 0
        self._noticed = {known for known in self._noticed if known[0] >= oldest}
        for open_ms, close in self._recent:
            for symbol, stepped in zip(self.panel_symbols, close.tolist(), strict=True):
                candles = arrived.get(symbol)
                if candles is None:
                    continue
                row = int(np.searchsorted(candles.open_time, open_ms))
                if row == len(candles) or candles.open_time[row] != open_ms or (open_ms, symbol) in self._noticed:
                    continue
                if candles.close[row] != stepped:
                    self._noticed.add((open_ms, symbol))  # one replay for it, also if the store keeps the old price
                    kind = "LATE_CANDLE" if stepped != stepped else "REVISED_CANDLE"
                    self.stale = f"{kind}: symbol={symbol}, open={from_ms(open_ms):%Y-%m-%dT%H:%MZ}"
                    log.warning("candle_came_late", symbol=symbol, open_ms=open_ms, kind=kind)
                    return

    def _lay(self, arrived: Mapping[str, Candles], first_ms: int, last_ms: int) -> Panel:
        """Lay the candles on the grid first..last, whatever is missing at its ends."""
        step_ms, symbols = self.step_ms, self.panel_symbols
        times = np.arange(first_ms, last_ms + step_ms, step_ms, dtype=np.int64)
        shape = (len(times), len(symbols))
        columns = {name: np.full(shape, np.nan) for name in ("open", "high", "low", "close", "volume")}
        for index, symbol in enumerate(symbols):
            candles = arrived.get(symbol)
            if candles is None:
                continue
            part = candles.between(first_ms, last_ms + step_ms)
            rows = (part.open_time - first_ms) // step_ms
            for name, column in columns.items():
                column[rows, index] = getattr(part, name)
        return Panel(symbols=symbols, step_ms=step_ms, open_time=times, funding=self._live_funding(times), **columns)

    # --- funding

    def _live_funding(self, times: NDArray[np.int64]) -> NDArray[np.float64]:
        funding = np.zeros((len(times), len(self.panel_symbols)))
        end = int(times[-1]) + self.step_ms
        series: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        if not self._extend_funding(series, end):
            self.stale = "FUNDING_MISSING"
        for index, symbol in enumerate(self.panel_symbols):
            if symbol in series:
                paid, rates = series[symbol]
                rows = (paid - int(times[0])) // self.step_ms
                usable = (rows >= 0) & (rows < len(times)) & np.isfinite(rates)
                np.add.at(funding[:, index], rows[usable], rates[usable])
        return funding

    def _extend_funding(self, series: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]], end_ms: int) -> bool:
        """Add the payments that became due before `end_ms`; returns whether every symbol that owes some answered."""
        complete = True
        if not self.data.capabilities.funding:
            return complete
        for symbol in self.panel_symbols:
            known = self._funding.setdefault(
                symbol, _Funding(end_ms - end_ms % DEFAULT_FUNDING_MS - DEFAULT_FUNDING_MS)
            )
            if known.last_ms + known.interval_ms >= end_ms:
                continue
            limit = (end_ms - known.last_ms) // HOUR_MS + 1
            try:
                paid = [rate for rate in self.data.funding(symbol, known.last_ms + 1, limit) if rate.time_ms < end_ms]
            except MarketDataError as error:
                log.warning("funding_missing", symbol=symbol, error=str(error))
                complete = False
                continue
            if not paid:
                continue
            times, rates = series.get(symbol, (np.empty(0, dtype=np.int64), np.empty(0)))
            series[symbol] = (
                np.append(times, [rate.time_ms for rate in paid]).astype(np.int64),
                np.append(rates, [rate.rate for rate in paid]),
            )
            self._funding[symbol] = _Funding(paid[-1].time_ms, known.interval_ms)
        return complete

    # --- paging

    def _missing(self, stored: Mapping[str, Candles], until_ms: int) -> dict[str, Candles]:
        """Fetch what the store lacks at its end: in bulk, and one by one for the few that are far behind."""
        newest = {symbol: int(candles.open_time[-1]) for symbol, candles in stored.items() if len(candles)}
        since = max(newest.values(), default=until_ms) - STORE_OVERLAP_BARS * self.step_ms
        near = tuple(symbol for symbol in self.panel_symbols if newest.get(symbol, since) >= since)
        found = self._pages(near, since, until_ms)
        active = {each.symbol for each in self.data.instruments() if each.active}
        for symbol in sorted(newest.keys() - set(near)):
            if symbol not in active:
                continue
            try:
                found.update(self._pages((symbol,), newest[symbol] + self.step_ms, until_ms))
            except MarketDataError as error:
                log.warning("candles_missing", symbol=symbol, error=str(error))
        return found

    def _pages(self, symbols: tuple[str, ...], since_ms: int, until_ms: int) -> dict[str, Candles]:
        parts: dict[str, list[Candles]] = {}
        limit = self.data.page_limit
        while since_ms <= until_ms and symbols:
            wanted = min(limit, (until_ms - since_ms) // self.step_ms + 1)
            for symbol, candles in self.data.candles_many(symbols, self.timeframe, since_ms, wanted).items():
                try:
                    candles.validate(self.step_ms)  # as before they are stored: what is not learnt is not traded
                except CandleError as error:
                    log.warning("candles_broken", symbol=symbol, error=str(error))
                    continue
                parts.setdefault(symbol, []).append(candles.between(since_ms, until_ms + self.step_ms))
            since_ms += wanted * self.step_ms
        return {symbol: Candles.concat(pieces) for symbol, pieces in parts.items()}


def _has(candles: Candles | None, open_ms: int) -> bool:
    if candles is None or not len(candles):
        return False
    row = int(np.searchsorted(candles.open_time, open_ms))
    return row < len(candles) and int(candles.open_time[row]) == open_ms


def _interval(times: NDArray[np.int64]) -> int:
    return int(times[-1] - times[-2]) if len(times) > 1 else DEFAULT_FUNDING_MS


def closes_of(data: MarketData, symbols: tuple[str, ...], timeframe: str, open_ms: int) -> dict[str, float]:
    """Return the closes of a bar for symbols outside the panel (a position that the model no longer covers)."""
    try:
        found = data.candles_many(symbols, timeframe, open_ms, 1) if symbols else {}
    except ExchangeError as error:
        log.warning("closes_missing", error=str(error))
        return {}
    return {symbol: float(candles.close[0]) for symbol, candles in found.items() if _has(candles, open_ms)}

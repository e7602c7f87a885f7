"""Paging: forward, verified, resumable, and never for ever."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from exchanges.errors import ExchangeUnavailableError
from exchanges.port import FundingRate
from exchanges.simulated import SimulatedMarket
from marketdata.paging import fetch_funding, fetch_missing
from quant.candles import CandleError, Candles
from quant.timeframes import DAY_MS, HOUR_MS

NOW = 1_767_225_600_000 + 7 * HOUR_MS + 60_000
SINCE = NOW // HOUR_MS * HOUR_MS - 30 * DAY_MS
Spoil = Callable[[Candles], Candles]


class Paged(SimulatedMarket):
    """The simulated exchange with small pages, counted, and spoiled on demand."""

    def __init__(self, page: int = 100) -> None:
        super().__init__(seed=7, symbols=2, now_ms=lambda: NOW)
        self.page_limit = page
        self.calls: list[int] = []
        self.spoil: Spoil = lambda candles: candles

    def candles(self, symbol: str, timeframe: str, since_ms: int, limit: int) -> Candles:
        self.calls.append(since_ms)
        return self.spoil(super().candles(symbol, timeframe, since_ms, limit))


def symbol_of(data: SimulatedMarket) -> str:
    return data.instruments()[0].symbol


def test_pages_join_to_the_whole_history() -> None:
    data = Paged()
    pages = list(fetch_missing(data, symbol_of(data), "1h", SINCE))
    assert [len(page) for page in pages] == [100] * 7 + [20]
    times = np.concatenate([page.open_time for page in pages])
    assert np.array_equal(times, SINCE + np.arange(720) * HOUR_MS)


def test_an_end_is_respected() -> None:
    data = Paged()
    pages = list(fetch_missing(data, symbol_of(data), "1h", SINCE, SINCE + 130 * HOUR_MS))
    assert sum(len(page) for page in pages) == 130
    assert len(data.calls) == 2


def test_whoever_stops_goes_on_from_the_last_candle() -> None:
    data = Paged()
    first = next(fetch_missing(data, symbol_of(data), "1h", SINCE))
    rest = list(fetch_missing(data, symbol_of(data), "1h", int(first.open_time[-1]) + HOUR_MS))
    assert Candles.concat([first, *rest]).open_time.tolist() == list(range(SINCE, SINCE + 720 * HOUR_MS, HOUR_MS))


def test_gaps_do_not_end_the_paging() -> None:
    data = Paged(page=20)
    pages = list(fetch_missing(data, "GAPPY/USDT:USDT", "1h", SINCE - 300 * DAY_MS))
    times = np.concatenate([page.open_time for page in pages])
    assert int(np.diff(times).max()) > 24 * HOUR_MS
    assert NOW - times[-1] < 4 * DAY_MS
    assert all(len(page) == 20 for page in pages[:-1])


def test_nothing_new_costs_one_request_and_the_future_none() -> None:
    data = Paged()
    assert list(fetch_missing(data, symbol_of(data), "1h", NOW // HOUR_MS * HOUR_MS)) == []
    assert len(data.calls) == 1
    assert list(fetch_missing(data, symbol_of(data), "1h", NOW + 1)) == []
    assert len(data.calls) == 1


def set_high(candles: Candles, row: int, value: float) -> Candles:
    high = candles.high.copy()
    high[row] = value
    return Candles(candles.open_time, candles.open, high, candles.low, candles.close, candles.volume)


def shift(candles: Candles, by: int) -> Candles:
    prices = (candles.open, candles.high, candles.low, candles.close, candles.volume)
    return Candles(candles.open_time + by, *prices)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda c: set_high(c, 5, 1e-9), "candle 5 .*high is 1e-09"),
        (lambda c: set_high(c, 2, float("nan")), "candle 2 .*must be a finite number"),
        (lambda c: shift(c, 1), "candle 0 .*multiple of the step"),
        (lambda c: c.take(slice(None, None, -1)), "candle 1 .*sort and drop duplicates"),
        (lambda c: shift(c, -DAY_MS), "the exchange ignored 'since'"),
        (lambda c: shift(c, 40 * DAY_MS), "a running candle must be dropped"),
    ],
)
def test_a_page_that_breaks_a_rule_is_named_and_not_handed_on(spoil: Spoil, message: str) -> None:
    data = Paged()
    pages = fetch_missing(data, symbol_of(data), "1h", SINCE)
    next(pages)
    data.spoil = spoil
    with pytest.raises(CandleError, match=f"{symbol_of(data)}: .*{message}"):
        next(pages)


def test_an_exchange_that_repeats_one_page_ends_in_an_error_not_in_a_loop() -> None:
    data = Paged()
    first = next(fetch_missing(data, symbol_of(data), "1h", SINCE))
    data.spoil = lambda _: first
    with pytest.raises(CandleError, match="ignored 'since'"):
        list(fetch_missing(data, symbol_of(data), "1h", SINCE))
    assert len(data.calls) == 3


def test_an_outage_in_the_middle_loses_no_page_that_was_read() -> None:
    data = Paged()
    pages = fetch_missing(data, symbol_of(data), "1h", SINCE)
    kept = [next(pages)]

    def down(_: Candles) -> Candles:
        raise ExchangeUnavailableError("bybit does not answer")

    data.spoil = down
    with pytest.raises(ExchangeUnavailableError):
        kept += list(pages)
    data.spoil = lambda candles: candles
    kept += list(fetch_missing(data, symbol_of(data), "1h", int(kept[-1].open_time[-1]) + HOUR_MS))
    assert sum(len(page) for page in kept) == 720


def test_funding_is_paged_to_the_end() -> None:
    data = Paged(page=7)
    times, rates = fetch_funding(data, symbol_of(data), SINCE)
    whole = SimulatedMarket(seed=7, symbols=2, now_ms=lambda: NOW).funding(symbol_of(data), SINCE, 1_000)
    assert [FundingRate(int(time), float(rate)) for time, rate in zip(times, rates, strict=True)] == whole
    assert len(whole) == 90

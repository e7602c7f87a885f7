"""The contract of `MarketData`, run over every implementation."""

from __future__ import annotations

import pytest

from exchanges.errors import ConfigurationError, UnknownSymbolError
from exchanges.port import MarketData
from quant.timeframes import DAY_MS, HOUR_MS
from tests.exchanges.conftest import Subject


def test_it_implements_the_port(subject: Subject) -> None:
    assert isinstance(subject.data, MarketData)
    assert subject.data.page_limit == subject.data.capabilities.page_limit > 0
    assert "1h" in subject.data.capabilities.timeframes


def test_its_clock_is_the_one_it_was_given(subject: Subject) -> None:
    assert abs(subject.data.now_ms() - subject.clock.now) < 1_000


def test_instruments_are_sorted_and_have_usable_rules(subject: Subject) -> None:
    instruments = subject.data.instruments()
    assert [each.symbol for each in instruments] == sorted({each.symbol for each in instruments})
    for each in instruments:
        assert each.symbol == f"{each.base}/{each.quote}:{each.settle}"
        assert each.tick_size > 0
        assert each.lot_size > 0
        assert each.min_quantity % each.lot_size == 0
        assert each.max_leverage >= 1
        assert each.listed_ms is None or each.listed_ms <= subject.clock.now


def test_tickers_belong_to_active_instruments_and_are_in_order(subject: Subject) -> None:
    tickers = subject.data.tickers()
    active = {each.symbol for each in subject.data.instruments() if each.active}
    assert subject.symbol in tickers
    assert set(tickers) <= active
    for symbol, ticker in tickers.items():
        assert ticker.symbol == symbol
        assert 0 < ticker.bid <= ticker.last <= ticker.ask
        assert ticker.quote_volume_24h > 0
        assert ticker.time_ms <= subject.clock.now


def test_candles_are_closed_sound_and_on_the_grid(subject: Subject) -> None:
    since = subject.clock.now - 3 * DAY_MS
    candles = subject.data.candles(subject.symbol, "1h", since, 1_000)
    candles.validate(HOUR_MS)
    assert candles.open_time[0] >= since
    assert candles.open_time[-1] == subject.clock.now // HOUR_MS * HOUR_MS - HOUR_MS
    assert len(candles) == 3 * 24 - 1 + (since % HOUR_MS == 0)


def test_a_candle_appears_when_it_closes_and_not_before(subject: Subject) -> None:
    boundary = subject.clock.now // HOUR_MS * HOUR_MS + HOUR_MS
    since = boundary - HOUR_MS
    subject.clock.now = boundary - 1
    assert len(subject.data.candles(subject.symbol, "1h", since, 10)) == 0
    subject.clock.now = boundary
    assert subject.data.candles(subject.symbol, "1h", since, 10).open_time.tolist() == [since]


def test_candles_before_the_clock_do_not_change_later(subject: Subject) -> None:
    since = subject.clock.now - 30 * HOUR_MS
    before = subject.data.candles(subject.symbol, "1h", since, 20)
    subject.clock.now += 9 * HOUR_MS
    after = subject.data.candles(subject.symbol, "1h", since, 20)
    for name in ("open_time", "open", "high", "low", "close", "volume"):
        assert (getattr(before, name) == getattr(after, name)).all(), name


def test_the_limit_cuts_at_the_end_and_a_page_is_never_longer(subject: Subject) -> None:
    since = (subject.clock.now - 10 * DAY_MS) // HOUR_MS * HOUR_MS
    page = subject.data.candles(subject.symbol, "1h", since, 7)
    assert page.open_time.tolist() == [since + i * HOUR_MS for i in range(7)]
    assert len(subject.data.candles(subject.symbol, "1h", since, 10**9)) <= subject.data.page_limit
    assert len(subject.data.candles(subject.symbol, "1h", since, 0)) == 0


def test_nothing_is_known_of_the_future(subject: Subject) -> None:
    future = subject.clock.now + DAY_MS
    assert len(subject.data.candles(subject.symbol, "1h", future, 10)) == 0
    assert subject.data.funding(subject.symbol, future, 10) == []


def test_many_symbols_at_once_give_what_each_gives_alone(subject: Subject) -> None:
    symbols = [each.symbol for each in subject.data.instruments()]
    since = subject.clock.now - 5 * HOUR_MS
    many = subject.data.candles_many([*symbols, "NOSUCH/USDT:USDT"], "1h", since, 3)
    for symbol in symbols:
        alone = subject.data.candles(symbol, "1h", since, 3)
        if not len(alone):
            assert symbol not in many
            continue
        for name in ("open_time", "open", "high", "low", "close", "volume"):
            assert (getattr(many[symbol], name) == getattr(alone, name)).all(), (symbol, name)
    assert "NOSUCH/USDT:USDT" not in many


def test_funding_is_ascending_due_and_paged(subject: Subject) -> None:
    since = subject.clock.now - 20 * DAY_MS
    rates = subject.data.funding(subject.symbol, since, 1_000)
    times = [rate.time_ms for rate in rates]
    assert times == sorted(set(times))
    assert since <= times[0]
    assert times[-1] <= subject.clock.now
    assert all(abs(rate.rate) < 0.01 for rate in rates)
    assert subject.data.funding(subject.symbol, since, 2) == rates[:2]


def test_an_unknown_symbol_is_named(subject: Subject) -> None:
    with pytest.raises(UnknownSymbolError, match="NOSUCH/USDT:USDT"):
        subject.data.candles("NOSUCH/USDT:USDT", "1h", subject.clock.now - DAY_MS, 5)


def test_a_wrong_timeframe_is_refused_with_the_choices(subject: Subject) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=r"7m.*1h"):
        subject.data.candles(subject.symbol, "7m", subject.clock.now - DAY_MS, 5)

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.candles import CandleError, Candles
from quant.panel import Panel

STEP = 3_600_000


def make(times: list[int], seed: int = 0) -> Candles:
    values = np.random.default_rng(seed).uniform(1, 2, (5, len(times)))
    return Candles(np.array(times, dtype=np.int64) * STEP, *values)


@given(st.dictionaries(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), st.sets(st.integers(3, 40)), max_size=26))
def test_every_candle_is_in_its_cell_and_everything_else_is_missing(hours: dict[str, set[int]]) -> None:
    candles = {symbol: make(sorted(times), seed) for seed, (symbol, times) in enumerate(hours.items())}
    panel = Panel.from_candles(candles, STEP)
    assert panel.symbols == tuple(sorted(hours))
    every = sorted({time for times in hours.values() for time in times})
    assert panel.n_times == (every[-1] - every[0] + 1 if every else 0)
    for column, symbol in enumerate(panel.symbols):
        for name in ("open", "high", "low", "close", "volume"):
            values = getattr(panel, name)[:, column]
            at = np.searchsorted(panel.open_time, candles[symbol].open_time)
            assert np.array_equal(values[at], getattr(candles[symbol], name))
            assert np.isnan(np.delete(values, at)).all()
    assert not panel.funding.any()


def test_funding_goes_to_the_bar_that_it_falls_into_and_adds_up() -> None:
    times = np.array([-STEP, 0, STEP + 5, STEP + 9, 3 * STEP, 99 * STEP])
    rates = np.array([9.0, 0.1, 0.2, 0.4, np.nan, 9.0])
    panel = Panel.from_candles({"A": make([0, 1, 2, 3])}, STEP, funding={"A": (times, rates)})
    assert panel.funding[:, 0].tolist() == pytest.approx([0.1, 0.6, 0.0, 0.0])


def test_symbols_select_and_order_the_columns_and_may_be_without_candles() -> None:
    panel = Panel.from_candles({"A": make([0]), "B": make([1])}, STEP, symbols=["C", "B"])
    assert panel.symbols == ("C", "B")
    assert panel.open_time.tolist() == [STEP]
    assert np.isnan(panel.close[:, 0]).all()
    assert Panel.from_candles({}, STEP).n_times == 0


def test_until_returns_only_bars_that_are_closed() -> None:
    panel = Panel.from_candles({"A": make([0, 1, 2])}, STEP)
    times = (0, STEP - 1, STEP, 3 * STEP - 1, 3 * STEP, 9 * STEP)
    assert [panel.until(time).n_times for time in times] == [0, 0, 1, 2, 3, 3]
    assert panel.row(1).open_time_ms == STEP
    assert panel.row(1).close.tolist() == panel.close[1].tolist()
    assert panel.rows(1, 3).open_time.tolist() == [STEP, 2 * STEP]


def test_select_keeps_the_grid() -> None:
    panel = Panel.from_candles({"A": make([0]), "B": make([3], 1)}, STEP)
    part = panel.select(["B"])
    assert part.n_times == 4
    assert np.array_equal(part.close[:, 0], panel.close[:, 1], equal_nan=True)


def test_the_hash_changes_with_any_value_and_with_nothing_else() -> None:
    panel = Panel.from_candles({"A": make([0, 1]), "B": make([1])}, STEP)
    again = Panel.from_candles({"B": make([1]), "A": make([0, 1])}, STEP)
    assert panel.content_hash() == again.content_hash()
    funding = panel.funding.copy()
    funding[0, 0] = 1e-300
    assert dataclasses.replace(panel, funding=funding).content_hash() != panel.content_hash()
    assert dataclasses.replace(panel, symbols=("A", "C")).content_hash() != panel.content_hash()


def test_candles_off_the_grid_and_panels_that_do_not_fit_are_refused() -> None:
    crooked = dataclasses.replace(make([0, 1]), open_time=np.array([0, STEP + 1]))
    with pytest.raises(CandleError, match=r"A: open_time 3600001 is not a multiple of the step"):
        Panel.from_candles({"A": crooked}, STEP)
    panel = Panel.from_candles({"A": make([0, 1])}, STEP)
    with pytest.raises(ValueError, match="no grid"):
        dataclasses.replace(panel, open_time=np.array([0, 1]))
    with pytest.raises(ValueError, match="close has shape"):
        dataclasses.replace(panel, close=panel.close[:1])
    with pytest.raises(ValueError, match="repeat"):
        dataclasses.replace(panel, symbols=("A", "A"))

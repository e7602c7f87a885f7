from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.engine import BarInput, EngineSpec, EntryIntent, ExitIntent, PortfolioState, decide, entry_rules
from quant.label_spec import LabelSpec
from quant.ledger import Entry, Trade, trades_hash
from quant.offers import ROW_REFUSALS, Offers, Signals
from quant.panel import Panel
from quant.reasons import code_of
from quant.risk import RiskLimits, check_slots
from quant.schema import FeatureSchema
from quant.simulation import Simulation
from quant.timeframes import HOUR_MS
from tests.quant.feature_worlds import mixed, random_panel

SCHEMA = FeatureSchema()
START = 1_700_006_400_000
FREE = LabelSpec(fee_bps=0.0, half_spread_bps=0.0, slippage_bps=0.0, maker_fee_bps=0.0)
seeds = st.integers(0, 10_000)


def flat(n_times: int = 60, n_symbols: int = 2, price: float = 100.0, volume: float = 1e6) -> Panel:
    grid = np.full((n_times, n_symbols), price)
    return Panel(
        symbols=tuple(f"S{i}/USDT:USDT" for i in range(n_symbols)),
        step_ms=HOUR_MS,
        open_time=START + HOUR_MS * np.arange(n_times, dtype=np.int64),
        open=grid.copy(),
        high=grid.copy(),
        low=grid.copy(),
        close=grid.copy(),
        volume=np.full((n_times, n_symbols), volume),
        funding=np.zeros((n_times, n_symbols)),
    )


def signals(*rows: tuple[int, int, int], atr_pct: float = 0.01, **changes: object) -> Signals:
    """Signals at (bar, column, side) with a probability well above the threshold."""
    features = np.zeros((len(rows), len(SCHEMA)), dtype=np.float32)
    features[:, SCHEMA.index("atr_pct")] = atr_pct
    features[:, SCHEMA.index("volatility_24")] = 0.01
    features[:, SCHEMA.index("volatility_ratio")] = 1.0
    features[:, SCHEMA.index("adx_14")] = 30.0
    columns: dict[str, object] = {
        "bar": np.array([row[0] for row in rows], dtype=np.int64),
        "column": np.array([row[1] for row in rows], dtype=np.int64),
        "side": np.array([row[2] for row in rows], dtype=np.int8),
        "threshold": np.full(len(rows), 0.5),
        "features": features,
        "row": np.arange(len(rows)),
        "ask": lambda asked: np.full(len(asked), 0.8),
    }
    return Signals(**(columns | changes))  # type: ignore[arg-type]  # columns of the right types, by name


def play(panel: Panel, given: Signals | None, *, label: LabelSpec = FREE, **limits: float) -> Simulation:
    spec = EngineSpec(bar_ms=HOUR_MS, label=label, limits=RiskLimits(**limits))  # type: ignore[arg-type]
    simulation = Simulation(panel=panel, spec=spec, schema=SCHEMA)
    simulation.run(0, panel.n_times, given)
    simulation.finish()
    return simulation


def random_signals(panel: Panel, seed: int, n: int = 60) -> Signals:
    rng = np.random.default_rng(seed)
    places = rng.choice((panel.n_times - 30) * panel.n_symbols, n, replace=False)
    rows = sorted((30 + int(place) // panel.n_symbols, int(place) % panel.n_symbols) for place in places)
    return signals(*((bar, column, int(rng.choice([-1, 1]))) for bar, column in rows), atr_pct=0.02)


# ----------------------------------------------------------------- one trade, by hand
def test_an_entry_fills_at_the_next_open_and_ends_at_the_time_barrier() -> None:
    panel = flat()
    panel.open[11, 0] = 101.0  # the price that the order of bar 10 meets
    simulation = play(panel, signals((10, 0, 1)))
    (trade,) = simulation.trades
    assert (trade.symbol, trade.side, trade.cause) == ("S0/USDT:USDT", 1, "TIME_BARRIER")
    assert trade.opened_ms == panel.open_time[11]
    assert trade.closed_ms == panel.open_time[11 + 24]  # decided at the close of bar 34, filled at the open of 35
    assert trade.entry_price == pytest.approx(101.0, rel=1e-3)
    assert trade.exit_price == pytest.approx(100.0, rel=1e-3)


def test_costs_are_fee_and_half_spread_on_both_sides() -> None:
    panel = flat()
    label = LabelSpec(fee_bps=5.0, half_spread_bps=2.0, slippage_bps=0.0)
    (trade,) = play(panel, signals((10, 0, -1)), label=label).trades
    assert trade.entry_price == pytest.approx(100 * (1 - 2e-4), rel=1e-12)  # volatility is 0: no impact
    assert trade.exit_price == pytest.approx(100 * (1 + 2e-4), rel=1e-12)
    assert trade.fees == pytest.approx(trade.quantity * (trade.entry_price + trade.exit_price) * 5e-4)
    assert trade.net == pytest.approx(trade.quantity * (trade.entry_price - trade.exit_price) - trade.fees)


def test_a_jump_over_the_stop_costs_what_it_costs() -> None:
    panel = flat()
    for name in ("open", "high", "low", "close"):
        getattr(panel, name)[15:, 0] = 90.0
    (trade,) = play(panel, signals((10, 0, 1))).trades
    assert trade.cause == "STOP"
    assert trade.exit_price == 90.0  # and not the stop at 98.5
    assert trade.closed_ms == panel.open_time[15]


@pytest.mark.parametrize("bars, again", [(0, 15), (1, 16), (4, 19)])
def test_a_symbol_is_entered_again_when_the_bars_after_its_stop_are_over(bars: int, again: int) -> None:
    panel = flat(n_symbols=3)
    panel.low[15, 0] = 98.0  # its stop, in this bar
    asked = signals(*((bar, column, 1) for bar in range(10, 30) for column in (0, 2) if (bar, column) != (10, 2)))
    simulation = play(panel, asked, cooldown_bars=bars)
    stopped, *later = (trade for trade in simulation.trades if trade.symbol == panel.symbols[0])
    assert (stopped.cause, stopped.closed_ms) == ("STOP", panel.open_time[15])
    assert later[0].opened_ms == panel.open_time[again + 1]
    assert simulation.refused.get("COOLDOWN", 0) == bars
    (other,) = (trade for trade in simulation.trades if trade.symbol == panel.symbols[2])
    assert other.opened_ms == panel.open_time[12]


def test_a_target_is_filled_at_its_price_in_the_bar_that_trades_through_it_and_pays_the_maker() -> None:
    panel = flat()
    panel.high[15, 0] = 103.0
    label = LabelSpec(fee_bps=5.0, half_spread_bps=0.0, maker_fee_bps=2.0)
    (trade,) = play(panel, signals((10, 0, 1)), label=label).trades
    assert (trade.cause, trade.closed_ms) == ("TARGET", panel.open_time[15])
    assert trade.exit_price == pytest.approx(102.0, rel=1e-6)  # the ATR is float32
    assert trade.fees == pytest.approx(trade.quantity * (trade.entry_price * 5e-4 + trade.exit_price * 2e-4))


@pytest.mark.parametrize("bar", [11, 12])
def test_the_first_bar_in_which_stop_and_target_can_fill_is_that_of_the_entry(bar: int) -> None:
    panel = flat()
    panel.high[11 : bar + 1, 0] = [103.0] if bar == 11 else [100.0, 103.0]
    (won,) = play(panel, signals((10, 0, 1))).trades
    assert (won.cause, won.closed_ms) == ("TARGET", panel.open_time[bar])
    panel.low[bar, 0] = 98.0  # reaches both: the stop was first
    (lost,) = play(panel, signals((10, 0, 1))).trades
    assert (lost.cause, lost.closed_ms) == ("STOP", panel.open_time[bar])
    assert lost.exit_price == pytest.approx(98.5, rel=1e-6)


def test_a_target_gets_its_share_of_the_bars_volume_and_the_close_beyond_it_takes_the_rest() -> None:
    panel = flat(volume=1e5)
    for name in ("high", "close"):
        getattr(panel, name)[15, 0] = 103.0
    for name in ("open", "high", "low", "close"):
        getattr(panel, name)[16:, 0] = 104.0
    panel.volume[15, 0] = 50.0  # a tenth of it is less than the position
    (trade,) = play(panel, signals((10, 0, 1))).trades
    assert trade.quantity > 5.0
    assert (trade.cause, trade.closed_ms) == ("TARGET", panel.open_time[16])
    expected = (5.0 * 102.0 + (trade.quantity - 5.0) * 104.0) / trade.quantity
    assert trade.exit_price == pytest.approx(expected, rel=1e-3)  # the rest's own impact


def test_funding_is_paid_from_the_second_bar_on_by_the_side_that_owes_it() -> None:
    panel = flat()
    panel.funding[[11, 20, 40], 0] = 0.001  # at the entry itself, while it is open, after its end
    long, short = (play(panel, signals((10, 0, side))).trades[0] for side in (1, -1))
    assert long.funding == pytest.approx(long.quantity * 100.0 * 0.001)
    assert short.funding == pytest.approx(-short.quantity * 100.0 * 0.001)


def test_an_entry_gets_its_share_of_the_volume_and_an_exit_goes_on() -> None:
    panel = flat(volume=30.0)  # a tenth of it can be taken: 3 units of 10 that are wanted
    simulation = play(panel, signals((10, 0, 1)), max_position_fraction=0.5, min_notional=10.0)
    (trade,) = simulation.trades
    assert trade.quantity == pytest.approx(3.0)
    panel.volume[34, 0] = 10.0  # the last hour before the exit: a tenth is 1 unit, the rest goes one bar later
    (slow,) = play(panel, signals((10, 0, 1)), max_position_fraction=0.5).trades
    assert slow.closed_ms == trade.closed_ms + HOUR_MS


def test_a_candle_that_is_missing_fills_nothing() -> None:
    panel = flat()
    for name in ("open", "high", "low", "close", "volume"):
        getattr(panel, name)[11, 0] = np.nan
    simulation = play(panel, signals((10, 0, 1)))
    assert simulation.trades == []
    assert simulation.refused == {"NO_FILL": 1}


def test_a_series_that_ends_is_settled_at_its_last_close() -> None:
    panel = flat(n_times=120)
    for name in ("open", "high", "low", "close", "volume"):
        getattr(panel, name)[20:, 0] = np.nan
    (trade,) = play(panel, signals((10, 0, 1))).trades
    assert trade.cause == "SETTLED"
    assert trade.exit_price == 100.0


@pytest.mark.parametrize("close", [False, True])
def test_the_kill_switch_closes_what_is_open_if_it_is_asked_to(close: bool) -> None:
    panel = flat(n_symbols=2)
    for name in ("open", "high", "low", "close"):
        getattr(panel, name)[15:, 0] = 50.0  # a jump over the stop of S0; S1 is untouched
    limits = RiskLimits(
        max_drawdown_fraction=0.02, max_position_fraction=0.5, max_exposure_fraction=2.0, max_correlated_fraction=2.0
    )
    spec = EngineSpec(bar_ms=HOUR_MS, label=FREE, limits=limits, close_on_kill=close)
    simulation = Simulation(panel=panel, spec=spec, schema=SCHEMA)
    simulation.run(0, panel.n_times, signals((10, 0, 1), (10, 1, 1)))
    lost, other = simulation.trades
    assert (lost.cause, lost.closed_ms) == ("STOP", panel.open_time[15])
    assert [bar for bar, _ in simulation.risk_events if "KILL_SWITCH" in _] == [15]
    expected = ("CLOSE_ALL", panel.open_time[16]) if close else ("TIME_BARRIER", panel.open_time[35])
    assert (other.cause, other.closed_ms) == expected


def test_a_drawdown_ends_entries_for_good_and_says_so() -> None:
    panel = flat(n_times=100)
    for name in ("open", "high", "low", "close"):
        getattr(panel, name)[15:, 0] = 50.0
    simulation = play(panel, signals((10, 0, 1), (40, 1, 1)), max_drawdown_fraction=0.02, daily_loss_fraction=0.02)
    assert [trade.symbol for trade in simulation.trades] == ["S0/USDT:USDT"]
    assert any("KILL_SWITCH" in text for _, text in simulation.risk_events)
    assert simulation.refused == {"KILL_SWITCH": 1}


def test_a_model_that_breaks_its_promise_is_held_back() -> None:
    panel = flat(n_times=2000, n_symbols=1)
    label = replace(FREE, fee_bps=5.0)  # every trade of a flat market loses its fees
    rows = [(bar, 0, 1) for bar in range(10, 1900, 30)]
    kept = play(panel, signals(*rows), label=label)
    guarded = play(panel, signals(*rows, promised_precision={0: 0.9}), label=label)
    assert len(kept.trades) == len(rows)
    assert len(guarded.trades) == 20


def test_a_trade_open_at_the_end_is_closed_at_the_last_close() -> None:
    panel = flat(n_times=20)
    simulation = play(panel, signals((10, 0, 1)))
    assert [trade.cause for trade in simulation.trades] == ["END_OF_TEST"]


# ------------------------------------------------------------------------- properties
@settings(max_examples=25)
@given(seeds)
def test_the_trades_add_up_to_what_the_account_became(seed: int) -> None:
    panel = random_panel(seed, 300, 3)
    label = LabelSpec(fee_bps=7.0, half_spread_bps=3.0)
    simulation = play(panel, random_signals(panel, seed), label=label, max_drawdown_fraction=0.99)
    assert simulation.ledger.cash == pytest.approx(10_000 + sum(trade.net for trade in simulation.trades))
    assert np.isfinite(simulation.equity).all()
    for trade in simulation.trades:
        assert trade.quantity > 0
        assert trade.closed_ms >= trade.opened_ms


@settings(max_examples=15)
@given(seeds, st.integers(60, 250))
def test_i14_no_simulated_trade_depends_on_a_later_candle(seed: int, at: int) -> None:
    panel = random_panel(seed, 300, 3)
    changed = mixed(panel, random_panel(seed + 1, 300, 3), at)
    given_signals = random_signals(panel, seed)
    before, after = (play(each, given_signals) for each in (panel, changed))
    assert np.array_equal(before.equity[: at + 1], after.equity[: at + 1])
    now = panel.open_time[at]
    assert [t for t in before.trades if t.closed_ms <= now] == [t for t in after.trades if t.closed_ms <= now]


@settings(max_examples=15)
@given(seeds, st.integers(1, 299))
def test_playing_in_two_parts_gives_the_same_trades(seed: int, cut: int) -> None:
    panel = random_panel(seed, 300, 3)
    given_signals = random_signals(panel, seed)
    whole = play(panel, given_signals)
    spec = EngineSpec(bar_ms=HOUR_MS, label=FREE, limits=RiskLimits())
    parts = Simulation(panel=panel, spec=spec, schema=SCHEMA)
    parts.run(0, cut, given_signals)
    parts.run(cut, 300, given_signals)
    parts.finish()
    assert np.array_equal(parts.equity, whole.equity)
    assert trades_hash(parts.trades) == trades_hash(whole.trades)


@settings(max_examples=40)
@given(seeds)
def test_the_engine_decides_the_same_about_some_symbols_as_about_all(seed: int) -> None:
    """The simulation asks only about held symbols and signals at their threshold; the bot asks about every symbol."""
    rng = np.random.default_rng(seed)
    n = 30
    some = random_signals(random_panel(seed, 60, n), seed, n=400)
    features = some.features[rng.integers(0, len(some), n)]
    bar = BarInput(
        open_time_ms=START,
        symbols=tuple(f"S{i}" for i in range(n)),
        close=rng.uniform(1, 100, n),
        atr_pct=np.full(n, 0.02),
        volatility=rng.uniform(0.001, 0.02, n),
        features=features,
        side=rng.integers(-1, 2, n).astype(np.int8),
        probability=rng.uniform(0.3, 0.9, n),
        threshold=np.full(n, 0.6),
        covered=np.ones(n, dtype=np.bool_),
    )
    rows = np.flatnonzero((bar.side != 0) & (bar.probability >= bar.threshold))
    part = BarInput(
        open_time_ms=START,
        symbols=tuple(bar.symbols[row] for row in rows),
        covered=bar.covered[rows],
        **{
            name: getattr(bar, name)[rows]
            for name in ("close", "atr_pct", "volatility", "features", "side", "probability", "threshold")
        },
    )
    portfolio = PortfolioState(equity=10_000.0, day_start_equity=10_000.0, peak_equity=10_000.0)
    spec = EngineSpec(bar_ms=HOUR_MS)
    whole, less = (
        [each.intent for each in decide(bar=each_bar, portfolio=portfolio, spec=spec, schema=SCHEMA) if each.intent]
        for each_bar in (bar, part)
    )
    assert whole == less


class AskingAboutAll(Simulation):
    """Takes no short cut: every bar is played, every model asked about every signal, and the engine about all."""

    def run(self, start: int, stop: int, signals: Signals | None) -> None:
        assert signals is not None
        probability = signals.ask(np.arange(len(signals)))
        for bar in range(start, stop):
            self._refuse("NO_FILL", self.ledger.fill(bar))
            worth, exposure = self.ledger.value(bar)
            self.equity[bar], self.exposure[bar] = worth, exposure
            self._watch(bar, worth)
            self._ask_about_all(bar, worth, signals, probability)

    def _ask_about_all(self, bar: int, worth: float, signals: Signals, probability: np.ndarray) -> None:
        rows = {int(signals.column[row]): int(row) for row in np.flatnonzero(signals.bar == bar)}
        held = [position.column for position in self.ledger.positions.values()]
        columns = [*held, *(column for column in rows if column not in held)]
        asked = [rows.get(column) for column in columns]
        blank = np.full(len(SCHEMA), np.nan, dtype=np.float32)
        features = np.array(
            [blank if row is None else signals.features[signals.row[row]] for row in asked], dtype=np.float32
        ).reshape(len(columns), len(SCHEMA))
        blocked = self._killed or ("DAILY_LOSS" if self._daily_loss else None)
        now = self.panel.open_time[bar]
        waiting = np.flatnonzero(self.ledger.cooling_ms > now)
        cooling = {self.panel.symbols[column]: "COOLDOWN" for column in waiting}
        inputs = BarInput(
            open_time_ms=int(self.panel.open_time[bar]),
            symbols=tuple(self.panel.symbols[column] for column in columns),
            close=self.panel.close[bar, np.array(columns, dtype=np.int64)],
            atr_pct=features[:, SCHEMA.index("atr_pct")].astype(np.float64),
            volatility=features[:, SCHEMA.index("volatility_24")].astype(np.float64),
            features=features,
            side=np.array([0 if row is None else signals.side[row] for row in asked], dtype=np.int8),
            covered=np.ones(len(columns), dtype=np.bool_),
            probability=np.array([np.nan if row is None else probability[row] for row in asked]),
            threshold=np.array([np.nan if row is None else signals.threshold[row] for row in asked]),
        )
        decisions = decide(
            bar=inputs,
            portfolio=PortfolioState(
                equity=worth,
                positions={symbol: each.state for symbol, each in self.ledger.positions.items()},
                exiting=frozenset(symbol for symbol, each in self.ledger.positions.items() if each.exit_cause),
                day_start_equity=self._day_start,
                peak_equity=self._peak,
                entries_blocked=blocked,
                cooling=cooling,
                guard=self._guard(signals),
            ),
            spec=self.spec,
            schema=SCHEMA,
        )
        account = blocked or check_slots(equity=worth, open_positions=len(held), limits=self.spec.limits)
        for place, (column, decision) in enumerate(zip(columns, decisions, strict=True)):
            if isinstance(decision.intent, ExitIntent):
                self.ledger.positions[decision.symbol].exit_cause = code_of(decision.intent.cause)
            elif isinstance(decision.intent, EntryIntent):
                assert account is None
                self.ledger.entries.append(
                    Entry(intent=decision.intent, column=column, probability=decision.probability, model=0)
                )
            elif column not in held:
                weak = "BELOW_THRESHOLD" if 0 <= decision.probability < inputs.threshold[place] else None
                against = cooling.get(decision.symbol) or against_the_row(inputs, place, self.spec)
                self._refuse(account or against or weak or decision.reason)


def against_the_row(bar: BarInput, place: int, spec: EngineSpec) -> str | None:
    """What the engine's own rules have against an entry whose probability could not be better."""
    one = slice(place, place + 1)
    rules = entry_rules(
        side=bar.side[one], atr_pct=bar.atr_pct[one], probability=np.ones(1), threshold=np.zeros(1),
        features=bar.features[one], spec=spec, schema=SCHEMA,
    )  # fmt: skip
    return rules(0)


def troubled_signals(panel: Panel, seed: int) -> Signals:
    """Signals of every kind: too weak, in a bad regime, too wild, without a feature or a probability, some alike."""
    rng = np.random.default_rng(seed)
    some = random_signals(panel, seed, n=panel.n_symbols * 70)
    spoilt = some.features[rng.permutation(len(some))]  # as the features of a chunk are: not in the signals' order
    some = replace(some, features=spoilt, row=rng.permutation(len(some)))
    for name, share, value in (
        ("adx_14", 0.1, 1.0), ("rsi_14", 0.05, np.inf), ("atr_pct", 0.05, np.nan), ("atr_pct", 0.03, 0.7)
    ):  # fmt: skip
        some.features[rng.random(len(some)) < share, SCHEMA.index(name)] = value
    probability = rng.uniform(0.45, 0.9, len(some)).round(int(rng.integers(1, 4)))  # rounded: names decide
    probability[rng.random(len(some)) < 0.05] = np.nan
    return replace(some, ask=probability.__getitem__, promised_precision={0: 0.6})


@settings(max_examples=60)
@given(
    seeds, st.sampled_from([0.004, 0.05, 0.9]), st.sampled_from([0.002, 0.01, 0.9]), st.integers(1, 8),
    st.sampled_from([0.05, 0.3, 2.0]), st.sampled_from([0, 1, 7]),
)  # fmt: skip
def test_what_neither_a_model_nor_the_engine_is_asked_would_have_changed_nothing(
    seed: int, drawdown: float, daily_loss: float, most: int, exposure: float, cooldown: int
) -> None:
    panel = random_panel(seed, 200, 12, missing=0.01)
    given_signals = troubled_signals(panel, seed)
    limits = RiskLimits(
        max_drawdown_fraction=drawdown, daily_loss_fraction=daily_loss, max_open_positions=most,
        max_exposure_fraction=exposure, max_correlated_fraction=exposure, cooldown_bars=cooldown,
    )  # fmt: skip
    spec = EngineSpec(bar_ms=HOUR_MS, limits=limits, allow_short=bool(seed % 2), close_on_kill=bool(seed % 3))
    played = []
    for kind in (Simulation, AskingAboutAll):
        simulation = kind(panel=panel, spec=spec, schema=SCHEMA)
        simulation.run(0, panel.n_times, given_signals)
        simulation.finish()
        played.append(simulation)
    quick, whole = played
    assert trades_hash(quick.trades) == trades_hash(whole.trades)
    assert quick.equity.tobytes() == whole.equity.tobytes()
    assert quick.refused == whole.refused
    assert quick.risk_events == whole.risk_events
    assert quick.tracks == whole.tracks


@settings(max_examples=25)
@given(seeds, st.integers(1, 3))
def test_every_signal_in_a_symbol_that_is_not_held_is_counted_once(seed: int, most: int) -> None:
    panel = random_panel(seed, 200, 6)
    given_signals = troubled_signals(panel, seed)
    simulation = Simulation(
        panel=panel, spec=EngineSpec(bar_ms=HOUR_MS, limits=RiskLimits(max_open_positions=most)), schema=SCHEMA
    )
    not_held = 0
    for bar in range(panel.n_times):
        rows = given_signals.bar == bar
        signals_of_bar = int(np.count_nonzero(rows))
        simulation.run(bar, bar + 1, given_signals)
        not_held += signals_of_bar - int(simulation.ledger.held[given_signals.column[rows]].sum())
    sent = len(simulation.trades) + len(simulation.ledger.positions) + len(simulation.ledger.entries)
    lost = simulation.refused.get("NO_FILL", 0)
    assert not_held == sum(simulation.refused.values()) - lost + sent + lost


def test_a_model_is_asked_only_where_an_entry_can_come_of_it() -> None:
    panel, asked = flat(n_times=200, n_symbols=3), list[int]()

    def ask(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.full(len(rows), 0.8)

    rows = [(bar, column, 1) for bar in range(10, 190) for column in range(3)]
    simulation = play(panel, signals(*rows, ask=ask), max_open_positions=1)
    assert simulation.refused["MAX_OPEN_POSITIONS"] > 300
    assert len(simulation.trades) == 8
    assert len(asked) == len(set(asked)), "no signal is asked about twice"
    assert len(asked) <= 8 * (64 + 3), "a question for each entry, and 64 signals in it"
    asked.clear()
    for name in ("open", "high", "low", "close"):
        getattr(panel, name)[15:, 0] = 50.0
    killed = play(panel, signals(*rows, ask=ask), max_drawdown_fraction=0.02, max_open_positions=1)
    assert killed.refused["KILL_SWITCH"] > 500
    assert len(asked) <= 64 + 3, "nothing is asked when the kill switch is pulled"


@settings(max_examples=40)
@given(seeds, st.booleans())
def test_the_rules_for_many_signals_are_the_engines_for_one(seed: int, allow_short: bool) -> None:
    rng = np.random.default_rng(seed)
    some = random_signals(random_panel(seed, 60, 20), seed, n=200)
    spec = EngineSpec(bar_ms=HOUR_MS, allow_short=allow_short)
    edges = {
        "atr_pct": [0.02, 0.5, 1.0 / 2.0, 0.7, np.nan],
        "volatility_ratio": [0.25, 4.0, 1.0, 0.1, 9.0, np.nan],
        "adx_14": [10.0, 30.0, 9.99, np.nan],
    }
    for name, values in edges.items():
        some.features[:, SCHEMA.index(name)] = rng.choice(values, len(some))
    refuse = entry_rules(
        side=some.side, atr_pct=some.features[:, SCHEMA.index("atr_pct")].astype(np.float64),
        probability=np.ones(len(some)), threshold=np.zeros(len(some)), features=some.features, spec=spec, schema=SCHEMA,
    )  # fmt: skip
    found = Offers(signals=some, spec=spec, schema=SCHEMA).refusal.tolist()
    assert ["", *ROW_REFUSALS] == ["", "SHORT_NOT_ALLOWED", "ATR_TOO_LARGE", "REGIME"]
    assert [["", *ROW_REFUSALS][number] for number in found] == [code_of(refuse(row) or "") for row in range(len(some))]


# ---------------------------------------------------------------------------- the rest
def test_the_hash_of_trades_sees_every_bit() -> None:
    (trade,) = play(flat(), signals((10, 0, 1))).trades
    nudged = replace(trade, exit_price=float(np.nextafter(trade.exit_price, np.inf)))
    assert isinstance(trade, Trade)
    assert trades_hash([trade]) == trades_hash([replace(trade)])
    assert trades_hash([trade]) != trades_hash([nudged])


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="goes backwards"):
        signals((10, 0, 1), (9, 0, 1))
    with pytest.raises(ValueError, match="column goes backwards or repeats"):
        signals((10, 0, 1), (10, 0, -1))
    with pytest.raises(ValueError, match="side has 1 rows"):
        signals((10, 0, 1), (11, 0, 1), side=np.array([1], dtype=np.int8))
    spec = EngineSpec(bar_ms=HOUR_MS)
    with pytest.raises(ValueError, match="initial_equity is 0"):
        Simulation(panel=flat(), spec=spec, schema=SCHEMA, initial_equity=0)
    with pytest.raises(ValueError, match="bars are"):
        Simulation(panel=flat(), spec=replace(spec, bar_ms=60_000), schema=SCHEMA)

"""One trade three times: as its label, in the simulation, and by the bot with its orders at a venue.

A property over random candles, many symbols at once: side, exit bar, exit price and result agree. The label pays fixed
slippage where the others pay the impact of their size, so results agree to a few basis points, not to the bit.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchanges.matching import MatchingVenue
from exchanges.replay import ReplayMarket
from marketdata.store import CandleStore
from ops_app import clock
from ops_app.clock import SimulatedClock
from quant.candles import Candles
from quant.engine import EngineSpec, EntryIntent
from quant.labels import STOP, TARGET, TIME, Labels, LabelSpec, triple_barrier
from quant.ledger import Trade
from quant.panel import Panel
from quant.risk import RiskLimits
from quant.simulation import Simulation
from quant.timeframes import HOUR_MS, MINUTE_MS, to_ms
from tests.exchanges.conftest import write_candles
from tests.factories import EPOCH, BotFactory, SymbolFactory
from tests.quant.feature_worlds import random_panel
from tests.quant.test_simulation import SCHEMA, signals
from trading_app.bot import BotRunner
from trading_app.deciding import entry_order
from trading_app.models import Bot, Fill, Position
from trading_app.orders import NewOrder
from trading_app.report import TickReport

ENTRY, HORIZON, N_SYMBOLS = 30, 6, 16
SEEDS = (37, 92)
"""Of paths by which longs and shorts end in each of the three ways."""
SPEC = LabelSpec(profit_take=2.0, stop_loss=1.5, horizon=HORIZON)
CODES = {TARGET: "TARGET", STOP: "STOP", TIME: "TIME_BARRIER"}
TICK = 1e-6
NET_TOLERANCE = 4e-4
"""Slippage against impact on two sides, and the half spread of a stop, which the venue fills at its trigger."""


@dataclass(frozen=True)
class Outcome:
    """How a trade ended: in which bar of the panel, by what, at which price, with which net return."""

    bar: int
    cause: str
    price: float
    net: float


@dataclass(frozen=True)
class Case:
    panel: Panel
    side: np.ndarray
    atr_pct: np.ndarray

    def barriers(self, column: int) -> tuple[float, float]:
        close = float(self.panel.close[ENTRY, column])
        move = float(self.atr_pct[column]) * close * int(self.side[column])
        return close - SPEC.stop_loss * move, close + SPEC.profit_take * move


def make_case(seed: int) -> Case:
    """Random candles after which the bar that is decided on closes at EPOCH; some reach both barriers in one bar."""
    rng = np.random.default_rng(seed)
    panel = random_panel(seed, ENTRY + HORIZON + 3, N_SYMBOLS)
    panel = dataclasses.replace(
        panel,
        symbols=tuple(f"P{column:02d}/USDT:USDT" for column in range(N_SYMBOLS)),
        open_time=to_ms(EPOCH) + HOUR_MS * (np.arange(panel.n_times, dtype=np.int64) - ENTRY - 1),
        volume=1e10 / panel.close,
        funding=np.zeros_like(panel.close),
    )
    atr_pct = rng.uniform(0.004, 0.03, N_SYMBOLS).astype(np.float32)
    case = Case(panel, np.where(np.arange(N_SYMBOLS) % 2, -1, 1).astype(np.int8), atr_pct)
    for column in range(4):
        bar = ENTRY + 1 + column  # the first that can fill is among them
        panel.high[bar, column] = max(panel.high[bar, column], max(case.barriers(column)) * 1.001)
        panel.low[bar, column] = min(panel.low[bar, column], min(case.barriers(column)) * 0.999)
    return case


def by_label(case: Case) -> dict[int, Outcome]:
    side = np.zeros(case.panel.close.shape, dtype=np.int8)
    side[ENTRY] = case.side
    labels: Labels = triple_barrier(case.panel, side, np.tile(case.atr_pct, (case.panel.n_times, 1)), SPEC)
    found = {}
    for row in range(len(labels)):
        column, touch = int(labels.s_index[row]), int(labels.touch[row])
        bar = int(labels.t1_index[row])
        stop, target = case.barriers(column)
        opened, close = float(case.panel.open[bar, column]), float(case.panel.close[bar, column])
        worst = min(stop, opened) if case.side[column] > 0 else max(stop, opened)
        price = {TARGET: target, STOP: worst, TIME: close}[touch]
        found[column] = Outcome(bar, CODES[touch], price, float(labels.net_return[row]))
    return found


def by_simulation(case: Case) -> dict[int, Outcome]:
    given = signals(*((ENTRY, column, int(case.side[column])) for column in range(N_SYMBOLS)))
    given.features[:, SCHEMA.index("atr_pct")] = case.atr_pct
    limits = RiskLimits(
        max_leverage=5.0, max_exposure_fraction=5.0, max_position_fraction=0.05, max_open_positions=N_SYMBOLS,
        max_drawdown_fraction=0.9, daily_loss_fraction=0.9, min_notional=1.0, max_correlated_fraction=5.0,
    )  # fmt: skip
    spec = EngineSpec(bar_ms=HOUR_MS, label=SPEC, limits=limits)
    simulation = Simulation(panel=case.panel, spec=spec, schema=SCHEMA)
    simulation.run(0, case.panel.n_times, given)
    return {case.panel.symbols.index(trade.symbol): _outcome(case, trade) for trade in simulation.trades}


def _outcome(case: Case, trade: Trade) -> Outcome:
    # What is decided at a close fills at the next open, which is the same price in these candles.
    bar = int(np.searchsorted(case.panel.open_time, trade.closed_ms)) - (trade.cause == "TIME_BARRIER")
    return Outcome(bar, trade.cause, trade.exit_price, trade.net_return)


class Live:
    """The bot without a model: it protects, watches and closes what the test lets it enter."""

    def __init__(self, case: Case, root: Path) -> None:
        self.case = case
        panel = case.panel
        for column, code in enumerate(panel.symbols):
            columns = (getattr(panel, name)[:, column] for name in ("open", "high", "low", "close", "volume"))
            write_candles(root / "odd_um" / "1h" / f"{code[:3]}USDT.parquet", Candles(panel.open_time, *columns))
            SymbolFactory(code=code)
        self.bot = BotFactory(name="main", created_at=EPOCH - dt.timedelta(days=1))
        self.data = ReplayMarket(archive=root, market="odd_um", now_ms=clock.market_now_ms)
        self.store = CandleStore(root / "candles")
        self.venue = MatchingVenue(data=self.data, account=self.bot.account)

    def runner(self) -> BotRunner:
        bot = Bot.objects.get(pk=self.bot.pk)
        return BotRunner(bot, data=self.data, store=self.store, venue=self.venue, lease_ttl=dt.timedelta(hours=12))

    def enter(self, runner: BotRunner) -> None:
        runner.tick()
        session = runner._session
        assert session is not None
        for column, code in enumerate(self.case.panel.symbols):
            order = entry_order(self._intent(column, code), "TEST: why=path", session.account.instruments[code])
            assert isinstance(order, NewOrder), order
            session.desk.write_and_send(order)
        runner._after_orders(session, TickReport())
        assert Position.objects.open().count() == N_SYMBOLS

    def _intent(self, column: int, code: str) -> EntryIntent:
        close = float(self.case.panel.close[ENTRY, column])
        stop, target = self.case.barriers(column)
        expires_ms = int(self.case.panel.open_time[ENTRY]) + HOUR_MS * (1 + HORIZON)
        return EntryIntent(code, int(self.case.side[column]), 100.0 / close, close, stop, target, expires_ms)

    def outcomes(self) -> dict[int, Outcome]:
        return dict(self._outcomes())

    def _outcomes(self) -> Iterator[tuple[int, Outcome]]:
        for position in Position.objects.filter(closed_at__isnull=False).select_related("symbol"):
            fills = list(Fill.objects.filter(position=position).order_by("id"))
            assert len(fills) == 2, "one entry, one exit"
            closing, opening = fills[1], fills[0]
            # What rests fills in its bar, what is sent at the close of a bar a minute after it.
            closed_ms = (to_ms(closing.filled_at) - 5 * MINUTE_MS) // HOUR_MS * HOUR_MS
            bar = int(np.searchsorted(self.case.panel.open_time, closed_ms))
            net = float((position.realised_pnl - position.fees) / (opening.quantity * opening.price))
            yield (
                self.case.panel.symbols.index(position.symbol.code),
                Outcome(bar, position.close_reason.partition(":")[0], float(closing.price), net),
            )


@pytest.fixture
def live_clock(sim: SimulatedClock) -> SimulatedClock:
    """A minute after the bar that is decided on has closed."""
    assert sim.now == EPOCH + dt.timedelta(minutes=1)
    return sim


def agree(expected: dict[int, Outcome], seen: dict[int, Outcome]) -> None:
    assert seen.keys() == expected.keys()
    for column, outcome in expected.items():
        other = seen[column]
        assert (other.bar, other.cause) == (outcome.bar, outcome.cause), (column, outcome, other)
        # A target is filled at its price; the others pay the spread.
        assert other.price == pytest.approx(outcome.price, rel=TICK if outcome.cause == "TARGET" else NET_TOLERANCE)
        assert other.net == pytest.approx(outcome.net, abs=NET_TOLERANCE)
        if abs(outcome.net) > NET_TOLERANCE:
            assert (other.net > 0) == (outcome.net > 0)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_label_and_simulation_end_a_trade_in_the_same_bar_at_the_same_price(seed: int) -> None:
    case = make_case(seed)
    labels = by_label(case)
    assert len(labels) == N_SYMBOLS
    agree(labels, by_simulation(case))


@pytest.mark.django_db
@pytest.mark.parametrize("seed", SEEDS)
def test_the_bot_ends_a_trade_in_the_same_bar_at_the_same_price(
    seed: int, live_clock: SimulatedClock, tmp_path: Path
) -> None:
    case = make_case(seed)
    labels = by_label(case)
    kinds = {(outcome.cause, int(case.side[column])) for column, outcome in labels.items()}
    assert len(kinds) == 6, "longs and shorts end by target, stop and time"
    assert any(outcome.bar == ENTRY + 1 for outcome in labels.values()), "the first bar that can fill is among them"
    live = Live(case, tmp_path)
    runner = live.runner()
    live.enter(runner)
    for _ in range(HORIZON + 1):
        live_clock.advance(dt.timedelta(hours=1))
        runner.tick()
    agree(labels, live.outcomes())
    assert live.venue.open_orders() == [], "whichever of stop and target is left goes with its position"


@pytest.mark.django_db
def test_while_no_bot_runs_stop_and_target_end_trades_as_their_labels_do_and_open_nothing(
    live_clock: SimulatedClock, tmp_path: Path
) -> None:
    case = make_case(7)
    touched = {column: outcome for column, outcome in by_label(case).items() if outcome.cause != "TIME_BARRIER"}
    assert {outcome.cause for outcome in touched.values()} == {"TARGET", "STOP"}
    live = Live(case, tmp_path)
    runner = live.runner()
    live.enter(runner)
    runner.release()
    live_clock.advance(dt.timedelta(hours=HORIZON - 1))
    early = {column: outcome for column, outcome in touched.items() if outcome.bar < ENTRY + HORIZON}
    held = {case.panel.symbols.index(each.symbol): each.quantity for each in live.venue.positions()}
    assert held.keys() == set(range(N_SYMBOLS)) - early.keys()
    assert all((quantity > 0) == (case.side[column] > 0) for column, quantity in held.items()), "nothing turned round"
    live_clock.advance(dt.timedelta(minutes=10))
    live.runner().tick()
    agree(early, live.outcomes())
    assert len(live.venue.open_orders()) == 2 * len(held)

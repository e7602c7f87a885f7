"""A bot on a small simulated market: the real feed, engine, outbox and matching venue; only the model is a stand-in."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coverage_app import market
from coverage_app.models import Symbol
from exchanges.matching import MatchingVenue
from exchanges.simulated import SimulatedMarket
from marketdata.store import CandleStore
from ops_app import clock
from ops_app.clock import SimulatedClock
from quant.candles import Candles
from quant.timeframes import DAY_MS, to_ms
from tests.factories import EPOCH, MARKET, ActiveModelFactory, ArtifactFactory, BotFactory, SymbolFactory, UserFactory
from tests.trading.venues import FaultyVenue
from trading_app.bot import BotRunner
from trading_app.models import Bot
from trading_app.report import TickReport
from training_app import registry
from training_app.models import ActiveModel, ModelArtifact

N_SYMBOLS = 6
HISTORY_DAYS = 40
HOUR = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _places(settings: Any, tmp_path: Path) -> Iterator[None]:
    settings.ARTIFACTS_DIR = tmp_path / "artifacts"
    settings.CANDLES_DIR = tmp_path / "candles"
    settings.LEDGER_DIR = tmp_path / "ledger"
    settings.DATA_DIR = tmp_path  # the spool's place
    settings.EXCHANGE, settings.EXCHANGE_MARKET, settings.TIMEFRAME = "simulated", MARKET, "1h"
    settings.TRAINING_MODE, settings.SYMBOL_ENCODING, settings.PRIMARY_SIGNAL = "multi_symbol", "index", "trend"
    market.reset()
    yield
    market.reset()


@pytest.fixture
def sim() -> Iterator[SimulatedClock]:
    """All time stands a minute after EPOCH's bar closed until the test advances it."""
    with clock.simulated(EPOCH + MINUTE) as simulated:
        yield simulated


@dataclass
class StandIn:
    """A model that says what the test wants; everything else about it is as in a real one."""

    symbols: tuple[str, ...]
    panel_symbols: tuple[str, ...]
    threshold: float = 0.5
    probability: float | Mapping[str, float] = 0.9
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def codes_for(self, symbols: tuple[str, ...]) -> np.ndarray:
        return np.array([self.symbols.index(symbol) for symbol in symbols], dtype=np.int32)

    def predict(self, features: np.ndarray, symbol_codes: np.ndarray, *, num_threads: int = 1) -> np.ndarray:
        names = tuple(self.symbols[code] for code in symbol_codes)
        self.asked.append(names)
        if isinstance(self.probability, float):
            return np.full(len(names), self.probability)
        return np.array([self.probability.get(name, 0.0) for name in names])


class CountingLoader:
    """Stands for `training_app.artifacts.load`: hands out stand-ins by artifact id and counts."""

    def __init__(self) -> None:
        self.models: dict[int, StandIn | Exception] = {}
        self.loads: list[int] = []

    def __call__(self, artifact: ModelArtifact) -> StandIn:
        self.loads.append(artifact.pk)
        answer = self.models[artifact.pk]
        if isinstance(answer, Exception):
            raise answer
        return answer


@functools.cache
def stored_candles(n_symbols: int) -> tuple[dict[str, Candles], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """History of the simulated market up to EPOCH: made once, the same in every test."""
    end_ms = to_ms(EPOCH)
    data = SimulatedMarket(seed=7, now_ms=lambda: end_ms, symbols=n_symbols, specials=False)
    codes = sorted(each.symbol for each in data.instruments())[:n_symbols]
    start_ms = end_ms - HISTORY_DAYS * DAY_MS
    candles = {code: data.candles(code, "1h", start_ms, HISTORY_DAYS * 24) for code in codes}
    funding = {}
    for code in codes:
        rates = data.funding(code, start_ms, HISTORY_DAYS * 24)
        funding[code] = (
            np.array([rate.time_ms for rate in rates], dtype=np.int64),
            np.array([rate.rate for rate in rates]),
        )
    return candles, funding


class World:
    """The market, the account and the rows that a bot needs; `runner()` makes a bot, as a start of its process does."""

    def __init__(self, sim: SimulatedClock, root: Path, *, n_symbols: int, ledger: Path | str = ":memory:") -> None:
        self.sim = sim
        self.data = SimulatedMarket(seed=7, now_ms=clock.market_now_ms, symbols=n_symbols, specials=False)
        self.store = CandleStore(root / "candles")
        candles, funding = stored_candles(n_symbols)
        self.store.write(MARKET, "1h", candles)
        self.store.write_funding(MARKET, funding)
        self.codes = tuple(candles)
        self.symbols: dict[str, Symbol] = {
            code: SymbolFactory(code=code, last_candle_at=EPOCH - HOUR) for code in self.codes
        }
        self.bot: Bot = BotFactory(name="main", created_at=EPOCH - dt.timedelta(days=1))
        self.matching = MatchingVenue(data=self.data, ledger_path=ledger, account=self.bot.account)
        self.venue = FaultyVenue(self.matching)
        self.load = CountingLoader()

    def runner(self, **changes: Any) -> BotRunner:
        fields: dict[str, Any] = {
            "data": self.data, "store": self.store, "venue": self.venue, "load": self.load,
            "lease_ttl": dt.timedelta(hours=12),
        } | changes  # fmt: skip
        return BotRunner(Bot.objects.get(pk=self.bot.pk), **fields)

    def activate(
        self, model: StandIn | Exception | None = None, *, codes: tuple[str, ...] | None = None
    ) -> ActiveModel:
        """Make an artifact the active one, as an activation does: a new generation in the slot."""
        codes = codes or self.codes
        artifact = ArtifactFactory(
            requirement=registry.requirement(), symbols=[self.symbols[code] for code in codes],
            metrics={"test": {"precision": 0.6, "net_return": 0.002}},
        )  # fmt: skip
        self.load.models[artifact.pk] = model if model is not None else StandIn(codes, codes)
        row = ActiveModel.objects.filter(slot=artifact.scope.key).first()
        newest = max(ActiveModel.objects.values_list("generation", flat=True), default=0) + 1
        if row is None:
            return ActiveModelFactory(artifact=artifact, generation=newest)
        row.artifact, row.generation = artifact, newest
        row.save()
        return row

    def pass_bars(self, runner: BotRunner, bars: int) -> list[TickReport]:
        """Advance hour by hour, one pass each, with the workers' evidence kept fresh."""
        reports = []
        for _ in range(bars):
            self.sim.advance(HOUR)
            self.keep_fresh()
            reports.append(runner.tick())
        return reports

    def keep_fresh(self) -> None:
        newest = self.sim.now.replace(minute=0, second=0, microsecond=0) - HOUR
        Symbol.objects.update(last_candle_at=newest)

    def until_entry(self, runner: BotRunner, *, most: int = 48) -> TickReport:
        """Pass bars until the bot has opened a position."""
        for _ in range(most):
            (report,) = self.pass_bars(runner, 1)
            if report.entries:
                return report
        raise AssertionError(f"no entry in {most} bars: the simulated market or the engine changed")


@pytest.fixture
def make_world(db: None, sim: SimulatedClock, tmp_path: Path) -> Callable[..., World]:
    def make(**changes: Any) -> World:
        return World(sim, tmp_path, **({"n_symbols": N_SYMBOLS} | changes))

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world with an active model that says yes to every signal."""
    made = make_world()
    made.activate()
    return made


@pytest.fixture
def person(db: None) -> Any:
    return UserFactory(username="anna")

"""The rows and candles that a bot needs to trade, without workers and without a training."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np
from django.conf import settings
from numpy.typing import NDArray

from coverage_app.market import candle_store
from coverage_app.models import Symbol
from exchanges.ccxt_client import preload
from exchanges.simulated import SimulatedMarket
from ops_app import clock
from ops_app.models import MarketClock
from quant.features import FeatureState, replay, step
from quant.panel import Panel
from quant.timeframes import DAY_MS, from_ms, timeframe_ms, to_ms
from trading_app import services
from trading_app.models import Bot
from training_app import registry
from training_app.choices import RunState, RunTrigger
from training_app.models import ActiveModel, ArtifactSymbol, ModelArtifact, TrainingRun, TrainingScope

HISTORY_DAYS = 10
FRESH_FOR = dt.timedelta(days=3650)
NO_LIMIT = 0.99


@dataclass(frozen=True, slots=True)
class EagerModel:
    """Stands for a trained model: it takes every signal, half of them with more confidence than the others."""

    symbols: tuple[str, ...]
    threshold: float = 0.5

    @property
    def panel_symbols(self) -> tuple[str, ...]:
        return self.symbols

    def codes_for(self, symbols: tuple[str, ...]) -> NDArray[np.int32]:
        return np.array([self.symbols.index(symbol) for symbol in symbols], dtype=np.int32)

    def predict(
        self, features: NDArray[np.float32], symbol_codes: NDArray[np.int32], *, num_threads: int = 1
    ) -> NDArray[np.float64]:
        del features, num_threads
        return np.where(symbol_codes % 2 == 0, 0.7, 0.9)


def prepare(*, seed: int, symbols: int, origin: dt.datetime, real_origin: dt.datetime, speed: float) -> Bot:
    """Fill an empty, migrated database and the candle store; returns the bot. Market time follows the exchange's.

    What workers would say of the symbols is said once for the whole test: their history is long, whole and fresh.
    """
    MarketClock.objects.create(pk=1, market_start=origin, real_start=real_origin, speed=speed)
    clock.refresh()
    start_ms = to_ms(origin) - HISTORY_DAYS * DAY_MS
    data = SimulatedMarket(seed=seed, now_ms=lambda: to_ms(origin), symbols=symbols, specials=False)
    step, market = timeframe_ms(settings.TIMEFRAME), settings.EXCHANGE_MARKET
    rows = []
    candles = {}
    for each in data.instruments():
        candles[each.symbol] = data.candles(each.symbol, settings.TIMEFRAME, start_ms, HISTORY_DAYS * DAY_MS // step)
        rows.append(
            Symbol(
                market=market, code=each.symbol, base=each.base, quote=each.quote, market_type=each.market_type,
                in_universe=True, tick_size=each.tick_size, lot_size=each.lot_size, min_notional=each.min_notional,
                history_start=from_ms(start_ms), history_days=HISTORY_DAYS, history_coverage=1.0, backfilled=True,
                last_candle_at=origin + FRESH_FOR, last_evaluated_at=origin, next_evaluation_at=origin + FRESH_FOR,
                evaluations=1, created_at=origin,
            )
        )  # fmt: skip
    candle_store().write(market, settings.TIMEFRAME, candles)
    _activate(Symbol.objects.bulk_create(rows), origin, from_ms(start_ms))
    bot = services.ensure_bot()
    # Orders are wanted, not profits: no loss may end the test or pause a symbol.
    Bot.objects.filter(pk=bot.pk).update(
        daily_loss_limit=NO_LIMIT, max_drawdown=NO_LIMIT, max_position=0.01, max_positions=symbols, cooldown_bars=0
    )
    return bot


def warm_up() -> None:
    """Import what a bot imports when it trades, and compile its kernels, so that no fork of this process has to.

    Neither starts a thread: after one a fork would not be safe.
    """
    preload()
    schema = registry.feature_schema()
    nothing = np.full((2, 1), np.nan)
    panel = Panel(
        symbols=("none",), step_ms=timeframe_ms(settings.TIMEFRAME), open_time=np.array([0, 1]) * timeframe_ms(
            settings.TIMEFRAME
        ), open=nothing, high=nothing, low=nothing, close=nothing, volume=nothing, funding=np.zeros((2, 1)),
    )  # fmt: skip
    state = FeatureState.create(schema, 1, step_ms=panel.step_ms)
    replay(state, panel.rows(0, 1))
    step(state, **panel.row(1)._asdict())


def _activate(symbols: list[Symbol], now: dt.datetime, since: dt.datetime) -> None:
    """Make a model the active one that was never trained: the kill test puts `EagerModel` in its place."""
    needs = registry.requirement()
    market = settings.EXCHANGE_MARKET
    scope = TrainingScope.objects.create(
        market=market, training_mode=needs.training_mode, timeframe=needs.timeframe,
        key=f"{needs.training_mode}:{market}:{needs.timeframe}",
    )  # fmt: skip
    run = TrainingRun.objects.create(
        scope=scope, run_no=1, state=RunState.SUCCEEDED, trigger=RunTrigger.NO_MODEL,
        cause="NO_MODEL: made_by=killtest", not_before=now, created_at=now, started_at=now, finished_at=now,
        attempt=1, fencing_token=1, progress=1.0,
    )  # fmt: skip
    artifact = ModelArtifact.objects.create(
        run=run, scope=scope, version=1, fencing_token=1, directory="killtest/none", size=0, sha256="0" * 64,
        training_mode=needs.training_mode, symbol_encoding=needs.symbol_encoding, timeframe=needs.timeframe,
        signal=needs.signal, schema_hash=needs.schema_hash, label_spec={}, label_hash=needs.label_hash,
        threshold=0.5, score=0.01, gates_passed=True, data_start=since, data_end=now, data_hash="0" * 64,
        panel_symbols=[row.code for row in symbols], created_at=now,
    )  # fmt: skip
    ArtifactSymbol.objects.bulk_create(ArtifactSymbol(artifact=artifact, symbol=row) for row in symbols)
    ActiveModel.objects.create(artifact=artifact, slot=scope.key, generation=1, activated_at=now)

"""A walk with a model per symbol, and with models that are watched: each as the live planner has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import call_command

from coverage_app import market
from exchanges.simulated.market import SimulatedMarket
from marketdata.store import CandleStore
from quant.offers import Signals
from quant.panel import Panel
from quant.pipeline import TrainingResult
from quant.policy import RunCause, TrainingPolicy
from quant.reasons import code_of
from quant.timeframes import DAY_MS, HOUR_MS, MINUTE_MS
from quant.watch import WatchFinding
from tests.quant.test_pipeline import START, random_walk
from tests.site.test_backtest import SPEC, plan
from tradingsite.backtest import walk as walking
from tradingsite.backtest.account import SignalFeed, joined_signals
from tradingsite.backtest.walk import Training, Walk, walk_forward

ALONE = replace(SPEC, training_mode="single_symbol", min_samples=100, min_symbol_samples=30)
SCHEDULE = TrainingPolicy(
    min_train_interval_ms=6 * HOUR_MS, retrain_interval_ms=30 * DAY_MS, debounce_ms=10 * MINUTE_MS,
    failure_base_ms=6 * HOUR_MS, failure_cap_ms=4 * DAY_MS,
)  # fmt: skip


def walked(panel: Panel, **changes: Any) -> Walk:
    the_plan = plan(panel, schedule=SCHEDULE, **changes)
    return walk_forward(panel, the_plan, progress=lambda _share, _text: None)


def models(walk: Walk) -> dict[str, list[tuple[int, str]]]:
    """The trainings of each scope: when, and what was learnt."""
    found: dict[str, list[tuple[int, str]]] = {}
    for each in walk.trainings:
        learnt = each.result.model.booster_text if each.result is not None else each.error
        found.setdefault(each.scope, []).append((each.at_ms, learnt))
    return found


# ------------------------------------------------------------------------- a model per symbol
@pytest.fixture(scope="module")
def three() -> Panel:
    return random_walk(3, 110, seed=3)


@pytest.fixture(scope="module")
def apart(three: Panel) -> Walk:
    """Three symbols, each with a model that passed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingResult, "gates_passed", True)
        return walked(three, training=ALONE, scope="single_symbol:test:1h")


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is trained is promoted."""
    monkeypatch.setattr(TrainingResult, "gates_passed", True)


def test_each_symbol_has_a_model_of_its_own_and_all_trade_one_account(three: Panel, apart: Walk) -> None:
    assert set(models(apart)) == {f"single_symbol:test:1h:{symbol}" for symbol in three.symbols}
    assert {trade.symbol for trade in apart.traded.trades} == set(three.symbols)
    for each in apart.trainings:
        assert each.result is not None
        assert each.result.panel_symbols == each.symbols
    # No scope waits for another one's symbols: they start at the look itself.
    assert {each.at_ms for each in apart.trainings[:3]} == {apart.trainings[0].at_ms}
    assert apart.trainings[0].at_ms % DAY_MS == 0


@pytest.mark.usefixtures("passing")
def test_a_symbol_is_learnt_from_its_own_candles_alone(three: Panel, apart: Walk) -> None:
    mine = three.symbols[1]
    alone = walked(three.select([mine]), training=ALONE, scope="single_symbol:test:1h")
    scope = f"single_symbol:test:1h:{mine}"
    assert models(alone)[scope] == models(apart)[scope]


def test_a_refused_model_of_one_symbol_keeps_no_other_waiting(three: Panel) -> None:
    """The back-off is the scope's own, and grows: 6, 12, 24 ... hours, each start at its own time of the day."""
    walk = walk_forward(
        three.select(three.symbols[:1]),
        plan(three, training=ALONE, schedule=SCHEDULE),
        progress=lambda _share, _text: None,
    )
    starts = np.array([each.at_ms for each in walk.trainings])
    waits = np.diff(starts) / HOUR_MS
    assert 6.0 <= waits[0] <= 6.6
    assert 12.0 <= waits[1] <= 13.2
    assert waits.max() <= 4 * 24
    assert walk.traded.trades == []


@pytest.mark.usefixtures("passing")
def test_the_command_plays_the_store_of_a_bot_of_single_symbol_mode(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = START + 2_000 * DAY_MS  # long after each symbol was listed
    data = SimulatedMarket(seed=5, now_ms=lambda: now, symbols=3, specials=False, learnable=True)
    candles = {each.symbol: data.candles(each.symbol, "1h", now - 100 * DAY_MS, 2400) for each in data.instruments()}
    CandleStore(tmp_path / "candles").write("sim", "1h", candles)
    settings.CANDLES_DIR, settings.EXCHANGE_MARKET, settings.TIMEFRAME = tmp_path / "candles", "sim", "1h"
    settings.TRAINING_MODE = "single_symbol"
    monkeypatch.setattr("training_app.policies.training_spec", lambda: ALONE)
    told = []
    for _ in range(2):
        market.reset()
        call_command("backtest", "--json")
        told.append(json.loads(capsys.readouterr().out))
    market.reset()
    first, second = told
    trainable = candles.keys() - first["blocked_at_the_end"].keys()
    assert len(trainable) > 1
    assert {each["scope"] for each in first["trainings"]} == {f"single_symbol:sim:1h:{code}" for code in trainable}
    assert first["accounts"]["gated"]["trades"] > 0
    for name, account in first["accounts"].items():
        assert account["trades_hash"] == second["accounts"][name]["trades_hash"]


def test_signals_of_many_models_come_in_order_and_each_asks_its_own() -> None:
    def part(number: int, column: int, bars: list[int]) -> Signals:
        n = len(bars)
        return Signals(
            bar=np.array(bars), column=np.full(n, column), side=np.ones(n, dtype=np.int8), threshold=np.full(n, 0.5),
            features=np.array([[number, bar] for bar in reversed(bars)], dtype=np.float32), row=np.arange(n)[::-1],
            ask=lambda asked: number + np.array(bars)[asked] / 100.0, model=np.full(n, number),
        )  # fmt: skip

    joined = joined_signals([part(7, 2, [1, 2, 4]), part(8, 0, [2, 4, 5]), part(9, 1, [0, 4])])
    assert list(zip(joined.bar.tolist(), joined.column.tolist(), strict=True)) == [
        (0, 1), (1, 2), (2, 0), (2, 2), (4, 0), (4, 1), (4, 2), (5, 0)
    ]  # fmt: skip
    assert joined.model is not None
    assert joined.features[joined.row].tolist() == np.column_stack([joined.model, joined.bar]).tolist()
    for asked in (np.arange(8), np.array([4, 5, 6]), np.array([2])):
        assert joined.ask(asked).tolist() == (joined.model + joined.bar / 100.0)[asked].tolist()


# ------------------------------------------------------------------------- models that are watched
def wild(panel: Panel, since_bar: int, factor: float) -> Panel:
    """The same market with ``factor`` times its moves from a bar on."""
    base = panel.close[since_bar - 1]
    changed = {}
    for name in ("open", "high", "low", "close"):
        values = getattr(panel, name).copy()
        values[since_bar:] = base * np.exp(factor * np.log(values[since_bar:] / base))
        changed[name] = values
    return replace(panel, **changed)


@pytest.mark.usefixtures("passing")
def test_a_market_that_changes_is_trained_on_once_more_and_one_that_does_not_is_not() -> None:
    panel = random_walk(4, 110, seed=3)
    calm = walked(panel)
    assert [each.cause for each in calm.trainings] == [RunCause.NO_MODEL]
    assert calm.asked == []
    changed_at = panel.n_times - 10 * 24
    walk = walked(wild(panel, changed_at, 6.0))
    first, second, *_ = walk.trainings
    asked = walk.asked[0]
    assert (first.cause, second.cause) == (RunCause.NO_MODEL, RunCause.DRIFT)
    assert code_of(asked.text) == "FEATURES_DRIFTED"
    assert "FEATURES_DRIFTED" in second.text
    assert panel.open_time[changed_at] < asked.at_ms
    assert second.at_ms == asked.at_ms + SCHEDULE.debounce_ms
    assert len(walk.asked) <= len(walk.trainings), "a model asks once"
    assert models(walk)[first.scope][0] == models(calm)[first.scope][0], "nothing of it was known before"


@pytest.mark.usefixtures("passing")
def test_trades_below_the_promise_ask_for_one_training(monkeypatch: pytest.MonkeyPatch) -> None:
    real = walking.feed_of

    def boastful(*args: Any) -> SignalFeed:
        return replace(real(*args), promised=0.99)

    monkeypatch.setattr(walking, "feed_of", boastful)
    walk = walked(random_walk(4, 110, seed=3))
    assert [each.cause for each in walk.trainings][:2] == [RunCause.NO_MODEL, RunCause.DRIFT]
    assert code_of(walk.asked[0].text) == "BELOW_PROMISE"
    assert len(walk.asked) <= len(walk.trainings), "a model asks once"


def test_a_model_is_not_looked_at_before_it_is_a_day_old_and_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = walking.judge_watch

    def judge(drift: Any, live: Any) -> Any:
        looked.append(live.trades)
        return real(drift, live)._replace(finding=WatchFinding.DRIFTED)

    monkeypatch.setattr(walking, "judge_watch", judge)
    monkeypatch.setattr(Training, "passed", property(lambda self: self.number == 1))
    walk = walked(random_walk(4, 100, seed=3), start_ms=START + 95 * DAY_MS)
    assert len(looked) == len(walk.asked) == 1
    (asked,) = walk.asked
    assert DAY_MS <= asked.at_ms - walk.trainings[0].at_ms < 2 * DAY_MS
    assert [each.cause for each in walk.trainings] == [RunCause.NO_MODEL, RunCause.DRIFT]

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command

from quant.engine import EngineSpec
from quant.gates import GateBounds
from quant.panel import Panel
from quant.policy import CoveragePolicy, TrainingPolicy
from quant.timeframes import DAY_MS, HOUR_MS
from quant.training_spec import TrainingSpec
from tests.quant.feature_worlds import mixed
from tests.quant.test_pipeline import START, random_walk, simulated
from tradingsite.backtest.account import bar_after
from tradingsite.backtest.play import buy_and_hold
from tradingsite.backtest.report import Backtest, run
from tradingsite.backtest.summary import daily_returns, drawdown, months
from tradingsite.backtest.walk import Plan, judge_symbols

DAYS = 120
SPEC = TrainingSpec.small()
OPEN_GATES = GateBounds(
    min_trades=2, min_t_stat=0.0, min_return_t_stat=0.0, min_selection_t_stat=0.0, min_deflated_sharpe=0.0,
    max_calibration_error=1.0, max_champion_t_stat=1e9,
)  # fmt: skip


def plan(panel: Panel, **changes: Any) -> Plan:
    end = int(panel.open_time[-1]) + panel.step_ms
    values: dict[str, Any] = {
        "start_ms": end - 20 * DAY_MS,
        "end_ms": end,
        "training": SPEC,
        "gates": GateBounds(),
        "coverage": CoveragePolicy(),
        "schedule": TrainingPolicy(
            min_train_interval_ms=2 * DAY_MS, failure_base_ms=2 * DAY_MS, failure_cap_ms=7 * DAY_MS
        ),
        "engine": EngineSpec(bar_ms=HOUR_MS),
        "initial_equity": 10_000.0,
    }
    return Plan(**(values | changes))


def played(panel: Panel, **changes: Any) -> Backtest:
    return run(panel, plan(panel, **changes), source="a test", progress=lambda _share, _text: None)


@pytest.fixture(scope="module")
def walked() -> Backtest:
    return played(random_walk(5, DAYS, seed=3))


@pytest.fixture(scope="module")
def opened() -> Backtest:
    """The same market with gates that let nearly everything pass."""
    return played(random_walk(5, DAYS, seed=3), gates=OPEN_GATES)


def test_nothing_is_promoted_in_a_market_without_anything_to_learn(walked: Backtest) -> None:
    summary = walked.to_dict()
    assert summary["trials"] >= 3
    assert summary["promoted"] == 0
    assert summary["accounts"]["gated"]["trades"] == 0
    assert summary["accounts"]["gated"]["final_equity"] == 10_000
    assert summary["accounts"]["every_signal"]["trades"] > 50
    # Every look at nearly the same window is counted.
    assert [training["looks"] for training in summary["trainings"]] == list(range(1, summary["trials"] + 1))


def test_trainings_come_when_they_would_have_come_live(walked: Backtest) -> None:
    days = [training.at_ms // DAY_MS for training in walked.walk.trainings]
    assert days[0] == walked.plan.start_ms // DAY_MS
    waits = np.diff(days)
    assert waits.min() >= 2  # the least interval
    assert waits.max() <= 8  # the cap of the back-off, up to the next daily look
    assert np.all(np.diff(waits) >= 0)  # refused again and again: it waits longer and longer


def test_the_same_run_twice_gives_the_same_trades_to_the_bit(walked: Backtest) -> None:
    again = played(random_walk(5, DAYS, seed=3))
    assert again.to_dict() == walked.to_dict()


def test_i14_no_training_and_no_trade_of_a_walk_depends_on_a_later_candle(opened: Backtest) -> None:
    panel = opened.panel
    cut = panel.n_times - 8 * 24
    changed = played(mixed(panel, random_walk(5, DAYS, seed=4), cut), gates=OPEN_GATES)
    now = int(panel.open_time[cut]) + panel.step_ms
    before, after = (
        [(each.at_ms, each.result.model.booster_text) for each in walk.trainings if each.at_ms <= now and each.result]
        for walk in (opened.walk, changed.walk)
    )
    assert len(before) >= 2
    assert before == after
    for name in opened.accounts:
        mine, theirs = opened.accounts[name], changed.accounts[name]
        assert np.array_equal(mine.equity[: cut + 1], theirs.equity[: cut + 1], equal_nan=True)
    assert len(opened.accounts["gated"].trades) > 0


def test_only_a_promoted_model_trades_and_only_after_its_training(opened: Backtest) -> None:
    first = next(training for training in opened.walk.trainings if training.passed)
    assert all(trade.opened_ms >= first.at_ms for trade in opened.accounts["gated"].trades)
    covered = set(first.symbols)
    assert {trade.symbol for trade in opened.accounts["gated"].trades} <= covered


def test_symbols_are_judged_as_coverage_judges_them() -> None:
    panel = random_walk(3, 100, seed=1)
    for name in ("open", "high", "low", "close", "volume"):
        getattr(panel, name)[: 20 * 24, 0] = np.nan  # too young
        getattr(panel, name)[-48:, 1] = np.nan  # it has stopped
    good, against = judge_symbols(panel, plan(panel), START + 100 * DAY_MS)
    assert good == (panel.symbols[2],)
    assert against[panel.symbols[0]].startswith("SHORT_HISTORY")
    assert against[panel.symbols[1]].startswith("STALE_DATA")


def test_the_page_stands_alone_and_says_what_happened(opened: Backtest) -> None:
    page = opened.to_html(opened.to_dict())
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<script" not in page
    for part in ("Accounts", "Months", "Trainings", "Calibration", "<svg", "buy and hold", opened.panel.symbols[0]):
        assert part in page


def test_buying_and_holding_is_the_mean_of_what_each_symbol_became() -> None:
    panel = random_walk(3, 30, seed=2)
    the_plan = plan(panel, start_ms=START + 5 * DAY_MS)
    panel.close[-24:, 1] = np.nan  # a series that ends is worth its last price
    first = bar_after(panel, the_plan.start_ms)
    ratios = [panel.close[-1, 0], panel.close[-25, 1], panel.close[-1, 2]] / panel.close[first]
    assert buy_and_hold(panel, the_plan)[-1] == pytest.approx(10_000 * np.mean(ratios))


def test_figures_of_a_curve() -> None:
    times = START + DAY_MS * np.arange(1, 5)  # closes at midnight belong to the day that ends
    curve = np.array([110.0, 99.0, 99.0, 120.0])
    assert daily_returns(curve, times, start=100.0) == pytest.approx([0.1, -0.1, 0.0, 120 / 99 - 1])
    assert drawdown(curve) == pytest.approx(0.1)
    assert list(months(curve, times, start=100.0).values()) == pytest.approx([0.2])


# ------------------------------------------------------------------------- the command
def archive(folder: Path, panel: Panel) -> Path:
    (folder / "made/1h").mkdir(parents=True)
    for column, symbol in enumerate(panel.symbols):
        table = pa.table(
            {"timestamp": panel.open_time}
            | {name: getattr(panel, name)[:, column] for name in ("open", "high", "low", "close", "volume")}
        )
        pq.write_table(table, folder / "made/1h" / f"{symbol.split('/')[0]}USDT.parquet")
    return folder


def test_the_command_plays_an_archive_prints_json_and_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training_app.policies.training_spec", lambda: replace(SPEC, num_threads=1))
    folder, page = archive(tmp_path, random_walk(3, 110, seed=5)), tmp_path / "out/report.html"
    arguments = ["backtest", "--archive", str(folder), "--market", "made"]
    call_command(*arguments, "--json", "--report", str(page))
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["trainings"]) >= 1
    assert len(summary["accounts"]["gated"]["trades_hash"]) == 64
    assert page.read_text().startswith("<!doctype html>")
    with pytest.raises(CommandError, match="must be a day like"):
        call_command(*arguments, "--from", "June")
    with pytest.raises(CommandError, match="nothing to play"):
        call_command(*arguments, "--from", "2031-01-01")
    with pytest.raises(CommandError, match="NO/USDT:USDT"):
        call_command(*arguments, "--symbols", "NO/USDT:USDT")
    with pytest.raises(CommandError, match="choose one of: made"):
        call_command("backtest", "--archive", str(folder), "--market", "mad")


@pytest.mark.slow
def test_a_market_that_can_be_learnt_is_learnt_and_pays() -> None:
    done = played(simulated(12, 240, seed=5, learnable=True)).to_dict()
    assert done["promoted"] >= 1
    assert done["accounts"]["gated"]["return"] > 0
    assert done["accounts"]["gated"]["win_rate"] > done["accounts"]["every_signal"]["win_rate"]

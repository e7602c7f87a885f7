"""`manage.py bench`: the figures are measured, have the promised names, and say what they are compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tradingsite.bench import labels, registry
from tradingsite.bench.measure import (
    SECONDS,
    Figure,
    MemoryTooSmallError,
    Scale,
    cpu_seconds,
    expect,
    fitting_days,
    many_times,
    peak_megabytes,
)
from tradingsite.management.commands.bench import shown

ROOT = Path(__file__).resolve().parents[2]
AREAS = ("coverage", "store", "ingest", "loop", "serving")
COMPUTED = {
    "features": {
        "features.memory",
        "features.replay",
        "features.replay.two_threads",
        "features.pandas",
        "features.step",
    },
    "labels": {"labels.triple_barrier", "labels.triple_barrier.two_threads", "labels.numpy"},
    "live": {"live.cycle", "live.predict", "live.decide"},
    "backtest": {"backtest.play"},
}
NAMES = {"name", "symbols", "value", "unit", "limit", "ratio", "versus", "goal", "met"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DATABASE_URL": ""}
    command = [sys.executable, "manage.py", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_small_run_measures_every_figure_on_a_database_of_its_own(tmp_path: Path) -> None:
    ran = bench(*AREAS, "--symbols", "100", "300", "--days", "40", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["database"] == "sqlite"
    figures: list[dict[str, Any]] = told["figures"]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for figure in figures:
        assert figure.keys() >= NAMES
        assert figure["value"] > 0
        assert figure["limit"] > 0
        assert figure["ratio"] == pytest.approx(figure["value"] / figure["limit"])
        assert figure["versus"]
        by_name.setdefault(figure["name"], {})[figure["symbols"]] = figure
    assert {name.partition(".")[0] for name in by_name} == set(AREAS)
    for name, sizes in by_name.items():
        assert sorted(sizes) == [100, 300], name
        if name.endswith(".queries"):
            assert sizes[100]["unit"] == "queries"
            assert sizes[100]["value"] == sizes[300]["value"], f"{name} grows with the symbols"
            assert sizes[300]["met"] is not False, name
    assert by_name["coverage.opened"][300]["value"] > by_name["coverage.unchanged"][300]["value"]


def test_a_small_run_measures_what_is_computed_beside_its_rivals() -> None:
    ran = bench(*COMPUTED, "--symbols", "5", "--days", "100", "--json")
    assert ran.returncode == 0, ran.stderr
    figures = {figure["name"]: figure for figure in json.loads(ran.stdout)["figures"]}
    assert set(figures) == set().union(*COMPUTED.values())
    for figure in figures.values():
        assert figure.keys() >= NAMES
        assert figure["limit"] > 0
        shares = (figure["limit"], figure["value"]) if figure["rival"] else (figure["value"], figure["limit"])
        assert figure["ratio"] == pytest.approx(shares[0] / shares[1])
    assert {name for name, figure in figures.items() if figure["rival"]} == {"features.pandas", "labels.numpy"}
    assert figures["features.memory"]["unit"] == "MB"


def test_the_peak_of_memory_counts_what_was_freed_again_and_not_what_was_there_before() -> None:
    held = bytearray(b"x") * 2**24
    peak = peak_megabytes(lambda: bytearray(b"x") * 2**26)
    assert peak == pytest.approx(64, abs=8)
    assert len(held) == 2**24


def test_it_says_which_benchmarks_there_are() -> None:
    ran = bench("speed")
    assert ran.returncode != 0
    assert all(name in ran.stderr for name in registry.NAMES)


def test_every_benchmark_of_the_registry_is_a_module_and_every_module_is_registered() -> None:
    modules = {path.stem for path in (ROOT / "tradingsite" / "bench").glob("*.py")}
    assert modules - {"__init__", "measure", "registry", "worlds"} == set(registry.NAMES)


def test_a_history_is_shortened_to_what_half_of_the_free_memory_holds() -> None:
    scale, day = Scale(symbols=5_000, days=730), 5_000 * 24 * 250
    assert fitting_days(scale, bytes_per_candle=250, free_bytes=2 * 730 * day) == 730
    assert fitting_days(scale, bytes_per_candle=250, free_bytes=2 * 100 * day + day) == 100
    assert fitting_days(scale, bytes_per_candle=0, free_bytes=1) == 730
    with pytest.raises(MemoryTooSmallError, match=r"5,000 symbols need .* MB of free memory for 30 days"):
        fitting_days(scale, bytes_per_candle=250, free_bytes=2 * 29 * day)
    short = Scale(symbols=5, days=2)
    assert fitting_days(short, bytes_per_candle=250, free_bytes=2**20) == 2


def test_every_figure_of_a_history_says_how_long_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.host, "memory_mb", lambda: 2)
    figures = list(registry.run(["labels"], symbols=[10], days=100))
    assert {figure.days for figure in figures} == {2 * 2**20 // 2 // (10 * 24 * labels.BYTES_PER_CANDLE)}
    with pytest.raises(MemoryTooSmallError):
        next(registry.run(["features"], symbols=[100], days=100))


def test_a_stopwatch_takes_the_best_and_leaves_the_preparation_out() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("before")
        sum(range(300_000))

    spent = cpu_seconds(lambda: calls.append("work"), before=slow, best_of=4)
    assert calls == ["before", "work"] * 4
    assert 0 <= spent < cpu_seconds(slow)
    assert 0 < many_times(lambda: sum(range(1_000)), 50) < cpu_seconds(slow)


def test_a_benchmark_that_did_no_work_gives_no_number() -> None:
    with pytest.raises(RuntimeError, match="0 of 5 symbols"):
        expect(False, "0 of 5 symbols were evaluated")


def test_a_ratio_says_how_far_from_the_limit_or_how_much_faster_than_the_rival() -> None:
    fields: dict[str, Any] = {"name": "x", "symbols": 1, "unit": SECONDS, "versus": "y", "value": 2.0, "limit": 8.0}
    assert Figure(**fields).ratio == 0.25
    assert Figure(**fields, rival=True).ratio == 4.0
    assert Figure(**fields).met is None
    assert Figure(**fields, goal=2.0).met is True
    assert Figure(**fields, goal=1.9).met is False


@pytest.mark.parametrize(
    "value, unit, text",
    [(0.01234, SECONDS, "12.3 ms"), (1.85, SECONDS, "1.85 s"), (9, "queries", "9 queries"), (2048.4, "MB", "2,048 MB")],
)
def test_a_person_reads_it_in_the_unit_that_fits(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text

"""Artifact directories: whole or invisible, garbage removed, and loaded in one place of the code (I9, T13)."""

from __future__ import annotations

import ast
import datetime as dt
import os
from pathlib import Path

import pytest

from coverage_app.models import Symbol
from ops_app.clock import SimulatedClock
from ops_app.queue import Message
from tests.factories import TrainingScopeFactory
from tests.training.conftest import make_model, train_model
from training_app import artifacts, housekeeping
from training_app.models import TrainingScope

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tradingsite", "trading_app", "training_app", "coverage_app", "ops_app", "marketdata", "exchanges", "quant")


def loads(path: Path) -> list[str]:
    """Return the functions of `path` that call `MetaModel.load`, however MetaModel is named there."""
    tree = ast.parse(path.read_text())
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "quant.model"
        for alias in node.names
        if alias.name == "MetaModel"
    }
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "load"
                and isinstance(node.value, ast.Name | ast.Attribute)
                and (node.value.id if isinstance(node.value, ast.Name) else node.value.attr) in names | {"MetaModel"}
            ):
                found.append(function.name)
    return found


def test_i9_one_function_of_the_whole_code_loads_a_model() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in loads(path)
    }
    assert found == {("training_app/artifacts.py", "load")}


def test_i9_the_walk_would_find_a_second_one(tmp_path: Path) -> None:
    culprit = tmp_path / "culprit.py"
    culprit.write_text("from quant.model import MetaModel as M\n\ndef sneak(path):\n    return M.load(path)\n")
    assert loads(culprit) == ["sneak"]


def test_a_written_artifact_reads_back_as_the_same_model(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    artifact = train_model(scope, symbols)
    model = artifacts.load(artifact)
    assert model.symbols == tuple(symbol.code for symbol in symbols)
    assert model.booster_text == make_model(model.symbols).booster_text


def test_what_an_interrupted_write_leaves_is_not_in_the_way_and_is_removed(
    scope: TrainingScope, sim: SimulatedClock
) -> None:
    folder = artifacts.root() / artifacts.scope_slug(scope)
    leftover = folder / ".tmp-v1-65537"
    leftover.mkdir(parents=True)
    (leftover / "model.txt").write_text("half")
    model = make_model(["AAA/USDT:USDT"])
    written = artifacts.write_artifact(model, scope=scope, version=1, token=65537, manifest={})
    assert [path.name for path in folder.iterdir()] == ["v1-65537"]
    assert written.size == sum((written.path / name).stat().st_size for name in ("model.txt", "model.json"))


def test_directories_without_a_row_are_removed_when_no_run_can_still_need_them(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    kept = train_model(scope, symbols)
    folder = artifacts.path_of(kept).parent
    for name, hours in (("v8-1", 2.0), (".tmp-v9-2", 2.0), ("v7-3", 0.5)):
        (folder / name).mkdir()
        (folder / name / "model.txt").write_text("x")
        age = (sim.now - dt.timedelta(hours=hours)).timestamp()
        os.utime(folder / name, (age, age))
    old = (sim.now - dt.timedelta(days=9)).timestamp()
    os.utime(artifacts.path_of(kept), (old, old))
    assert housekeeping.remove_orphans() == [f"{folder.name}/.tmp-v9-2", f"{folder.name}/v8-1"]
    assert {path.name for path in folder.iterdir()} == {"v7-3", artifacts.path_of(kept).name}


def test_scopes_whose_names_differ_in_unsafe_characters_only_have_folders_of_their_own() -> None:
    keys = ("single_symbol:simulated:1h:A/USDT", "single_symbol:simulated:1h:A_USDT")
    slugs = {artifacts.scope_slug(TrainingScopeFactory(key=key)) for key in keys}
    assert len(slugs) == 2
    assert all("/" not in slug for slug in slugs)

"""Artifact directories: whole or invisible, garbage removed, and loaded in one place of the code (I9, T13)."""

from __future__ import annotations

import ast
import datetime as dt
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile

from coverage_app.models import Symbol
from marketdata.bucket import Bucket
from marketdata.places import BucketAddress
from ops_app.clock import SimulatedClock
from ops_app.models import Alert
from ops_app.queue import Message
from tests.factories import ArtifactFactory, TrainingScopeFactory
from tests.training.conftest import make_model, train_model
from training_app import artifacts, doctor_checks, housekeeping
from training_app.exceptions import ArtifactError, ArtifactUnreachable
from training_app.models import TrainingScope
from training_app.storage import CACHE_FOLDER, ArtifactStorage, BucketStorage, FolderStorage, artifact_storage

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


@pytest.fixture
def bucket_storage(bucket: Bucket, settings: Any, tmp_path: Path) -> BucketStorage:
    """Artifacts are kept in the local S3 server's bucket; this host has an empty cache."""
    settings.DATA_DIR = tmp_path / "host"
    settings.STORAGE_BUCKET = bucket.address
    settings.STORAGES = settings.STORAGES | {
        "artifacts": {
            "BACKEND": "training_app.storage.BucketStorage",
            "OPTIONS": {"address": bucket.address / "artifacts"},
        }
    }
    storage = artifact_storage()
    assert isinstance(storage, BucketStorage)
    return storage


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest) -> ArtifactStorage:
    return artifact_storage() if request.param == "folder" else request.getfixturevalue("bucket_storage")


def test_a_written_artifact_reads_back_as_the_same_model(
    storage: ArtifactStorage, scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    artifact = train_model(scope, symbols)
    model = artifacts.load(artifact)
    assert model.symbols == tuple(symbol.code for symbol in symbols)
    assert model.booster_text == make_model(model.symbols).booster_text


def test_t13_an_artifact_is_complete_under_the_name_of_its_token_and_never_overwritten(
    storage: ArtifactStorage, scope: TrainingScope
) -> None:
    model, other = make_model(["AAA/USDT:USDT"]), make_model(["AAA/USDT:USDT"], seed=2)
    written = artifacts.write_artifact(model, scope=scope, version=1, token=65537, manifest={"version": 1})
    assert written.directory == f"{artifacts.scope_slug(scope)}/v1-65537"
    kept = storage.contents(written.directory)
    assert sorted(kept) == ["manifest.json", "model.json", "model.txt"]
    assert written.size == len(kept["model.txt"]) + len(kept["model.json"])
    assert json.loads(kept["manifest.json"]) == {"version": 1, "size": written.size, "sha256": written.sha256}
    with pytest.raises(ArtifactError, match="exists already: a fencing token is given once"):
        artifacts.write_artifact(other, scope=scope, version=1, token=65537, manifest={})
    assert storage.contents(written.directory) == kept
    assert list(storage.directories()) == [written.directory], "no draft is left"
    artifacts.remove(written)
    artifacts.remove(written)
    assert list(storage.directories()) == []


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_files_are_noticed_wherever_they_are(
    damage: str,
    storage: ArtifactStorage,
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
) -> None:
    artifact = train_model(scope, symbols)
    name = f"{artifact.directory}/model.txt"
    original = storage.contents(artifact.directory)["model.txt"]
    storage.delete(name)
    if damage != "gone":
        storage.save(name, ContentFile(original[:-9] if damage == "cut" else original[:-9] + b"xxxxxxxxx"))
    with pytest.raises(ArtifactError, match="files were changed" if damage == "changed" else "cut off or missing"):
        artifacts.verify(artifact)


def test_a_model_in_a_bucket_is_fetched_once_and_served_from_the_copy_while_the_storage_is_down(
    bucket_storage: BucketStorage,
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = train_model(scope, symbols)
    copy = artifacts.path_of(artifact)
    monkeypatch.setattr(bucket_storage, "_bucket", Bucket(BucketAddress("gone", "", "http://127.0.0.1:1")))
    assert artifacts.load(artifact).symbols == tuple(symbol.code for symbol in symbols)
    with pytest.raises(ArtifactUnreachable, match="the storage cannot be reached"):
        artifacts.verify_files(artifact)
    assert housekeeping.verify_active_files() == [], "an outage never makes a model count as broken"
    artifact.refresh_from_db()
    assert artifact.integrity_error == ""
    (copy / "model.txt").write_bytes(b"rotten")  # a copy is never trusted: it is fetched again, once that is possible
    with pytest.raises(ArtifactUnreachable):
        artifacts.load(artifact)
    monkeypatch.undo()
    assert artifacts.load(artifact).symbols == tuple(symbol.code for symbol in symbols)
    assert artifacts.path_of(artifact) == copy


def test_a_host_without_room_for_a_copy_convicts_no_model_and_ends_no_bot(
    bucket_storage: BucketStorage,
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    settings: Any,
) -> None:
    artifact = train_model(scope, symbols)
    cache = Path(settings.DATA_DIR) / CACHE_FOLDER
    shutil.rmtree(cache)
    cache.write_text("in the way of the folder")
    with pytest.raises(ArtifactUnreachable, match="no copy can be made on this host"):
        artifacts.load(artifact)
    cache.unlink()
    assert artifacts.load(artifact).symbols == tuple(symbol.code for symbol in symbols)


def test_a_host_keeps_few_copies(bucket_storage: BucketStorage, scope: TrainingScope) -> None:
    model = make_model(["AAA/USDT:USDT"])
    rows = []
    for version in range(1, 6):
        written = artifacts.write_artifact(model, scope=scope, version=version, token=version, manifest={})
        rows.append(ArtifactFactory.build(directory=written.directory, size=written.size, sha256=written.sha256))
    copies = [artifacts.path_of(row) for row in rows]
    assert [copy.is_dir() for copy in copies] == [False, False, True, True, True]
    assert [path.name for path in copies[-1].parent.iterdir() if path.name.startswith(".")] == []


def test_an_upload_that_broke_off_is_removed_as_garbage(
    bucket_storage: BucketStorage, scope: TrainingScope, sim: SimulatedClock
) -> None:
    bucket_storage.save(f"{artifacts.scope_slug(scope)}/v1-9/model.txt", ContentFile(b"half"))
    [(name, written_at)] = bucket_storage.directories().items()
    sim.advance(written_at + dt.timedelta(minutes=50) - sim.now)
    assert housekeeping.remove_orphans() == [], "it may be a run's that is still writing"
    sim.advance(dt.timedelta(minutes=11))
    assert housekeeping.remove_orphans() == [name]
    assert bucket_storage.directories() == {}


def test_the_doctor_tries_what_the_bucket_must_be_able_to_do(
    bucket_storage: BucketStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor_checks.artifact_folder().level == "ok"
    assert list(bucket.entries()) == [], "nothing is left behind"
    put = Bucket._put
    monkeypatch.setattr(Bucket, "_put", lambda self, name, content, _: put(self, name, content, {}))
    finding = doctor_checks.artifact_folder()
    assert (finding.level, "ignores IfNoneMatch, IfMatch" in finding.text) == ("problem", True)


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


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_read_that_fails_for_the_moment_convicts_no_model_and_alerts_once_until_it_works(
    code: int,
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = train_model(scope, symbols)

    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", refuse)
        broken.setattr(FolderStorage, "contents", refuse)
        with pytest.raises(ArtifactUnreachable, match="cannot be read now"):
            artifacts.load(artifact)
        assert housekeeping.verify_active_files() == []
        assert housekeeping.verify_active_files() == []
    artifact.refresh_from_db()
    assert artifact.integrity_error == ""
    alert = Alert.objects.get()
    assert os.strerror(code) in alert.text
    assert alert.resolved_at is None
    assert housekeeping.verify_active_files() == []
    assert Alert.objects.get().resolved_at is not None
    (Path(artifacts.path_of(artifact)) / "model.txt").unlink()
    assert housekeeping.verify_active_files() == [artifact.directory], "what is missing does convict"

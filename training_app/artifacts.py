"""Artifact files: written once under a name that bears the fencing token, verified, and loaded in this one place (I9).

    <ARTIFACTS_DIR>/<scope slug>/v<version>-<token>/{model.txt, model.json, manifest.json}

A directory appears by one rename, complete and synced, before its row is committed; it is never overwritten (T13). A
directory without a row that is older than the longest lease is garbage.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from training_app.exceptions import ArtifactError
from training_app.models import ModelArtifact, TrainingScope

if TYPE_CHECKING:
    from quant.model import MetaModel

MANIFEST_FILE = "manifest.json"
TEMPORARY_PREFIX = ".tmp-"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class WrittenArtifact:
    """A directory below ARTIFACTS_DIR that is complete on disk; `size` and `sha256` cover its model files."""

    directory: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        return root() / self.directory


def root() -> Path:
    return Path(settings.ARTIFACTS_DIR)


def path_of(artifact: ModelArtifact) -> Path:
    """Return the directory of `artifact`. Raises ArtifactError for a path that leaves ARTIFACTS_DIR."""
    path = (root() / artifact.directory).resolve()
    if not path.is_relative_to(root().resolve()):
        raise ArtifactError(f"directory {artifact.directory!r} leaves {root()}: the row was tampered with")
    return path


def scope_slug(scope: TrainingScope) -> str:
    """Return a folder name for the scope; the hash keeps apart keys that differ in unsafe characters only."""
    readable = _UNSAFE.sub("_", scope.key).strip("_")
    return f"{readable}-{hashlib.sha256(scope.key.encode()).hexdigest()[:8]}"


def write_artifact(
    model: MetaModel, *, scope: TrainingScope, version: int, token: int, manifest: dict[str, Any]
) -> WrittenArtifact:
    """Write, sync and rename the artifact of the run that holds `token`.

    Raises ArtifactError when the directory exists: a token is given once, so somebody else wrote there.
    """
    folder = root() / scope_slug(scope)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"v{version}-{token}"
    temporary = folder / f"{TEMPORARY_PREFIX}{name}"
    if temporary.exists():  # this token's own unfinished attempt; nobody else may write under it
        shutil.rmtree(temporary)
    temporary.mkdir()
    model.save(temporary)
    size, sha256 = _digest(temporary)
    text = json.dumps({**manifest, "size": size, "sha256": sha256}, sort_keys=True, indent=1, default=str) + "\n"
    (temporary / MANIFEST_FILE).write_text(text, encoding="utf-8")
    for path in sorted(temporary.iterdir()):
        _sync(path)
    _sync(temporary)
    target = folder / name
    if target.exists():
        shutil.rmtree(temporary)
        raise ArtifactError(f"{target} exists already: a fencing token is given once; look who else writes there")
    temporary.rename(target)
    _sync(folder)
    return WrittenArtifact(directory=f"{folder.name}/{name}", size=size, sha256=sha256)


def remove(written: WrittenArtifact) -> None:
    """Remove the files of a result that was refused."""
    remove_directory(written.directory)


def remove_directory(directory: str) -> None:
    """Remove a directory below ARTIFACTS_DIR that no row names."""
    shutil.rmtree(root() / directory, ignore_errors=True)


def remove_temporary(scope: TrainingScope, token: int) -> None:
    """Remove what an attempt with `token` left unfinished."""
    for path in (root() / scope_slug(scope)).glob(f"{TEMPORARY_PREFIX}v*-{token}"):
        shutil.rmtree(path, ignore_errors=True)


def verify(artifact: ModelArtifact) -> None:
    """Check size, sha256, schema and the probe prediction. Raises ArtifactError that names the first thing wrong."""
    load(artifact)


def verify_files(artifact: ModelArtifact) -> None:
    """Check size and sha256 only: cheap, and without LightGBM. Raises ArtifactError."""
    path = path_of(artifact)
    try:
        size, sha256 = _digest(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    if size != artifact.size:
        raise ArtifactError(f"{path}: {size} bytes, {artifact.size} were written: files are cut off or missing")
    if sha256 != artifact.sha256:
        raise ArtifactError(
            f"{path}: sha256 is {sha256[:12]}…, {artifact.sha256[:12]}… was written: files were changed"
        )


def load(artifact: ModelArtifact) -> MetaModel:
    """Return the verified model of `artifact`: the ONE place that loads a model (I9).

    Raises ArtifactError for files that are missing, cut off, changed, of another schema, or that predict differently.
    """
    from quant.model import MetaModel, ModelError  # LightGBM is not for web processes

    verify_files(artifact)
    try:
        model = MetaModel.load(path_of(artifact))
        model.probe()
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    _check_same(artifact, model)
    return model


def _check_same(artifact: ModelArtifact, model: MetaModel) -> None:
    """The row decides compatibility, so the files must say the same."""
    said = {
        "schema_hash": (model.facts.get("schema_hash", artifact.schema_hash), artifact.schema_hash),
        "symbol_encoding": (model.symbol_encoding, artifact.symbol_encoding),
        "panel_symbols": (list(model.panel_symbols), list(artifact.panel_symbols)),
    }
    for name, (in_files, in_row) in said.items():
        if in_files != in_row:
            raise ArtifactError(f"{artifact.directory}: {name} is {in_files} in the files, {in_row} in the database")


def _digest(directory: Path) -> tuple[int, str]:
    """Return total size and sha256 over the sorted names and contents of all files but the manifest."""
    digest = hashlib.sha256()
    size = 0
    paths = sorted(path for path in directory.iterdir() if path.name != MANIFEST_FILE)
    for path in paths:
        content = path.read_bytes()
        size += len(content)
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return size, digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Artifact files: written once under a name that bears the fencing token, verified, and loaded in this one place (I9).

    <scope slug>/v<version>-<token>/{model.txt, model.json, manifest.json}, in `training_app.storage`

A directory is complete and durable before its row is committed, and it is never overwritten (T13). A directory without
a row that is older than the longest lease is garbage.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from marketdata.errors import BucketError
from training_app.exceptions import ArtifactError, ArtifactUnreachable
from training_app.models import ModelArtifact, TrainingScope
from training_app.storage import artifact_storage

if TYPE_CHECKING:
    from quant.model import MetaModel

MANIFEST_FILE = "manifest.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class WrittenArtifact:
    """A directory that is complete in the storage; `size` and `sha256` cover its model files."""

    directory: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        """Its folder, where artifacts are kept in one."""
        return root() / self.directory


def root() -> Path:
    """Return the folder of artifacts, where they are kept in one."""
    return Path(settings.ARTIFACTS_DIR)


def directory_of(artifact: ModelArtifact) -> str:
    """Return the name of its directory in the storage. Raises ArtifactError for one that leaves it."""
    parts = Path(artifact.directory).parts
    if not parts or Path(artifact.directory).is_absolute() or ".." in parts:
        raise ArtifactError(f"directory {artifact.directory!r} leaves {root()}: the row was tampered with")
    return artifact.directory


def path_of(artifact: ModelArtifact) -> Path:
    """Return a local folder with the files of `artifact`: its own, or a copy of what is in the bucket.

    A copy that is whole is used without asking the bucket, so that a bot can start while the storage is down.
    Raises ArtifactError for a path that leaves ARTIFACTS_DIR, and ArtifactUnreachable.
    """
    directory = directory_of(artifact)
    try:
        with _reaching(directory):
            return artifact_storage().local(directory, partial(_is_copy_of, artifact))
    except OSError as error:  # a full disk, say: the bot must go on with the model that it holds
        raise ArtifactUnreachable(
            f"{directory}: no copy can be made on this host: {error.strerror or error}"
        ) from error


def _is_copy_of(artifact: ModelArtifact, folder: Path) -> bool:
    try:
        return _digest(_files(folder)) == (artifact.size, artifact.sha256)
    except OSError:
        return False  # half of it was removed, say: it is fetched again


def scope_slug(scope: TrainingScope) -> str:
    """Return a folder name for the scope; the hash keeps apart keys that differ in unsafe characters only."""
    readable = _UNSAFE.sub("_", scope.key).strip("_")
    return f"{readable}-{hashlib.sha256(scope.key.encode()).hexdigest()[:8]}"


def write_artifact(
    model: MetaModel, *, scope: TrainingScope, version: int, token: int, manifest: dict[str, Any]
) -> WrittenArtifact:
    """Write the artifact of the run that holds `token`, durably, under a name that bears the token.

    Raises ArtifactError when the directory exists: a token is given once, so somebody else wrote there. Raises
    ArtifactUnreachable when the storage does not answer.
    """
    directory = f"{scope_slug(scope)}/v{version}-{token}"
    storage = artifact_storage()
    with _reaching(directory):
        draft = storage.draft(directory)
        model.save(draft)
        size, sha256 = _digest(_files(draft))
        text = json.dumps({**manifest, "size": size, "sha256": sha256}, sort_keys=True, indent=1, default=str) + "\n"
        (draft / MANIFEST_FILE).write_text(text, encoding="utf-8")
        try:
            storage.publish(draft, directory)
        except FileExistsError as error:
            raise ArtifactError(
                f"{error.filename} exists already: a fencing token is given once; look who else writes there"
            ) from error
    return WrittenArtifact(directory=directory, size=size, sha256=sha256)


def remove(written: WrittenArtifact) -> None:
    """Remove the files of a result that was refused."""
    remove_directory(written.directory)


def remove_directory(directory: str) -> None:
    """Remove a directory that no row names."""
    with _reaching(directory):
        artifact_storage().remove(directory)


def remove_temporary(scope: TrainingScope, token: int) -> None:
    """Remove what an attempt with `token` left unfinished."""
    artifact_storage().discard_drafts(scope_slug(scope), token)


def verify(artifact: ModelArtifact) -> None:
    """Check size, sha256, schema and the probe prediction. Raises ArtifactError that names the first thing wrong."""
    verify_files(artifact)  # what is stored, and not only this host's copy of it
    load(artifact)


def verify_files(artifact: ModelArtifact) -> None:
    """Check size and sha256 of what is stored: cheap, and without LightGBM.

    Raises ArtifactError, or ArtifactUnreachable when nothing can be said about the files now.
    """
    path = directory_of(artifact)
    with _reading(path):
        size, sha256 = _digest(artifact_storage().contents(path))
    _compare(artifact, size, sha256)


def _compare(artifact: ModelArtifact, size: int, sha256: str) -> None:
    path = artifact.directory
    if size != artifact.size:
        raise ArtifactError(f"{path}: {size} bytes, {artifact.size} were written: files are cut off or missing")
    if sha256 != artifact.sha256:
        raise ArtifactError(
            f"{path}: sha256 is {sha256[:12]}…, {artifact.sha256[:12]}… was written: files were changed"
        )


def load(artifact: ModelArtifact) -> MetaModel:
    """Return the verified model of `artifact`: the ONE place that loads a model (I9).

    Raises ArtifactError for files that are missing, cut off, changed, of another schema, or that predict differently,
    and ArtifactUnreachable when they cannot be read now.
    """
    from quant.model import MetaModel, ModelError  # LightGBM is not for web processes

    path = path_of(artifact)
    with _reading(str(path)):
        try:
            _compare(artifact, *_digest(_files(path)))
            model = MetaModel.load(path)
            model.probe()
        except ModelError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            raise ArtifactError(str(error)) from error
    _check_same(artifact, model)
    return model


def _check_same(artifact: ModelArtifact, model: MetaModel) -> None:
    """The row decides compatibility, so the files must say the same."""
    said = {
        "schema_hash": (model.facts.get("schema_hash", artifact.schema_hash), artifact.schema_hash),
        "symbol_encoding": (model.symbol_encoding, artifact.symbol_encoding),
        "blend": (model.blend, artifact.blend),
        "panel_symbols": (list(model.panel_symbols), list(artifact.panel_symbols)),
    }
    for name, (in_files, in_row) in said.items():
        if in_files != in_row:
            raise ArtifactError(f"{artifact.directory}: {name} is {in_files} in the files, {in_row} in the database")


def _digest(contents: Mapping[str, bytes]) -> tuple[int, str]:
    """Return total size and sha256 over the sorted names and contents of all files but the manifest."""
    digest = hashlib.sha256()
    size = 0
    for name in sorted(contents):
        if name == MANIFEST_FILE:
            continue
        size += len(contents[name])
        digest.update(f"{name}\0{len(contents[name])}\0".encode())
        digest.update(contents[name])
    return size, digest.hexdigest()


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def _reaching(directory: str) -> Iterator[None]:
    """A storage that does not answer says nothing about the files: it must never make a model count as broken."""
    try:
        yield
    except BucketError as error:
        raise ArtifactUnreachable(f"{directory}: {error}") from error


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Only what is not there convicts a model: no descriptors left, or a disk that stutters, is over in a minute."""
    try:
        with _reaching(path):
            yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: files are missing: {error.strerror}") from error
    except OSError as error:
        raise ArtifactUnreachable(f"{path}: cannot be read now: {error.strerror or error}") from error

"""Where artifacts are kept: Django's `storages["artifacts"]`, a folder or a bucket, as STORAGE_URL says.

Both keep a directory of files under a name that bears the fencing token, and never overwrite one (T13). In a folder a
directory appears by one rename. In a bucket its files appear one by one, each whole, by a PUT on the condition that
there is none; nobody looks at them before their row is committed, and that is after they were read back.
"""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.files.base import ContentFile, File
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.utils.deconstruct import deconstructible

from marketdata.bucket import Bucket
from marketdata.places import BucketAddress, sync

ALIAS = "artifacts"
TEMPORARY_PREFIX = ".tmp-"
CACHE_FOLDER = "artifact_cache"
CACHED_PER_SCOPE = 3
"""Copies that are kept of a scope's artifacts: the one that serves, the one before, and one to compare with."""


class ArtifactStorage(Storage, ABC):
    """What artifacts need of a storage. Names are relative; a directory is `<scope>/v<version>-<token>`."""

    @abstractmethod
    def draft(self, directory: str) -> Path:
        """Return an empty local folder to write the files of `directory` into."""

    @abstractmethod
    def publish(self, draft: Path, directory: str) -> None:
        """Make the files of `draft` those of `directory`, durably. Raises FileExistsError; the draft is gone then."""

    @abstractmethod
    def discard_drafts(self, scope: str, token: int) -> None:
        """Remove what an attempt with `token` left unfinished."""

    @abstractmethod
    def local(self, directory: str, is_whole: Callable[[Path], bool]) -> Path:
        """Return a local folder with the files of `directory`; `is_whole` tells whether an older copy can be used."""

    def contents(self, directory: str) -> dict[str, bytes]:
        """Return the files of `directory` as they are stored now, by name. Raises OSError."""
        found = {}
        for name in sorted(self.listdir(directory)[1]):
            with self.open(f"{directory}/{name}") as file:
                found[name] = file.read()
        return found

    @abstractmethod
    def remove(self, directory: str) -> None:
        """Remove `directory`, as far as it is there."""

    @abstractmethod
    def directories(self) -> Mapping[str, dt.datetime]:
        """Return every directory, finished or not, and when it was last written to."""


@deconstructible
class FolderStorage(FileSystemStorage, ArtifactStorage):
    """Below ARTIFACTS_DIR, which may be shared by several hosts."""

    @property
    def base_location(self) -> Any:
        return settings.ARTIFACTS_DIR

    @property
    def location(self) -> Any:
        return str(Path(settings.ARTIFACTS_DIR).resolve())

    def draft(self, directory: str) -> Path:
        scope, _, name = directory.partition("/")
        draft = Path(self.location) / scope / f"{TEMPORARY_PREFIX}{name}"
        if draft.exists():  # this token's own unfinished attempt; nobody else may write under it
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        return draft

    def publish(self, draft: Path, directory: str) -> None:
        for path in sorted(draft.iterdir()):
            sync(path)
        sync(draft)
        target = Path(self.location) / directory
        if target.exists():
            shutil.rmtree(draft)
            raise FileExistsError(17, "exists already", str(target))
        draft.rename(target)
        sync(target.parent)

    def discard_drafts(self, scope: str, token: int) -> None:
        for path in (Path(self.location) / scope).glob(f"{TEMPORARY_PREFIX}v*-{token}"):
            shutil.rmtree(path, ignore_errors=True)

    def local(self, directory: str, is_whole: Callable[[Path], bool]) -> Path:  # noqa: ARG002 - the original, no copy
        return Path(self.location) / directory

    def remove(self, directory: str) -> None:
        shutil.rmtree(Path(self.location) / directory, ignore_errors=True)

    def directories(self) -> Mapping[str, dt.datetime]:
        root = Path(self.location)
        if not root.is_dir():
            return {}
        return {
            f"{scope.name}/{path.name}": dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)
            for scope in _folders(root)
            for path in _folders(scope)
        }


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())


@deconstructible
class BucketStorage(ArtifactStorage):
    """Below a prefix of a bucket, with a cache of what this host loads in DATA_DIR."""

    def __init__(self, address: BucketAddress) -> None:
        self._bucket = Bucket(address)

    def __str__(self) -> str:
        return str(self._bucket)

    # ------------------------------------------------------- Django's storage
    def _open(self, name: str, mode: str = "rb") -> File[bytes]:  # noqa: ARG002 - Django's signature
        return ContentFile(self._bucket.read(name), name=name)

    def _save(self, name: str, content: IO[bytes]) -> str:
        self._bucket.create(name, content.read())
        return name

    def get_available_name(self, name: str, max_length: int | None = None) -> str:  # noqa: ARG002 - Django's signature
        """Return `name` itself: an object that exists is an error here, never a reason for another name."""
        return name

    def exists(self, name: str) -> bool:
        return self._bucket.find(name) is not None

    def delete(self, name: str) -> None:
        self._bucket.delete(name)

    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        names = [entry.name for entry in (self._bucket / path).entries()]
        folders = sorted({name.partition("/")[0] for name in names if "/" in name})
        return folders, [name for name in names if "/" not in name]

    def size(self, name: str) -> int:
        return len(self._bucket.read(name))

    # -------------------------------------------------------------- artifacts
    def draft(self, directory: str) -> Path:
        target = _cache() / directory
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{target.name}-", dir=target.parent))

    def publish(self, draft: Path, directory: str) -> None:
        try:
            written = {path.name: path.read_bytes() for path in sorted(draft.iterdir())}
            for name, content in written.items():
                self.save(f"{directory}/{name}", ContentFile(content))
            if self.contents(directory) != written:
                raise OSError(5, "reads back differently from what was written", f"{self._bucket}/{directory}")
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def discard_drafts(self, scope: str, token: int) -> None:
        """Remove local drafts; what an upload left in the bucket, the tidy job removes."""
        for path in (_cache() / scope).glob(f"{TEMPORARY_PREFIX}v*-{token}-*"):
            shutil.rmtree(path, ignore_errors=True)

    def local(self, directory: str, is_whole: Callable[[Path], bool]) -> Path:
        target = _cache() / directory
        if target.is_dir() and is_whole(target):
            target.touch()  # used: it is not the next one to go
            return target
        contents = self.contents(directory)
        draft = self.draft(directory)
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        shutil.rmtree(target, ignore_errors=True)  # not whole, or not there
        try:
            draft.rename(target)
        except OSError:  # another process of this host fetched it meanwhile
            shutil.rmtree(draft, ignore_errors=True)
        by_age = sorted(_folders(target.parent), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[CACHED_PER_SCOPE:]:
            shutil.rmtree(path, ignore_errors=True)
        return target

    def remove(self, directory: str) -> None:
        for name in self.listdir(directory)[1]:
            self.delete(f"{directory}/{name}")

    def directories(self) -> Mapping[str, dt.datetime]:
        newest: dict[str, dt.datetime] = {}
        for entry in self._bucket.entries():
            directory, _, name = entry.name.rpartition("/")
            if directory and name:
                newest[directory] = max(entry.modified_at, newest.get(directory, entry.modified_at))
        return newest


def _cache() -> Path:
    return Path(settings.DATA_DIR) / CACHE_FOLDER


def artifact_storage() -> ArtifactStorage:
    """Return the storage of artifacts that STORAGE_URL names."""
    storage = storages[ALIAS]
    if not isinstance(storage, ArtifactStorage):
        raise TypeError(f'STORAGES["{ALIAS}"] is {type(storage).__name__}: it must be an ArtifactStorage')
    return storage

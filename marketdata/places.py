"""Where files are kept: a folder (of this machine, or shared by several), or a prefix of an S3-compatible bucket.

Both promise the same three things. A file appears whole or not at all. A reader that has opened a file reads that file
to its end, whatever replaces it. A writer replaces only the file that it has read: if another one came in between, it
is told so (`ReplacedMeanwhile`) and nothing is changed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

TEMPORARY = ".tmp"
_counter = itertools.count()


class ReplacedMeanwhile(Exception):  # noqa: N818 - it names what happened, like LeaseLost
    """The file is not the one any more that was read: what was made of it must not be written. Read it again."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that was found: what a Parquet reader opens, and which of the files of this name it was."""

    source: Any
    version: object


class Place(Protocol):
    """A folder or a prefix. `str(place)` and `str(place / name)` are for people."""

    def __truediv__(self, name: str) -> Place: ...

    def names(self, suffix: str) -> list[str]:
        """Return the sorted names of the files here that end with `suffix`; none where there is no folder."""

    def find(self, name: str) -> Stored | None:
        """Return the file, ready to be read to its end, or None."""

    def prepare(self) -> None:
        """Make room for writing, and clear away what a killed writer left: there is one writer at a time."""

    def replace(
        self, name: str, write: Callable[[IO[bytes]], None], *, version: object, guard: Callable[[], None]
    ) -> None:
        """Write a file in place of the one that was found as `version` (None: there was none).

        `guard` is called when the content is complete, right before it becomes visible, and stops that by raising.
        Raises ReplacedMeanwhile; whatever is raised, nothing has changed.
        """


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the file system. It need not exist yet."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.path / name)

    def names(self, suffix: str) -> list[str]:
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.glob(f"*{suffix}"))

    def find(self, name: str) -> Stored | None:
        version = _version(self.path / name)
        return None if version is None else Stored(self.path / name, version)

    def prepare(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(f".*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)

    def replace(
        self, name: str, write: Callable[[IO[bytes]], None], *, version: object, guard: Callable[[], None]
    ) -> None:
        """Temporary name, fsync, guard, rename.

        A process that is frozen after its guard has let it pass is fenced by its successor: `prepare` removes the
        temporary file, so that the rename fails. On a file system that shows another host's new files late, the look
        at the version is the second line.
        """
        path = self.path / name
        temporary = path.with_name(f".{name}.{os.getpid()}-{next(_counter)}{TEMPORARY}")
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            guard()
            if _version(path) != version:
                raise ReplacedMeanwhile(str(path))
            try:
                temporary.replace(path)
            except FileNotFoundError as error:
                raise ReplacedMeanwhile(str(path)) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(self.path)


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """An S3-compatible bucket. Credentials are never part of it: they come from AWS's own variables or files."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None

    def __truediv__(self, name: str) -> BucketAddress:
        return replace(self, prefix=f"{self.prefix}/{name}".lstrip("/"))

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}{at}"


def parse_storage_url(url: str) -> Path | BucketAddress | None:
    """Return what a storage URL names: a folder, a bucket, or (empty) nothing.

    `file:///mnt/shared/bot`, or `s3://bucket/prefix?endpoint=https://host:port&region=name`. Raises ValueError with
    the rule, and without the URL: somebody may have written a password into it.
    """
    if not url.strip():
        return None
    parts = urlsplit(url.strip())
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query:
            raise ValueError("must be file:///absolute/folder: three slashes, no host, no options")
        return Path(unquote(parts.path))
    if parts.scheme != "s3":
        raise ValueError("must begin with file:/// (a shared folder) or s3:// (a bucket)")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "must not hold credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, "
            "or in the file that AWS_SHARED_CREDENTIALS_FILE names"
        )
    if not parts.netloc:
        raise ValueError("must name a bucket: s3://bucket/prefix")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(options.keys() - {"endpoint", "region"})
    if unknown:
        raise ValueError(f"has the option {unknown[0]!r}; only endpoint and region are known")
    endpoint = options.get("endpoint") or None
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ValueError("its endpoint must begin with http:// or https://")
    if endpoint is not None and urlsplit(endpoint).username is not None:
        raise ValueError("must not hold credentials, also not in its endpoint")
    return BucketAddress(parts.netloc, unquote(parts.path).strip("/"), endpoint, options.get("region") or None)

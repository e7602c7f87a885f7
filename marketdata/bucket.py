"""A prefix of an S3-compatible bucket, through boto3.

Why not Arrow's own S3 file system: it cannot put an object on a condition, so a paused writer would overwrite a newer
month with an older one; and its ranged reads are not tied to one version of the object, so a reader could get the old
footer and the new data. Here every read of an opened object bears `If-Match` with its ETag, and every write `If-Match`
with the ETag that was read, or `If-None-Match: *` where there was nothing. The server must honour both: `doctor` tries.
"""

from __future__ import annotations

import datetime as dt
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from marketdata.errors import BucketError
from marketdata.places import BucketAddress, ReplacedMeanwhile, Stored

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 3, 20, 3
TAIL_BYTES = 65_536
"""Fetched at once when an object is opened: the footer, and all of a small object. Arrow asks for as much."""
_FAILED_CONDITION = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_MISSING = {"NoSuchKey", "404", "NotFound"}

_clients: dict[tuple[int, str | None, str | None], Any] = {}


def client_of(address: BucketAddress) -> Any:
    """Return this process's client: a connection must not be shared with a forked child."""
    key = (os.getpid(), address.endpoint, address.region)
    if key not in _clients:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise BucketError(f"{address}: boto3 is not installed: install requirements-scale.txt") from error
        # Whatever LOG_LEVEL says: at `debug` it would write the headers of requests, with what is signed there.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "max_attempts": ATTEMPTS},
            # Another maker's server may not know the checksums that newer SDKs send by themselves.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if address.endpoint else "auto"},
        )
        _clients[key] = boto3.client(
            "s3", endpoint_url=address.endpoint, region_name=address.region or "us-east-1", config=config
        )
    return _clients[key]


def close_clients() -> None:
    """Close this process's connections: for tests, whose server goes away."""
    for key in [key for key in _clients if key[0] == os.getpid()]:
        _clients.pop(key).close()


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn the SDK's errors into ours: FileNotFoundError, ReplacedMeanwhile, else BucketError that names `what`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        said = error.response.get("Error", {})
        code = str(said.get("Code", ""))
        if code in _MISSING:
            raise FileNotFoundError(2, "is not in the bucket", what) from error
        if code in _FAILED_CONDITION:
            raise ReplacedMeanwhile(what) from error
        raise BucketError(
            f"{what}: the storage refuses: {code} {error.response['Error'].get('Message', '')}"
        ) from error
    except BotoCoreError as error:
        raise BucketError(f"{what}: the storage cannot be reached: {error}") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """An object below a prefix: its name from there on, its size in bytes, and when it was last written."""

    name: str
    size: int
    modified_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Bucket:
    """A prefix of a bucket, as a `Place`."""

    address: BucketAddress

    def __str__(self) -> str:
        return str(self.address)

    def __truediv__(self, name: str) -> Bucket:
        return Bucket(self.address / name)

    # ------------------------------------------------------------- as a Place
    def names(self, suffix: str) -> list[str]:
        entries = self.entries()
        return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and "/" not in entry.name)

    def find(self, name: str) -> Stored | None:
        source = PinnedObject(self, name)
        try:
            source.open()
        except FileNotFoundError:
            return None
        return Stored(source, source.etag)

    def prepare(self) -> None:
        """Nothing: a bucket has no folders, and an upload that was not finished is no object."""

    def replace(
        self, name: str, write: Callable[[IO[bytes]], None], *, version: object, guard: Callable[[], None]
    ) -> None:
        """One conditional PUT, which the server does wholly or not at all, and only once per version."""
        content = io.BytesIO()
        write(content)
        guard()
        self._put(name, content.getvalue(), {"IfNoneMatch": "*"} if version is None else {"IfMatch": version})

    # ---------------------------------------------------------------- objects
    def create(self, name: str, content: bytes) -> None:
        """Write an object that must not exist yet. Raises FileExistsError if it does."""
        try:
            self._put(name, content, {"IfNoneMatch": "*"})
        except ReplacedMeanwhile as error:
            raise FileExistsError(17, "is in the bucket already", self._title(name)) from error

    def read(self, name: str) -> bytes:
        """Return the content of one version of the object. Raises FileNotFoundError."""
        body, _ = self.get(name)
        return body

    def get(self, name: str, **conditions: Any) -> tuple[bytes, dict[str, Any]]:
        """Return content (bytes) and answer of one GET. Raises FileNotFoundError, ReplacedMeanwhile, BucketError."""
        with _asking(self._title(name)):
            answer = client_of(self.address).get_object(Bucket=self.address.bucket, Key=self._key(name), **conditions)
            with answer["Body"] as stream:
                return stream.read(), answer

    def delete(self, name: str) -> None:
        """Remove the object; it need not exist."""
        with _asking(self._title(name)):
            client_of(self.address).delete_object(Bucket=self.address.bucket, Key=self._key(name))

    def ignored_conditions(self, name: str) -> list[str]:
        """Write, read and remove `name`; return which conditions of a write the server does not honour: best, none.

        Raises BucketError when it cannot be reached, or refuses to write or read.
        """
        ignored = []
        self._put(name, b"first", {})
        try:
            if self.read(name) != b"first":
                raise BucketError(f"{self._title(name)} reads back differently from what was written")
            for condition, value in (("IfNoneMatch", "*"), ("IfMatch", '"0123456789abcdef0123456789abcdef"')):
                try:
                    self._put(name, b"second", {condition: value})
                    ignored.append(condition)
                except ReplacedMeanwhile:
                    continue
        finally:
            self.delete(name)
        return ignored

    def entries(self) -> Iterator[Entry]:
        """Every object below this prefix, in the order of the names."""
        start = f"{self.address.prefix}/".lstrip("/")
        with _asking(str(self)):
            pages = client_of(self.address).get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.address.bucket, Prefix=start):
                for found in page.get("Contents", ()):
                    yield Entry(found["Key"][len(start) :], found["Size"], found["LastModified"])

    def _put(self, name: str, content: bytes, condition: dict[str, Any]) -> None:
        with _asking(self._title(name)):
            client_of(self.address).put_object(
                Bucket=self.address.bucket, Key=self._key(name), Body=content, **condition
            )

    def _key(self, name: str) -> str:
        return f"{self.address.prefix}/{name}".lstrip("/")

    def _title(self, name: str) -> str:
        return str(self / name)


class PinnedObject(io.RawIOBase):
    """One version of an object as a seekable file: a read of another version raises ReplacedMeanwhile."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        super().__init__()
        self._bucket, self._name = bucket, name
        self._position = self._size = 0
        self._tail = b""
        self.etag = ""

    def open(self) -> None:
        """Fetch the end of the object, its size and its version in one request. Raises FileNotFoundError."""
        try:
            self._tail, answer = self._bucket.get(self._name, Range=f"bytes=-{TAIL_BYTES}")
        except BucketError as error:
            if "InvalidRange" not in str(error):
                raise
            self._tail, answer = self._bucket.get(self._name)  # an empty object has no range
        self.etag = answer["ETag"]
        self._size = int(str(answer.get("ContentRange", f"/{len(self._tail)}")).rpartition("/")[2])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        end = self._size if size is None or size < 0 else min(start + size, self._size)
        if start >= end:
            return b""
        self._position = end
        tail_start = self._size - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start : end - tail_start]
        content, _ = self._bucket.get(self._name, Range=f"bytes={start}-{end - 1}", IfMatch=self.etag)
        return content

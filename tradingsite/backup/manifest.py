"""What a backup says of itself, and the check that it is still what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tradingsite.backup.errors import BackupError

FORMAT = 1
FILE_NAME = "manifest.json"
CHUNK = 1 << 20
PRIVATE, USUAL = 0o600, 0o666
"""Rights of files: for their owner only, as password hashes are among them; or as the umask says."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the backup: path below its folder, bytes, and sha256 of its content."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that is needed to judge a backup without the database that it came from."""

    made_at: str
    vendor: str
    database_file: str
    exchange: str
    market: str
    migrations: tuple[tuple[str, str], ...]
    counts: dict[str, int]
    files: tuple[FileEntry, ...]
    elsewhere: dict[str, str] = field(default_factory=dict)
    """What was not copied because it lies on shared storage: name -> address."""
    format: int = FORMAT

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)

    def write(self, folder: Path) -> None:
        """Write and sync the manifest: the last file of a backup."""
        text = json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"
        with new_file(folder / FILE_NAME, mode=PRIVATE) as file:
            file.write(text.encode())
            sync(file)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the backup in `folder`. Raises BackupError for what is no whole backup."""
    path = folder / FILE_NAME
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BackupError(f"{folder} is not a backup: it has no {FILE_NAME}. {_nearest(folder)}") from None
    except (OSError, ValueError) as error:
        raise BackupError(f"{path} cannot be read ({error}): take another backup") from error
    if raw.get("format") != FORMAT:
        raise BackupError(
            f"{path} has format {raw.get('format')!r}, this code reads {FORMAT}: use the code that made it"
        )
    try:
        files = tuple(FileEntry(**entry) for entry in raw.pop("files"))
        migrations = tuple((str(app), str(name)) for app, name in raw.pop("migrations"))
        return Manifest(**raw, files=files, migrations=migrations)
    except (KeyError, TypeError, ValueError) as error:
        raise BackupError(f"{path} is not a manifest of this program ({error}): take another backup") from error


def backups_in(folder: Path) -> list[Path]:
    """Return the whole backups below `folder`, oldest first."""
    return sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}") if not path.parent.name.startswith("."))


def _nearest(folder: Path) -> str:
    inside = backups_in(folder)
    return f"Did you mean {inside[-1]}?" if inside else "Give the folder that `manage.py backup` printed."


def verify(folder: Path, manifest: Manifest) -> None:
    """Read every file again. Raises BackupError that names all that are missing, cut off, changed or strange."""
    problems = []
    for entry in manifest.files:
        path = folder / entry.path
        if ".." in path.parts or not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{entry.path} leaves the backup's folder")
            continue
        try:
            size, sha256 = digest(path)
        except OSError as error:
            problems.append(f"{entry.path} cannot be read ({error.strerror})")
            continue
        if (size, sha256) != (entry.size, entry.sha256):
            problems.append(f"{entry.path} was changed: {size} bytes, {entry.size} were written")
    strange = {path.relative_to(folder).as_posix() for path in files_below(folder)}
    strange -= {entry.path for entry in manifest.files} | {FILE_NAME}
    problems += [f"{path} is not in the manifest" for path in sorted(strange)]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise BackupError(f"{folder} is damaged: {shown}. Nothing was changed. Take another backup.")


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below `folder`, sorted."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def digest(path: Path) -> tuple[int, str]:
    """Return size and sha256 of a file, without holding it in memory."""
    result, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            result.update(chunk)
            size += len(chunk)
    return size, result.hexdigest()


def new_file(path: Path, *, mode: int) -> Any:
    """Create `path` with the rights `mode`, and open it for writing bytes. Raises FileExistsError."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb")


def sync(file: Any) -> None:
    """Make the content of an open file survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_file(source: Path, target: Path, *, name: str, mode: int = PRIVATE) -> FileEntry:
    """Copy one file, synced; returns its entry under `name`. A file that is replaced meanwhile is copied as it was."""
    result, size = hashlib.sha256(), 0
    for folder in reversed([each for each in target.parents if not each.exists()]):
        folder.mkdir(mode=mode | mode >> 2 & 0o111)  # whoever may read may enter
    with source.open("rb") as reader, new_file(target, mode=mode) as writer:
        while chunk := reader.read(CHUNK):
            result.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        sync(writer)
    return FileEntry(name, size, result.hexdigest())

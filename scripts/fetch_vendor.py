"""Fetch the browser libraries that are served from static/vendor/, and check the ones that are there.

    python3 scripts/fetch_vendor.py           compare the files with checksums.json
    python3 scripts/fetch_vendor.py --fetch   get them anew with the `npm` client, which checks what it downloads

They are committed: a clone works without Node.js, and no page loads code from another server.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VENDOR = Path(__file__).resolve().parent.parent / "static" / "vendor"
CHECKSUMS = "checksums.json"


class Library(NamedTuple):
    """A package of the registry and the files of it that are kept: member of the archive -> path below VENDOR."""

    package: str
    version: str
    files: dict[str, str]


LIBRARIES = (
    Library(
        "lightweight-charts",
        "5.2.1",
        {
            "package/dist/lightweight-charts.standalone.production.js": "lightweight-charts/lightweight-charts.js",
            "package/LICENSE": "lightweight-charts/LICENSE",
        },
    ),
)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problems(folder: Path = VENDOR) -> list[str]:
    """Return what is wrong with the vendored files: changed, missing, or not in the list; empty if all is well."""
    expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    found = [f"{name}: is missing" for name in sorted(set(expected) - present)]
    found += [f"{name}: is not in {CHECKSUMS}" for name in sorted(present - set(expected))]
    found += [
        f"{name}: differs from its checksum in {CHECKSUMS}"
        for name in sorted(present & set(expected))
        if checksum(folder / name) != expected[name]
    ]
    return found


def fetch(library: Library, folder: Path = VENDOR) -> None:
    """Download `library` and put its files below `folder`."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            ["npm", "pack", "--silent", f"{library.package}@{library.version}"],
            cwd=work,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        (archive,) = Path(work).glob("*.tgz")
        with tarfile.open(archive) as tar:
            for member, name in library.files.items():
                content = tar.extractfile(member)
                if content is None:
                    raise SystemExit(f"{library.package} {library.version}: {member} is no file. Mend LIBRARIES.")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)


def write_checksums(folder: Path = VENDOR) -> None:
    """Record the files that are there now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    listed = {path.relative_to(folder).as_posix(): checksum(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch", action="store_true", help="download the files and rewrite checksums.json")
    if parser.parse_args().fetch:
        for library in LIBRARIES:
            fetch(library)
            print(f"{library.package} {library.version}: fetched")
        write_checksums()
    found = problems()
    print("\n".join(found) or "All vendored files are as recorded.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Rules for the files: short ones, none that names a package index, vendored ones as they were fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import fetch_vendor
from tests.conventions import walker

LONGEST_FILE = 450
#: file -> why it is longer.
LONG_FILES: dict[str, str] = {
    "quant/kernel.py": "numba's cache notices changes of a kernel's own file only, so its helpers stay in it",
}

#: Index, registry and CDN hosts, joined here so that this file does not name them either.
FORBIDDEN_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("jsdelivr", "net"),
        ("unpkg", "com"),
        ("cdnjs", "cloudflare", "com"),
        ("fonts", "googleapis", "com"),
        ("huggingface", "co"),
    )
)


def is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:4096]


def test_no_file_of_the_packages_is_too_long_to_be_read_at_once() -> None:
    lengths = {walker.name_of(path): len(path.read_text().splitlines()) for path in walker.package_files()}
    assert lengths
    too_long = {name: length for name, length in lengths.items() if length > LONGEST_FILE and name not in LONG_FILES}
    assert too_long == {}, f"split files of more than {LONGEST_FILE} lines by what they are about"
    assert [name for name in LONG_FILES if lengths.get(name, 0) <= LONGEST_FILE] == [], "exemptions no longer needed"


def test_no_file_names_a_package_index_or_a_server_of_scripts() -> None:
    assert len(walker.project_files()) > 50
    found = [
        f"{walker.name_of(path)}: {host}"
        for path in walker.project_files()
        if is_text(path)
        for host in FORBIDDEN_HOSTS
        if host in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert found == []


def test_nothing_that_a_running_site_writes_is_part_of_the_project() -> None:
    suffixes = {".sqlite3", ".db", ".pyc", ".pem", ".key", ".log", ".pkl", ".pickle", ".joblib"}
    assert [walker.name_of(path) for path in walker.project_files() if path.suffix in suffixes] == []
    assert [walker.name_of(path) for path in walker.project_files() if path.name == ".env"] == []


def test_vendored_files_are_as_they_were_fetched() -> None:
    assert fetch_vendor.problems() == []


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_vendored_file_is_found(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "vendor"
    shutil.copytree(fetch_vendor.VENDOR, folder)
    victim = folder / "lightweight-charts" / "lightweight-charts.js"
    if damage == "changed":
        victim.write_bytes(victim.read_bytes() + b" ")
    elif damage == "missing":
        victim.unlink()
    else:
        (folder / "stray.js").touch()
    expected = {"changed": "differs from its checksum", "missing": "is missing", "added": "is not in checksums.json"}
    (problem,) = fetch_vendor.problems(folder)
    assert expected[damage] in problem


def test_every_vendored_library_keeps_its_license() -> None:
    for library in fetch_vendor.LIBRARIES:
        assert any(Path(name).name == "LICENSE" for name in library.files.values()), library.package

"""What the convention tests walk: the files of the project that are tracked, or would be, by git."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APPS = ("tradingsite", "trading_app", "training_app", "coverage_app", "ops_app")
PACKAGES = (*APPS, "marketdata", "exchanges", "quant")


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Return every file that belongs to the project: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


@functools.cache
def package_files(*packages: str) -> tuple[Path, ...]:
    """Return the Python files of `packages` (all of the project's if none is named), without migrations."""
    wanted = packages or PACKAGES
    return tuple(
        path
        for path in project_files()
        if path.suffix == ".py"
        and path.relative_to(ROOT).parts[0] in wanted
        and "migrations" not in path.relative_to(ROOT).parts
    )


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """Return the path below the project, as it is written in exemptions and messages."""
    return path.relative_to(ROOT).as_posix()


def imported_names(module: ast.Module) -> dict[str, str]:
    """Return what each imported name stands for: {"dt": "datetime", "now": "django.utils.timezone.now"}."""
    names: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted_name(node: ast.expr, imported: dict[str, str]) -> str | None:
    """Return `package.module.name` of an expression that starts with an imported name, else None."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in imported:
        return None
    return ".".join([imported[node.id], *reversed(parts)])


def uses(module: ast.Module) -> Iterator[tuple[int, str, ast.expr]]:
    """Yield (line, dotted name, node) of every use of an imported name; of `a.b.c` only the longest form."""
    imported = imported_names(module)
    inner = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            name = dotted_name(node, imported)
            if name is not None:
                yield node.lineno, name, node

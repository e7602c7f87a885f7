"""run.py must start on a machine that has only Python, and must say what is missing where it cannot."""

from __future__ import annotations

import ast
import fcntl
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest

from scripts import bootstrap
from scripts.bootstrap import DASK, DEVELOPMENT, RUNTIME, SCALE, TUNING, BootstrapError, Environment

ROOT = Path(__file__).resolve().parents[2]
RUN_PY = ROOT / "run.py"
CURRENT = {RUNTIME: "r2", SCALE: "s2", DASK: "k2", TUNING: "t2", DEVELOPMENT: "d2"}


class OldVersion(NamedTuple):
    major: int
    minor: int
    micro: int = 0
    releaselevel: str = "final"
    serial: int = 0


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with all lock files."""
    for name in (RUNTIME, SCALE, DASK, TUNING, DEVELOPMENT):
        (tmp_path / name).write_text(f"# {name}, first state\n")
    return tmp_path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of libraries from the network: the names of the locks that were asked for, in order."""
    names: list[str] = []
    monkeypatch.setattr(bootstrap, "install", lambda environment, lock, *, uv: names.append(lock))
    # `uv` spares ensurepip, which takes seconds and is not what these tests are about.
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/no/such/uv")
    return names


# --- An old Python ---


def compiled_run_py() -> CodeType:
    return compile(RUN_PY.read_text(), str(RUN_PY), "exec")


def test_run_py_has_no_syntax_that_python_2_lacks() -> None:
    tree = ast.parse(RUN_PY.read_text(), feature_version=(3, 7))
    newer = (
        ast.JoinedStr,
        ast.AnnAssign,
        ast.NamedExpr,
        ast.Nonlocal,
        ast.Starred,
        ast.AsyncFunctionDef,
        ast.YieldFrom,
    )
    assert [ast.dump(node) for node in ast.walk(tree) if isinstance(node, newer)] == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions == [], "a function would need annotations for mypy, which Python 2 cannot parse"
    assert RUN_PY.read_text().isascii(), "Python 2 refuses other characters without a coding line"


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 10)])
def test_an_old_python_is_told_which_one_is_needed(version: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", OldVersion(*version))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as stopped:
        exec(compiled_run_py(), {"__name__": "__main__"})
    message = str(stopped.value)
    assert f"needs Python 3.11 or newer, this is {version[0]}.{version[1]} ({sys.executable})" in message
    assert "apt install python3.11" in message


def test_an_old_python_names_the_newer_one_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "python3.12").write_text("#!/bin/sh\n")
    (tmp_path / "python3.12").chmod(0o755)
    monkeypatch.setattr(sys, "version_info", OldVersion(3, 9))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"python3\.12 run\.py"):
        exec(compiled_run_py(), {"__name__": "__main__"})


# --- What is installed when ---


@pytest.mark.parametrize(
    "stamp, wanted, missing",
    [
        (None, (RUNTIME,), [RUNTIME]),
        ({}, (RUNTIME,), [RUNTIME]),
        ({RUNTIME: "r2"}, (RUNTIME,), []),
        ({RUNTIME: "r1"}, (RUNTIME,), [RUNTIME]),
        ({RUNTIME: "r2"}, (RUNTIME, SCALE), [SCALE]),
        ({RUNTIME: "r2"}, (DEVELOPMENT,), [DEVELOPMENT]),
    ],
)
def test_only_a_lock_that_changed_is_installed(
    stamp: dict[str, str] | None, wanted: tuple[str, ...], missing: list[str]
) -> None:
    assert bootstrap.missing_locks(wanted, stamp, CURRENT) == missing


def test_the_development_lock_brings_the_others_with_it() -> None:
    assert bootstrap.stamp_after(None, DEVELOPMENT, CURRENT) == CURRENT


def test_a_stamp_forgets_what_was_installed_from_an_older_lock() -> None:
    old = {RUNTIME: "r1", DEVELOPMENT: "d1", SCALE: "s2"}
    assert bootstrap.stamp_after(old, RUNTIME, CURRENT) == {RUNTIME: "r2", SCALE: "s2"}


@pytest.mark.parametrize("contained", [RUNTIME, SCALE, DASK, TUNING])
def test_the_development_lock_contains_the_other_locks_in_the_same_versions(contained: str) -> None:
    def pins(name: str) -> set[str]:
        return {
            line.rstrip(" \\")
            for line in (ROOT / name).read_text().splitlines()
            if re.match(r"[\w-]+(\[\w+\])?==", line)
        }

    def plain(pin: str) -> str:
        return pin.replace(" ", "")

    development = {plain(pin) for pin in pins(DEVELOPMENT)}
    names = {pin.split(";")[0] for pin in development}
    assert len(pins(contained)) > 1
    assert [pin for pin in map(plain, pins(contained)) if pin.split(";")[0] not in names] == []


@pytest.mark.parametrize(
    "environ, env_file, expected",
    [
        ({}, None, ()),
        ({"DATABASE_URL": ""}, None, ()),
        ({"DATABASE_URL": "postgres://a/b"}, None, (SCALE,)),
        ({"REDIS_URL_FILE": "/run/secrets/redis"}, None, (SCALE,)),
        ({"TRAIN_DASK_SCHEDULER": "tcp://a:8786"}, None, (DASK,)),
        ({"TRAIN_TUNING_TRIALS": "20"}, None, (TUNING,)),
        ({"TRAIN_DASK_SCHEDULER": "tcp://a:8786"}, "STORAGE_URL=s3://bucket\n", (SCALE, DASK)),
        ({}, "SIM_SEED=3\n# DATABASE_URL=postgres://a/b\n", ()),
        ({}, "SIM_SEED=3\nDATABASE_URL=postgres://a/b\n", (SCALE,)),
        ({}, "REDIS_URL=\nSIM_SEED=1\n", ()),
    ],
)
def test_clients_of_servers_are_installed_where_the_settings_name_one(
    environ: dict[str, str], env_file: str | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / ".env"
    if env_file is not None:
        path.write_text(env_file)
    assert bootstrap.wanted_extras(environ, path) == expected
    assert bootstrap.wanted_locks(None, extras=expected) == (RUNTIME, *expected)
    assert bootstrap.wanted_locks("test", extras=expected) == (DEVELOPMENT,)


def test_the_second_start_installs_nothing(environment: Environment, project: Path, installed: list[str]) -> None:
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    assert installed == [RUNTIME]
    assert environment.is_sound()


def test_a_changed_lock_is_installed_over_the_old_one(
    environment: Environment, project: Path, installed: list[str]
) -> None:
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    (project / RUNTIME).write_text("# second state\n")
    kept = environment.directory / "kept"
    kept.touch()
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    assert installed == [RUNTIME, RUNTIME]
    assert kept.exists(), "a sound environment is updated, not made anew"


def test_an_installation_that_was_cut_off_is_done_again(
    environment: Environment, project: Path, installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    (project / RUNTIME).write_text("# second state\n")

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", killed)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.prepare(environment, (RUNTIME,), root=project)
    assert environment.stamp() is None, "half an installation must not look like a whole one"
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    assert installed == [RUNTIME, RUNTIME]


@pytest.mark.parametrize("damage", ["no interpreter", "stamp cut off", "stamp of another Python"])
def test_a_damaged_environment_is_mended(
    damage: str, environment: Environment, project: Path, installed: list[str]
) -> None:
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    stamp = environment.directory / bootstrap.STAMP
    if damage == "no interpreter":
        environment.python.unlink()
    elif damage == "stamp cut off":
        stamp.write_text(stamp.read_text()[:20])
    else:
        stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "python": "cpython-3.1"}))
    assert environment.stamp() is None
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    assert environment.stamp() == {RUNTIME: bootstrap.fingerprint(project / RUNTIME)}
    assert environment.is_sound()
    assert installed == [RUNTIME, RUNTIME]


def test_a_folder_that_is_no_environment_is_left_alone(
    environment: Environment, project: Path, installed: list[str]
) -> None:
    environment.directory.mkdir()
    precious = environment.directory / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(BootstrapError, match="no virtual environment, so it is left alone"):
        bootstrap.prepare(environment, (RUNTIME,), root=project)
    assert precious.read_text() == "years of work"
    assert installed == []


def test_two_starts_at_once_install_once(
    environment: Environment, project: Path, installed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.prepare(environment, (RUNTIME,), root=project)
    stamp = environment.directory / bootstrap.STAMP
    finished = stamp.read_text()
    stamp.unlink()  # the first of two is at work ...
    with environment.directory.with_name("venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=bootstrap.prepare, args=(environment, (RUNTIME,)), kwargs={"root": project})
        second.start()
        while "waiting" not in capsys.readouterr().out:
            assert second.is_alive()
            second.join(0.01)
        stamp.write_text(finished)  # ... and is done
    second.join(30)
    assert installed == [RUNTIME]


# --- What cannot be done is said ---


def test_a_python_without_venv_says_which_package_has_it(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BootstrapError, match=rf"apt install python3\.{sys.version_info[1]}-venv"):
        bootstrap.create(environment, uv=None)


def test_a_missing_network_is_said_with_the_installers_own_words(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [sys.executable, "-c", "import sys; print('could not reach the index'); sys.exit(1)"]
    monkeypatch.setattr(bootstrap, "installers", lambda environment, uv: iter([("pip", failing)]))
    with pytest.raises(BootstrapError, match=r"(?s)pip said:.*could not reach the index.*Is the network there"):
        bootstrap.install(environment, RUNTIME, uv=None)


def test_the_next_installer_is_tried_when_one_fails(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = [("uv", [sys.executable, "-c", "raise SystemExit(1)"]), ("pip", [sys.executable, "-c", "pass"])]
    monkeypatch.setattr(bootstrap, "installers", lambda environment, uv: iter(ways))
    bootstrap.install(environment, RUNTIME, uv="uv")
    assert "Installed in" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(project: Path) -> None:
    (project / "file").touch()  # root may write everywhere, but nobody makes a folder below a file
    with pytest.raises(BootstrapError, match=r"file.*(?s:.*)set RUN_VENV to another folder"):
        bootstrap.prepare(Environment(project / "file" / "venv"), (RUNTIME,), root=project)


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_needs_no_environment(argument: str, tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "RUN_VENV": str(tmp_path / "none")}
    shown = subprocess.run([sys.executable, RUN_PY, argument], env=environ, capture_output=True, text=True, check=True)
    assert "python3 run.py [COMMAND]" in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_named_and_the_right_ones_shown(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "RUN_VENV": str(tmp_path / "none")}
    shown = subprocess.run([sys.executable, RUN_PY, "tset"], env=environ, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "'tset' is not a command" in shown.stderr
    assert "manage ARGS" in shown.stderr

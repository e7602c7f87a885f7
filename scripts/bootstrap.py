"""Make the project's own environment and start a program in it: what `run.py` does. Standard library only.

The environment is `.venv` beside run.py (RUN_VENV names another folder). A stamp file in it records which lock files
were installed, by hash: libraries are touched only when a lock, or the Python, has changed. Else a start costs a few
hashes, and then this process is replaced by the program, which so receives every signal itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "installed.json"
RUNTIME, SCALE, DASK = "requirements.txt", "requirements-scale.txt", "requirements-dask.txt"
TUNING, DEVELOPMENT = "requirements-tuning.txt", "requirements-dev.txt"
#: Locks whose libraries another lock contains, in the same versions (a test compares them).
CONTAINED = {DEVELOPMENT: (RUNTIME, SCALE, DASK, TUNING)}
#: Locks that only some need: the settings (or their NAME_FILE) that ask for what is in them.
EXTRAS = {
    SCALE: ("DATABASE_URL", "REDIS_URL", "STORAGE_URL"),
    DASK: ("TRAIN_DASK_SCHEDULER",),
    TUNING: ("TRAIN_TUNING_TRIALS",),
}
#: Arguments of a test run without arguments: all tests, one process per core. Tests of a file share what they prepare.
ALL_TESTS = ("-n", "auto", "--maxprocesses", "8", "--dist", "loadfile")

USAGE = """\
usage: python3 run.py [COMMAND]

  (no command)        prepare the database and start the website, the workers and the bot; Ctrl-C stops all
  test [PYTEST ARGS]  run the tests (all of them, or what pytest's arguments say)
  manage ARGS         run a management command, for example: manage doctor, manage explain BTC/USDT:USDT
  --help              show this

Libraries are installed into .venv, at the first start and whenever requirements*.txt have changed.
RUN_VENV=FOLDER puts them elsewhere."""


class BootstrapError(Exception):
    """Something that the person at the keyboard has to mend; the text says what and how."""


def say(message: str) -> None:
    """Show `message` at once, also when standard output is a file that the next program goes on writing."""
    print(message, flush=True)


# --- What is wanted ---


def wanted_extras(environ: Mapping[str, str], env_file: Path) -> tuple[str, ...]:
    """Return the locks of EXTRAS for which a setting is given, in the environment or in the file `.env`."""
    text = env_file.read_text(encoding="utf-8") if env_file.exists() else ""
    in_file = set(re.findall(r"^[ \t]*(\w+)[ \t]*=[ \t]*\S", text, re.MULTILINE))
    given = in_file | {name for name, value in environ.items() if value}
    return tuple(lock for lock, names in EXTRAS.items() if given & {*names, *(f"{name}_FILE" for name in names)})


def wanted_locks(command: str | None, *, extras: tuple[str, ...]) -> tuple[str, ...]:
    """Return the lock files that `command` needs; what only some need, only where the settings ask for it."""
    return (DEVELOPMENT,) if command == "test" else (RUNTIME, *extras)


def fingerprint(lock: Path) -> str:
    """Return the SHA-256 of a lock file, in hexadecimal."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def python_tag() -> str:
    """Return what an environment is bound to: a patch release keeps the libraries valid, a minor one does not."""
    return f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"


# --- The environment ---


@dataclass(frozen=True)
class Environment:
    """A virtual environment and its stamp: {"python": tag, "locks": {name: sha256}}."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def stamp(self) -> dict[str, str] | None:
        """Return the hashes of the installed locks, or None if the environment cannot be used as it is."""
        try:
            content = json.loads((self.directory / STAMP).read_text(encoding="utf-8"))
            if content["python"] != python_tag() or not os.access(self.python, os.X_OK):
                return None
            return dict(content["locks"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent, cut off, or of another time: the same as never finished

    def write_stamp(self, locks: Mapping[str, str]) -> None:
        path = self.directory / STAMP
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"python": python_tag(), "locks": dict(locks)}, indent=1), encoding="utf-8")
        draft.replace(path)

    def has_module(self, name: str) -> bool:
        found = subprocess.run([self.python, "-c", f"import {name}"], capture_output=True, check=False)
        return found.returncode == 0

    def is_sound(self) -> bool:
        """Tell whether its Python starts and is of this Python's version."""
        if not os.access(self.python, os.X_OK):
            return False
        code = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
        answer = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
        name, _, version = answer.stdout.strip().partition(" ")
        return answer.returncode == 0 and f"{name}-{version.replace(' ', '.')}" == python_tag()


def missing_locks(wanted: Sequence[str], stamp: Mapping[str, str] | None, current: Mapping[str, str]) -> list[str]:
    """Return those of `wanted` whose installed hash in `stamp` differs from the `current` one."""
    return [name for name in wanted if stamp is None or stamp.get(name) != current[name]]


def stamp_after(stamp: Mapping[str, str] | None, installed: str, current: Mapping[str, str]) -> dict[str, str]:
    """Return the stamp after `installed` was installed over an environment with `stamp`.

    What was installed from an older state of a lock is forgotten: it may have been replaced now.
    """
    kept = {name: value for name, value in (stamp or {}).items() if current.get(name) == value}
    return kept | {name: current[name] for name in (installed, *CONTAINED.get(installed, ()))}


@contextlib.contextmanager
def alone(environment: Environment) -> Iterator[None]:
    """Let only one run.py at a time work on `environment`; a second one waits for the first."""
    directory = environment.directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(directory.name + ".lock").open("w", encoding="utf-8") as file:
        try:
            import fcntl
        except ImportError:  # a system without it: two starts at the very same moment are not told apart
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another run.py is preparing {directory}; waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock ends with the file, also when this process is killed


def create(environment: Environment, *, uv: str | None) -> None:
    """Make an empty environment; what is there is removed if it is an environment, and refused if it is not."""
    directory = environment.directory
    if directory.exists():
        is_environment = (directory / "pyvenv.cfg").exists() or not any(directory.iterdir())
        if not is_environment:
            raise BootstrapError(
                f"{directory} is there, but is no virtual environment, so it is left alone.\n"
                "Move it away, or set RUN_VENV to another folder."
            )
        say(f"{directory} is unfinished, broken or of another Python: it is made anew.")
        shutil.rmtree(directory)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if importlib.util.find_spec("venv") is None or (uv is None and importlib.util.find_spec("ensurepip") is None):
        raise BootstrapError(
            f"This Python lacks the module venv or ensurepip, which Debian and Ubuntu package apart:\n"
            f"  apt install python{version}-venv\nand run this again."
        )
    # The base Python: an environment made by the Python of another one would break with it.
    base = getattr(sys, "_base_executable", None) or sys.executable
    command = [base, "-m", "venv", *(["--without-pip"] if uv else []), str(directory)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise BootstrapError(
            f"No virtual environment could be made in {directory}:\n{last_lines(made.stdout + made.stderr)}\n"
            f"On Debian and Ubuntu this may help: apt install python{version}-venv"
        )


def last_lines(text: str, count: int = 6, width: int = 200) -> str:
    """Return the end of a program's output, indented, long lines cut."""
    return "\n".join(f"  | {line[:width]}" for line in text.strip().splitlines()[-count:])


def installers(environment: Environment, uv: str | None) -> Iterator[tuple[str, list[str]]]:
    """Yield ways to install, the fastest first: uv from PATH, uv from the environment, pip."""
    python = str(environment.python)
    if uv:
        yield "uv", [uv, "pip", "install", "--quiet", "--python", python]
    if not environment.has_module("pip"):
        subprocess.run([python, "-m", "ensurepip"], capture_output=True, check=False)
    if not uv:
        fetched = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--retries", "1", "uv"], capture_output=True, check=False
        )
        if fetched.returncode == 0:
            yield "uv", [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    yield "pip", [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def install(environment: Environment, lock: str, *, uv: str | None) -> None:
    """Install `lock`, every file checked against its hash, with the first installer that succeeds."""
    say(f"Installing the libraries of {lock} into {environment.directory} (this needs the network) ...")
    began = time.monotonic()
    errors = []
    for name, command in installers(environment, uv):
        done = subprocess.run(
            [*command, "--require-hashes", "-r", str(ROOT / lock)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            say(f"Installed in {time.monotonic() - began:.0f} s.")
            return
        errors.append(f"{name} said:\n{last_lines(done.stdout)}")
    raise BootstrapError(
        f"The libraries of {lock} could not be installed.\n"
        + "\n".join(errors)
        + "\nIs the network there (and a proxy set, if you need one)? Run this again: what is there already is kept."
    )


def prepare(environment: Environment, wanted: Sequence[str], *, root: Path = ROOT) -> None:
    """Bring `environment` to the state of the `wanted` lock files; costs next to nothing if it is there already."""
    current = {name: fingerprint(root / name) for name in (RUNTIME, SCALE, DASK, TUNING, DEVELOPMENT)}
    if not missing_locks(wanted, environment.stamp(), current):
        return
    try:
        with alone(environment):
            stamp = environment.stamp()  # again: the one that we waited for may have done the work
            missing = missing_locks(wanted, stamp, current)
            uv = shutil.which("uv")
            if missing and not environment.is_sound():
                stamp = None
                create(environment, uv=uv)
            for lock in missing:
                # Half an installation must not look like a whole one after a kill.
                (environment.directory / STAMP).unlink(missing_ok=True)
                install(environment, lock, uv=uv)
                stamp = stamp_after(stamp, lock, current)
                environment.write_stamp(stamp)
    except OSError as error:
        raise BootstrapError(
            f"{error.filename or environment.directory}: {error.strerror}.\n"
            "The environment must be in a folder that you may write to: mend the rights (or make room on the disk), "
            "or set RUN_VENV to another folder."
        ) from error


# --- The commands ---


def enter(environment: Environment, arguments: Sequence[str]) -> int:
    """Become `python ARGUMENTS` of `environment`: signals, exit code and terminal are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(environment.python, [str(environment.python), *arguments])  # noqa: S606 - no shell is wanted


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what `arguments` say and return the exit code; if all is well, the process is replaced and never returns."""
    command, rest = (arguments[0], list(arguments[1:])) if arguments else (None, [])
    if command in ("-h", "--help", "help"):
        say(USAGE)
        return 0
    if command not in (None, "test", "manage"):
        raise BootstrapError(f"{command!r} is not a command of run.py.\n\n{USAGE}")
    if os.name == "nt":
        raise BootstrapError("The workers need fork(), which Windows does not have: run this in WSL.")
    environment = Environment(Path(environ.get("RUN_VENV") or ROOT / ".venv").absolute())
    prepare(environment, wanted_locks(command, extras=wanted_extras(environ, ROOT / ".env")))
    manage = str(ROOT / "manage.py")
    if command == "manage":
        return enter(environment, [manage, *rest])
    if command == "test":
        os.chdir(ROOT)
        return enter(environment, ["-m", "pytest", *(rest or ALL_TESTS)])
    ready = subprocess.run([environment.python, manage, "setup"], check=False).returncode
    return ready or enter(environment, [manage, "runall"])


def main(arguments: Sequence[str]) -> int:
    """Run and turn errors that a person can mend into a text without a traceback."""
    os.environ.pop("PYTHONHOME", None)  # of another Python: it would break the environment's
    try:
        return run(arguments, os.environ)
    except BootstrapError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Run it again to go on.", file=sys.stderr)
        return 130

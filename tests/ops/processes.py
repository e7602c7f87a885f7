"""Start our real programs on a database of their own, and watch their processes: for the kill tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 6.0
"""Deadlines below and in the tests are those of a quiet machine; a busy one gets this many times more."""


def wait_until(condition: Callable[[], object], *, seconds: float = 20.0, what: str = "") -> None:
    """Poll until the condition holds, `seconds` on a quiet machine; the message says what was waited for."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * PATIENCE:g} s: {what or condition}")
        time.sleep(0.05)


def environment(data_dir: Path, **changes: str) -> dict[str, str]:
    """Return the environment of a program that uses `data_dir` and SQLite, and nothing of this test's own settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "DATA_DIR": str(data_dir),
        "LOG_LEVEL": "debug",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **changes,
    }


def alive(pids: set[int]) -> set[int]:
    """Return those of `pids` that still run; a zombie does not."""
    found = set()
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.add(pid)
        except psutil.NoSuchProcess:
            continue
    return found


class Program:
    """A program of ours in a session of its own, and all processes that it starts."""

    def __init__(self, *arguments: str, data_dir: Path, **changes: str) -> None:
        self.log_path = data_dir / f"test-{arguments[0]}-{time.monotonic_ns()}.log"
        self._log = self.log_path.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            cwd=ROOT,
            env=environment(data_dir, **changes),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.seen: set[int] = {self.process.pid}

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def tree(self) -> set[int]:
        """Return the pids of the program and all its descendants; they are remembered for `wait_gone`."""
        try:
            found = {self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))}
        except psutil.NoSuchProcess:
            found = set()
        self.seen |= found
        return found

    def wait_log(self, pattern: str, *, seconds: float = 30.0, count: int = 1) -> list[str]:
        """Wait until the log contains the pattern `count` times; return its groups."""
        wait_until(
            lambda: len(re.findall(pattern, self.log)) >= count or self.process.poll() is not None,
            seconds=seconds,
            what=f"{pattern!r} in the log:\n{self.log[-3000:]}",
        )
        found = re.findall(pattern, self.log)
        assert len(found) >= count, f"the program ended ({self.process.returncode}) before {pattern!r}:\n{self.log}"
        return found

    def wait_end(self, *, seconds: float = 20.0) -> int:
        wait_until(
            lambda: self.process.poll() is not None, seconds=seconds, what=f"the end of the program:\n{self.log}"
        )
        assert self.process.returncode is not None
        return self.process.returncode

    def wait_gone(self, *, seconds: float = 10.0) -> None:
        """Wait until none of the processes that were ever seen runs."""
        wait_until(lambda: not alive(self.seen), seconds=seconds, what=f"no orphans: {alive(self.seen)}\n{self.log}")

    def clean(self) -> None:
        self.tree()
        for pid in alive(self.seen):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self._log.close()


@contextmanager
def running(*arguments: str, data_dir: Path, **changes: str) -> Iterator[Program]:
    program = Program(*arguments, data_dir=data_dir, **changes)
    try:
        yield program
    finally:
        program.clean()

"""Keep programs running: start, restart with back-off, keep their logs, stop them all, leave no orphan."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from ops_app import clock, versions
from ops_app.process import spawn

STABLE_SECONDS = 10.0
"""What ran this long is in no loop of deaths, and is started again at once."""
LONGEST_DELAY = 5.0
"""Whoever is killed again and again, and not by a fault of its own, works again within ten seconds."""
STOP_SECONDS = 20.0
TAIL_LINES = 12
LOG_BYTES, LOG_FILES = 5_000_000, 3


def restart_delay(failures: int) -> float:
    """Return the least seconds between two starts after this many deaths in a row: 1, 2, 4, 5.

    From start to start: what died after it had worked for a while need not be waited for.
    """
    return min(2.0 ** max(failures - 1, 0), LONGEST_DELAY)


@dataclass(frozen=True)
class Program:
    """What is to be kept running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    death_signal: signal.Signals = signal.SIGKILL


class Child:
    """A program, its process of the moment, and its log."""

    def __init__(self, program: Program, log_dir: Path) -> None:
        self.program = program
        self.log_path = log_dir / f"{program.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.failures = 0
        self.restarts = 0
        self.started = 0.0
        self.next_start = 0.0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._log_keeper: threading.Thread | None = None
        self._handler = RotatingFileHandler(self.log_path, maxBytes=LOG_BYTES, backupCount=LOG_FILES)

    def start(self) -> None:
        self.tail.clear()
        self.process = spawn(
            self.program.command,
            environment={**os.environ, "PYTHONUNBUFFERED": "1", **self.program.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            death_signal=self.program.death_signal,
            new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone, which then stops all in order
        )
        self.started = clock.monotonic()
        self._log_keeper = threading.Thread(target=self._keep_log, args=(self.process.stdout,), daemon=True)
        self._log_keeper.start()

    def _keep_log(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip("\n")
                self.tail.append(line)
                self._handler.emit(logging.LogRecord(self.program.name, logging.INFO, "", 0, line, None, None))

    def finish_log(self) -> None:
        """Wait until all that the dead process has said is written."""
        if self._log_keeper is not None:
            self._log_keeper.join(timeout=2.0)

    def close_log(self) -> None:
        self.finish_log()
        self._handler.close()

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started and that stayed in its session."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def up_seconds(self) -> float:
        return clock.monotonic() - self.started if self.running else 0.0


class Supervisor:
    """Supervises `programs` until `outdated`; `say` is told of every death, with the last lines of its log."""

    def __init__(self, programs: Sequence[Program], *, log_dir: Path, say: Callable[[str], None]) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self.children = [Child(program, log_dir) for program in programs]
        self.say = say
        self.outdated = False
        """A program ended because this host's code is older than the database: all are, and none is started again."""

    def look(self) -> None:
        """Start what is due, and notice what has ended: one pass of the supervisor's loop."""
        for child in self.children:
            if child.running:
                if child.failures and child.up_seconds > STABLE_SECONDS:
                    child.failures = 0
            elif child.process is not None:
                self._bury(child, child.process)
            elif clock.monotonic() >= child.next_start:
                child.start()

    def _bury(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        child.signal_group(signal.SIGKILL)  # what it left behind would work beside its successor
        child.finish_log()
        child.process = None
        child.failures += 1
        child.restarts += 1
        now = clock.monotonic()
        child.next_start = max(now, child.started + restart_delay(child.failures))
        wait = child.next_start - now
        again = f"it is started again {f'in {wait:.0f} s' if wait >= 1 else 'now'}"
        code = process.returncode
        if code == versions.OUTDATED:
            self.outdated, again = True, "starting it again cannot help"
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        lines = "".join(f"\n    | {line}" for line in child.tail)
        self.say(f"{child.program.name} {cause}; {again}. Log: {child.log_path}{lines}")

    def _running(self) -> list[Child]:
        return [child for child in self.children if child.running]

    def stop(self, *, forced: Callable[[], bool] = lambda: False) -> None:
        """Ask all to stop (SIGTERM), wait for them, and kill what is left after 20 s, or at once when `forced`."""
        for child in self._running():
            if child.process is not None:
                child.process.terminate()
        deadline = clock.monotonic() + STOP_SECONDS
        while self._running() and clock.monotonic() < deadline and not forced():
            clock.sleep(0.1)
        for child in self._running():
            self.say(f"{child.program.name} did not stop in time; it is killed.")
        for child in self.children:
            child.signal_group(signal.SIGKILL)
            if child.process is not None:
                child.process.wait()
            child.close_log()


def states(supervisor: Supervisor) -> Iterator[tuple[str, str]]:
    """Yield name and state of each program, for a person."""
    for child in supervisor.children:
        again = f", restarted {child.restarts} x" if child.restarts else ""
        yield child.program.name, (f"up {child.up_seconds:.0f} s" if child.running else "starting") + again

"""A throw-away installation: started as a person would, looked at from outside, stopped by one signal."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO

from django.conf import settings

from ops_app import clock, heartbeats
from ops_app.management.commands import runall
from ops_app.process import manage_command, spawn
from ops_app.supervisor import Supervisor
from tradingsite.crashtest import processes
from tradingsite.crashtest.processes import Picture

POLL_SECONDS = 0.05
ASK_SECONDS = 2.0
STOP_SECONDS = 60.0


def wait_for(condition: Callable[[], bool], seconds: float, *, every: float = POLL_SECONDS) -> bool:
    """Poll until the condition holds; False if it did not within `seconds`."""
    until = clock.monotonic() + seconds
    while not condition():
        if clock.monotonic() > until:
            return False
        clock.sleep(every)
    return True


class Installation(ABC):
    """What runs on the settings' DATA_DIR, below the process `supervisor_pid`."""

    programs: tuple[str, ...]

    def __init__(self, said: Path) -> None:
        self.said = said

    @property
    @abstractmethod
    def supervisor_pid(self) -> int: ...

    @abstractmethod
    def look_after(self) -> None:
        """Let what is dead be started again, where nobody else does it."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> str:
        """Stop all by one signal; returns what was wrong with it, "" for nothing."""

    def look(self) -> Picture:
        self.look_after()
        return processes.look(self.supervisor_pid)

    def complete(self, picture: Picture) -> bool:
        """Return whether each program has all its processes, and no more."""
        return all(_complete(program, picture) for program in self.programs)

    def strangers(self, picture: Picture) -> set[int]:
        """Return the processes of this installation that hang nowhere in its tree: orphans."""
        return processes.of_installation(str(settings.DATA_DIR), besides={self.supervisor_pid, *picture.everyone})


def _complete(program: str, picture: Picture) -> bool:
    counts = {role: len(pids) for role, pids in picture.roles.get(program, {}).items()}
    if program == "web":
        return counts.get("main") == 1 and counts.get("worker") == settings.WEB_WORKERS
    if program == "bot":
        return counts.get("main") == 1
    workers = settings.QUEUE_WORKERS if program == "light" else settings.TRAINING_WORKERS
    wanted = {"main": 1, "guard": 1, "worker": workers, "monitor": 1, "pusher": 1}
    return {role: counts.get(role) for role in wanted} == wanted and counts.get("trainer", 0) <= workers


class WholeInstallation(Installation):
    """`manage.py runall`: web, both worker clusters, bot."""

    programs = ("web", "light", "training", "bot")

    def start(self) -> None:
        self._output: IO[bytes] = self.said.open("wb")
        self._process = spawn(
            manage_command("runall", "--quiet"),
            death_signal=signal.SIGTERM,  # a test that is killed itself leaves nothing running
            stdout=self._output,
            stderr=subprocess.STDOUT,
            new_session=True,
        )

    @property
    def supervisor_pid(self) -> int:
        return self._process.pid

    def look_after(self) -> None:
        """`runall` does it."""

    def stop(self) -> str:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"runall did not stop within {STOP_SECONDS:.0f} s of SIGTERM"
        finally:
            self._output.close()
        return "" if code == 0 else f"runall ended with exit code {code} after SIGTERM"


class WorkersOnly(Installation):
    """Both worker clusters below a supervisor in this very process."""

    programs = ("light", "training")

    def start(self) -> None:
        self._output = self.said.open("w")
        programs = [program for program in runall.programs() if program.name.startswith("worker-")]
        self._supervisor = Supervisor(programs, log_dir=Path(settings.DATA_DIR) / "logs", say=self._say)
        self._supervisor.look()

    def _say(self, text: str) -> None:
        self._output.write(text + "\n")

    @property
    def supervisor_pid(self) -> int:
        return os.getpid()

    def look_after(self) -> None:
        self._supervisor.look()

    def stop(self) -> str:
        began = clock.monotonic()
        self._supervisor.stop()
        self._output.close()
        took = clock.monotonic() - began
        return "" if took < STOP_SECONDS else f"the clusters took {took:.0f} s to stop after SIGTERM"


def web_answers() -> bool:
    """Return whether /healthz answers 200 over a connection of its own."""
    host, port = runall.address(settings.WEB_BIND) or ("", 0)
    connection = http.client.HTTPConnection(host, port, timeout=ASK_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def bot_passed(pid: int | None, since: float) -> bool:
    """Return whether the bot of this pid has ended a pass, and has said that it lives since `since` (monotonic)."""
    return any(
        pulse.pid == pid and pulse.detail.get("passes", 0) > 0 and pulse.age.total_seconds() < clock.monotonic() - since
        for pulse in heartbeats.pulses(kind="bot")
    )

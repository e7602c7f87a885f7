"""Processes: children that die with their parent, and a stop that can be asked for once and forced the second time.

Standard library only: `python -m ops_app.process` is the small program that prepares a child before it becomes the real
one, because code between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_WATCH_SECONDS = 1.0


def has_parent_death_signal() -> bool:
    """Tell whether the kernel itself ends children with their parent (Linux)."""
    return sys.platform == "linux"


def die_with_parent(parent_pid: int, *, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Let this process be sent `death_signal` when its parent ends, however it ends; at once if it has ended already.

    Linux does it by PR_SET_PDEATHSIG, for the thread that forked; elsewhere a thread looks every second, which code
    that holds the interpreter's lock for long can delay.
    """
    if has_parent_death_signal():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    else:
        threading.Thread(target=_watch_parent, args=(parent_pid, death_signal), daemon=True).start()
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), death_signal)


def show_as(name: str) -> None:
    """Let `ps`, `top` and psutil show this process under `name` (at most 15 bytes; Linux only)."""
    if has_parent_death_signal():
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def _watch_parent(parent_pid: int, death_signal: signal.Signals) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), death_signal)


def manage_command(*arguments: str) -> list[str]:
    """Return the command line of `manage.py ARGUMENTS` in this environment."""
    return [sys.executable, str(ROOT / "manage.py"), *arguments]


def spawn(
    command: Sequence[str],
    *,
    nice: int = 0,
    oom_score_adj: int = 0,
    death_signal: signal.Signals = signal.SIGKILL,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `command` in the project's folder as a child that gets `death_signal` when this thread's process ends.

    Call it from the main thread: the kernel looks at the thread that forked. Signals that this process ignores are not
    ignored by the child. `oom_score_adj` > 0 makes the kernel kill the child before others when memory runs out.
    """
    preparation = [str(os.getpid()), str(int(death_signal)), str(nice), str(oom_score_adj)]
    return subprocess.Popen(
        [sys.executable, "-m", "ops_app.process", *preparation, *command],
        cwd=ROOT,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=new_session,
    )


def become(arguments: Sequence[str]) -> None:
    """Prepare this process as `spawn` says, and become the command. Never returns."""
    parent_pid, death_signal, nice, oom_score_adj = (int(argument) for argument in arguments[:4])
    command = list(arguments[4:])
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if nice:
        os.nice(nice)
    if oom_score_adj and has_parent_death_signal():
        Path("/proc/self/oom_score_adj").write_text(str(oom_score_adj))
    if has_parent_death_signal():  # elsewhere a watching thread would not survive the exec
        die_with_parent(parent_pid, death_signal=signal.Signals(death_signal))
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` at the first SIGINT or SIGTERM; a second one does what it did before, so that it forces.

    The callback runs in the main thread between two steps of it: it should only set a flag.
    """
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
        restore()
        callback()

    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


if __name__ == "__main__":
    become(sys.argv[1:])

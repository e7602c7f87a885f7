"""Which processes an installation consists of at this moment, and which of them nobody looks after."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

PROGRAMS = {
    "web": "gunicorn",
    "light": "--queue light",
    "training": "--queue training",
    "bot": "runbot",
}
"""Programs by what their command line contains."""
TRAINER = "train_run"


@dataclass(slots=True)
class Picture:
    """The pids of each program by role; `zombies` have ended and were not reaped by their parent."""

    mains: dict[str, int] = field(default_factory=dict)
    roles: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    zombies: set[int] = field(default_factory=set)
    everyone: set[int] = field(default_factory=set)

    def pids(self, program: str, role: str) -> list[int]:
        return self.roles.get(program, {}).get(role, [])


def look(supervisor_pid: int) -> Picture:
    """Return the descendants of the supervisor, sorted into programs and roles."""
    picture = Picture()
    try:
        children = psutil.Process(supervisor_pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return picture
    by_pid = {child.pid: child for child in children}
    parents: dict[int, int] = {}
    for child in children:
        with suppress(psutil.NoSuchProcess):
            parents[child.pid] = child.ppid()
            if child.status() == psutil.STATUS_ZOMBIE:
                picture.zombies.add(child.pid)
            else:
                picture.everyone.add(child.pid)
    for pid in sorted(picture.everyone):
        if parents[pid] == supervisor_pid:
            with suppress(psutil.NoSuchProcess):
                words = " ".join(by_pid[pid].cmdline())
                for program, mark in PROGRAMS.items():
                    if mark in words:
                        picture.mains[program] = pid
    for program, main in picture.mains.items():
        picture.roles[program] = _roles(main, by_pid, parents, picture.everyone)
    return picture


def _roles(
    main: int, by_pid: dict[int, psutil.Process], parents: dict[int, int], living: set[int]
) -> dict[str, list[int]]:
    """Return the roles below a main process, as its children show themselves (`ops_app.cluster` names them)."""
    roles: dict[str, list[int]] = {"main": [main]}
    waiting = [main]
    while waiting:
        parent = waiting.pop()
        for pid in sorted(pid for pid in living if parents[pid] == parent):
            with suppress(psutil.NoSuchProcess):
                waiting.append(pid)
                name, words = by_pid[pid].name(), " ".join(by_pid[pid].cmdline())
                role = name.removeprefix("q-") if name.startswith("q-") else "child"
                if "gunicorn" in words:
                    role = "worker"
                elif TRAINER in words:
                    role = "trainer"
                roles.setdefault(role, []).append(pid)
    return roles


def of_installation(data_dir: str, *, besides: Iterable[int] = ()) -> set[int]:
    """Return every living process on this host whose environment names `data_dir`, wherever it hangs in the tree."""
    found = set()
    unwanted = {os.getpid(), *besides}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid in unwanted or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get("DATA_DIR") == data_dir:
                found.add(process.pid)
    return found


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

"""What this host may give: cores and memory, as the machine or its container allows, shared by its trainings.

HOST_CORES and HOST_MEMORY_MB overrule what is found. Nothing is reserved: each of the TRAINING_WORKERS trainings that
may run at a time has an equal share, so that no worker needs to know what the others on its host are doing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from django.conf import settings

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEGABYTE = 1 << 20
TRAINING_PART = 0.75
"""Of the memory that is found, trainings get this part: the rest is for the bot, the pages, light workers, files."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one training may use: megabytes of memory and threads."""

    memory_mb: int
    threads: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def training_share() -> Share:
    """Return what one of this host's TRAINING_WORKERS trainings may use; at least a thread."""
    workers = settings.TRAINING_WORKERS
    return Share(
        memory_mb=memory_mb() // workers,
        threads=settings.TRAIN_THREADS or max(1, cores() // workers),
    )


def cores() -> int:
    """Return HOST_CORES, or the cores that this process may use: its affinity and its container's quota."""
    if settings.HOST_CORES:
        return int(settings.HOST_CORES)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(quota) for quota in _cpu_quotas())]))


def memory_mb() -> int:
    """Return HOST_MEMORY_MB, or three quarters of the memory of the machine or its container."""
    if settings.HOST_MEMORY_MB:
        return int(settings.HOST_MEMORY_MB)
    return int(min([psutil.virtual_memory().total, *_memory_limits()]) * TRAINING_PART) // MEGABYTE


def _cpu_quotas() -> Iterator[float]:
    """Yield the CPU quotas, in cores, that hold for this process: cgroup v2 `cpu.max`, v1 `cpu.cfs_*`."""
    for folder in _cgroup_folders("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1 mean: no limit
            yield int(quota) / int(period)


def _memory_limits() -> Iterator[int]:
    """Yield the memory limits, in bytes, that hold for this process: cgroup v2 `memory.max`, v1 `limit_in_bytes`."""
    for folder in _cgroup_folders("memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if limit.isdigit():
            yield int(limit)


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of those above: each may set a limit."""
    for line in _read(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUPS / controller if controllers else CGROUPS
        own = top / path.lstrip("/")
        yield own
        yield from (parent for parent in own.parents if parent.is_relative_to(top))


def _read(path: Path) -> str:
    """Return the text of a file of the kernel, "" where there is none: not every system has control groups."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""

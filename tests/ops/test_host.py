"""What a host may give its trainings: settings first, then what the kernel and the container allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from ops_app import host

GIGABYTE = 1 << 30


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path) -> Path:
    """A machine of 8 cores and 16 GB without control groups; returns the folder for their files."""
    settings.HOST_CORES, settings.HOST_MEMORY_MB, settings.TRAINING_WORKERS, settings.TRAIN_THREADS = 0, 0, 1, 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 16 * GIGABYTE}))
    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    monkeypatch.setattr(host, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits_trainings_share_the_machine(kernel: Path, settings: Any) -> None:
    assert host.training_share() == host.Share(memory_mb=12 * 1024, threads=8)
    settings.TRAINING_WORKERS = 3
    assert host.training_share() == host.Share(memory_mb=4 * 1024, threads=2)
    settings.TRAINING_WORKERS = 9
    assert host.training_share().threads == 1


def test_settings_overrule_what_is_found(kernel: Path, settings: Any) -> None:
    settings.HOST_CORES, settings.HOST_MEMORY_MB, settings.TRAINING_WORKERS = 4, 3000, 2
    assert host.training_share() == host.Share(memory_mb=1500, threads=2)
    settings.TRAIN_THREADS = 7
    assert host.training_share().threads == 7


def test_the_limits_of_a_container_hold(kernel: Path) -> None:
    put(kernel / "own", "0::/\n")
    put(kernel / "cpu.max", "250000 100000\n")
    put(kernel / "memory.max", f"{2 * GIGABYTE}\n")
    assert host.training_share() == host.Share(memory_mb=1536, threads=2)


def test_the_narrowest_of_nested_limits_holds(kernel: Path) -> None:
    put(kernel / "own", "0::/system.slice/bot.service\n")
    put(kernel / "system.slice" / "bot.service" / "memory.max", "max\n")
    put(kernel / "system.slice" / "memory.max", f"{4 * GIGABYTE}\n")
    put(kernel / "system.slice" / "bot.service" / "cpu.max", "50000 100000\n")
    put(kernel / "cpu.max", "max 100000\n")
    assert host.training_share() == host.Share(memory_mb=3072, threads=1)


def test_control_groups_of_the_first_version_are_read_too(kernel: Path) -> None:
    put(kernel / "own", "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n")
    put(kernel / "memory" / "memory.limit_in_bytes", f"{GIGABYTE}\n")
    put(kernel / "memory" / "docker" / "x" / "memory.limit_in_bytes", f"{8 * GIGABYTE}\n")
    put(kernel / "cpu" / "docker" / "x" / "cpu.cfs_quota_us", "300000\n")
    put(kernel / "cpu" / "docker" / "x" / "cpu.cfs_period_us", "100000\n")
    put(kernel / "cpu" / "cpu.cfs_quota_us", "-1\n")
    put(kernel / "cpu" / "cpu.cfs_period_us", "100000\n")
    assert host.training_share() == host.Share(memory_mb=768, threads=3)


def test_this_machine_has_something_to_give(settings: Any) -> None:
    settings.HOST_CORES, settings.HOST_MEMORY_MB = 0, 0
    assert 1 <= host.cores() <= (os.cpu_count() or 1)
    assert 0 < host.memory_mb() < psutil.virtual_memory().total >> 20

"""Worker clusters as processes of their own: beside each other, or each in a network namespace, as on another host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from django.core.management.base import CommandError

from ops_app import clock
from ops_app.process import manage_command, spawn

STOP_SECONDS = 60.0
RESTART_SECONDS, MOST_RESTARTS = 3.0, 50
DEFAULT_PORTS = {"redis": 6379}


class Host:
    """A worker cluster for one queue with a log of its own; `prefix` starts it in a namespace.

    `revive()` starts it again, as a supervisor would: a cluster ends itself when a part of it died, and does not begin
    without its database.
    """

    def __init__(
        self, name: str, *, queue: str, folder: Path, environment: Mapping[str, str], prefix: tuple[str, ...] = ()
    ) -> None:
        self.name, self.restarts = name, 0
        self.log_path = folder / f"{name}.log"
        self._log: IO[Any] = self.log_path.open("wb")
        self._command = [*prefix, *manage_command("qworker", "--queue", queue, "--name", name)]
        self._environment = {**os.environ, **environment}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._started_at = clock.monotonic()
        return spawn(self._command, environment=self._environment, stdout=self._log, stderr=self._log)

    def revive(self) -> None:
        """Start it again if it ended itself. Raises CommandError when it does so for ever."""
        code = self.process.poll()
        if code is None or clock.monotonic() - self._started_at < RESTART_SECONDS:
            return
        if self.restarts == MOST_RESTARTS:
            raise CommandError(f"{self.name} ended with {code} after {self.restarts} restarts:\n{self.log()[-2000:]}")
        self.restarts += 1
        self.process = self._start()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def ask_to_stop(self) -> None:
        self.process.terminate()

    def wait(self) -> int:
        """Wait for the end and return the exit code; a cluster that does not end is killed."""
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._log.close()


@contextmanager
def hosts(names: list[str], *, queue: str, folder: Path, network: Network | None = None) -> Iterator[list[Host]]:
    """Start a cluster for each name; stop all at the end."""
    started: list[Host] = []
    try:
        for index, name in enumerate(names):
            prefix = () if network is None else network.prefix(index, name)
            environment = {} if network is None else network.environment
            started.append(Host(name, queue=queue, folder=folder, environment=environment, prefix=prefix))
        yield started
    finally:
        for host in started:
            host.ask_to_stop()
        for host in started:
            host.wait()


class Network:
    """A bridge, and a namespace with an address for each host; servers of the root namespace are relayed to it.

    Needs root and Debian's iproute2 and util-linux. Everything is named after this process, and removed at the end.
    """

    def __init__(self, count: int, *, database_url: str, redis_url: str) -> None:
        require_namespaces()
        self._tag = f"ct{os.getpid() % 100_000}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() % 250}"
        self._count = count
        self._relays: list[subprocess.Popen[bytes]] = []
        self._made: list[tuple[str, ...]] = []
        self._urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def prefix(self, index: int, hostname: str) -> tuple[str, ...]:
        """Return the words before a command that run it on host `index`, which calls itself `hostname`."""
        rename = 'hostname "$0" && exec "$@"'
        return (
            _tool("ip"), "netns", "exec", f"{self._tag}h{index}", _tool("unshare"), "--uts",
            _tool("sh"), "-c", rename, hostname,
        )  # fmt: skip

    def cut(self, index: int) -> None:
        """Take the link of host `index` down: nothing that it sends arrives, and nothing tells it so."""
        _ip("link", "set", f"{self._tag}v{index}", "down")

    def mend(self, index: int) -> None:
        _ip("link", "set", f"{self._tag}v{index}", "up")

    def _build(self) -> None:
        bridge, gateway = f"{self._tag}b", f"{self._subnet}.254"
        self._make("link", "add", bridge, "type", "bridge", undo=("link", "del", bridge))
        _ip("addr", "add", f"{gateway}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for index in range(self._count):
            namespace, outer, inner = f"{self._tag}h{index}", f"{self._tag}v{index}", f"{self._tag}w{index}"
            self._make("netns", "add", namespace, undo=("netns", "del", namespace))
            self._make(
                "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace,
                undo=("link", "del", outer),
            )  # fmt: skip
            _ip("link", "set", outer, "master", bridge, "up")
            _ip("-n", namespace, "addr", "add", f"{self._subnet}.{index + 1}/24", "dev", inner)
            _ip("-n", namespace, "link", "set", inner, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
        for name, url in self._urls.items():
            if url:
                self.environment[name] = self._relayed(urlsplit(url), gateway)

    def _relayed(self, url: SplitResult, gateway: str) -> str:
        """Start a relay to the server of `url`; return the address under which the hosts reach it."""
        with socket.create_server((gateway, 0)) as free:
            port = free.getsockname()[1]
        target = f"{url.hostname or '127.0.0.1'}:{url.port or DEFAULT_PORTS.get(url.scheme, 5432)}"
        command = [sys.executable, "-m", "training_app.clustertest.relay", f"{gateway}:{port}", target]
        self._relays.append(spawn(command))
        login = url.netloc.rpartition("@")[0]
        return url._replace(netloc=f"{login}@{gateway}:{port}" if login else f"{gateway}:{port}").geturl()

    def _make(self, *arguments: str, undo: tuple[str, ...]) -> None:
        _ip(*arguments)
        self._made.append(undo)

    def _remove(self) -> None:
        for relay in self._relays:
            relay.terminate()
            relay.wait()
        for undo in reversed(self._made):
            subprocess.run([_tool("ip"), *undo], check=False, capture_output=True)


def require_namespaces() -> None:
    """Raise CommandError unless this process may make network namespaces."""
    if not sys.platform.startswith("linux"):
        raise CommandError("--namespaces needs Linux: network namespaces are a part of its kernel.")
    if os.geteuid() != 0:
        raise CommandError("--namespaces needs root, because it makes a bridge and network namespaces: use sudo.")
    missing = [name for name in ("ip", "unshare", "sh", "hostname") if shutil.which(name) is None]
    if missing:
        raise CommandError(
            f"--namespaces needs {', '.join(missing)}: apt-get install iproute2 util-linux hostname dash."
        )


def _ip(*arguments: str) -> None:
    done = subprocess.run([_tool("ip"), *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandError(f"`ip {' '.join(arguments)}` was refused: {done.stderr.strip()}")


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise CommandError(f"{name} is not installed")
    return path

"""Start everything: web, worker clusters, bot; keep it running; stop it all with one Ctrl-C."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from ops_app import clock, plugins, versions
from ops_app.guards import require_migrated
from ops_app.process import STOP_SIGNALS, manage_command
from ops_app.progress import Progress
from ops_app.supervisor import Program, Supervisor
from ops_app.web_watch import WebWatch

LOOK_SECONDS = 0.2


def programs() -> list[Program]:
    """Return what runs: the web server, one cluster per queue, the bot."""
    web = [
        sys.executable, "-m", "gunicorn", "tradingsite.wsgi",
        "--bind", settings.WEB_BIND, "--workers", str(settings.WEB_WORKERS), "--no-control-socket",
        "--timeout", "60", "--graceful-timeout", "10", "--max-requests", "5000", "--max-requests-jitter", "500",
    ]  # fmt: skip
    clusters = [
        Program(
            name=f"worker-{queue}",
            command=manage_command("qworker", "--queue", queue),
            environment={"Q_CLUSTER_NAME": queue},
        )
        for queue in (settings.LIGHT_QUEUE, settings.TRAINING_QUEUE)
    ]
    bot = Program(name="bot", command=manage_command("runbot", "--bot", settings.BOT_NAME))
    # SIGTERM for the web: gunicorn's workers end with a master that ends, not with one that is killed.
    return [Program(name="web", command=web, death_signal=signal.SIGTERM), *clusters, bot]


@contextmanager
def only_copy(path: Path) -> Iterator[None]:
    """Hold the lock file of this DATA_DIR. Raises CommandError that says who holds it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise CommandError(
                f"runall is running already for {settings.DATA_DIR}: {holder}. Stop it with Ctrl-C in its terminal (or "
                "`kill` and its pid), or start a second one with another DATA_DIR and WEB_BIND."
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()} since {clock.real_now():%Y-%m-%d %H:%M} UTC\n")
        file.flush()
        yield  # the lock ends with the process, also when it is killed


def address(bind: str) -> tuple[str, int] | None:
    """Return host and port of WEB_BIND; None for a Unix socket. Raises CommandError for anything else."""
    if bind.startswith("unix:"):
        return None
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65_536:
        raise CommandError(f"WEB_BIND={bind!r} must be address:port, like 127.0.0.1:8000.")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - an empty host means all addresses to gunicorn too


def bind_error(host: str, port: int) -> OSError | None:
    """Return why a server could not listen there, None if it could."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        return error
    return None


def require_free_port(bind: str) -> None:
    """Raise CommandError with the fix if the web server could not listen at `bind`."""
    found = address(bind)
    if found is None:
        return
    host, port = found
    error = bind_error(host, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        free = next((other for other in range(port + 1, port + 100) if bind_error(host, other) is None), port + 1)
        raise CommandError(
            f"Port {port} of {host} is taken by another program. Stop it, or set another one: WEB_BIND={host}:{free}"
        )
    raise CommandError(f"WEB_BIND={bind}: {error.strerror or error}. Give an address of this host and a free port.")


class Command(BaseCommand):
    help = "Start the website, the workers and the bot, restart what dies, and stop all with one Ctrl-C."
    requires_system_checks = ["ops"]  # the others load every page of the site

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--quiet", action="store_true", help="Do not show how far the first minutes have come.")

    def handle(self, *_args: Any, **options: Any) -> None:
        with only_copy(Path(settings.DATA_DIR) / "runall.lock"):
            require_migrated()
            require_free_port(settings.WEB_BIND)
            plugins.load("stages")
            self.run(quiet=options["quiet"])

    def run(self, *, quiet: bool) -> None:
        """Supervise until a stop signal; a second one kills at once."""
        signals = 0

        def count(number: int, frame: object) -> None:  # noqa: ARG001 - the signature of signal handlers
            nonlocal signals
            signals += 1

        progress = Progress(write=self.say, terminal=not quiet and sys.stdout.isatty(), quiet=quiet)
        supervisor = Supervisor(programs(), log_dir=Path(settings.DATA_DIR) / "logs", say=progress.say)
        before = {number: signal.signal(number, count) for number in STOP_SIGNALS}
        try:
            self.say(self.greeting())
            place = address(settings.WEB_BIND) or settings.WEB_BIND.removeprefix("unix:")
            with progress, WebWatch(place):
                while not signals and not supervisor.outdated:
                    supervisor.look()
                    progress.show(supervisor)
                    clock.sleep(LOOK_SECONDS)
            if supervisor.outdated:
                raise CommandError(
                    "Everything is stopped: the database was migrated by newer code. Update the code on this host (git "
                    "pull), run: python3 run.py manage setup, then start again. Open positions keep their stops.",
                    returncode=versions.OUTDATED,
                )
            self.say("Stopping; a second Ctrl-C kills at once ...")
        finally:
            supervisor.stop(forced=lambda: signals > 1)
            for number, handler in before.items():
                signal.signal(number, handler)
        self.say("Stopped.")

    def greeting(self) -> str:
        """Return where to look; the password itself is never printed."""
        scheme = "https" if settings.HTTPS else "http"
        password = Path(settings.DATA_DIR) / "admin_password"
        lines = [
            f"Trading bot: {settings.EXCHANGE} market {settings.EXCHANGE_MARKET}, data in {settings.DATA_DIR}",
            f"  open      {scheme}://{settings.WEB_BIND}/",
            f"  log in    admin, password in {password}" if password.exists() else "  log in    as one of your users",
            f"  logs      {Path(settings.DATA_DIR) / 'logs'}",
            "  trouble?  python3 run.py manage doctor",
            "  stop      Ctrl-C",
        ]
        return "\n".join(lines)

    def say(self, text: str) -> None:
        with suppress(BrokenPipeError):  # a reader that went away must not stop the bot
            self.stdout.write(text)
            self.stdout.flush()

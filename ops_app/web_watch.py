"""Does the web server answer? `runall` asks, and writes a heartbeat in its name: gunicorn has none of its own.

So a web server that is dead or stuck shows on the health card and raises an alert, as every other process does.
"""

from __future__ import annotations

import http.client
import socket
import threading
from types import TracebackType

import structlog
from django.db import DatabaseError, connection

from ops_app import heartbeats

log = structlog.get_logger(__name__)

EVERY_SECONDS = 10.0
TTL_SECONDS = 60
ANSWER_SECONDS = 5.0
REQUEST = b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"


def answers(place: tuple[str, int] | str) -> bool:
    """Return whether an HTTP server answers at `place` (host and port, or the path of a Unix socket).

    Any answer but an error of the server counts: a redirect or a refused host name comes from a living one.
    """
    family = socket.AF_UNIX if isinstance(place, str) else socket.getaddrinfo(*place, type=socket.SOCK_STREAM)[0][0]
    try:
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_SECONDS)
            client.connect(place)
            client.sendall(REQUEST)
            response = http.client.HTTPResponse(client)
            response.begin()
            return response.status < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, http.client.HTTPException):
        return False


class WebWatch:
    """Asks the web server every ten seconds, from a thread: the supervisor must not wait for an answer."""

    def __init__(self, place: tuple[str, int] | str) -> None:
        self.place = place
        self.name = f"web@{socket.gethostname()}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="web-watch", daemon=True)

    def __enter__(self) -> WebWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It is stopped with all others, so nobody should miss it."""
        self._over.set()
        self._thread.join(2 * ANSWER_SECONDS)
        try:
            heartbeats.stop(self.name)
        except DatabaseError as failure:  # a database that is gone must not keep anything from stopping
            log.warning("heartbeat_not_forgotten", name=self.name, error=str(failure))

    def _watch(self) -> None:
        try:
            while not self._over.wait(EVERY_SECONDS):
                self.look()
        finally:
            connection.close()  # this thread's own

    def look(self) -> bool:
        """Ask once, and say so if it answers; returns whether it did."""
        if not answers(self.place):
            return False
        try:
            heartbeats.beat(self.name, "web", TTL_SECONDS)
        except DatabaseError as failure:
            log.warning("heartbeat_failed", name=self.name, error=str(failure))
            connection.close()
        return True

"""The web server's heartbeat is written by who asks it: only while it answers."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops_app import heartbeats, web_watch
from ops_app.web_watch import WebWatch, answers


class Handler(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""


@pytest.fixture
def place() -> Iterator[tuple[str, int]]:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield ("127.0.0.1", server.server_port)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status, alive", [(200, True), (301, True), (400, True), (500, False), (503, False)])
def test_any_answer_but_an_error_of_the_server_is_a_sign_of_life(
    place: tuple[str, int], monkeypatch: pytest.MonkeyPatch, status: int, alive: bool
) -> None:
    monkeypatch.setattr(Handler, "status", status)
    assert answers(place) is alive


def test_silence_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(web_watch, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = int(deaf.getsockname()[1])
        assert not answers(("127.0.0.1", port)), "it listens and never answers"
    assert not answers(("127.0.0.1", port)), "nobody listens"
    assert not answers(str(tmp_path / "no.sock"))


@pytest.mark.django_db
def test_it_beats_while_the_server_answers_and_is_forgotten_at_a_planned_stop(place: tuple[str, int]) -> None:
    with WebWatch(place) as watch:
        assert watch.look()
        (pulse,) = heartbeats.pulses(kind="web")
        assert pulse.alive
        assert pulse.name == watch.name
        watch.place = ("127.0.0.1", 1)
        assert not watch.look()
    assert heartbeats.pulses() == []

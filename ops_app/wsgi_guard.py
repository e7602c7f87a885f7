"""A website on a database without tables says so on every page, instead of showing an error without a cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.db import close_old_connections

LIVENESS = "/healthz"
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def until_migrated(application: Application) -> Application:
    """Answer 503 with the fix until the database is migrated; then `application` alone, without asking again."""
    from ops_app import guards  # models: only after get_wsgi_application() has prepared Django

    ready = False

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        nonlocal ready
        if not ready and environ.get("PATH_INFO") != LIVENESS:
            try:
                guards.require_migrated()
            except guards.NotMigrated as error:
                body = f"{error}\n".encode()
                headers = [
                    ("Content-Type", "text/plain; charset=utf-8"),
                    ("Content-Length", str(len(body))),
                    ("Retry-After", "10"),
                ]
                start_response("503 Service Unavailable", headers)
                return [body]
            finally:
                close_old_connections()
            ready = True
        return application(environ, start_response)

    return guarded

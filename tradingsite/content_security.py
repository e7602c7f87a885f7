"""The Content-Security-Policy: what a page may load and run. Django 5.2 has none of its own.

Nothing comes from another host, nothing is framed, no form goes elsewhere. Our own pages and the API's run no script
that is written into a page, so that text from an exchange which found its way unescaped into one could do nothing.
Unfold's admin cannot work so: Alpine evaluates the attributes of its elements.
"""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

HEADER = "Content-Security-Policy"
COMMON = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
PAGES = f"{COMMON}; script-src 'self'"
ADMIN = f"{COMMON}; script-src 'self' 'unsafe-inline' 'unsafe-eval'"


class ContentSecurityMiddleware:
    """Puts the policy on every answer that has none."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault(HEADER, ADMIN if request.path.startswith(reverse("admin:index")) else PAGES)
        return response

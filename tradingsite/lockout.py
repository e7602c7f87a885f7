"""What somebody sees who guessed too many passwords: the same in the admin and in the API, each in its own form."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

STATUS = 429


def respond(request: HttpRequest, *_: Any) -> HttpResponse:
    """Return axes' answer to a log-in that is locked out (`AXES_LOCKOUT_CALLABLE`)."""
    text = (
        f"Too many wrong passwords from here for this user. Wait {settings.AXES_COOLOFF_TIME} hour, or ask who runs "
        "the site: python3 run.py manage axes_reset"
    )
    if request.path.startswith("/api/"):
        body = {"type": "about:blank", "title": "Too Many Requests", "status": STATUS, "detail": text}
        return JsonResponse(body, status=STATUS, content_type="application/problem+json")
    return render(request, "429.html", {"text": text}, status=STATUS)

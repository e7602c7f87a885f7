"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

from typing import Any

from rest_framework.response import Response
from rest_framework.views import exception_handler as drf_exception_handler

MEDIA_TYPE = "application/problem+json"


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Return DRF's answer to `error` in the form of RFC 9457; None lets Django answer 500."""
    response = drf_exception_handler(error, context)
    if response is None:
        return None
    data = response.data
    detail = data.get("detail") if isinstance(data, dict) else None
    response.data = {
        "type": "about:blank",
        "title": response.status_text,
        "status": response.status_code,
        "detail": str(detail) if detail is not None else "The request has wrong values: see errors.",
    }
    if detail is None:
        response.data["errors"] = data
    response.content_type = MEDIA_TYPE
    return response

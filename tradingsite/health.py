"""Is it alive, is it ready, and what are its numbers. Only /healthz is open to everybody (I22)."""

from __future__ import annotations

from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from rest_framework.authentication import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from ops_app import heartbeats
from ops_app import metrics as numbers
from tradingsite.permissions import VIEWER, has_role

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@require_safe
@never_cache
def healthz(_request: HttpRequest) -> HttpResponse:
    """Answer "ok" when this process and its database work; says nothing else, since everybody may ask."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return HttpResponse("database does not answer\n", status=503, content_type="text/plain")
    return HttpResponse("ok\n", content_type="text/plain")


def may_read(request: HttpRequest) -> bool:
    """Return whether the session's user, or the token of a machine, has a role."""
    user = request.user
    if not user.is_authenticated:
        try:
            found = TokenAuthentication().authenticate(Request(request))
        except AuthenticationFailed:
            return False
        user = found[0] if found is not None else AnonymousUser()
    return has_role(user, VIEWER)


@require_safe
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 when every process that was started is alive, else 503 with the silent ones."""
    if not may_read(request):
        return HttpResponse("log in, or send a token\n", status=401, content_type="text/plain")
    pulses = heartbeats.pulses()
    silent = [pulse.name for pulse in pulses if not pulse.alive]
    ready = bool(pulses) and not silent
    body = {"ready": ready, "processes": [pulse.name for pulse in pulses], "silent": silent}
    return JsonResponse(body, status=200 if ready else 503)


@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with Prometheus' text, collected from the rows at this moment."""
    if not may_read(request):
        return HttpResponse("log in, or send a token\n", status=401, content_type="text/plain")
    return HttpResponse(numbers.text(), content_type=METRICS_TYPE)

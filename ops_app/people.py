"""Who asks: every write by a person carries that person (I21)."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest


def acting_user(request: HttpRequest) -> User:
    """Return who sent `request`; raises PermissionDenied for nobody, which a view's guard has refused before."""
    if not isinstance(request.user, User):
        raise PermissionDenied("Log in first: what is done here is recorded with the name of who asked for it.")
    return request.user

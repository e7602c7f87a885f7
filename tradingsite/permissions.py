"""Roles: a viewer sees, an operator steers the work, an admin steers the money (I22)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

if TYPE_CHECKING:  # DRF imports this module while it imports its views
    from rest_framework.views import APIView

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
ROLES = (VIEWER, OPERATOR, ADMIN)  # each may do what the ones before it may


def role_of(user: AbstractBaseUser | AnonymousUser) -> str | None:
    """Return the highest role of `user`; a superuser is an admin; None for nobody.

    A user object lives as long as one request, so its groups are read once for all questions of that request.
    """
    if not user.is_authenticated or not user.is_active:
        return None
    person = cast(User, user)
    if person.is_superuser:
        return ADMIN
    if not hasattr(person, "_role"):
        names = set(person.groups.values_list("name", flat=True))
        person._role = next((role for role in reversed(ROLES) if role in names), None)  # type: ignore[attr-defined]
    role: str | None = getattr(person, "_role", None)
    return role


def has_role(user: AbstractBaseUser | AnonymousUser, needed: str) -> bool:
    """Return whether `user` has the role `needed` or a higher one."""
    role = role_of(user)
    return role is not None and ROLES.index(role) >= ROLES.index(needed)


class RolePermission(BasePermission):
    """A view's `required_role` is needed to write; every role may read."""

    message = "Your role does not allow this. Ask an admin for the role that the documentation names."

    def has_permission(self, request: Request, view: APIView) -> bool:
        needed = VIEWER if request.method in SAFE_METHODS else getattr(view, "required_role", OPERATOR)
        return has_role(request.user, needed)

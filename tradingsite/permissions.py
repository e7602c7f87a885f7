"""Roles: a viewer sees, an operator steers the work, an admin steers the money (I22)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

if TYPE_CHECKING:  # DRF imports this module while it imports its views
    from rest_framework.views import APIView

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
ROLES = (VIEWER, OPERATOR, ADMIN)  # each may do what the ones before it may


def role_of(user: AbstractBaseUser | AnonymousUser) -> str | None:
    """Return the highest role of `user`; a superuser is an admin; None for nobody."""
    if not user.is_authenticated or not user.is_active:
        return None
    if getattr(user, "is_superuser", False):
        return ADMIN
    names = set(user.groups.values_list("name", flat=True))  # type: ignore[attr-defined]  # every user model of ours has groups
    return next((role for role in reversed(ROLES) if role in names), None)


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

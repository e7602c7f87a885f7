"""The admin's door: whoever has a role may look; what each may do there is decided by the role's permissions."""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from unfold.forms import AuthenticationForm
from unfold.sites import UnfoldAdminSite

from tradingsite.permissions import VIEWER, has_role


def may_enter(user: AbstractBaseUser) -> bool:
    """Return whether `user` has a role; Django's own staff flag opens the door too, but shows nothing by itself."""
    return has_role(user, VIEWER) or bool(user.is_active and getattr(user, "is_staff", False))


class RoleAuthenticationForm(AuthenticationForm):
    """One log-in for the dashboard and the admin, for everybody with a role."""

    def confirm_login_allowed(self, user: AbstractBaseUser) -> None:
        if not user.is_active:
            raise ValidationError("This account is switched off. Ask an admin.", code="inactive")
        if not may_enter(user):
            raise ValidationError("This account has no role yet: ask an admin for one.", code="no_role")


class TradingAdminSite(UnfoldAdminSite):
    login_form = RoleAuthenticationForm
    index_title = "Everything that is stored"

    def has_permission(self, request: HttpRequest) -> bool:
        return request.user.is_authenticated and may_enter(request.user)

"""What the admin pages of all apps have in common: rows are shown, not edited; people act through services."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import messages
from django.contrib.auth.models import User
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from ops_app.people import acting_user


class ReadOnly:
    """Nothing can be added, changed or deleted, whatever the role (I21)."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's signature
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's signature
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's signature
        return False


class ReadOnlyAdmin(ReadOnly, ModelAdmin):
    """A list, and a page per row."""

    actions: Any = None
    list_fullwidth = True
    list_per_page = 50
    show_full_result_count = False


class ReadOnlyInline(ReadOnly, TabularInline):
    """Rows that belong to the one that is shown."""

    extra = 0
    per_page = 50


class SteeredAdmin(ReadOnlyAdmin):
    """Rows that people steer by actions with `permissions=["steer"]`: the right to change rows of the table.

    `refusal` is the error with which this app's services say no.
    """

    refusal: type[Exception]

    def has_steer_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    def run_each(self, request: HttpRequest, rows: Iterable[Any], action: Callable[[Any, User], str]) -> None:
        """Call `action` for each row and show what each did, or why it could not."""
        person = acting_user(request)
        for row in rows:
            try:
                self.message_user(request, action(row, person), messages.SUCCESS)
            except self.refusal as error:
                self.message_user(request, str(error), messages.WARNING)

"""What only the whole knows: symbols with their derived state, and people with their roles."""

from __future__ import annotations

from typing import Any

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from rest_framework.authtoken.models import Token, TokenProxy
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from coverage_app.admin import SymbolAdmin
from coverage_app.models import Symbol
from ops_app import clock, journal
from ops_app.pages import ReadOnlyAdmin
from ops_app.people import acting_user
from training_app.selectors import State, SymbolState, symbol_states

STATE_LABELS = {
    State.TRADABLE.value: "success",
    State.TRAINING.value: "info",
    State.TRAINABLE.value: "primary",
    State.BLOCKED.value: "warning",
}


class SymbolStateFilter(admin.SimpleListFilter):
    """Symbols by derived state. It is stored nowhere, so the states of the market are derived first."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's signature
        return [(state.value, state.value.capitalize()) for state in State]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - Django's signature
        wanted = self.value()
        if wanted is None:
            return queryset
        return queryset.filter(pk__in=[each.symbol_id for each in symbol_states() if each.state == wanted])


class StatefulChangeList(ChangeList):
    """Derives the states of all symbols of a page at once: a constant number of queries."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows: list[Symbol] = list(self.result_list)
        states: dict[int, SymbolState] = {}
        for market in {row.market for row in rows}:
            ids = [row.pk for row in rows if row.market == market]
            states |= {each.symbol_id: each for each in symbol_states(market, ids=ids)}
        for row in rows:
            row.derived = states[row.pk]  # type: ignore[attr-defined]  # for the columns of this page only
        self.result_list = rows


class StatefulSymbolAdmin(SymbolAdmin):
    """Symbols with state and reason: what a person looks for first."""

    list_display = (
        "code", "shown_state", "shown_why", "shown_next", "shown_history", "shown_coverage", "last_candle_at",
    )  # fmt: skip
    list_filter = (SymbolStateFilter, *SymbolAdmin.list_filter)
    readonly_fields = (*SymbolAdmin.readonly_fields, "shown_state", "shown_why", "shown_next")
    fieldsets = (("State", {"fields": ("shown_state", "shown_why", "shown_next")}), *SymbolAdmin.fieldsets)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:  # noqa: ARG002 - Django's signature
        return StatefulChangeList

    @display(description="State", label=STATE_LABELS)
    def shown_state(self, symbol: Symbol) -> str:
        return _derived(symbol).state.value

    @display(description="Why, and what comes next")
    def shown_why(self, symbol: Symbol) -> str:
        state = _derived(symbol)
        in_run = f" (in run {state.run_id})" if state.training and state.state != State.TRAINING else ""
        return (state.evidence or f"covered by model v{state.artifact_version}") + in_run

    @display(description="Looked at next")
    def shown_next(self, symbol: Symbol) -> str:
        state = _derived(symbol)
        if state.permanent:
            return "when a person lifts it"
        due = " (due)" if state.recheck_at and state.recheck_at <= clock.market_now() else ""
        return f"{state.recheck_at:%Y-%m-%d %H:%M}{due}" if state.recheck_at else "-"


def _derived(symbol: Symbol) -> SymbolState:
    state: SymbolState | None = getattr(symbol, "derived", None)
    if state is None:  # the page of one symbol, which no change list has prepared
        (state,) = symbol_states(symbol.market, ids=[symbol.pk])
        symbol.derived = state  # type: ignore[attr-defined]
    return state


# --- people ---------------------------------------------------------------------------------------------------------


class PersonAdmin(DjangoUserAdmin, ModelAdmin):
    """People and their roles: the group is the role, nothing else is needed."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "role", "is_active", "is_superuser", "last_login")
    list_filter = ("is_active", "groups")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Role", {"fields": ("groups", "is_active", "is_superuser")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )
    filter_horizontal = ()
    actions = ("revoke_tokens",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        return super().get_queryset(request).prefetch_related("groups")

    @display(description="Role")
    def role(self, person: User) -> str:
        if person.is_superuser:
            return "admin (superuser)"
        return ", ".join(group.name for group in person.groups.all()) or "none: may not log in"

    @admin.action(description="Take back the API tokens", permissions=["change"])
    def revoke_tokens(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        names = list(queryset.filter(auth_token__isnull=False).values_list("username", flat=True))
        Token.objects.filter(user__in=queryset).delete()
        for name in names:
            journal.record("token_revoked", f"The API token of {name} was taken back.", user=acting_user(request))
        text = f"Tokens taken back: {', '.join(names)}." if names else "None of these people has a token."
        self.message_user(request, text, messages.SUCCESS if names else messages.INFO)


class RoleAdmin(ReadOnlyAdmin):
    """Roles. Their permissions come from `manage.py setup`, which would put a change back."""

    search_fields = ("name",)


class AccessAdmin(ReadOnlyAdmin):
    list_display = ("attempt_time", "username", "ip_address", "path_info")
    list_filter = ("attempt_time",)
    search_fields = ("username", "ip_address")
    #: What was sent may hold a password that was typed into the wrong field.
    exclude = ("get_data", "post_data")


PAGES: tuple[tuple[type[Model], type[ModelAdmin]], ...] = (
    (Symbol, StatefulSymbolAdmin),
    (User, PersonAdmin),
    (Group, RoleAdmin),
    (AccessAttempt, AccessAdmin),
    (AccessFailureLog, AccessAdmin),
    (AccessLog, AccessAdmin),
)
admin.site.unregister(TokenProxy)  # a token is a password, and the paths of its pages would be the tokens themselves
for model, page in PAGES:
    if admin.site.is_registered(model):
        admin.site.unregister(model)
    admin.site.register(model, page)

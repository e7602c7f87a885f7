"""Admin pages of money: for looking; a bot's limits may be changed, and its actions call services."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from simple_history.admin import SimpleHistoryAdmin
from unfold.admin import ModelAdmin

from ops_app.pages import ReadOnlyAdmin
from ops_app.people import acting_user
from quant.reasons import reason
from trading_app import services
from trading_app.choices import DesiredState
from trading_app.exceptions import TradingError
from trading_app.models import Bot, Decision, EquityPoint, Fill, Order, Position, RiskEvent

LIMITS = (
    "max_leverage", "max_correlated", "max_position", "max_positions", "cooldown_bars", "daily_loss_limit",
    "max_drawdown", "on_kill_switch", "volatility_target",
)  # fmt: skip


@admin.register(Bot)
class BotAdmin(SimpleHistoryAdmin, ModelAdmin):
    """What people want of a bot. States and the kill switch change by actions, which say who asked (I19, I21)."""

    list_display = ["name", "market", "mode", "desired_state", "kill_switch_at", "entries_blocked", "last_bar_at"]
    fields = [
        "name", "market", "account", "mode", "desired_state", "entries_blocked", "kill_switch_at", "kill_switch_reason",
        *LIMITS, "peak_equity", "day_start_equity", "daily_loss_hit", "last_bar_at", "missed_bars", "loaded_generation",
        "loaded_at", "refused_generation", "reloads", "started_at", "created_at",
    ]  # fmt: skip
    actions = ["start", "pause", "close_only", "stop", "pull_kill_switch", "reset_kill_switch"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:  # noqa: ARG002 - Django's
        return [name for name in self.fields if name not in LIMITS]

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's signature
        return False  # `manage.py setup` makes the bot of the settings

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002 - Django's
        return False

    @admin.action(description="Start: open positions again", permissions=["change"])
    def start(self, request: HttpRequest, queryset: QuerySet[Bot]) -> None:
        self._ask(request, queryset, DesiredState.RUN)

    @admin.action(description="Pause: no entries, positions are managed", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Bot]) -> None:
        self._ask(request, queryset, DesiredState.PAUSE)

    @admin.action(description="Close only: close all positions now", permissions=["change"])
    def close_only(self, request: HttpRequest, queryset: QuerySet[Bot]) -> None:
        self._ask(request, queryset, DesiredState.CLOSE_ONLY)

    @admin.action(description="Stop: no decisions, stops stay at the exchange", permissions=["change"])
    def stop(self, request: HttpRequest, queryset: QuerySet[Bot]) -> None:
        self._ask(request, queryset, DesiredState.STOP)

    @admin.action(description="Pull the kill switch", permissions=["change"])
    def pull_kill_switch(self, request: HttpRequest, queryset: QuerySet[Bot]) -> None:
        for bot in queryset:
            why = reason("MANUAL", by=acting_user(request).get_username())
            pulled = services.pull_kill_switch(bot=bot, reason=why, user=acting_user(request))
            self._say(request, f"{bot}: kill switch {'pulled' if pulled else 'was pulled already'}.", changed=pulled)

    @admin.action(description="Reset the kill switch", permissions=["change"])
    def reset_kill_switch(self, request: HttpRequest, queryset: QuerySet[Bot]) -> None:
        for bot in queryset:
            opened = services.reset_kill_switch(bot=bot, user=acting_user(request))
            self._say(request, f"{bot}: kill switch {'reset' if opened else 'was not pulled'}.", changed=opened)

    def _ask(self, request: HttpRequest, queryset: QuerySet[Bot], state: DesiredState) -> None:
        for bot in queryset:
            try:
                changed = services.set_desired_state(bot=bot, state=state, user=acting_user(request))
            except TradingError as error:
                self.message_user(request, str(error), messages.ERROR)
                continue
            self._say(request, f"{bot}: {state.label}{'' if changed else ' (asked for already)'}.", changed=changed)

    def _say(self, request: HttpRequest, text: str, *, changed: bool) -> None:
        self.message_user(request, text, messages.SUCCESS if changed else messages.INFO)

    def save_model(self, request: HttpRequest, obj: Bot, form: Any, change: bool) -> None:
        """Write the limits only: the running bot writes the other columns meanwhile."""
        obj._history_user = request.user  # type: ignore[attr-defined]  # simple_history reads both
        obj._change_reason = f"limits: {', '.join(form.changed_data)}"[:100]  # type: ignore[attr-defined]  # as above
        obj.save(update_fields=[name for name in form.changed_data if name in LIMITS] if change else None)


@admin.register(Decision)
class DecisionAdmin(ReadOnlyAdmin):
    list_display = ["bar_at", "symbol", "side", "probability", "outcome", "reason", "artifact"]
    list_filter = ["outcome", "reason_code"]
    list_select_related = ["symbol", "artifact"]
    search_fields = ["symbol__code", "reason"]
    show_full_result_count = False


@admin.register(Order)
class OrderAdmin(ReadOnlyAdmin):
    list_display = [
        "created_at", "symbol", "purpose", "side", "quantity", "filled", "average_price", "state", "reason",
        "client_order_id",
    ]  # fmt: skip
    list_filter = ["state", "purpose"]
    list_select_related = ["symbol"]
    search_fields = ["symbol__code", "client_order_id"]


@admin.register(Fill)
class FillAdmin(ReadOnlyAdmin):
    list_display = ["filled_at", "symbol", "kind", "side", "quantity", "price", "fee", "trade_id", "order"]
    list_filter = ["kind", "side"]
    list_select_related = ["symbol", "order"]
    search_fields = ["symbol__code", "trade_id", "client_order_id"]


@admin.register(Position)
class PositionAdmin(ReadOnlyAdmin):
    list_display = [
        "opened_at", "symbol", "quantity", "entry_price", "stop_price", "target_price", "realised_pnl", "fees",
        "closed_at", "close_reason", "foreign",
    ]  # fmt: skip
    list_filter = [("closed_at", admin.EmptyFieldListFilter), "foreign"]
    list_select_related = ["symbol"]
    search_fields = ["symbol__code"]


@admin.register(EquityPoint)
class EquityPointAdmin(ReadOnlyAdmin):
    list_display = ["at", "bot", "equity", "cash", "exposure", "drawdown", "open_positions"]
    list_select_related = ["bot"]
    show_full_result_count = False


@admin.register(RiskEvent)
class RiskEventAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "bot", "kind", "evidence", "user"]
    list_filter = ["kind"]
    list_select_related = ["bot", "user"]

"""Admin pages of coverage: everything is shown, nothing is edited; people act through services that report."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, Model, Prefetch, Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from unfold.decorators import display
from unfold.forms import ActionForm
from unfold.widgets import UnfoldAdminTextInputWidget

from coverage_app import selectors, services
from coverage_app.choices import BlockReason
from coverage_app.exceptions import CoverageError
from coverage_app.models import Block, Symbol, UniverseRefresh
from ops_app.pages import ReadOnlyAdmin, SteeredAdmin
from ops_app.people import acting_user

LATEST = 20


class OpenReasonFilter(admin.SimpleListFilter):
    title = "open block"
    parameter_name = "block"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's signature
        return [("none", "None"), ("any", "Any"), *BlockReason.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - Django's signature
        value = self.value()
        if value is None:
            return queryset
        blocks = Block.objects.open()
        if value not in {"none", "any"}:
            blocks = blocks.filter(reason=value)
        has_block = Q(pk__in=blocks.values("symbol_id"))
        return queryset.exclude(has_block) if value == "none" else queryset.filter(has_block)


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "is"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's signature
        return [("open", "Open"), ("closed", "Closed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - Django's signature
        return queryset if self.value() is None else queryset.filter(closed_at__isnull=self.value() == "open")


class WhyActionForm(ActionForm):
    """The list's action box, with room for the reason that blocking a symbol needs."""

    why = forms.CharField(
        required=False,
        label="",
        max_length=200,
        widget=UnfoldAdminTextInputWidget(
            attrs={"placeholder": "Why is it blocked?", "x-show": "action === 'block'", "aria-label": "Why"}
        ),
    )


class SymbolAdmin(SteeredAdmin):
    """Symbols with what is known of their history and what is against them."""

    refusal = CoverageError
    list_display = (
        "code", "in_universe", "shown_history", "shown_coverage", "shown_blocks", "last_candle_at",
        "next_evaluation_at",
    )  # fmt: skip
    list_filter: tuple[Any, ...] = ("in_universe", OpenReasonFilter, "backfilled", "market")
    search_fields = ("code", "base")
    ordering = ("code",)
    list_per_page = 100
    actions = ("unblock", "block", "evaluate_now")
    action_form = WhyActionForm
    readonly_fields: tuple[str, ...] = ("shown_open_blocks", "shown_timeline")
    fieldsets: tuple[tuple[str | None, dict[str, Any]], ...] = (
        (None, {"fields": ("code", "market", "market_type", "listed_at", "delisted_at", "active")}),
        ("What is against it", {"fields": ("shown_open_blocks",)}),
        ("Universe", {"fields": ("in_universe", "universe_reason", "volume_24h", "spread_bps")}),
        (
            "History",
            {
                "fields": (
                    "history_start", "last_candle_at", "history_days", "history_coverage", "candle_count",
                    "expected_count", "largest_gap_bars", "unbroken_since", "price_break", "backfilled",
                    "ingest_due_at", "ingest_failures", "ingest_error",
                )
            },
        ),
        (
            "Evaluation",
            {"fields": ("next_evaluation_at", "last_evaluated_at", "evaluations", "evaluation_failures")},
        ),
        ("Trading rules", {"fields": ("tick_size", "lot_size", "min_notional")}),
        ("What happened", {"fields": ("shown_timeline",)}),
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Symbol]:
        open_blocks = Count("blocks", filter=Q(blocks__closed_at__isnull=True))
        return super().get_queryset(request).annotate(open_blocks=open_blocks).prefetch_related(_open_blocks_prefetch())

    @display(description="History", ordering="history_days")
    def shown_history(self, symbol: Symbol) -> str:
        return f"{symbol.history_days:.0f} days" if symbol.candle_count else "none yet"

    @display(description="Coverage", ordering="history_coverage")
    def shown_coverage(self, symbol: Symbol) -> str:
        return f"{symbol.history_coverage:.1%}" if symbol.candle_count else "-"

    @display(description="Open blocks", ordering="open_blocks")
    def shown_blocks(self, symbol: Symbol) -> str:
        blocks = getattr(symbol, "open_block_list", None)
        reasons = [block.reason for block in (selectors.open_blocks(symbol) if blocks is None else blocks)]
        return ", ".join(reasons) or "-"

    @display(description="Open blocks")
    def shown_open_blocks(self, symbol: Symbol) -> str:
        rows = [
            (
                block.evidence,
                "permanent" if block.recheck_at is None else f"looked at again {_minute(block.recheck_at)}",
            )
            for block in selectors.open_blocks(symbol)
        ]
        return format_html_join("", "<div>{} - {}</div>", rows) or "Nothing."

    @display(description=f"The latest {LATEST}")
    def shown_timeline(self, symbol: Symbol) -> str:
        rows = [
            (_minute(entry.at), entry.text, f" ({entry.user})" if entry.user else "")
            for entry in selectors.symbol_timeline(symbol, limit=LATEST)
        ]
        return format_html_join("", "<div>{} {}{}</div>", rows) or "Nothing yet."

    @admin.action(description="Lift all blocks", permissions=["steer"])
    def unblock(self, request: HttpRequest, queryset: QuerySet[Symbol]) -> None:
        self.run_each(request, queryset, lambda symbol, user: services.unblock(symbol=symbol, user=user).text)

    @admin.action(description="Block until lifted (say why)", permissions=["steer"])
    def block(self, request: HttpRequest, queryset: QuerySet[Symbol]) -> None:
        why = request.POST.get("why", "")
        self.run_each(
            request, queryset, lambda symbol, user: services.block_manually(symbol=symbol, user=user, why=why).text
        )

    @admin.action(description="Evaluate now", permissions=["steer"])
    def evaluate_now(self, request: HttpRequest, queryset: QuerySet[Symbol]) -> None:
        outcome = services.evaluate_now(symbol_ids=queryset.values_list("pk", flat=True), user=acting_user(request))
        self.message_user(request, outcome.text, messages.SUCCESS)


class BlockAdmin(SteeredAdmin):
    """Blocks, open and closed, with their evidence."""

    refusal = CoverageError
    list_display = ("symbol", "reason", "evidence", "opened_at", "recheck_at", "closed_at", "shown_closed_by")
    list_filter = (StateFilter, "reason", "permanent")
    list_select_related = ("symbol", "closed_by")
    search_fields = ("symbol__code", "evidence")
    date_hierarchy = "opened_at"
    actions = ("unblock",)

    @display(description="Closed by")
    def shown_closed_by(self, block: Block) -> str:
        if block.closed_at is None:
            return "-"
        return block.closed_by.get_username() if block.closed_by else block.close_reason

    @admin.action(description="Lift these blocks", permissions=["steer"])
    def unblock(self, request: HttpRequest, queryset: QuerySet[Block]) -> None:
        self.run_each(request, queryset, lambda block, user: services.unblock(block_id=block.pk, user=user).text)


class UniverseRefreshAdmin(ReadOnlyAdmin):
    """Each look at what the exchange lists."""

    list_display = (
        "started_at", "market", "trigger", "found", "added", "in_universe", "entered", "left", "delisted",
        "shown_error", "next_refresh_at",
    )  # fmt: skip
    list_filter = ("market", "trigger")
    date_hierarchy = "started_at"

    @display(description="Error")
    def shown_error(self, row: UniverseRefresh) -> str:
        if not row.error:
            return "-" if row.finished_at else "did not end"
        return format_html('<span title="{}">{}</span>', row.error, row.error[:80])


def _open_blocks_prefetch() -> Any:
    return Prefetch("blocks", queryset=Block.objects.open().order_by("opened_at"), to_attr="open_block_list")


def _minute(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


REGISTERED: tuple[tuple[type[Model], type[ReadOnlyAdmin]], ...] = (
    (Symbol, SymbolAdmin),
    (Block, BlockAdmin),
    (UniverseRefresh, UniverseRefreshAdmin),
)
for model, model_admin in REGISTERED:
    admin.site.register(model, model_admin)

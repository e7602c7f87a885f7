"""Admin pages of this app and of django-q2: for looking, not for changing."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.shortcuts import redirect
from django.urls import path, reverse
from django.utils.formats import date_format
from django.utils.html import format_html
from django.views.decorators.http import require_POST
from django_q.models import Failure, OrmQ, Schedule, Success

from ops_app.job_states import job_states, run_now
from ops_app.models import Alert, Event, Heartbeat, JobRun, Lease, MarketClock
from ops_app.pages import ReadOnlyAdmin, SteeredAdmin

LONGEST_RESULT = 200


@admin.register(MarketClock)
class MarketClockAdmin(ReadOnlyAdmin):
    list_display = ["market", "source", "market_start", "real_start", "speed"]


@admin.register(Lease)
class LeaseAdmin(ReadOnlyAdmin):
    list_display = ["name", "holder", "token", "expires_at", "renewed_at"]
    search_fields = ["name", "holder"]


@admin.register(Heartbeat)
class HeartbeatAdmin(ReadOnlyAdmin):
    list_display = ["name", "kind", "beat_at", "ttl_seconds", "pid", "host"]
    list_filter = ["kind"]


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "severity", "kind", "subject", "text", "user"]
    list_filter = ["severity", "kind"]
    list_select_related = ["user"]
    search_fields = ["subject", "text"]
    show_full_result_count = False


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "severity", "text", "state", "attempts", "resolved_at"]
    list_filter = ["severity", "state"]
    search_fields = ["key", "text"]


@admin.register(JobRun)
class JobRunAdmin(SteeredAdmin):
    """The runs, and above them every job with its last run, next time and a button."""

    list_display = ["started_at", "job", "took", "outcome", "result"]
    list_filter = ["job"]
    show_full_result_count = False
    list_before_template = "ops/jobs.html"
    refusal = LookupError

    @admin.display(description="seconds", ordering="seconds")
    def took(self, run: JobRun) -> str:
        return "" if run.seconds is None else f"{run.seconds:.2f}"

    @admin.display(ordering="error")
    def outcome(self, run: JobRun) -> str:
        if run.error:
            return "failed"
        return "runs" if run.seconds is None else "ok"

    def get_urls(self) -> list[Any]:
        run = self.admin_site.admin_view(require_POST(self.run_now))
        return [path("run-now/", run, name="ops_app_jobrun_run_now"), *super().get_urls()]

    def run_now(self, request: HttpRequest) -> HttpResponse:
        if not self.has_steer_permission(request):
            raise PermissionDenied("Running a job needs the role of an operator.")
        self.run_each(request, [request.POST.get("job", "")], lambda name, user: run_now(name, user=user))
        return redirect("admin:ops_app_jobrun_changelist")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {**(extra_context or {}), "job_table": self.job_table(request)})

    def job_table(self, request: HttpRequest) -> dict[str, list[Any]]:
        may_run = self.has_steer_permission(request)
        headers = [
            "Job",
            "Every",
            "Last run",
            "Seconds",
            "Outcome",
            "Result or error",
            "Next",
            *([""] if may_run else []),
        ]
        rows = [
            [
                format_html('<span title="{}">{}</span>', state.job.help, state.job.name),
                state.job.period,
                "" if state.last is None else date_format(state.last.started_at, "Y-m-d H:i:s"),
                "" if state.last is None or state.last.seconds is None else f"{state.last.seconds:.2f}",
                state.verdict,
                state.text[:LONGEST_RESULT],
                "no schedule: run `setup`" if state.next_at is None else date_format(state.next_at, "Y-m-d H:i"),
                *([self._button(request, state.job.name)] if may_run else []),
            ]
            for state in job_states()
        ]
        return {"headers": headers, "rows": rows}

    def _button(self, request: HttpRequest, name: str) -> str:
        return format_html(
            '<form method="post" action="{}"><input type="hidden" name="csrfmiddlewaretoken" value="{}">'
            '<button name="job" value="{}" class="{}">Run now</button></form>',
            reverse("admin:ops_app_jobrun_run_now"),
            get_token(request),
            name,
            "border border-base-200 cursor-pointer px-2 py-1 rounded-default dark:border-base-700",
        )


# --- django-q2: a schedule's `func` is any dotted path, so whoever may edit one may run any code ---


class ScheduleAdmin(ReadOnlyAdmin):
    list_display = ["name", "func", "args", "minutes", "next_run", "cluster"]
    search_fields = ["name"]


class TaskAdmin(ReadOnlyAdmin):
    list_display = ["name", "group", "func", "cluster", "started", "stopped"]
    list_filter = ["group", "cluster"]
    search_fields = ["name", "func", "group"]
    # Arguments and results are pickled: a page must not unpickle what a stranger may have written.
    fields = ["id", "name", "group", "func", "cluster", "started", "stopped", "success", "attempt_count"]


class FailureAdmin(TaskAdmin):
    fields = [*TaskAdmin.fields, "result"]


class MessageAdmin(ReadOnlyAdmin):
    list_display = ["id", "key", "lock"]
    list_filter = ["key"]
    fields = ["key", "lock"]


for model, page in ((Schedule, ScheduleAdmin), (Success, TaskAdmin), (Failure, FailureAdmin), (OrmQ, MessageAdmin)):
    if admin.site.is_registered(model):  # django-q2 registers OrmQ only for the ORM broker
        admin.site.unregister(model)
        admin.site.register(model, page)

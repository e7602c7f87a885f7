"""Admin pages of this app and of django-q2: for looking, not for changing."""

from __future__ import annotations

from django.contrib import admin
from django_q.models import Failure, OrmQ, Schedule, Success

from ops_app.models import Alert, Event, Heartbeat, JobRun, Lease, MarketClock
from ops_app.pages import ReadOnlyAdmin


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
class JobRunAdmin(ReadOnlyAdmin):
    list_display = ["started_at", "job", "seconds", "result", "failed"]
    list_filter = ["job"]
    show_full_result_count = False

    @admin.display(boolean=True)
    def failed(self, run: JobRun) -> bool:
        return bool(run.error)


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

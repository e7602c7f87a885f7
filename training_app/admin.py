"""Admin of training: runs with progress and log, the registry with its gates, who serves and why.

Rows are read only: every change is an action that calls a service and says what it did. No model is loaded here.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display

from ops_app.pages import ReadOnlyAdmin, ReadOnlyInline, SteeredAdmin
from training_app import activation, capacity, registry, services
from training_app.choices import ActivationKind, RunState
from training_app.exceptions import RunRefused, TrainingAppError
from training_app.models import (
    Activation,
    ActiveModel,
    ArtifactSymbol,
    GenerationCounter,
    ModelArtifact,
    ModelWatch,
    RunSymbol,
    TrainingRun,
    TrainingScope,
    TuningTrial,
)

MOST_DRIFTED = 10
"""Features on the page of a model; its watches show all of them."""


class TrainingAdmin(SteeredAdmin):
    refusal = TrainingAppError


class SymbolInline(ReadOnlyInline):
    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("symbol").order_by("symbol__code")


@admin.register(TrainingScope)
class TrainingScopeAdmin(TrainingAdmin):
    list_display = ("key", "decision", "not_before", "failures", "new_count", "last_started")
    list_filter = ("market", "training_mode", "timeframe")
    search_fields = ("key", "symbol__code")
    ordering = ("key",)
    actions = ("train",)

    @display(description="Last run")
    def last_started(self, scope: TrainingScope) -> str:
        run = scope.runs.first()
        return "" if run is None else f"#{run.run_no} {run.get_state_display()}"

    @admin.action(description="Train now", permissions=["steer"])
    def train(self, request: HttpRequest, queryset: QuerySet[TrainingScope]) -> None:
        self.run_each(request, queryset, _train)


class RunSymbolInline(SymbolInline):
    model = RunSymbol
    fields = readonly_fields = ("symbol", "open", "verdict", "reason")


class TuningTrialInline(ReadOnlyInline):
    model = TuningTrial
    fields = readonly_fields = ("number", "attempt", "state", "value", "sharpe", "seconds", "params")


@admin.register(TrainingRun)
class TrainingRunAdmin(TrainingAdmin):
    list_display = (
        "id", "scope", "run_no", "state_label", "shown_progress", "trigger", "attempt", "created_at", "outcome",
    )  # fmt: skip
    list_filter = ("state", "trigger", "scope__training_mode")
    search_fields = ("scope__key", "cause", "error")
    list_select_related = ("scope",)
    fields = (
        ("scope", "run_no", "state"), ("trigger", "requested_by"), "cause", ("attempt", "max_attempts", "not_before"),
        "waits_for", ("needs_memory_mb", "needs_threads"), ("owner", "fencing_token"),
        ("lease_expires_at", "heartbeat_at", "enqueued_at"), "shown_progress", "error",
        ("data_start", "data_end", "data_hash"), ("created_at", "started_at", "finished_at"), "shown_log",
    )  # fmt: skip
    readonly_fields = ("waits_for", "shown_progress", "shown_log")
    inlines = (TuningTrialInline, RunSymbolInline)
    actions = ("cancel",)

    @display(
        description="State",
        label={"Promoted": "success", "Failed": "danger", "Refused by a gate": "warning", "Running": "info"},
    )
    def state_label(self, run: TrainingRun) -> str:
        return RunState(run.state).label

    @display(description="Waits for")
    def waits_for(self, run: TrainingRun) -> str:
        return capacity.why_waiting(run) or "nothing"

    @display(description="Progress")
    def shown_progress(self, run: TrainingRun) -> SafeString:
        percent = f"{run.progress:.0%}"
        return format_html('<progress max="1" value="{}"></progress> {} {}', run.progress, percent, run.stage)

    @display(description="Outcome")
    def outcome(self, run: TrainingRun) -> str:
        return (run.error.strip().rpartition("\n")[2] or run.cause)[:160]

    @display(description="Log")
    def shown_log(self, run: TrainingRun) -> SafeString:
        return format_html("<pre>{}</pre>", run.log or "nothing yet")

    @admin.action(description="Cancel", permissions=["steer"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[TrainingRun]) -> None:
        self.run_each(request, queryset, _cancel)


class ArtifactSymbolInline(SymbolInline):
    model = ArtifactSymbol
    fields = readonly_fields = ("symbol",)


@admin.register(ModelArtifact)
class ModelArtifactAdmin(TrainingAdmin):
    list_display = (
        "id", "scope", "version", "gates_passed", "score", "shown_symbols", "serves", "against", "created_at",
    )  # fmt: skip
    list_filter = ("gates_passed", "training_mode", "symbol_encoding", "scope")
    search_fields = ("scope__key", "sha256")
    list_select_related = ("scope",)
    fields = (
        ("scope", "version", "run"), "against", "gates_table", "tuning", "drift_table",
        ("threshold", "score", "gates_passed"),
        ("training_mode", "symbol_encoding", "timeframe", "signal", "blend"),
        ("schema_hash", "label_hash", "label_spec"),
        ("data_start", "data_end", "data_hash"), ("directory", "size", "sha256"), ("library_versions", "fencing_token"),
        ("retired_at", "retired_reason"), "integrity_error", "panel_symbols", "metrics",
    )  # fmt: skip
    readonly_fields = ("gates_table", "tuning", "drift_table", "against")
    inlines = (ArtifactSymbolInline,)
    actions = ("activate",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelArtifact]:
        return super().get_queryset(request).prefetch_related("active_in", "artifact_symbols__symbol")

    @display(description="Symbols")
    def shown_symbols(self, artifact: ModelArtifact) -> int:
        return len(artifact.artifact_symbols.all())

    @display(description="Serves", boolean=True)
    def serves(self, artifact: ModelArtifact) -> bool:
        return bool(artifact.active_in.all())

    @display(description="Against it")
    def against(self, artifact: ModelArtifact) -> str:
        return "; ".join(refusal.text for refusal in registry.refusals_of(artifact)) or "nothing"

    @display(description="Gates")
    def gates_table(self, artifact: ModelArtifact) -> SafeString:
        rows = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            (
                (gate["name"], _number(gate["value"]), _number(gate["bound"]), _verdict(gate), gate["text"])
                for gate in artifact.gates
            ),
        )  # fmt: skip
        return format_html(
            "<table><tr><th>Gate</th><th>Value</th><th>Bound</th><th>Verdict</th><th>In words</th></tr>{}</table>", rows
        )

    @display(description="Tuning")
    def tuning(self, artifact: ModelArtifact) -> str:
        return _tuning(artifact.metrics.get("tuning"))

    @display(description="Drift")
    def drift_table(self, artifact: ModelArtifact) -> SafeString:
        watch = artifact.watches.first()
        if watch is None:
            return format_html("{}", "not looked at yet: a worker looks at each active model once a market day")
        return _drift_table(watch, most=MOST_DRIFTED)

    @admin.action(description="Activate", permissions=["steer"])
    def activate(self, request: HttpRequest, queryset: QuerySet[ModelArtifact]) -> None:
        self.run_each(request, queryset, _activate)


@admin.register(ActiveModel)
class ActiveModelAdmin(TrainingAdmin):
    list_display = ("slot", "artifact", "generation", "activated_at", "against")
    search_fields = ("slot",)
    list_select_related = ("artifact",)
    actions = ("roll_back",)

    @display(description="Against it")
    def against(self, row: ActiveModel) -> str:
        return "; ".join(refusal.text for refusal in registry.refusals_of(row.artifact)) or "nothing"

    @admin.action(description="Roll back to the model before", permissions=["steer"])
    def roll_back(self, request: HttpRequest, queryset: QuerySet[ActiveModel]) -> None:
        self.run_each(request, queryset, _roll_back)


@admin.register(Activation)
class ActivationAdmin(ReadOnlyAdmin):
    list_display = (
        "requested_at", "slot", "artifact", "previous_artifact", "kind", "state", "generation", "requested_by",
        "reason",
    )  # fmt: skip
    list_filter = ("state", "kind")
    search_fields = ("slot", "reason")
    list_select_related = ("artifact", "previous_artifact", "requested_by")


@admin.register(ModelWatch)
class ModelWatchAdmin(ReadOnlyAdmin):
    list_display = (
        "at", "artifact", "verdict", "samples", "drifted", "psi_max", "trades", "wins", "promised_precision", "guard",
        "asks", "text",
    )  # fmt: skip
    list_filter = ("verdict", "asks")
    search_fields = ("artifact__scope__key", "text")
    list_select_related = ("artifact",)
    fields = (
        ("artifact", "at", "since"), ("verdict", "asks"), "text", ("samples", "drifted", "psi_max"), "drift_table",
        ("trades", "wins", "promised_precision", "guard"),
    )  # fmt: skip
    readonly_fields = ("drift_table",)

    @display(description="Features")
    def drift_table(self, watch: ModelWatch) -> SafeString:
        return _drift_table(watch)


@admin.register(RunSymbol)
class RunSymbolAdmin(ReadOnlyAdmin):
    list_display = ("run", "symbol", "open", "verdict", "reason")
    list_filter = ("verdict", "open")
    search_fields = ("symbol__code",)
    list_select_related = ("run", "symbol")


@admin.register(TuningTrial)
class TuningTrialAdmin(ReadOnlyAdmin):
    list_display = ("run", "attempt", "number", "state", "value", "sharpe", "seconds", "params")
    list_filter = ("state",)
    search_fields = ("run__scope__key",)
    list_select_related = ("run",)


@admin.register(ArtifactSymbol)
class ArtifactSymbolAdmin(ReadOnlyAdmin):
    list_display = ("artifact", "symbol")
    search_fields = ("symbol__code",)
    list_select_related = ("artifact", "symbol")


@admin.register(GenerationCounter)
class GenerationCounterAdmin(ReadOnlyAdmin):
    list_display = ("value",)


def _train(scope: TrainingScope, person: User) -> str:
    if (scope.training_mode, scope.timeframe) != (settings.TRAINING_MODE, settings.TIMEFRAME):
        raise RunRefused(f"{scope.key} is not trained with the present TRAINING_MODE and TIMEFRAME")
    symbols = None if scope.symbol_id is None else [scope.symbol_id]
    (run,) = services.train_now(user=person, symbols=symbols)
    state = run.get_state_display().lower()
    return f"{scope.key}: run {run.run_no} is {state}, not before {run.not_before:%Y-%m-%d %H:%M}."


def _cancel(run: TrainingRun, person: User) -> str:
    services.cancel(run=run, user=person, why="by a person in the admin")
    return f"Run {run.pk} was cancelled; a process that trains it stops at its next heartbeat."


def _activate(artifact: ModelArtifact, person: User) -> str:
    activation.request_activation(artifact=artifact, kind=ActivationKind.MANUAL, user=person, reason="in the admin")
    return f"{artifact} of {artifact.scope.key}: a worker verifies and activates it; see Activations."


def _roll_back(row: ActiveModel, person: User) -> str:
    asked = activation.roll_back(slot=row.slot, user=person, reason="in the admin")
    return (
        f"{row.slot} goes back to {asked.artifact} and {row.artifact} is retired, as soon as a worker has verified it."
    )


def _tuning(found: dict[str, Any] | None) -> str:
    """Return what a search for hyper-parameters chose and how far that may be trusted."""
    if not found:
        return "none: the usual parameters (TRAIN_TUNING_TRIALS=0)"
    if found["best"] is None:
        return f"none of {found['asked']} trials ended in time: the usual parameters"
    chosen = ", ".join(f"{name}={_number(value)}" for name, value in found["params"].items())
    doubt = "" if found["overfitting"] is None else f"; probability of overfitting {found['overfitting']:.2f}"
    return (
        f"trial {found['best']} of {found['trials']} (asked for {found['asked']}): {chosen}; out-of-fold score "
        f"{_number(found['value'])}, {_number(found['default'])} with the usual parameters{doubt}"
    )


def _drift_table(watch: ModelWatch, *, most: int | None = None) -> SafeString:
    """Return the features by PSI, worst first."""
    rows = format_html_join(
        "",
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        (
            (
                each["feature"], _number(each["psi"]), _number(each["bound"]),
                f"{each['missing']:.1%} ({each['missing_before']:.1%})", "drifted" if each["drifted"] else "",
            )
            for each in watch.features[:most]
        ),
    )  # fmt: skip
    return format_html(
        "<p>{}: {}</p><table><tr><th>Feature</th><th>PSI</th><th>Bound</th><th>Missing (in training)</th><th></th></tr>"
        "{}</table>",
        f"{watch.at:%Y-%m-%d %H:%M} {watch.get_verdict_display()}",
        watch.text,
        rows,
    )


def _verdict(gate: dict[str, Any]) -> str:
    return "passed" if gate["passed"] else "refused"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "none"

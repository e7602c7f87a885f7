"""Training runs, artifacts, and which artifact is active."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from coverage_app.models import Symbol
from training_app.choices import (
    OPEN_STATES,
    ActivationKind,
    ActivationState,
    RunState,
    RunTrigger,
    TrialState,
    Verdict,
    WatchVerdict,
)
from training_app.querysets import ArtifactQuerySet, RunQuerySet


class TrainingScope(models.Model):
    """What is trained as one: all symbols of a market (`multi_symbol`) or one of them (`single_symbol`).

    `key` is also the slot of ActiveModel. `active_token` only grows: a result with a smaller one is refused (T5, T6).
    """

    key = models.CharField(max_length=160, unique=True, help_text="Like multi_symbol:simulated:1h.")
    market = models.CharField(max_length=64)
    training_mode = models.CharField(max_length=16)
    timeframe = models.CharField(max_length=8)
    symbol = models.ForeignKey(Symbol, null=True, blank=True, on_delete=models.PROTECT, related_name="training_scopes")
    run_seq = models.PositiveIntegerField(default=0)
    active_token = models.BigIntegerField(default=0)
    failures = models.PositiveSmallIntegerField(default=0, help_text="Failed or refused runs in a row: the back-off.")
    not_before = models.DateTimeField(null=True, blank=True, help_text="Back-off: no run before this.")
    new_count = models.PositiveIntegerField(default=0, help_text="Ready symbols that the active model does not cover.")
    first_new_at = models.DateTimeField(null=True, blank=True, help_text="When the first of them was seen (debounce).")
    last_new_at = models.DateTimeField(null=True, blank=True, help_text="When their number last grew.")
    decision = models.CharField(
        max_length=500,
        blank=True,
        help_text="Why it trains or does not, as `CODE: key=value`; written when it changes.",
    )

    class Meta:
        indexes = [models.Index(fields=["market", "training_mode", "timeframe"], name="scope_of_market")]

    def __str__(self) -> str:
        return self.key


class TrainingRun(models.Model):
    """One training. Transitions, each one UPDATE guarded by state and fencing token:

    QUEUED -> RUNNING            claim: due, or lease expired; attempt + 1; a new, larger token
    RUNNING -> QUEUED            sweep after expiry, or a failure with attempts left
    RUNNING -> SUCCEEDED         publish with the current token, gates passed: promoted
    RUNNING -> REJECTED          publish with the current token, a gate refused
    RUNNING, QUEUED -> FAILED    attempts used up
    QUEUED, RUNNING -> CANCELLED  by a person, or nothing left to train; whoever trains it is refused
    """

    scope = models.ForeignKey(TrainingScope, on_delete=models.PROTECT, related_name="runs")
    run_no = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=RunState, default=RunState.QUEUED)
    trigger = models.CharField(max_length=12, choices=RunTrigger)
    cause = models.CharField(max_length=500, help_text="`CODE: key=value` of what changed.")
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    attempt = models.PositiveSmallIntegerField(default=0)
    max_attempts = models.PositiveSmallIntegerField(default=3)
    not_before = models.DateTimeField(help_text="Market time.")
    fencing_token = models.BigIntegerField(null=True, blank=True)
    owner = models.CharField(max_length=120, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True, help_text="On the database's clock.")
    heartbeat_at = models.DateTimeField(null=True, blank=True, help_text="On the database's clock.")
    enqueued_at = models.DateTimeField(
        null=True, blank=True, help_text="When a worker was last rung, database's clock."
    )
    needs_memory_mb = models.PositiveIntegerField(default=0, help_text="Memory that its host must give it, estimated.")
    needs_threads = models.PositiveSmallIntegerField(default=1, help_text="Threads that its host must give it.")
    progress = models.FloatField(default=0.0)
    stage = models.CharField(max_length=80, blank=True)
    data_start = models.DateTimeField(null=True, blank=True)
    data_end = models.DateTimeField(null=True, blank=True)
    data_hash = models.CharField(max_length=64, blank=True)
    error = models.TextField(blank=True)
    log = models.TextField(blank=True, help_text="Stages with their times, newest last.")
    created_at = models.DateTimeField(help_text="Market time.")
    started_at = models.DateTimeField(null=True, blank=True, help_text="Market time.")
    finished_at = models.DateTimeField(null=True, blank=True, help_text="Market time.")

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["scope"], condition=Q(state__in=sorted(OPEN_STATES)), name="one_open_run_per_scope"
            ),
            models.UniqueConstraint(fields=["scope", "run_no"], name="run_no_once_per_scope"),
            models.UniqueConstraint(fields=["scope", "fencing_token"], name="fencing_token_once_per_scope"),
            models.CheckConstraint(condition=Q(attempt__lte=F("max_attempts")), name="attempts_are_bounded"),
            models.CheckConstraint(
                condition=~Q(state=RunState.RUNNING)
                | Q(lease_expires_at__isnull=False, fencing_token__isnull=False) & ~Q(owner=""),
                name="running_has_lease_owner_token",
            ),
        ]
        indexes = [models.Index(fields=["state", "not_before"], name="run_due")]

    def __str__(self) -> str:
        return f"{self.scope_id} #{self.run_no}"


class RunSymbol(models.Model):
    """A symbol in a run and the run's verdict on it. `open` falls in the transaction that ends the run (I1, I2)."""

    run = models.ForeignKey(TrainingRun, on_delete=models.PROTECT, related_name="run_symbols")
    symbol = models.ForeignKey(Symbol, on_delete=models.PROTECT, related_name="run_symbols")
    open = models.BooleanField(default=True)
    verdict = models.CharField(max_length=10, choices=Verdict, blank=True)
    reason = models.CharField(max_length=500, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "symbol"], name="symbol_once_per_run"),
            models.UniqueConstraint(fields=["symbol"], condition=Q(open=True), name="symbol_in_one_open_run"),
            models.CheckConstraint(condition=Q(open=True) | ~Q(verdict=""), name="ended_run_has_verdicts"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id} {self.symbol_id}"


class TuningTrial(models.Model):
    """A trial of a run's search for hyper-parameters (`quant.tuning`). Append-only.

    Written while the writer's token was the run's present one. Those of the token of the run's artifact are the ones
    that it was picked from; others belong to attempts that came to nothing.
    """

    run = models.ForeignKey(TrainingRun, on_delete=models.PROTECT, related_name="tuning_trials")
    attempt = models.PositiveSmallIntegerField()
    fencing_token = models.BigIntegerField()
    number = models.PositiveSmallIntegerField(help_text="From 0, which has the usual parameters.")
    params = models.JSONField(help_text="The parameters that were tried, by name.")
    state = models.CharField(max_length=12, choices=TrialState)
    value = models.FloatField(null=True, blank=True, help_text="Out-of-fold score, as that of an artifact.")
    sharpe = models.FloatField(null=True, blank=True, help_text="Out-of-fold Sharpe ratio a day.")
    seconds = models.FloatField(help_text="Real time that it took.")

    class Meta:
        ordering = ["-fencing_token", "number"]
        constraints = [
            models.UniqueConstraint(fields=["run", "fencing_token", "number"], name="trial_once_per_token"),
            models.CheckConstraint(
                condition=~Q(state=TrialState.COMPLETE) | Q(value__isnull=False), name="complete_trial_has_value"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.run_id} trial {self.number} {self.state}"


class ModelArtifact(models.Model):
    """A trained model and everything that was measured of it. Immutable: written once with its run's verdict."""

    run = models.OneToOneField(TrainingRun, on_delete=models.PROTECT, related_name="artifact")
    scope = models.ForeignKey(TrainingScope, on_delete=models.PROTECT, related_name="artifacts")
    version = models.PositiveIntegerField(help_text="Counts up within the scope.")
    fencing_token = models.BigIntegerField()
    directory = models.CharField(max_length=200, unique=True, help_text="Below ARTIFACTS_DIR.")
    size = models.PositiveBigIntegerField(help_text="Bytes of all files.")
    sha256 = models.CharField(max_length=64, help_text="Over the names and contents of all files.")
    training_mode = models.CharField(max_length=16)
    symbol_encoding = models.CharField(max_length=16)
    blend = models.CharField(max_length=16, default="none", help_text="What is blended with the trees.")
    timeframe = models.CharField(max_length=8)
    signal = models.CharField(max_length=40)
    schema_hash = models.CharField(max_length=64)
    label_spec = models.JSONField()
    label_hash = models.CharField(max_length=64)
    library_versions = models.JSONField(default=dict)
    drift_reference = models.JSONField(
        default=dict, blank=True, help_text="What its features looked like in training (quant.drift)."
    )
    threshold = models.FloatField()
    score = models.FloatField(help_text="Validation score; larger is better.")
    metrics = models.JSONField(default=dict)
    gates = models.JSONField(default=list, help_text="Each gate's name, value, bound, verdict and text.")
    gates_passed = models.BooleanField()
    panel_symbols = models.JSONField(default=list, help_text="Codes whose candles the features need, in order.")
    data_start = models.DateTimeField()
    data_end = models.DateTimeField()
    data_hash = models.CharField(max_length=64)
    retired_at = models.DateTimeField(null=True, blank=True, help_text="Rolled back: not promoted again by itself.")
    retired_reason = models.CharField(max_length=200, blank=True)
    integrity_error = models.CharField(max_length=300, blank=True, help_text="Why its files cannot be trusted.")
    created_at = models.DateTimeField(help_text="Market time.")

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["scope", "version"], name="version_once_per_scope"),
            models.UniqueConstraint(fields=["scope", "fencing_token"], name="one_artifact_per_token"),
        ]

    def __str__(self) -> str:
        return f"v{self.version} (#{self.pk})"


class ArtifactSymbol(models.Model):
    """A symbol that an artifact covers."""

    artifact = models.ForeignKey(ModelArtifact, on_delete=models.PROTECT, related_name="artifact_symbols")
    symbol = models.ForeignKey(Symbol, on_delete=models.PROTECT, related_name="artifact_symbols")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["artifact", "symbol"], name="symbol_once_per_artifact")]

    def __str__(self) -> str:
        return f"{self.artifact_id} {self.symbol_id}"


class GenerationCounter(models.Model):
    """One row: the generation given last. Raised in the transaction that activates, so generations commit in order."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    value = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="one_generation_counter")]

    def __str__(self) -> str:
        return str(self.value)


class ActiveModel(models.Model):
    """The row that the bot reads: the artifact of a slot. A slot never loses its artifact (I10)."""

    slot = models.CharField(max_length=160, unique=True)
    artifact = models.ForeignKey(ModelArtifact, on_delete=models.PROTECT, related_name="active_in")
    generation = models.PositiveBigIntegerField(unique=True)
    activated_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.slot} -> {self.artifact_id} (generation {self.generation})"


class Activation(models.Model):
    """Append-only history of what was asked for and what became of it; a roll-back is a new activation.

    The web process records a request; a worker, which may load models, verifies the artifact and applies or refuses it.
    """

    slot = models.CharField(max_length=160)
    artifact = models.ForeignKey(ModelArtifact, on_delete=models.PROTECT, related_name="activations")
    previous_artifact = models.ForeignKey(
        ModelArtifact, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    kind = models.CharField(max_length=10, choices=ActivationKind)
    state = models.CharField(max_length=10, choices=ActivationState, default=ActivationState.REQUESTED)
    reason = models.CharField(max_length=500, blank=True)
    generation = models.PositiveBigIntegerField(null=True, blank=True, unique=True)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    requested_at = models.DateTimeField()
    enqueued_at = models.DateTimeField(
        null=True, blank=True, help_text="When a worker was last rung, database's clock."
    )
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["slot"], condition=Q(state=ActivationState.REQUESTED), name="one_open_activation_per_slot"
            )
        ]

    def __str__(self) -> str:
        return f"{self.slot}: {self.artifact_id} {self.state}"


class ModelWatch(models.Model):
    """A look at an active model: do its features and its trades still fit its training? Append-only.

    The first look that finds that they do not `asks` for a training. The database refuses a second one of the same
    model: a training that its drift did not cure would not cure it the next day either (I5).
    """

    artifact = models.ForeignKey(ModelArtifact, on_delete=models.PROTECT, related_name="watches")
    at = models.DateTimeField(help_text="Market time.")
    since = models.DateTimeField(help_text="Signals from here on were looked at, market time.")
    samples = models.PositiveIntegerField(help_text="Signals since then.")
    features = models.JSONField(default=list, help_text="PSI, bound and missing shares of each feature, worst first.")
    drifted = models.PositiveSmallIntegerField(help_text="Features above their bound.")
    psi_max = models.FloatField(null=True, blank=True, help_text="Largest PSI of a feature with a bound.")
    trades = models.PositiveIntegerField(default=0, help_text="Closed trades that the model opened.")
    wins = models.PositiveIntegerField(default=0)
    promised_precision = models.FloatField(null=True, blank=True)
    guard = models.FloatField(default=1.0, help_text="Share of the usual size that the performance guard leaves.")
    verdict = models.CharField(max_length=10, choices=WatchVerdict)
    text = models.CharField(max_length=500, help_text="`CODE: key=value` of what was found.")
    asks = models.BooleanField(default=False, help_text="Asks for a training, once per model.")

    class Meta:
        verbose_name_plural = "model watches"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["artifact"], condition=Q(asks=True), name="a_model_asks_once_for_training")
        ]
        indexes = [models.Index(fields=["artifact", "-at"], name="watch_newest")]

    def __str__(self) -> str:
        return f"{self.artifact_id} {self.at:%Y-%m-%d %H:%M} {self.verdict}"

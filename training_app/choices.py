"""Choices of the training tables."""

from django.db import models

from quant.tuning import TrialState as TrialOutcome
from quant.watch import WatchFinding


class RunState(models.TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Promoted"
    REJECTED = "rejected", "Refused by a gate"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


class TrialState(models.TextChoices):
    COMPLETE = TrialOutcome.COMPLETE.value, "Complete"
    OUT_OF_TIME = TrialOutcome.OUT_OF_TIME.value, "Cut off: the time was up"


OPEN_STATES = frozenset({RunState.QUEUED, RunState.RUNNING})
TERMINAL_STATES = frozenset(set(RunState) - OPEN_STATES)


class RunTrigger(models.TextChoices):
    """What changed, so that a run was asked for. A run without a cause does not exist."""

    NEW_SYMBOLS = "new_symbols", "New symbols"
    NO_MODEL = "no_model", "No compatible model"
    SCHEDULED = "scheduled", "Model reached its age"
    DRIFT = "drift", "Features or trades drifted away from the model"
    MANUAL = "manual", "By a person"


class Verdict(models.TextChoices):
    COVERED = "covered", "Covered by the active model"
    BLOCKED = "blocked", "Blocked with a reason"


class WatchVerdict(models.TextChoices):
    """What a look at an active model found: `quant.watch.WatchFinding` in words."""

    STEADY = WatchFinding.STEADY.value, "As in its training"
    DRIFTED = WatchFinding.DRIFTED.value, "Its features have drifted"
    BELOW_PROMISE = WatchFinding.BELOW_PROMISE.value, "Its trades are below its promise"
    TOO_LITTLE = WatchFinding.TOO_LITTLE.value, "Too little to judge"


class ActivationKind(models.TextChoices):
    PROMOTION = "promotion", "Passed its gates"
    MANUAL = "manual", "By a person"
    ROLLBACK = "rollback", "Roll-back"


BY_A_PERSON = frozenset({ActivationKind.MANUAL, ActivationKind.ROLLBACK})


class ActivationState(models.TextChoices):
    REQUESTED = "requested", "Asked for"
    APPLIED = "applied", "Applied"
    REFUSED = "refused", "Refused"

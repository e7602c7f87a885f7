"""Every write of training: the run protocol (reference/locks.md), verdicts, and the plan of what trains when."""

from training_app.services.planning import plan, plan_waiting, train_now
from training_app.services.protocol import (
    Claim,
    claim,
    claimable,
    decline,
    fail,
    heartbeat,
    next_claimable,
    release,
    sweep,
)
from training_app.services.publishing import draft_artifact, publish
from training_app.services.requests import cancel, ensure_scope, request_run
from training_app.services.tuning import record_trial

__all__ = [
    "Claim",
    "cancel",
    "claim",
    "claimable",
    "decline",
    "draft_artifact",
    "ensure_scope",
    "fail",
    "heartbeat",
    "next_claimable",
    "plan",
    "plan_waiting",
    "publish",
    "record_trial",
    "release",
    "request_run",
    "sweep",
    "train_now",
]

"""Accepting a result: everything that it changes appears in one transaction, or nothing does (T5, I6)."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from django.db import transaction

from coverage_app.models import Symbol
from ops_app import alerts, bulk, clock, journal
from ops_app.choices import Severity
from quant.reasons import reason
from quant.timeframes import from_ms
from training_app import activation, policies, registry
from training_app.artifacts import WrittenArtifact
from training_app.choices import ActivationKind, RunState
from training_app.exceptions import RunLost
from training_app.models import ArtifactSymbol, ModelArtifact, TrainingRun, TrainingScope
from training_app.services import protocol
from training_app.services.protocol import Claim
from training_app.services.verdicts import leave_verdicts

if TYPE_CHECKING:
    from quant.gates import GateResult
    from quant.pipeline import TrainingResult

LIBRARIES = ("lightgbm", "numpy", "numba", "scikit-learn")


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries whose change may change a prediction."""
    return {name: metadata.version(name) for name in LIBRARIES}


def draft_artifact(claim: Claim, result: TrainingResult, written: WrittenArtifact) -> ModelArtifact:
    """Return the unsaved row of a result, so that its files can be verified before anything is published."""
    run = TrainingRun.objects.select_related("scope").get(pk=claim.run_id)
    spec = policies.training_spec()
    return ModelArtifact(
        run=run,
        scope=run.scope,
        version=claim.run_no,
        fencing_token=claim.token,
        directory=written.directory,
        size=written.size,
        sha256=written.sha256,
        training_mode=run.scope.training_mode,
        symbol_encoding=result.model.symbol_encoding,
        blend=result.model.blend,
        timeframe=run.scope.timeframe,
        signal=spec.signal,
        schema_hash=registry.feature_schema().hash,
        label_spec=spec.label.to_dict(),
        label_hash=spec.label.hash,
        library_versions=library_versions(),
        threshold=result.model.threshold,
        score=result.score,
        metrics={**result.metrics, "champion": result.champion_metrics},
        drift_reference=result.reference,
        gates=[gate.to_dict() for gate in result.gates],
        gates_passed=result.gates_passed,
        panel_symbols=list(result.panel_symbols),
        data_start=from_ms(result.data_start_ms),
        data_end=from_ms(result.data_end_ms),
        data_hash=result.data_hash,
    )


def publish(claim: Claim, result: TrainingResult, artifact: ModelArtifact) -> ModelArtifact:
    """Save `artifact`, end its run as SUCCEEDED or REJECTED, activate it if its gates passed, leave all verdicts.

    `artifact` is a verified draft. Raises RunLost, with nothing changed, unless this claim's token is the current one
    and larger than every token that the scope accepted before (T5, T6).
    """
    now = clock.market_now()
    passed = result.gates_passed
    with transaction.atomic():
        scope = TrainingScope.objects.select_for_update().get(pk=claim.scope_id)
        failures = 0 if passed else scope.failures + 1
        not_before = None if passed else policies.scope_back_off(scope.key, failures, now)
        accepted = TrainingScope.objects.filter(pk=scope.pk, active_token__lt=claim.token).update(
            active_token=claim.token, failures=failures, not_before=not_before
        )
        ended = TrainingRun.objects.filter(protocol.mine(claim)).update(
            state=RunState.SUCCEEDED if passed else RunState.REJECTED,
            finished_at=now,
            lease_expires_at=None,
            progress=1.0,
            stage="promoted" if passed else "refused by a gate",
            error="",
            data_start=artifact.data_start,
            data_end=artifact.data_end,
            data_hash=artifact.data_hash,
        )
        if accepted != 1 or ended != 1:
            raise RunLost(f"run {claim.run_id}: token {claim.token} is not the current one; its result is refused")
        run = TrainingRun.objects.select_related("scope").get(pk=claim.run_id)
        artifact.created_at = now
        artifact.save(force_insert=True)
        symbols = Symbol.objects.filter(market=scope.market, code__in=result.symbols)
        bulk.insert_rows(ArtifactSymbol(artifact=artifact, symbol=symbol) for symbol in symbols)
        refused = [gate for gate in result.gates if not gate.passed]
        if passed:
            activation.activate(artifact=artifact, kind=ActivationKind.PROMOTION, reason=run.cause)
        _leave_verdicts(run, scope, result, refused)
        _tell(run, artifact, refused)
    return artifact


def _leave_verdicts(run: TrainingRun, scope: TrainingScope, result: TrainingResult, refused: list[GateResult]) -> None:
    now = clock.market_now()
    if refused:
        recheck_at = policies.scope_back_off(scope.key, scope.failures + 1, now)
        evidence = reason("MODEL_REJECTED", run=run.pk, gate=refused[0].name, why=refused[0].text, refused=len(refused))
        leave_verdicts(run, block_reason="MODEL_REJECTED", evidence=evidence, recheck_at=recheck_at)
        return
    evidence = reason("TRAINING_FAILED", run=run.pk, error="the model does not cover this symbol")
    leave_verdicts(
        run, block_reason="TRAINING_FAILED", evidence=evidence, recheck_at=now, dropped=_dropped(run, result)
    )


def _dropped(run: TrainingRun, result: TrainingResult) -> dict[str, str]:
    """Return a reason for every symbol of the run that the result does not cover, also one the pipeline forgot."""
    codes = run.run_symbols.values_list("symbol__code", flat=True)
    unknown = reason("NOT_COVERED", run=run.pk, error="the training left it out without a reason")
    return {code: result.dropped.get(code, unknown) for code in codes if code not in result.symbols}


def _tell(run: TrainingRun, artifact: ModelArtifact, refused: list[GateResult]) -> None:
    scope = run.scope
    if refused:
        text = f"Run {run.run_no} of {scope.key}: {artifact} was refused: " + "; ".join(gate.text for gate in refused)
        journal.record("model_rejected", text, subject=f"run:{run.pk}", severity=Severity.WARNING)
        return
    passed = f"passed all {len(artifact.gates)} gates, score {artifact.score:.4g}"
    text = f"Run {run.run_no} of {scope.key}: {artifact} {passed}"
    journal.record("model_accepted", text, subject=f"run:{run.pk}")
    alerts.resolve_alert(f"training:{scope.key}")

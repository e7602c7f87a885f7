"""What became of the runs of a stage, by rows, files and the journal: every run exactly one effect, none lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from django.db.models import Count

from ops_app.models import Event, JobRun
from quant.reasons import code_of
from training_app import artifacts
from training_app.choices import ActivationState, RunState
from training_app.exceptions import ArtifactError
from training_app.models import Activation, ActiveModel, ModelArtifact, RunSymbol, TrainingRun, TrainingScope

ENDED_WITH_A_RESULT = (RunState.SUCCEEDED, RunState.REJECTED)
RESULT_EVENTS = ("model_accepted", "model_rejected", "run_failed")
REFUSED_BY_DATA = frozenset({"TOO_FEW_SAMPLES", "ONE_OUTCOME_ONLY"})
"""A real end of a training, with verdicts and without a model: another attempt on the same candles says the same."""
MOST_SENTENCES = 20


def judge_runs(market: str, *, asked: int) -> list[str]:
    """Return what is wrong with the runs of `market`, of which `asked` were asked for; no sentence: all is well."""
    runs = list(TrainingRun.objects.filter(scope__market=market).select_related("scope").order_by("pk"))
    found = [] if len(runs) == asked else [f"{asked} runs were asked for, there are {len(runs)}"]
    results = {row.run_id: row for row in ModelArtifact.objects.filter(scope__market=market).select_related("scope")}
    told = Counter(
        Event.objects.filter(kind__in=RESULT_EVENTS, subject__in=[f"run:{run.pk}" for run in runs]).values_list(
            "subject", flat=True
        )
    )
    for run in runs:
        artifact = results.get(run.pk)
        if told[f"run:{run.pk}"] != 1:
            found.append(f"run {run.pk} told {told[f'run:{run.pk}']} times of its result")
        if run.state == RunState.FAILED and code_of(run.error) in REFUSED_BY_DATA and artifact is None:
            continue
        if run.state not in ENDED_WITH_A_RESULT:
            found.append(f"run {run.pk} is {run.state} without a result: {run.error[:200]}")
            continue
        if artifact is None:
            found.append(f"run {run.pk} is {run.state} without an artifact")
            continue
        if artifact.fencing_token != run.fencing_token or run.scope.active_token != run.fencing_token:
            found.append(
                f"run {run.pk}: tokens differ: run {run.fencing_token}, artifact {artifact.fencing_token}, "
                f"scope {run.scope.active_token}"
            )
        try:
            artifacts.verify_files(artifact)
        except ArtifactError as error:
            found.append(f"run {run.pk}: {error}")
    found += _verdicts(market)
    found += _activations(market)
    return found[:MOST_SENTENCES]


def _verdicts(market: str) -> list[str]:
    rows = RunSymbol.objects.filter(run__scope__market=market)
    silent = rows.filter(verdict="").count()
    twice = TrainingScope.objects.filter(market=market).annotate(runs_count=Count("runs")).filter(runs_count__gt=1)
    found = [] if not silent else [f"{silent} symbols of ended runs have no verdict"]
    return found + [f"{scope.key} has {scope.runs_count} runs, one was asked for" for scope in twice]


def _activations(market: str) -> list[str]:
    promoted = TrainingRun.objects.filter(scope__market=market, state=RunState.SUCCEEDED).count()
    applied = Activation.objects.filter(artifact__scope__market=market, state=ActivationState.APPLIED).count()
    active = ActiveModel.objects.filter(artifact__scope__market=market).count()
    if promoted == applied == active:
        return []
    return [f"{promoted} runs were promoted, {applied} activations were applied, {active} slots are active"]


def orphans() -> list[str]:
    """Return the artifact folders that no row names: what a refused result must not leave."""
    named = set(ModelArtifact.objects.values_list("directory", flat=True))
    root = artifacts.root()
    present = {path.parent.relative_to(root).as_posix() for path in root.rglob("model.txt")}
    return [f"artifact folder {name} belongs to no row" for name in sorted(present - named)][:MOST_SENTENCES]


def judge_jobs(*, least: Mapping[str, int]) -> tuple[dict[str, Any], list[str]]:
    """Return what ran, and what is wrong: a slot taken twice, an error, a job that ran less often than `least` says."""
    runs = list(JobRun.objects.filter(slot__gt=0).order_by("pk"))
    found = [f"job {run.job} slot {run.slot}: {run.error.strip().splitlines()[-1][:200]}" for run in runs if run.error]
    slots = Counter((run.job, run.slot) for run in runs)
    found += [f"job {job} slot {slot} ran {times} times" for (job, slot), times in slots.items() if times != 1]
    ran = Counter(job for job, _ in slots)
    found += [f"job {job} ran {ran[job]} times, {times} at least" for job, times in least.items() if ran[job] < times]
    return {"job_runs": len(runs), "jobs": len({run.job for run in runs})}, found[:MOST_SENTENCES]


def spread(market: str) -> dict[str, Any]:
    """Return how the runs of `market` were spread: trainers by host, attempts, results."""
    runs = TrainingRun.objects.filter(scope__market=market)
    owners = [owner.partition("@")[2].split(":") for owner in runs.values_list("owner", flat=True) if owner]
    return {
        "states": dict(Counter(runs.values_list("state", flat=True))),
        "attempts": sum(runs.values_list("attempt", flat=True)),
        "hosts": dict(Counter(owner[0] for owner in owners)),
        "trainers": len({tuple(owner[:2]) for owner in owners}),
        "taken_back": dict(Counter(code for log in runs.values_list("log", flat=True) for code in _reasons(log))),
    }


def _reasons(log: str) -> list[str]:
    """Return the codes of the reasons in a run's log: why an attempt was taken from its process."""
    return [code for line in log.splitlines() if (code := code_of(line))]

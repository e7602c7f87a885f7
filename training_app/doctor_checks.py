"""What `manage.py doctor` asks of training: is there a usable model, do runs move, are the files whole."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import socket
import sys
from importlib import metadata, util

from django.conf import settings

from marketdata.bucket import Bucket
from marketdata.errors import BucketError
from ops_app import clock
from ops_app.doctor import Finding, check, ok, problem, warning
from ops_app.leases import expired
from training_app import artifacts, selectors
from training_app.exceptions import ArtifactError, ArtifactUnreachable
from training_app.models import TrainingRun, TrainingScope

WAITS_TOO_LONG = dt.timedelta(minutes=10)
"""Real time after which a run that is due should have been taken by a worker."""


@check("lightgbm")
def lightgbm_loads() -> Finding:
    """The wheel needs OpenMP's library, which macOS does not have by itself."""
    if util.find_spec("lightgbm") is None:
        return problem("lightgbm is not installed", "Run `python3 run.py`: it installs what the lock file names.")
    from quant.model import import_lightgbm

    try:
        version = import_lightgbm().__version__
    except OSError as error:
        how = "brew install libomp" if sys.platform == "darwin" else "apt-get install libgomp1"
        return problem(f"lightgbm cannot be loaded: {error}", f"Install OpenMP: {how}")
    return ok(f"lightgbm {version}")


@check("tuning")
def tuning_is_possible() -> Finding:
    """The search for hyper-parameters is an extra."""
    trials = settings.TRAIN_TUNING_TRIALS
    if trials == 0:
        return ok("off (TRAIN_TUNING_TRIALS=0)")
    if util.find_spec("optuna") is None:
        return problem(
            f"TRAIN_TUNING_TRIALS={trials}, and optuna is not installed",
            "Install requirements-tuning.txt (`python3 run.py` does), or set 0.",
        )
    return ok(f"{trials} trials in each training, optuna {metadata.version('optuna')}")


@check("active models", needs_tables=True)
def active_models() -> list[Finding]:
    slots = selectors.active_models()
    if not slots:
        scope = TrainingScope.objects.filter(market=selectors.market()).exclude(decision="").first()
        why = scope.decision if scope is not None else "no symbol is ready yet"
        return [
            warning(f"no model serves: {why}", "`manage.py coverage` shows what is missing; `manage.py train` asks.")
        ]
    found = []
    for slot in slots:
        if not slot.usable:
            against = "; ".join(refusal.text for refusal in slot.refusals)
            found.append(
                problem(f"{slot.slot}: {slot.artifact} cannot serve: {against}", "`manage.py models` shows the others.")
            )
            continue
        try:
            artifacts.verify_files(slot.artifact)
        except ArtifactError as error:
            found.append(
                problem(str(error), "The plan falls back to the last good model within minutes, if a worker runs.")
            )
        except ArtifactUnreachable as error:
            found.append(problem(str(error), "The bot trades with what it holds. Look at the storage and STORAGE_URL."))
            break
    return found or [ok(f"{len(slots)} serve {sum(len(slot.symbols) for slot in slots)} symbols, files are whole")]


@check("training runs", needs_tables=True)
def training_runs() -> Finding:
    late = clock.market_now() - WAITS_TOO_LONG * clock.speed()
    waiting = [run for run in selectors.open_runs() if run.state == "queued" and run.not_before < late]
    if waiting:
        return problem(
            f"{len(waiting)} runs wait for a worker, the first is run {waiting[0].pk}",
            "Is a training worker running? `python3 run.py` starts one.",
        )
    dead = TrainingRun.objects.filter(expired("lease_expires_at"), state="running").count()
    if dead:
        return warning(
            f"{dead} runs lost their process", "A worker's sweeper takes them up within 15 s; wait and look again."
        )
    return ok(f"{len(selectors.open_runs())} open")


@check("artifact folder")
def artifact_folder() -> Finding:
    if settings.STORAGE_BUCKET is not None:
        return _bucket(Bucket(settings.STORAGE_BUCKET))
    root = artifacts.root()
    folder = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < 1_000_000_000:
        return warning(
            f"{folder}: {free / 1e6:.0f} MB free", "A model needs about 2 MB, a training up to 1 GB: make room."
        )
    return ok(f"{root}: {free / 1e9:.0f} GB free")


def _bucket(bucket: Bucket) -> Finding:
    """A server that ignores conditions would let a paused writer undo what another one wrote."""
    try:
        ignored = bucket.ignored_conditions(f"doctor-{socket.gethostname()}-{os.getpid()}")
    except BucketError as error:
        return problem(str(error), "Mend STORAGE_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the server.")
    if ignored:
        return problem(
            f"{bucket} ignores {', '.join(ignored)}", "Use a server that knows conditional writes (docs/scale-out.md)."
        )
    return ok(f"{bucket} writes, reads and refuses what it must")

"""Writing the trials of a search for hyper-parameters as they end, under the run's fencing token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction

from ops_app import clock
from training_app.exceptions import RunLost
from training_app.models import TrainingRun, TuningTrial
from training_app.services.protocol import Claim, mine

if TYPE_CHECKING:
    from quant.tuning import Trial


def record_trial(claim: Claim, trial: Trial) -> TuningTrial:
    """Write a trial that has ended. Raises RunLost, with nothing written, unless this claim's token is current (T4).

    The UPDATE locks the run until the row is there: whoever takes the run over waits, and comes after it.
    """
    with transaction.atomic():
        if TrainingRun.objects.filter(mine(claim)).update(heartbeat_at=clock.database_now()) != 1:
            raise RunLost(f"run {claim.run_id}: token {claim.token} is not the current one; its trial is refused")
        return TuningTrial.objects.create(
            run_id=claim.run_id,
            attempt=claim.attempt,
            fencing_token=claim.token,
            number=trial.number,
            params=trial.params,
            state=trial.state.value,
            value=trial.value,
            sharpe=trial.sharpe,
            seconds=trial.seconds,
        )

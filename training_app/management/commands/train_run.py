"""`manage.py train_run ID`: the process that trains. The task starts it; a person may, to train without a worker."""

from __future__ import annotations

import argparse
import os
import threading
from typing import Any

import structlog
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from ops_app import clock, leases, process, versions
from training_app import execution, registry, services
from training_app.choices import RunState
from training_app.exceptions import RunLost

log = structlog.get_logger(__name__)

EXIT_NOTHING, EXIT_NOT_TRAINED, EXIT_LOST = 0, 1, 75
DRAIN_SHARE = 0.5
"""With --drain, no further run is begun after this share of the time-out: the last one needs its own time."""


class Command(BaseCommand):
    help = (
        "Claim a training run and bring it to an end. Exit code: 0 trained or nothing to claim, 1 the attempt failed, "
        "75 the run was lost to another process, 78 this code is older than the database."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run_id", type=int, help="id of the run")
        parser.add_argument(
            "--drain",
            action="store_true",
            help="in single_symbol mode, go on with other waiting runs: starting a process costs more than one of them",
        )

    def handle(self, **options: Any) -> None:
        self._finished = threading.Event()
        stopping = threading.Event()
        owner = leases.holder_name("train_run")
        began = clock.monotonic()
        budget = settings.TRAIN_TIMEOUT_MINUTES * 60 * DRAIN_SHARE
        run_id: int | None = options["run_id"]
        drain = options["drain"] and settings.TRAINING_MODE == registry.SINGLE_SYMBOL
        failed = False
        self._versions = versions.Watch()
        with process.on_stop(stopping.set):
            while run_id is not None and not stopping.is_set() and not self._versions.outdated():
                failed |= not self._train(run_id, owner, stopping)
                again = drain and clock.monotonic() - began < budget
                run_id = services.next_claimable() if again else None
        if self._versions.reason:
            raise CommandError(self._versions.reason, returncode=versions.OUTDATED)
        if failed:
            raise SystemExit(EXIT_NOT_TRAINED)

    def _train(self, run_id: int, owner: str, stopping: threading.Event) -> bool:
        self._finished.clear()
        try:
            done = execution.execute(
                run_id,
                owner,
                threaded=True,
                stop=lambda: stopping.is_set() or self._versions.outdated(),  # a run goes back, nothing is published
                on_lost=self._leave_when_stuck,
            )
        except RunLost as error:
            self.stderr.write(f"run {run_id} was lost: {error}")
            raise SystemExit(EXIT_LOST) from error
        finally:
            self._finished.set()
        if done is None:
            self.stdout.write(f"run {run_id}: nothing to claim (it ended, is not due, or another process has it)")
            return True
        self.stdout.write(f"run {run_id}: {done.state.label}: {done.text}")
        return done.state in (RunState.SUCCEEDED, RunState.REJECTED, RunState.CANCELLED)

    def _leave_when_stuck(self) -> None:
        """A training that does not look up from its work must still end when its lease did (T14)."""
        if not self._finished.wait(settings.TRAIN_LEASE_SECONDS / 2):
            log.error("training_killed_itself", reason="the lease was lost and the training did not stop")
            os._exit(EXIT_LOST)

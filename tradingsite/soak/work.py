"""The workers of a soak: they run the real jobs and tasks, one after the other, on the simulated clock."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

import structlog
from django.conf import settings
from django.utils.module_loading import import_string

from ops_app import clock, heartbeats, host, jobs, queue
from tradingsite.soak.chaos import Accident, Chaos, trainer_of
from training_app import execution, services, watching
from training_app.exceptions import RunLost
from training_app.services.requests import TRAIN_TASK

log = structlog.get_logger(__name__)

TRAINER, WORKER = "soak-trainer", "worker of the soak"
ALIVE_SECONDS = 150
"""A pass is a minute: a worker that misses two is silent."""


@dataclass(slots=True)
class Hang:
    """A training that holds its run without an end; from `dead_at` on it is dead and does not know it."""

    claim: services.Claim
    dead_at: dt.datetime


@dataclass(slots=True)
class Workers:
    """Runs due jobs and rung tasks; with chaos, some are lost, doubled, fail, hang or die.

    Unlike a worker cluster it is one process, so an accident is played: a dead worker is a claim that nobody renews.
    """

    chaos: Chaos
    violations: list[str] = field(default_factory=list)
    _slots: dict[str, int] = field(default_factory=dict)
    _hangs: list[Hang] = field(default_factory=list)
    _down_until: dt.datetime | None = None
    _share: dict[str, int] = field(default_factory=lambda: host.training_share().to_dict())

    def work(self, messages: list[queue.Message]) -> None:
        """Do a minute's work: sweep, run the jobs whose slot is new, and whatever was rung until nothing is left."""
        if self._down():
            messages.clear()  # nobody takes them; the rows stay, and the sweepers ring again
            return
        heartbeats.beat(
            WORKER, "worker", ALIVE_SECONDS, {"queue": settings.TRAINING_QUEUE, "workers": 1, **self._share}
        )
        self._hold_hanging_trainings()
        for name, error in jobs.sweep().items():
            self.violations.append(f"sweeper {name} failed at {clock.market_now():%Y-%m-%d %H:%M}: {error}")
        self._let_zombies_speak()
        for job in jobs.registered():
            slot = job.slot(clock.real_now())
            if self._slots.get(job.name) != slot:
                self._slots[job.name] = slot
                jobs.run_job(job.name)
        while messages:
            message = messages.pop(0)
            for _ in range(self.chaos.deliveries()):
                self._run(message)

    def _down(self) -> bool:
        if self._down_until is not None and clock.real_now() < self._down_until:
            return True
        self._down_until = None
        if self.chaos.pass_is_lost():
            self._down_until = clock.real_now() + dt.timedelta(minutes=self.chaos.outage_minutes())
            return True
        return False

    def _run(self, message: queue.Message) -> None:
        if message.dotted == TRAIN_TASK:
            self._train(int(message.args[0]))
        elif message.dotted == watching.WATCH_TASK:
            watching.watch_models()  # not in a child: it would not know the simulated clock
        else:
            import_string(message.dotted)(*message.args)

    def _train(self, run_id: int) -> None:
        if not services.claimable(run_id):
            return
        accident = self.chaos.training()
        if accident in (Accident.DIES, Accident.HANGS):
            claim = services.claim(run_id, TRAINER)
            if claim is not None:
                minutes = self.chaos.hang_minutes() if accident is Accident.HANGS else 0
                self._hangs.append(Hang(claim, clock.real_now() + dt.timedelta(minutes=minutes)))
            return
        execution.execute(run_id, TRAINER, trainer=trainer_of(accident))

    def _hold_hanging_trainings(self) -> None:
        """Renew the runs of hanging trainings."""
        now = clock.real_now()
        for hang in [each for each in self._hangs if now < each.dead_at]:
            try:
                services.heartbeat(hang.claim, 0.5, "hanging on purpose")
            except RunLost:  # cancelled, or taken over after an outage of all workers
                self._hangs.remove(hang)

    def _let_zombies_speak(self) -> None:
        """Let dead trainings speak up when their lease is long over (I6).

        After the sweep: while all workers were down nobody took the run back, and until then its token is the current
        one, so that a heartbeat is rightly taken (T4).
        """
        now = clock.real_now()
        lease = dt.timedelta(seconds=settings.TRAIN_LEASE_SECONDS)
        for hang in [each for each in self._hangs if now >= each.dead_at + 4 * lease]:
            self._hangs.remove(hang)
            try:
                services.heartbeat(hang.claim, 1.0, "late")
            except RunLost:
                self.chaos.counts["zombie_refused"] += 1
            else:
                self.violations.append(f"I6: run {hang.claim.run_id} took a heartbeat of a claim whose lease was over")

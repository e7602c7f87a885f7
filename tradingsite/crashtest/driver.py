"""Runs the crash test: strike, wait until all works again, look for what is left over; at the end ask the rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db.models import Sum

from ops_app import clock
from ops_app.cluster import GRACE_SECONDS
from tradingsite.crashtest import tasks
from tradingsite.crashtest.installation import (
    Installation,
    bot_passed,
    wait_for,
    web_answers,
)
from tradingsite.crashtest.processes import Picture, alive
from tradingsite.crashtest.report import CrashReport
from tradingsite.crashtest.strikes import FREEZE_SECONDS, NUMBERS, STOP, TERM, Plan, Strike
from training_app import services
from training_app.choices import OPEN_STATES, RunState
from training_app.exceptions import RunRefused
from training_app.models import TrainingRun

LOOK_SECONDS = 0.2
RING_SECONDS = 2.0
START_SECONDS = 240.0
TRAINING_SECONDS = 120.0
GIVE_UP_SECONDS = 90.0
LEFTOVER_SECONDS = 10.0
DRAIN_SECONDS = 240.0
BUSY_SECONDS = 30.0
WORK_SECONDS = (2.0, 6.0)
SETTLE_SECONDS = 12.0
"""Longer than a new owner of an account waits before its first order (B5)."""
MAX_VIOLATIONS = MAX_PASSED_OVER = 20


class NotStartedError(RuntimeError):
    """The installation did not come to work by itself, so that there is nothing to strike."""


@dataclass(slots=True)
class CrashTest:
    """One crash test on the settings' DATA_DIR, which `manage.py setup` has prepared. `say` is told of each strike."""

    installation: Installation
    plan: Plan
    report: CrashReport
    limit: float
    seconds: float | None = None
    strikes: int | None = None
    pause: tuple[float, float] = (0.5, 3.0)
    say: Callable[[str], None] = lambda _text: None
    _numbers: int = 0
    _ring_at: float = 0.0
    _passed_over: int = 0
    _began: float = field(init=False, default=0.0)

    def run(self) -> CrashReport:
        """Start, strike until time or number is used up, stop, and look at what is left."""
        self.installation.start()
        try:
            self._wait_for_start()
            self._began = clock.monotonic()
            while not self._over():
                self._strike(self.plan.next())
                self._idle(self.plan.seconds(*self.pause))
            self.report.seconds = clock.monotonic() - self._began
            self._drain()
        finally:
            wrong = self.installation.stop()
        if wrong:
            self.report.violations.append(wrong)
        self._leftovers(Picture(), "the stop")
        self._ask_rows()
        return self.report

    def _over(self) -> bool:
        done = sum(self.report.strikes.values())
        if self.strikes is not None and done >= self.strikes:
            return True
        if len(self.report.violations) > MAX_VIOLATIONS or self._passed_over >= MAX_PASSED_OVER:
            return True
        return self.seconds is not None and clock.monotonic() - self._began >= self.seconds

    @property
    def _whole(self) -> bool:
        return "bot" in self.installation.programs

    # --- waiting

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        def look() -> bool:
            self._ring_undone()
            return condition()

        return wait_for(look, seconds, every=LOOK_SECONDS)

    def _idle(self, seconds: float) -> None:
        self._wait(lambda: self.installation.look_after() is not None, seconds)

    def _ring_undone(self) -> None:
        """Do what a sweeper does, for the rows of this test."""
        if clock.monotonic() < self._ring_at:
            return
        self._ring_at = clock.monotonic() + RING_SECONDS
        for number in tasks.undone():
            tasks.ring(number)

    def _wait_for_start(self) -> None:
        working = {program: self._working(program, clock.monotonic()) for program in self._programs}
        if not self._wait(lambda: self._all(working), START_SECONDS):
            said = self.installation.said.read_text(errors="replace")[-2000:]
            raise NotStartedError(f"the installation did not work within {START_SECONDS:.0f} s; it said:\n{said}")
        if not self._whole:
            return
        ended = TrainingRun.objects.exclude(state__in=OPEN_STATES)
        if not self._wait(ended.exists, START_SECONDS):
            raise NotStartedError(f"no training ended within {START_SECONDS:.0f} s: see the run's log in the admin")
        self.say(f"all works; first run: {ended.latest('pk').get_state_display()}")

    @property
    def _programs(self) -> tuple[str, ...]:
        return self.installation.programs

    def _all(self, working: dict[str, Callable[[Picture], bool]]) -> bool:
        picture = self.installation.look()
        return self.installation.complete(picture) and all(works(picture) for works in working.values())

    def _working(self, program: str, since: float) -> Callable[[Picture], bool]:
        """Return what tells whether the program really works since `since`: call it before, or at, that time."""
        if program == "web":
            return lambda _picture: web_answers()
        if program == "bot":
            return lambda picture: bot_passed(picture.mains.get("bot"), since)
        number = self._ask(program)
        return lambda _picture: tasks.is_done(number)

    def _ask(self, program: str, *, seconds: float = 0.0) -> int:
        self._numbers += 1
        tasks.ask(self._numbers, queue_name=program, seconds=seconds)
        return self._numbers

    # --- a strike

    def _strike(self, strike: Strike) -> None:
        before = self.installation.look()
        run = self._training() if strike.role == "trainer" else None
        if strike.role == "trainer" and run is None:
            return
        victim = self._victim(strike, before, run)
        if victim is None or not alive(victim):
            self._pass_over(f"{strike.name}, nobody was there")
            return
        struck = clock.monotonic()
        at = self._hit(strike, victim, run)
        works = self._again(run) if run is not None else self._working(strike.program, at)
        back = self._wait(lambda: self._is_back(strike, victim, works), GIVE_UP_SECONDS)
        took = clock.monotonic() - at
        self._note(strike, took if back else None, struck)
        self._collateral(strike, before)
        self._leftovers(None, strike.name)

    def _pass_over(self, why: str) -> None:
        self.say(f"passed over: {why}")
        self._passed_over += 1
        if self._passed_over == MAX_PASSED_OVER:
            self.report.violations.append(f"{MAX_PASSED_OVER} strikes hit nobody, the last one: {why}")

    def _hit(self, strike: Strike, victim: int, run: TrainingRun | None) -> float:
        """Do it; returns the time from which the recovery is counted."""
        number = NUMBERS[strike.how]
        with suppress(ProcessLookupError):
            if strike.role == "group":
                os.killpg(victim, number)
            else:
                os.kill(victim, number)
        at = clock.monotonic()
        if strike.how == STOP:
            low, high = FREEZE_SECONDS
            if run is not None:  # beyond its lease: it wakes as a zombie
                low, high = settings.TRAIN_LEASE_SECONDS + 1.0, settings.TRAIN_LEASE_SECONDS + 8.0
            self._idle(self.plan.seconds(low, high))
            with suppress(ProcessLookupError):
                os.kill(victim, NUMBERS["continue"])
            at = clock.monotonic()
        return at

    def _is_back(self, strike: Strike, victim: int, works: Callable[[Picture], bool]) -> bool:
        picture = self.installation.look()
        if strike.how != STOP and victim in picture.everyone:
            return False
        return self.installation.complete(picture) and works(picture)

    def _victim(self, strike: Strike, picture: Picture, run: TrainingRun | None) -> int | None:
        if run is not None:
            return _trainer_pid(run)
        if strike.role == "group":
            return picture.mains.get(strike.program)
        if strike.busy:
            return self._busy_worker(strike.program)
        pids = picture.pids(strike.program, strike.role)
        return self.plan.pick(pids) if pids else None

    def _busy_worker(self, program: str) -> int | None:
        """Give a worker something to do, and return its pid while it does it."""
        number = self._ask(program, seconds=self.plan.seconds(*WORK_SECONDS))
        self._wait(lambda: tasks.worker_of(number) is not None, BUSY_SECONDS)
        return tasks.worker_of(number)

    def _training(self) -> TrainingRun | None:
        """Let something be trained, as a person asks for it, and return the run when its trainer is in the middle."""
        found: list[TrainingRun] = []
        refused = ""

        def in_the_middle() -> bool:
            nonlocal refused
            found[:] = TrainingRun.objects.filter(state=RunState.RUNNING, stage__startswith="fold")
            if not found and not TrainingRun.objects.open().exists():  # not asked yet, refused, or ended unseen
                try:
                    services.train_now()
                    refused = ""
                except RunRefused as error:
                    refused = str(error)
            return bool(found)

        if self._wait(in_the_middle, TRAINING_SECONDS):
            return found[0]
        if refused:
            self._pass_over(refused)
            return None
        open_runs = list(TrainingRun.objects.open().values_list("pk", "state", "stage", "attempt", "not_before"))
        self.report.violations.append(f"no training came to its folds within {TRAINING_SECONDS:.0f} s: {open_runs}")
        return None

    def _again(self, run: TrainingRun) -> Callable[[Picture], bool]:
        """Return what tells whether the run is in good hands again: claimed anew, renewed, or ended."""

        def taken(_picture: Picture) -> bool:
            now = TrainingRun.objects.get(pk=run.pk)
            if now.state != RunState.RUNNING:
                return now.state not in OPEN_STATES
            pid = _trainer_pid(now)
            return now.attempt > run.attempt or (pid is not None and alive(pid) and now.owner == run.owner)

        return taken

    def _note(self, strike: Strike, took: float | None, struck: float) -> None:
        load = os.getloadavg()[0]
        self.report.load.append(load)
        self.report.strikes[strike.name] += 1
        at = f"{struck - self._began:6.1f} s"
        if took is None:
            text = f"{strike.name} at {at}: not back within {GIVE_UP_SECONDS:.0f} s: {self._state()}"
            self.report.violations.append(text)
            self.say(text)
            return
        self.report.recovered[strike.name].append(took)
        self.say(f"{at}  {strike.name:<32} back after {took:5.2f} s  (load {load:.1f})")
        allowed = self.limit + (GRACE_SECONDS if strike.how == TERM else 0.0)  # a planned stop waits for what runs
        if took > allowed:
            text = f"{strike.name} at {at}: back after {took:.1f} s, {allowed:g} s are allowed (load {load:.1f})"
            self.report.slow.append(text)

    def _state(self) -> str:
        picture = self.installation.look()
        return "; ".join(f"{program}: {roles}" for program, roles in picture.roles.items())

    def _collateral(self, strike: Strike, before: Picture) -> None:
        """A death is nobody else's business: the other programs run on in the same processes."""
        after = self.installation.look()
        for program in self._programs:
            if program != strike.program and before.mains.get(program) != after.mains.get(program):
                self.report.violations.append(f"{strike.name}: {program} was started again although nothing hit it")

    def _leftovers(self, picture: Picture | None, cause: str) -> None:
        """Count what nobody looks after, and ends that nobody noticed, once it had time to go."""
        strangers: set[int] = set()
        zombies: set[int] = set()

        def gone() -> bool:
            now = picture or self.installation.look()
            strangers.clear()
            strangers.update(self.installation.strangers(now))
            zombies.clear()
            zombies.update(now.zombies)
            return not strangers and not zombies

        if not wait_for(gone, LEFTOVER_SECONDS, every=LOOK_SECONDS):
            self.report.orphans += len(strangers)
            self.report.zombies += len(zombies)
            self.report.violations.append(f"after {cause}: orphans {sorted(strangers)}, zombies {sorted(zombies)}")

    # --- the end

    def _drain(self) -> None:
        """Leave all in peace until what was asked for is done: what is not done then is lost."""
        newest = TrainingRun.objects.latest("pk").pk if TrainingRun.objects.exists() else 0
        waiting = TrainingRun.objects.open().filter(pk__lte=newest)
        self._wait(lambda: not tasks.undone() and not waiting.exists(), DRAIN_SECONDS)
        self._idle(SETTLE_SECONDS if self._whole else 0.0)
        lost = [f"task {number}" for number in tasks.undone()]
        lost += [f"run {run.pk} is {run.state}, attempt {run.attempt}" for run in waiting]
        self.report.lost = len(lost)
        self.report.violations += [f"lost: {text}" for text in lost]

    def _ask_rows(self) -> None:
        from tradingsite.soak import invariants

        self.report.violations += [*invariants.broken(), *tasks.done_twice()]
        runs = TrainingRun.objects.filter(attempt__gt=0)
        self.report.trainings = runs.count()
        self.report.retried_trainings = (runs.aggregate(n=Sum("attempt"))["n"] or 0) - self.report.trainings
        if self._whole:
            from trading_app.models import Decision, Fill

            self.report.decisions, self.report.fills = Decision.objects.count(), Fill.objects.count()
            self.report.violations += books()


def _trainer_pid(run: TrainingRun) -> int | None:
    """Return the pid in the owner's name (`ops_app.leases.holder_name`)."""
    words = run.owner.split(":")
    return int(words[1]) if len(words) == 3 and words[1].isdigit() else None


def books() -> list[str]:
    """Let a bot of this process read all from the exchange, and compare: none of the kills lost or doubled an order."""
    from trading_app.bot import BotRunner
    from trading_app.services import ensure_bot
    from tradingsite.soak.driver import books_differ

    runner = BotRunner(ensure_bot())
    differ: list[str] = []

    def agree() -> bool:
        report = runner.tick()
        differ[:] = books_differ(runner) if report.lease != "busy" else ["I15: the account was not given back"]
        return not differ

    try:
        wait_for(agree, GIVE_UP_SECONDS, every=1.0)
    finally:
        runner.release()
    return differ


def settings_of(extra: dict[str, Any]) -> dict[str, Any]:
    """Return what a reader of the report needs to repeat the test."""
    names = ("SIM_SYMBOLS", "SIM_SPEED", "HISTORY_TARGET_DAYS", "TRAIN_LEASE_SECONDS", "BOT_LEASE_SECONDS")
    broker = "redis" if settings.REDIS_URL else "orm"
    database = settings.DATABASES["default"]["ENGINE"].rpartition(".")[2]
    return {**extra, "broker": broker, "database": database, **{name: getattr(settings, name) for name in names}}

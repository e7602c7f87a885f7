"""Starts the hammering processes, kills and freezes them, lets them finish, and gathers the evidence."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections

from coverage_app.models import Block, Symbol
from ops_app import clock, market_clock, queue
from ops_app.cluster import require_fork_safe
from training_app import artifacts, services
from training_app.choices import OPEN_STATES, RunState
from training_app.exceptions import ArtifactError
from training_app.locktest import history, worker
from training_app.locktest.judge import Artifact, Broken, Evidence, Run, Told, judge, spread, takeovers
from training_app.models import ModelArtifact, RunSymbol, TrainingRun, TrainingScope

LOOK_SECONDS = 0.01
STRIKE_SECONDS = 0.3
AIM_SECONDS = 0.5
"""How long the hammer waits for a process that is doing what it wants to strike at."""
DRAIN_SECONDS, DRAIN_LEASES = 60.0, 30
SHOWN = 50
_context = get_context("fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for. `lease` in seconds; `fence=False` is the control."""

    processes: int
    seconds: float
    kill: bool
    lease: float
    seed: int
    fence: bool = True


@dataclass(slots=True)
class Victim:
    """A living process. `frozen_until` in seconds of `clock.monotonic()`; 0: it runs."""

    process: Any
    frozen_until: float = 0.0


class Hammer:
    """One hammering. `show` is called about every second with the share that is done and how it goes."""

    def __init__(self, plan: Plan, show: Callable[[float, str], None]) -> None:
        self.plan, self.show = plan, show
        self.random = random.Random(plan.seed)
        self.board: Any = _context.RawValue(worker.Board)
        self.ledgers = Path(settings.DATA_DIR) / "ledgers"
        self.victims: list[Victim] = []
        self.counts: Counter[str] = Counter()
        self.killed: dict[str, float] = {}
        self.crashed: list[str] = []

    def run(self) -> dict[str, Any]:
        """Hammer, drain and judge; returns the report."""
        self._prepare()
        self.victims = [self._start(slot) for slot in range(self.plan.processes)]
        began = clock.monotonic()
        self._hammer(began)
        seconds = clock.monotonic() - began
        self.board.phase = worker.FINISH
        drained = self._drain()
        self.board.phase = worker.STOP
        for victim in self.victims:
            victim.process.join(DRAIN_SECONDS)
            if victim.process.exitcode is None:
                self.crashed.append(f"process {victim.process.pid} did not stop")
                victim.process.kill()
                victim.process.join()
        with queue.capture():
            services.sweep()
        return self._report(seconds=seconds, drained=drained)

    def _prepare(self) -> None:
        settings.TRAIN_LEASE_SECONDS = self.plan.lease
        call_command("migrate", verbosity=0)
        market_clock.ensure()
        scopes, now = max(3, self.plan.processes), clock.market_now()
        first = services.ensure_scope(market=settings.EXCHANGE_MARKET)
        for number in range(1, scopes):
            TrainingScope.objects.create(
                key=f"{first.key}:{number}",
                market=first.market,
                training_mode=first.training_mode,
                timeframe=first.timeframe,
            )
        for number in range(3 * scopes):
            Symbol.objects.create(
                market=first.market, code=f"H{number:03d}/USDT:USDT", base=f"H{number:03d}", quote="USDT",
                market_type="swap", in_universe=True, created_at=now, last_evaluated_at=now, next_evaluation_at=now,
            )  # fmt: skip
        history.install()
        self.ledgers.mkdir()

    def _start(self, slot: int) -> Victim:
        self.counts["started"] += 1
        life = self.counts["started"]
        orders = worker.Orders(
            slot=slot,
            seed=self.plan.seed * 1_000_003 + life,
            ledger=self.ledgers / f"{life}.jsonl",
            parent_pid=os.getpid(),
            fence=self.plan.fence,
        )
        self.board.seen[slot] = worker.GO
        connections.close_all()
        require_fork_safe()
        process = _context.Process(target=worker.run, args=(self.board, orders), daemon=True)
        process.start()
        return Victim(process)

    # --- strikes ---

    def _hammer(self, began: float) -> None:
        next_strike, next_show = began + 2 * STRIKE_SECONDS, began
        while (now := clock.monotonic()) < began + self.plan.seconds:
            self._thaw(now)
            self._replace_the_crashed()
            if self.plan.kill and now >= next_strike:
                self._strike()
                next_strike = clock.monotonic() + self.random.uniform(0, 2 * STRIKE_SECONDS)
            if now >= next_show:
                self.show((now - began) / self.plan.seconds, self._line())
                next_show = now + 1
            clock.sleep(LOOK_SECONDS)
        self._thaw(float("inf"))
        self.show(1.0, self._line())

    def _line(self) -> str:
        claims = sum(self.board.claims)
        return f"{claims} claims, {self.counts['kills']} kills, {self.counts['stops']} stops"

    def _strike(self) -> None:
        wanted = self.random.choices((worker.PUBLISHING, worker.HOLDING, worker.FREE), (5, 4, 1))[0]
        slot = self._aim(wanted)
        if slot is None:
            return
        victim, inside = self.victims[slot], self.board.doing[slot] == worker.PUBLISHING
        freeze = self.random.random() < 0.5
        if freeze and sum(each.frozen_until > 0 for each in self.victims) < self.plan.processes / 2:
            os.kill(victim.process.pid, signal.SIGSTOP)
            victim.frozen_until = clock.monotonic() + self.random.uniform(0.05, 2.5) * self.plan.lease
            self.counts["stops"] += 1
            self.counts["stops_inside_publish"] += inside
        else:
            self.killed[str(victim.process.pid)] = clock.real_now().timestamp()
            victim.process.kill()
            victim.process.join()
            self.counts["kills"] += 1
            self.counts["kills_inside_publish"] += inside
            self.victims[slot] = self._start(slot)

    def _aim(self, wanted: int) -> int | None:
        """Return a running process that does what is wanted, after half a second any running one."""
        give_up = clock.monotonic() + AIM_SECONDS
        while True:
            running = [slot for slot, victim in enumerate(self.victims) if not victim.frozen_until]
            late = clock.monotonic() > give_up
            fitting = [slot for slot in running if late or self.board.doing[slot] == wanted]
            if fitting or late:
                return self.random.choice(fitting) if fitting else None
            self._thaw(clock.monotonic())
            clock.sleep(LOOK_SECONDS / 5)

    def _thaw(self, now: float) -> None:
        for victim in self.victims:
            if victim.frozen_until and now >= victim.frozen_until:
                os.kill(victim.process.pid, signal.SIGCONT)
                victim.frozen_until = 0.0

    def _replace_the_crashed(self) -> None:
        for slot, victim in enumerate(self.victims):
            if victim.process.exitcode is not None:
                self.crashed.append(f"process {victim.process.pid} ended by itself with {victim.process.exitcode}")
                self.victims[slot] = self._start(slot)

    def _drain(self) -> float:
        """Wait until nobody asks for runs any more and none is open, but not for ever. Returns the seconds."""
        began = clock.monotonic()
        patience = DRAIN_SECONDS if self.plan.fence else 0.0  # what the control has lost does not come back
        longest = max(patience, DRAIN_LEASES * self.plan.lease)
        while clock.monotonic() - began < longest:
            self._replace_the_crashed()
            asking = any(seen == worker.GO for seen in self.board.seen[: self.plan.processes])
            if not asking and not TrainingRun.objects.open().exists():
                break
            clock.sleep(10 * LOOK_SECONDS)
        return clock.monotonic() - began

    # --- evidence ---

    def _evidence(self) -> Evidence:
        lines = [
            json.loads(line)
            for path in sorted(self.ledgers.iterdir())
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        blocks = Block.objects.exclude(evidence="").filter(recheck_at__isnull=False)
        blocked = set(blocks.filter(reason__in=worker.BACK_OFFS).values_list("symbol_id", flat=True))
        verdicts: dict[int, list[tuple[bool, str, bool]]] = {}
        for run_id, symbol_id, is_open, verdict in RunSymbol.objects.values_list(
            "run_id", "symbol_id", "open", "verdict"
        ):
            verdicts.setdefault(run_id, []).append((is_open, verdict, symbol_id in blocked))
        rows = TrainingRun.objects.order_by("pk").values_list(
            "pk", "scope_id", "state", "attempt", "max_attempts", "fencing_token"
        )
        return Evidence(
            runs=[Run(*row, tuple(verdicts.get(row[0], ()))) for row in rows],
            artifacts=[
                Artifact(artifact.run_id, artifact.scope_id, artifact.fencing_token, _wrong_with(artifact))
                for artifact in ModelArtifact.objects.all()
            ],
            active_tokens=dict(TrainingScope.objects.values_list("pk", "active_token")),
            history=history.read(),
            told=[Told(line["what"], line["run"], line["token"], line["text"]) for line in lines],
        )

    def _report(self, *, seconds: float, drained: float) -> dict[str, Any]:
        evidence = self._evidence()
        violations = judge(evidence)
        broken = Counter(violation.broken for violation in violations)
        states = Counter(run.state for run in evidence.runs)
        told = Counter(each.what for each in evidence.told)
        owners = {change.owner: change.owner.split(":")[-2] for change in evidence.history if change.owner}
        killed = {owner: self.killed[pid] for owner, pid in owners.items() if pid in self.killed}
        waits = takeovers(evidence.history, killed)
        return {
            "database": connection.vendor,
            "fence": self.plan.fence,
            "processes": self.plan.processes,
            "seconds": round(seconds, 1),
            "lease_seconds": self.plan.lease,
            "drain_seconds": round(drained, 1),
            "seed": self.plan.seed,
            "runs": len(evidence.runs),
            "ended": {state.value: states[state] for state in RunState if state not in OPEN_STATES},
            "claims": sum(change.is_claim for change in evidence.history),
            "accepted": len(evidence.artifacts),
            "kills": self.counts["kills"],
            "kills_inside_publish": self.counts["kills_inside_publish"],
            "stops": self.counts["stops"],
            "stops_inside_publish": self.counts["stops_inside_publish"],
            "takeovers": len(waits),
            "takeover_seconds": spread(waits),
            "refused": told["refused"] + told["result_refused"],
            "refused_results": told["result_refused"],
            "database_errors": Counter(each.text[:60] for each in evidence.told if each.what == "database_error"),
            "lost": broken[Broken.LOST],
            "two_results": broken[Broken.TWO_RESULTS],
            "symbol_in_two_runs": broken[Broken.SYMBOL_IN_TWO_RUNS],
            "without_verdicts": broken[Broken.WITHOUT_VERDICT],
            "stale_tokens_accepted": broken[Broken.STALE_TOKEN],
            "violations": len(violations),
            "found": [str(violation) for violation in violations[:SHOWN]],
            "crashed": self.crashed,
        }


def _wrong_with(artifact: ModelArtifact) -> str:
    try:
        artifacts.verify_files(artifact)
    except ArtifactError as error:
        return str(error)
    return ""

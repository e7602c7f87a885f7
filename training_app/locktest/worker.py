"""One hammering process: it asks, claims, trains in its sleep, publishes, fails, sweeps, and can die at any statement.

It calls the services that the product calls. Most of its executions are stubborn: they never look at their own clock
and often oversleep their lease, so that only the fence stands between a zombie and its successor.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, c_int
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.backends.signals import connection_created
from django.db.models import Q

from coverage_app import services as coverage
from coverage_app.choices import BlockReason
from coverage_app.models import Block, Symbol
from ops_app import clock, leases
from ops_app.process import die_with_parent
from quant.gates import GateResult
from quant.reasons import reason
from quant.timeframes import to_ms
from training_app import artifacts, execution, policies, services
from training_app.choices import RunState, RunTrigger
from training_app.exceptions import ArtifactError, RunLost, RunRefused
from training_app.models import TrainingRun, TrainingScope
from training_app.services import protocol

STEP_SECONDS = 0.02
FREE, HOLDING, PUBLISHING = 0, 1, 2
GO, FINISH, STOP = 0, 1, 2
STUBBORN, OVERSLEEPS = 0.7, 0.4
"""Share of executions that never look at their own clock, and of those the share that oversleeps its lease."""
LONGEST_SLEEP = 4.0
"""In leases."""
BACK_OFFS = (BlockReason.TRAINING_FAILED, BlockReason.MODEL_REJECTED)


class Board(Structure):
    """Memory that all processes share: what the hammer wants, and for each process what it saw of that and does."""

    _fields_ = [("phase", c_int), ("seen", c_int * 64), ("doing", c_int * 64), ("claims", c_int * 64)]


@dataclass(frozen=True, slots=True)
class Orders:
    """What the hammer tells a process. `fence`: False only in the control, see `_switch_fence_off`."""

    slot: int
    seed: int
    ledger: Path
    parent_pid: int
    fence: bool


@dataclass(frozen=True, slots=True)
class FakeModel:
    """Stands for a trained model: what publishing reads of one, and files that can be checked."""

    seed: int
    symbol_encoding: str = "index"
    blend: str = "none"
    threshold: float = 0.55

    def save(self, folder: Path) -> None:
        (folder / "model.txt").write_text(f"no model, only the hammer's draw {self.seed}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeResult:
    """Stands for `quant.pipeline.TrainingResult`."""

    model: FakeModel
    symbols: tuple[str, ...]
    gates: tuple[GateResult, ...]
    dropped: dict[str, str]
    data_start_ms: int
    data_end_ms: int
    data_hash: str = "0" * 64
    score: float = 0.01
    champion_metrics: dict[str, Any] | None = None
    reference: dict[str, Any] = field(default_factory=dict)

    @property
    def panel_symbols(self) -> tuple[str, ...]:
        return self.symbols

    @property
    def metrics(self) -> dict[str, Any]:
        return {"validation": {"relative_skill": self.score}}

    @property
    def gates_passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def run(board: Board, orders: Orders) -> None:
    """Be one of the hammer's processes until the board says stop; never returns to the code that forked it."""
    die_with_parent(orders.parent_pid)
    if not orders.fence:
        _switch_fence_off()
    protocol.STALE_RING = policies.lease_time()
    connection_created.connect(_cut_off_frozen_transactions)
    descriptor = os.open(orders.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    Worker(board, orders, descriptor).work()
    connection.close()
    os._exit(0)


def _cut_off_frozen_transactions(connection: Any, **_: Any) -> None:
    """As the settings do for PostgreSQL, only sooner: a hammering lasts minutes."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {round(1500 * settings.TRAIN_LEASE_SECONDS)}")


def _switch_fence_off() -> None:
    """The control: in this process a holder's writes no longer ask for its token. The product has no such switch."""
    protocol.mine = lambda claim: Q(pk=claim.run_id, state=RunState.RUNNING)


class Worker:
    def __init__(self, board: Board, orders: Orders, ledger: int) -> None:
        self.board, self.orders, self.ledger = board, orders, ledger
        self.random = random.Random(orders.seed)
        self.owner = leases.holder_name("locktest")
        self.lease = settings.TRAIN_LEASE_SECONDS
        self.scopes = list(TrainingScope.objects.order_by("pk"))
        self.symbols = list(Symbol.objects.order_by("pk").values_list("pk", flat=True))

    def work(self) -> None:
        """Do random steps until nobody wants more."""
        while (phase := self.board.phase) != STOP:
            self._doing(FREE)
            self.board.seen[self.orders.slot] = phase  # from here on nothing is asked for but in this phase
            try:
                if not self._step(finishing=phase == FINISH):
                    clock.sleep(self.random.uniform(0, 2 * STEP_SECONDS))
            except RunLost:
                self._tell("refused")
            except RunRefused:
                self._tell("not_needed")
            except ArtifactError as error:  # a token that was given twice would write where another wrote
                self._tell("files", text=str(error))
            except DatabaseError as error:  # cut off while it was frozen, or waited too long for one that is
                self._tell("database_error", text=str(error).strip().partition("\n")[0])
                connection.close()

    def _step(self, *, finishing: bool) -> bool:
        draw = self.random.random()
        if draw < 0.15 and not finishing:
            return self._request()
        if draw < 0.18 and not finishing:
            return bool(services.plan())
        if draw < 0.182 and not finishing:
            return self._cancel()
        if draw < 0.25:
            return self._end_back_offs()
        if draw < 0.40:
            counts = services.sweep()
            self._tell("swept", text=json.dumps(counts))
            return any(counts.values())
        run_id = self._hear() if draw < 0.85 else self._look()
        return run_id is not None and self._train(run_id)

    # --- what people, schedules and the evaluation do ---

    def _request(self) -> bool:
        symbols = self.random.sample(self.symbols, self.random.randint(1, 5))
        scope = self.random.choice(self.scopes)
        services.request_run(scope=scope, trigger=RunTrigger.MANUAL, cause="MANUAL: user=hammer", symbols=symbols)
        return True

    def _cancel(self) -> bool:
        waiting = TrainingRun.objects.open().order_by("?").first()
        if waiting is None:
            return False
        services.cancel(run=waiting, why="the hammer says so")
        self._tell("cancelled", waiting.pk)
        return True

    def _end_back_offs(self) -> bool:
        over = Block.objects.back_off_ended(now=clock.market_now()).values_list("symbol_id", flat=True)
        return (
            bool(over) and coverage.close_blocks(symbol_ids=over, reasons=BACK_OFFS, close_reason="back-off over") > 0
        )

    # --- what a queue may do to a message: deliver, double, lose, reorder ---

    def _hear(self) -> int | None:
        from django_q.models import OrmQ
        from django_q.signing import SignedPackage

        waiting = list(OrmQ.objects.filter(key=settings.TRAINING_QUEUE).order_by("id")[:8])
        if not waiting:
            return None
        message = self.random.choice(waiting)
        run_id = int(SignedPackage.loads(message.payload)["args"][0])
        draw = self.random.random()
        if draw > 0.1:
            message.delete()
        return None if draw > 0.95 else run_id

    def _look(self) -> int | None:
        """Without a message, as `train_run --drain` and a stranger would: the next one, or any one."""
        if self.random.random() < 0.5:
            return services.next_claimable()
        return TrainingRun.objects.open().order_by("?").values_list("pk", flat=True).first()

    # --- an execution ---

    def _train(self, run_id: int) -> bool:
        claim = services.claim(run_id, self.owner)
        if claim is None:
            return False
        self._tell("claim", claim.run_id, claim.token)
        self.board.claims[self.orders.slot] += 1
        self._doing(HOLDING)
        if self.random.random() < STUBBORN:
            self._train_stubbornly(claim)
        else:
            with execution.Pulse(claim, threaded=True) as pulse:
                for stage in range(self.random.randint(1, 4)):
                    clock.sleep(self.random.uniform(0, self.lease / 3))
                    pulse.report(stage / 4, f"fold {stage}")
                self._end(claim)
        return True

    def _train_stubbornly(self, claim: services.Claim) -> None:
        stages = self.random.randint(0, 3)
        overslept = self.random.randint(0, stages) if self.random.random() < OVERSLEEPS else None
        for stage in range(stages + 1):
            clock.sleep(self.random.uniform(0, 0.3) * self.lease)
            if stage == overslept:
                self._oversleep(claim)
            if stage < stages:
                services.heartbeat(claim, stage / 4, f"fold {stage}", line=f"fold {stage}")
                self._tell("beat", claim.run_id, claim.token)
        self._end(claim)

    def _oversleep(self, claim: services.Claim) -> None:
        """Sleep until another has the run (or nobody came for long), as after a long pause of the whole host."""
        give_up = clock.monotonic() + LONGEST_SLEEP * self.lease
        while (
            TrainingRun.objects.filter(pk=claim.run_id, fencing_token=claim.token).exists()
            and clock.monotonic() < give_up
        ):
            clock.sleep(STEP_SECONDS)

    def _end(self, claim: services.Claim) -> None:
        draw = self.random.random()
        if draw < 0.1:
            self._tell(services.fail(claim, "ValueError: the hammer says so"), claim.run_id, claim.token)
        elif draw < 0.15:
            self._tell(services.fail(claim, "TOO_LITTLE: the hammer says so", final=True), claim.run_id, claim.token)
        elif draw < 0.2:
            if services.release(claim):
                self._tell(RunState.QUEUED, claim.run_id, claim.token)
        elif draw > 0.25:  # else it goes without a word, and its lease must expire
            self._publish(claim)

    def _publish(self, claim: services.Claim) -> None:
        result = self._result(claim)
        scope = TrainingScope.objects.get(pk=claim.scope_id)
        written = artifacts.write_artifact(
            cast("Any", result.model), scope=scope, version=claim.run_no, token=claim.token, manifest={}
        )
        draft = services.draft_artifact(claim, cast("Any", result), written)
        artifacts.verify_files(draft)
        try:
            self._doing(PUBLISHING)
            with self._slow_statements():
                services.publish(claim, cast("Any", result), draft)
        except RunLost:
            artifacts.remove(written)
            self._tell("result_refused", claim.run_id, claim.token)
            return
        accepted = RunState.SUCCEEDED if result.gates_passed else RunState.REJECTED
        self._tell(accepted, claim.run_id, claim.token)

    @contextmanager
    def _slow_statements(self) -> Iterator[None]:
        """Wait a moment before some statements, so that strikes and others come in between."""

        def slow(execute: Any, *arguments: Any) -> Any:
            if self.random.random() < 0.1:
                clock.sleep(self.random.uniform(0, STEP_SECONDS))
            return execute(*arguments)

        with connection.execute_wrapper(slow):
            yield

    def _result(self, claim: services.Claim) -> FakeResult:
        run = TrainingRun.objects.get(pk=claim.run_id)
        codes = list(run.run_symbols.order_by("symbol_id").values_list("symbol__code", flat=True))
        covered = tuple(code for code in codes if self.random.random() < 0.8) or tuple(codes[:1])
        why = reason("TOO_FEW_SAMPLES", have=3, need=50)
        passed = self.random.random() < 0.65
        gate = GateResult(name="skill", value=1.0, bound=1.5, passed=passed, text="the hammer's draw")
        end_ms = to_ms(claim.data_end)
        return FakeResult(
            model=FakeModel(seed=claim.token),
            symbols=covered,
            gates=(gate,),
            dropped={code: why for code in codes[::2] if code not in covered},  # of the others nothing is said
            data_start_ms=end_ms - 1000,
            data_end_ms=end_ms,
        )

    # --- what others see of it ---

    def _doing(self, what: int) -> None:
        self.board.doing[self.orders.slot] = what

    def _tell(self, what: str, run_id: int = 0, token: int = 0, *, text: str = "") -> None:
        """Append a line in one write: it is there whole, or not at all, whenever the kill comes."""
        line = {"what": str(what), "run": run_id, "token": token, "text": text}
        os.write(self.ledger, (json.dumps(line) + "\n").encode())

"""The run protocol of reference/locks.md: claims, leases, fencing tokens, verdicts (I1-I7, T1-T15)."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coverage_app.models import Block, Symbol
from ops_app import leases, queue
from ops_app.clock import SimulatedClock
from ops_app.models import Alert, Event
from ops_app.queue import Message
from tests.factories import BlockFactory, RunSymbolFactory, SymbolFactory, TrainingRunFactory, TrainingScopeFactory
from tests.training.conftest import finish, make_result, request, train_model
from training_app import artifacts, execution, services
from training_app.choices import OPEN_STATES, RunState, Verdict
from training_app.exceptions import RunLost, RunRefused
from training_app.models import ActiveModel, ModelArtifact, RunSymbol, TrainingRun, TrainingScope
from training_app.storage import FolderStorage

pytestmark = pytest.mark.django_db

MINUTE, HOUR, LEASE = dt.timedelta(minutes=1), dt.timedelta(hours=1), dt.timedelta(seconds=60)
EXAMPLES = itertools.count()
BEYOND_LEASE = LEASE + dt.timedelta(seconds=1)


def claim(run: TrainingRun, owner: str = "worker-1") -> services.Claim:
    claimed = services.claim(run.pk, owner)
    assert claimed is not None
    return claimed


def state_of(run: TrainingRun) -> str:
    return TrainingRun.objects.get(pk=run.pk).state


def trainings(sent: list[Message]) -> list[tuple[int | str, ...]]:
    return [message.args for message in sent if message.dotted == "training_app.tasks.train"]


def assert_verdicts(run: TrainingRun) -> None:
    """I2: no symbol of an ended run is open, and each blocked one has an open block with a reason and a time."""
    rows = RunSymbol.objects.filter(run=run)
    assert rows.exists()
    for row in rows:
        assert not row.open
        assert row.verdict in Verdict.values
        assert row.reason
        if row.verdict == Verdict.BLOCKED:
            block = Block.objects.open().get(symbol=row.symbol)
            assert block.evidence
            assert block.recheck_at is not None


# --- asking for a run ---


def test_i1_the_database_refuses_a_second_open_run_of_a_scope(scope: TrainingScope) -> None:
    TrainingRunFactory(scope=scope, run_no=1)
    with pytest.raises(IntegrityError), transaction.atomic():
        TrainingRunFactory(scope=scope, run_no=2, running=True)


def test_i1_the_database_refuses_a_symbol_in_a_second_open_run() -> None:
    symbol = SymbolFactory()
    RunSymbolFactory(symbol=symbol)
    with pytest.raises(IntegrityError), transaction.atomic():
        RunSymbolFactory(symbol=symbol, run__scope=TrainingScopeFactory(key="another"))


def test_i1_a_symbol_in_another_open_run_is_left_out(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    other = TrainingScopeFactory(key="single_symbol:simulated:1h:AAA", training_mode="single_symbol")
    request(other, symbols[:1])
    run = request(scope, symbols)
    assert set(run.run_symbols.values_list("symbol", flat=True)) == {symbol.pk for symbol in symbols[1:]}


def test_i1_a_run_of_which_nothing_is_left_is_refused_and_leaves_no_row(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    request(TrainingScopeFactory(key="other"), symbols)
    with pytest.raises(RunRefused, match="all 3 are in open runs"):
        request(scope, symbols)
    assert not scope.runs.exists()
    assert TrainingScope.objects.get(pk=scope.pk).run_seq == 0


def test_t1_asking_again_returns_the_open_run(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    assert request(scope, symbols, trigger="manual") == run
    claim(run)
    assert request(scope, symbols) == run
    assert scope.runs.count() == 1
    assert trainings(sent) == [(run.pk,)]


def test_t1_who_loses_the_race_gets_the_run_of_who_won(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    class LateReader:
        """A scope whose first read does not see the run that was committed a moment later."""

        pk, key = scope.pk, scope.key
        reads = 0

        @property
        def runs(self) -> Any:
            self.reads += 1
            return TrainingRun.objects.none() if self.reads == 1 else scope.runs

    winner = request(scope, symbols)
    late = LateReader()
    assert request(late, [SymbolFactory()]) == winner  # type: ignore[arg-type]  # a stand-in
    assert late.reads == 2
    assert TrainingRun.objects.count() == 1
    assert TrainingScope.objects.get(pk=scope.pk).run_seq == 1


def test_t2_tokens_only_grow_and_none_is_given_twice(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    tokens = []
    for _ in range(3):
        run = request(scope, symbols)
        for attempt in (1, 2):
            claimed = claim(run)
            assert claimed.token == run.run_no * 65536 + attempt
            tokens.append(claimed.token)
            if attempt == 1:
                sim.advance(BEYOND_LEASE)
        services.fail(claimed, "broken", final=True)
    assert tokens == sorted(set(tokens))


def test_t3_a_claim_takes_a_due_or_an_expired_run_and_nothing_else(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols, not_before=sim.now + HOUR)
    assert services.claim(run.pk, "early") is None
    sim.advance(HOUR)
    first = claim(run)
    assert services.claim(run.pk, "second") is None
    sim.advance(LEASE - dt.timedelta(seconds=1))
    assert services.claim(run.pk, "second") is None
    sim.advance(dt.timedelta(seconds=2))
    second = claim(run, "second")
    assert second.token > first.token
    assert services.claim(999_999, "nobody") is None


def test_t4_a_holder_that_lost_the_run_changes_nothing(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    zombie = claim(run)
    sim.advance(BEYOND_LEASE)
    claim(run, "successor")
    before = TrainingRun.objects.values().get(pk=run.pk)
    with pytest.raises(RunLost):
        services.heartbeat(zombie, 0.5, "zombie")
    with pytest.raises(RunLost):
        services.fail(zombie, "zombie")
    with pytest.raises(RunLost):
        services.fail(zombie, "zombie", final=True)
    assert services.release(zombie) is False
    assert TrainingRun.objects.values().get(pk=run.pk) == before
    assert not Block.objects.exists()


def test_t5_a_result_appears_whole(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    claimed = claim(run)
    artifact = finish(claimed, make_result([symbol.code for symbol in symbols]))
    run.refresh_from_db()
    scope.refresh_from_db()
    assert run.state == RunState.SUCCEEDED
    assert run.finished_at == sim.now
    assert scope.active_token == artifact.fencing_token == claimed.token
    assert set(artifact.artifact_symbols.values_list("symbol__code", flat=True)) == {s.code for s in symbols}
    assert ActiveModel.objects.get(slot=scope.key).artifact == artifact
    assert_verdicts(run)


@pytest.mark.parametrize("broken", ["leave_verdicts", "bulk", "activation", "journal"])
def test_t5_a_publish_that_fails_anywhere_changes_nothing(
    broken: str,
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from training_app.services import publishing

    class BoomError(Exception):
        pass

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise BoomError(name)

        def __call__(self, *args: Any, **options: Any) -> None:
            raise BoomError

    claimed = claim(request(scope, symbols))
    before = TrainingRun.objects.values().get(), TrainingScope.objects.values().get()
    monkeypatch.setattr(publishing, broken, Broken())
    with pytest.raises(BoomError):
        finish(claimed, make_result([symbol.code for symbol in symbols]))
    assert (TrainingRun.objects.values().get(), TrainingScope.objects.values().get()) == before
    assert not ModelArtifact.objects.exists()
    assert not ActiveModel.objects.exists()
    assert RunSymbol.objects.filter(open=True).count() == len(symbols)


def test_t6_the_active_token_is_the_largest_token_of_the_artifacts_and_never_falls(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    seen = []
    for passed in (True, False, True):
        train_model(scope, symbols, passed=passed)
        Block.objects.all().delete()
        scope.refresh_from_db()
        largest = max(ModelArtifact.objects.values_list("fencing_token", flat=True))
        assert scope.active_token == largest
        seen.append(scope.active_token)
    assert seen == sorted(seen)


def test_t7_accepted_executions_of_a_scope_never_overlap(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    for _ in range(3):
        run = request(scope, symbols)
        zombie = claim(run)
        sim.advance(BEYOND_LEASE)
        successor = claim(run)
        sim.advance(MINUTE / 2)
        finish(successor, make_result([symbol.code for symbol in symbols]))
        with pytest.raises(RunLost):
            finish(zombie, make_result([symbol.code for symbol in symbols]))
    ended = list(TrainingRun.objects.order_by("run_no").values_list("started_at", "finished_at"))
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(ended))


def test_f32_t8_a_training_that_is_always_killed_ends_after_its_attempts(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    kills = 0
    while state_of(run) in OPEN_STATES:
        claim(run)  # and is killed at once, without a word
        kills += 1
        sim.advance(BEYOND_LEASE)
        services.sweep()
    assert kills == run.max_attempts == 3
    assert state_of(run) == RunState.FAILED
    assert services.claim(run.pk, "late") is None
    assert_verdicts(run)
    assert "LEASE_EXPIRED" in TrainingRun.objects.get(pk=run.pk).error
    assert Alert.objects.filter(key=f"training:{scope.key}", resolved_at=None).count() == 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["claim", "beat", "wait", "fail", "publish", "sweep", "request"]), max_size=25))
def test_t9_whatever_order_messages_and_deaths_come_in_the_invariants_hold(
    steps: list[str], sim: SimulatedClock, sent: list[Message], db: None
) -> None:
    with transaction.atomic():
        scope = TrainingScopeFactory(
            key=f"multi_symbol:simulated:1h:{next(EXAMPLES)}"
        )  # its folder outlives the rollback
        symbol = SymbolFactory()
        held: list[services.Claim] = []
        run = request(scope, [symbol])
        tokens: list[int] = []
        for step in steps:
            holder = held[-1] if held else None
            with contextlib.suppress(RunLost):  # a zombie is told so
                if step == "request" and not Block.objects.open().exists():
                    run = request(scope, [symbol])
                elif step == "claim":
                    claimed = services.claim(run.pk, f"worker-{len(held)}")
                    if claimed is not None:
                        held.append(claimed)
                        tokens.append(claimed.token)
                elif step == "wait":
                    sim.advance(BEYOND_LEASE)
                elif step == "sweep":
                    services.sweep()
                elif holder is not None and step == "beat":
                    services.heartbeat(holder, 0.5, "fold")
                elif holder is not None and step == "fail":
                    held.pop()
                    services.fail(holder, "broken")
                elif holder is not None and step == "publish":
                    held.pop()
                    finish(holder, make_result([symbol.code]))
            open_runs = TrainingRun.objects.filter(state__in=OPEN_STATES)
            assert open_runs.count() <= 1
            assert tokens == sorted(set(tokens))
            assert RunSymbol.objects.filter(open=True).count() == open_runs.count()
            accepted = set(ModelArtifact.objects.values_list("fencing_token", flat=True))
            assert accepted <= set(tokens)
            for row in TrainingRun.objects.exclude(state__in=OPEN_STATES):
                assert not row.run_symbols.filter(open=True).exists()
        transaction.set_rollback(True)


def test_t9_after_a_holders_death_the_run_is_claimable_within_lease_and_sweep(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    claim(run)
    sim.advance(BEYOND_LEASE)
    assert services.sweep()["requeued"] == 1
    assert trainings(sent) == [(run.pk,), (run.pk,)]
    assert claim(run).attempt == 2


def test_i7_t10_the_row_and_its_message_are_one_transaction(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("broker")

    monkeypatch.setattr(queue, "enqueue", broken)
    with pytest.raises(ConnectionError):
        request(scope, symbols)
    assert not TrainingRun.objects.exists()
    assert not RunSymbol.objects.exists()


def test_i7_t10_a_lost_ring_is_rung_again_by_the_sweeper(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    sent.clear()  # the message is lost
    services.sweep()
    assert trainings(sent) == []  # it may still be on its way
    sim.advance(dt.timedelta(seconds=61))
    services.sweep()
    services.sweep()  # a second sweeper, or the same one again
    assert trainings(sent) == [(run.pk,)]


def test_i7_a_doubled_ring_finds_nothing_and_succeeds(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    from training_app import tasks

    run = request(scope, symbols)
    claim(run)
    assert tasks.train(run.pk) == ""
    assert execution.execute(run.pk, "double") is None


def test_a_run_that_is_not_due_is_rung_when_it_is(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols, not_before=sim.now + HOUR)
    services.sweep()
    assert trainings(sent) == []
    sim.advance(HOUR)
    services.sweep()
    assert trainings(sent) == [(run.pk,)]


def test_t11_a_lease_is_judged_by_the_databases_clock_not_by_the_hosts(
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = request(scope, symbols)
    claim(run)
    # A host whose market and real clocks are a day ahead must not take over a lease that the database holds valid.
    ahead = sim.now + dt.timedelta(days=1)
    monkeypatch.setattr(SimulatedClock, "real_now", lambda _: ahead)
    monkeypatch.setattr(SimulatedClock, "market_now", lambda _: ahead)
    assert services.claim(run.pk, "skewed") is None
    assert services.sweep()["requeued"] == 0


def test_t12_no_transaction_reads_or_writes_files(
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    depth = len(connection.savepoint_ids)  # pytest's own transaction

    def outside(function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **options: Any) -> Any:
            assert len(connection.savepoint_ids) == depth, f"{function.__name__} inside a transaction"
            return function(*args, **options)

        return checked

    for name in ("_digest", "write_artifact", "verify", "load"):
        monkeypatch.setattr(artifacts, name, outside(getattr(artifacts, name)))
    for name in ("draft", "publish", "contents", "local"):
        monkeypatch.setattr(FolderStorage, name, outside(getattr(FolderStorage, name)))
    first = train_model(scope, symbols)
    second = train_model(scope, symbols)
    from training_app import activation

    requested = activation.request_activation(artifact=first)
    assert activation.apply_activation(requested.pk).state == "applied"
    assert second.pk != first.pk


def test_t12_the_scope_is_locked_before_the_run(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    claimed = claim(request(scope, symbols))
    with CaptureQueriesContext(
        connection,
    ) as captured:
        services.fail(claimed, "broken", final=True)
    touched = [
        "scope" if '"training_app_trainingscope"' in query["sql"] else "run"
        for query in captured
        if '"training_app_trainingscope"' in query["sql"].split("JOIN")[0]
        or 'UPDATE "training_app_trainingrun"' in query["sql"]
    ]
    assert touched.index("scope") < touched.index("run")


def test_t13_artifact_files_bear_the_token_and_are_never_overwritten(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    claimed = claim(request(scope, symbols))
    result = make_result([symbol.code for symbol in symbols])
    written = artifacts.write_artifact(result.model, scope=scope, version=1, token=claimed.token, manifest={})
    assert written.directory.endswith(f"/v1-{claimed.token}")
    kept = {path.name: path.read_bytes() for path in written.path.iterdir()}
    other = make_result([symbol.code for symbol in symbols], seed=2)
    with pytest.raises(artifacts.ArtifactError, match="exists already"):
        artifacts.write_artifact(other.model, scope=scope, version=1, token=claimed.token, manifest={})
    assert {path.name: path.read_bytes() for path in written.path.iterdir()} == kept
    assert [path.name for path in written.path.parent.iterdir()] == [written.path.name]


def test_t14_heartbeats_end_when_the_training_makes_no_progress(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    claimed = claim(request(scope, symbols))
    pulse = execution.Pulse(claimed, threaded=False)
    pulse.report(0.1, "fold 1")
    beaten_at = TrainingRun.objects.get().heartbeat_at
    for _ in range(30):
        sim.advance(dt.timedelta(seconds=15))
        pulse._beat_once()
    last = TrainingRun.objects.get()
    assert last.heartbeat_at - beaten_at == dt.timedelta(seconds=300)
    assert last.lease_expires_at < sim.now
    with pytest.raises(RunLost, match="no heartbeat was confirmed"):
        pulse.report(0.2, "fold 2")


def test_t14_a_holder_that_cannot_confirm_a_heartbeat_stops_its_training(
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from django.db import OperationalError

    claimed = claim(request(scope, symbols))
    pulse = execution.Pulse(claimed, threaded=False)

    def gone(*_: Any, **__: Any) -> None:
        raise OperationalError("server closed the connection")

    monkeypatch.setattr(services, "heartbeat", gone)
    monkeypatch.setattr(execution.connection, "close", lambda: None)
    sim.advance(LEASE / 2)
    pulse._beat_once()
    pulse.report(0.0, "claimed")  # the lease is still ours
    sim.advance(LEASE)
    pulse._beat_once()
    with pytest.raises(RunLost):
        pulse.report(0.0, "claimed")


def test_t15_the_same_input_is_not_trained_again_and_a_failure_cools_down(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    train_model(scope, symbols)
    assert [services.plan() for _ in range(5)] == [[]] * 5  # nothing changed: the same candles and symbols
    sim.advance(dt.timedelta(hours=7))
    assert services.plan() == []
    run = request(scope, symbols)
    services.fail(claim(run), "broken", final=True)
    sim.advance(MINUTE)
    assert services.plan() == []


# --- I2: every ending ---


def end_promoted(claimed: services.Claim, codes: list[str]) -> None:
    finish(claimed, make_result(codes))


def end_promoted_with_a_symbol_left_out(claimed: services.Claim, codes: list[str]) -> None:
    finish(claimed, make_result(codes[1:], dropped={codes[0]: "TOO_FEW_SAMPLES: have=3, need=50"}))


def end_promoted_with_a_symbol_forgotten(claimed: services.Claim, codes: list[str]) -> None:
    finish(claimed, make_result(codes[1:]))


def end_rejected(claimed: services.Claim, codes: list[str]) -> None:
    finish(claimed, make_result(codes, passed=False))


def end_failed(claimed: services.Claim, codes: list[str]) -> None:
    services.fail(claimed, "Traceback ...\nMemoryError: 12 GB", final=True)


def end_cancelled(claimed: services.Claim, codes: list[str]) -> None:
    services.cancel(run=TrainingRun.objects.get(pk=claimed.run_id))


def end_swept(claimed: services.Claim, codes: list[str]) -> None:
    TrainingRun.objects.filter(pk=claimed.run_id).update(
        max_attempts=1, lease_expires_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    )
    services.sweep()


ENDINGS = [
    end_promoted, end_promoted_with_a_symbol_left_out, end_promoted_with_a_symbol_forgotten, end_rejected, end_failed,
    end_cancelled, end_swept,
]  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_i2_every_ending_leaves_a_verdict_for_every_symbol(
    ending: Callable[[services.Claim, list[str]], None],
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
) -> None:
    run = request(scope, symbols)
    ending(claim(run), [symbol.code for symbol in symbols])
    assert state_of(run) not in OPEN_STATES
    assert_verdicts(run)
    sent.clear()
    assert services.plan() == []  # nothing is queued again without a cause
    assert trainings(sent) == []


@pytest.mark.parametrize("ending", [end_rejected, end_failed, end_cancelled, end_swept])
def test_i2_symbols_that_the_active_model_covers_stay_covered_when_a_run_brings_nothing(
    ending: Callable[[services.Claim, list[str]], None],
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
) -> None:
    champion = train_model(scope, symbols[:2])
    run = request(scope, symbols)
    ending(claim(run), [symbol.code for symbol in symbols])
    verdicts = dict(run.run_symbols.values_list("symbol__code", "verdict"))
    assert verdicts == {
        symbols[0].code: Verdict.COVERED, symbols[1].code: Verdict.COVERED, symbols[2].code: Verdict.BLOCKED
    }  # fmt: skip
    assert set(Block.objects.open().values_list("symbol", flat=True)) == {symbols[2].pk}
    assert ActiveModel.objects.get().artifact == champion


def test_i2_the_database_refuses_an_ended_run_symbol_without_a_verdict() -> None:
    row = RunSymbolFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        RunSymbol.objects.filter(pk=row.pk).update(open=False)


def test_a_symbol_that_runs_leave_out_again_and_again_comes_back_later_each_time(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    waits = []
    for _ in range(3):
        run = request(scope, symbols)
        end_promoted_with_a_symbol_left_out(claim(run), [symbol.code for symbol in symbols])
        block = Block.objects.open().get(symbol=symbols[0])
        assert block.evidence.startswith("TOO_FEW_SAMPLES")
        waits.append(block.recheck_at - sim.now)
        Block.objects.filter(pk=block.pk).update(closed_at=sim.now)
    assert waits[0] >= dt.timedelta(days=1)
    assert waits[0] * 1.5 < waits[1] < waits[2]


# --- I4, I6 ---


def test_i4_an_attempt_is_counted_before_the_work(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    claim(run)
    assert TrainingRun.objects.get(pk=run.pk).attempt == 1


def test_i4_after_the_last_attempt_the_symbols_are_blocked_with_the_error_and_time_brings_them_back(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    waits = []
    for attempt in (1, 2, 3):
        state = services.fail(claim(run), f"Traceback\nValueError: attempt {attempt}")
        if attempt < 3:
            assert state == RunState.QUEUED
            again_at = TrainingRun.objects.get(pk=run.pk).not_before
            waits.append(again_at - sim.now)
            assert services.claim(run.pk, "too early") is None
            sim.advance(again_at - sim.now)
    assert state == RunState.FAILED
    assert waits[1] > waits[0] > dt.timedelta(0)
    block = Block.objects.open().get(symbol=symbols[0])
    assert block.reason == "TRAINING_FAILED"
    assert "ValueError: attempt 3" in block.evidence
    scope.refresh_from_db()
    assert block.recheck_at == scope.not_before > sim.now
    assert Event.objects.filter(kind="run_failed", subject=f"run:{run.pk}").count() == 1


def test_i4_the_back_off_of_a_scope_grows_with_every_failure_and_ends_with_a_success(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    waits = []
    for _ in range(4):
        services.fail(claim(request(scope, symbols)), "broken", final=True)
        scope.refresh_from_db()
        waits.append(scope.not_before - sim.now)
        Block.objects.all().delete()
    assert waits == sorted(waits)
    assert waits[3] > 4 * waits[0]
    train_model(scope, symbols)
    scope.refresh_from_db()
    assert (scope.failures, scope.not_before) == (0, None)


def test_i6_a_zombies_late_result_is_refused_and_its_files_are_removed(
    scope: TrainingScope,
    symbols: list[Symbol],
    sim: SimulatedClock,
    sent: list[Message],
    monkeypatch: pytest.MonkeyPatch,
    small_training: None,
) -> None:
    import quant.pipeline

    codes = [symbol.code for symbol in symbols]
    run = request(scope, symbols)

    def slow_training(*_: Any, **__: Any) -> Any:
        sim.advance(BEYOND_LEASE)
        finish(claim(run, "successor"), make_result(codes, seed=2))
        return make_result(codes, seed=3)

    monkeypatch.setattr(quant.pipeline, "train", slow_training)
    monkeypatch.setattr(execution, "read_panel", lambda *_: None)
    # A zombie does not know that it is one: its own clock stood still with it.
    monkeypatch.setattr(services.Claim, "locally_valid", lambda _: True)
    monkeypatch.setattr(execution.Pulse, "report", lambda *_: None)
    with pytest.raises(RunLost):
        execution.execute(run.pk, "zombie")
    artifact = ModelArtifact.objects.get()
    assert artifact.fencing_token == run.run_no * 65536 + 2
    directory = artifacts.path_of(artifact)
    assert list(directory.parent.iterdir()) == [directory]
    assert state_of(run) == RunState.SUCCEEDED
    artifacts.verify(artifact)


def test_i6_without_the_fence_the_zombie_would_win(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    """The control of the test above: the same late result with the guard's token replaced is accepted."""
    run = request(scope, symbols)
    zombie = claim(run)
    sim.advance(BEYOND_LEASE)
    successor = claim(run, "successor")
    zombie.token = successor.token
    assert finish(zombie, make_result([symbol.code for symbol in symbols])).pk
    with pytest.raises(artifacts.ArtifactError):  # and who holds the run is the one who is refused
        finish(successor, make_result([symbol.code for symbol in symbols]))


def test_i6_an_expired_lease_is_reaped_once_however_many_sweep(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    claim(run)
    assert services.sweep() == {"requeued": 0, "failed": 0, "rung": 0, "activations": 0}
    sim.advance(BEYOND_LEASE)
    assert [services.sweep()["requeued"] for _ in range(3)] == [1, 0, 0]


def test_a_run_whose_process_died_on_this_host_is_taken_back_before_its_lease_ends(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    living = leases.holder_name("train_run")
    place, _, tail = living.partition(":")
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    claim(run, living)
    assert services.sweep()["requeued"] == 0
    TrainingRun.objects.filter(pk=run.pk).update(owner=f"{place}-of-another-host:{child.pid}:{tail}")
    assert services.sweep()["requeued"] == 0, "nothing is known of the processes of another host"
    TrainingRun.objects.filter(pk=run.pk).update(owner=f"{place}:{child.pid}:1234abcd")
    assert [services.sweep()["requeued"] for _ in range(2)] == [1, 0]
    assert "TRAINER_DIED" in TrainingRun.objects.get(pk=run.pk).error
    assert claim(run, "successor").attempt == 2


def test_a_running_holder_keeps_the_run_as_long_as_it_beats(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    claimed = claim(run)
    for step in range(20):
        sim.advance(LEASE * 0.9)
        services.heartbeat(claimed, step / 20, f"fold {step}", line=f"fold {step}")
        assert services.sweep()["requeued"] == 0
        assert claimed.locally_valid()
    run.refresh_from_db()
    assert run.log.splitlines() == [f"fold {step}" for step in range(20)]


def test_a_stopped_process_gives_its_run_back_at_once(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    done = execution.execute(run.pk, "worker", stop=lambda: True)
    assert done is not None
    assert done.state == RunState.QUEUED
    assert claim(run, "next").attempt == 2


def test_cancelling_a_running_run_stops_its_holder_and_blocks_what_no_model_covers(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    claimed = claim(run)
    services.cancel(run=run, why="wrong settings")
    with pytest.raises(RunLost):
        services.heartbeat(claimed, 0.5, "fold")
    with pytest.raises(RunRefused, match="ended already"):
        services.cancel(run=run)
    assert_verdicts(run)


def test_sweeping_with_nothing_to_do_only_reads(scope: TrainingScope, sim: SimulatedClock, sent: list[Message]) -> None:
    with CaptureQueriesContext(connection) as captured:
        services.sweep()
    assert [query["sql"].split()[0] for query in captured] == ["SELECT"] * 3


def test_a_block_that_is_open_already_does_not_stop_a_run_from_ending(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    BlockFactory(symbol=symbols[0], reason="TRAINING_FAILED")
    run = request(scope, symbols)
    services.fail(claim(run), "broken", final=True)
    assert_verdicts(run)

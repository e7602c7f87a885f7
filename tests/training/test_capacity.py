"""A worker takes only what its host can do; what no host can do waits with a reason, and holds up nobody."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from coverage_app.models import Symbol
from ops_app import heartbeats
from ops_app.clock import SimulatedClock
from ops_app.host import Share
from ops_app.models import Alert
from ops_app.queue import Message
from tests.factories import SymbolFactory
from tests.training.conftest import request
from training_app import capacity, services, tasks
from training_app.models import TrainingRun, TrainingScope
from training_app.services.protocol import RINGS_PER_SWEEP

pytestmark = pytest.mark.django_db

SECOND = dt.timedelta(seconds=1)
SMALL, LARGE = Share(memory_mb=1000, threads=2), Share(memory_mb=64_000, threads=16)


@pytest.fixture(autouse=True)
def _host(settings: Any) -> None:
    """This host is small."""
    settings.TRAINING_WORKERS, settings.TRAIN_THREADS = 1, 0
    settings.HOST_CORES, settings.HOST_MEMORY_MB = SMALL.threads, SMALL.memory_mb


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the runs for which a training process would have been started; each is claimed at once."""
    ids: list[int] = []

    class Child:
        def wait(self, timeout: float | None = None) -> int:
            return 0

        def poll(self) -> int:
            return 0

    def spawn(command: list[str], **_: Any) -> Child:
        ids.append(int(command[-2]))
        assert services.claim(ids[-1], "worker") is not None
        return Child()

    monkeypatch.setattr(tasks.process, "spawn", spawn)
    return ids


def beat(name: str, share: Share, *, queue: str = "training") -> None:
    heartbeats.beat(name, "worker", 60, {"queue": queue, "workers": 1, **share.to_dict()})


def scope_of(symbol: Symbol, settings: Any) -> TrainingScope:
    settings.TRAINING_MODE = "single_symbol"
    return services.ensure_scope(market=symbol.market, symbol=symbol)


def enlarge(run: TrainingRun) -> TrainingRun:
    TrainingRun.objects.filter(pk=run.pk).update(needs_memory_mb=LARGE.memory_mb, needs_threads=4)
    run.refresh_from_db()
    return run


def test_a_run_carries_what_it_needs_and_needs_more_with_more_history_symbols_and_less_time(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    Symbol.objects.update(history_days=730.0)
    run = request(scope, symbols)
    bars = 730 * 24
    wanted = capacity.estimate(bars=bars, symbols=3, features=48)
    assert (run.needs_memory_mb, run.needs_threads) == (wanted.memory_mb, wanted.threads) == (475, 1)
    large = capacity.estimate(bars=bars, symbols=3000, features=48)
    assert 20_000 < large.memory_mb < 30_000
    settings.TRAIN_TIMEOUT_MINUTES = 10.0
    assert capacity.estimate(bars=bars, symbols=3000, features=48).threads > large.threads >= 1
    assert capacity.needs([0.0], timeframe="1h") == Share(memory_mb=capacity.PROCESS_MB, threads=1)


def test_a_worker_claims_only_what_fits_its_host(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    run = enlarge(request(scope, symbols))
    assert not services.claimable(run.pk)
    assert services.next_claimable() is None
    assert services.claim(run.pk, "small host") is None
    run.refresh_from_db()
    assert (run.state, run.attempt) == ("queued", 0)
    settings.HOST_MEMORY_MB, settings.HOST_CORES = LARGE.memory_mb, 3
    assert services.claim(run.pk, "too few cores") is None
    settings.HOST_CORES = 4
    assert services.claim(run.pk, "large host") is not None


def test_an_expired_large_run_is_not_taken_over_by_a_small_host_but_goes_back_to_the_queue(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    assert services.claim(run.pk, "large host") is not None
    enlarge(run)
    sim.advance(61 * SECOND)
    assert services.claim(run.pk, "small host") is None
    assert services.sweep()["requeued"] == 1


def test_a_large_run_at_the_head_of_the_queue_holds_up_nobody_and_its_message_is_not_wasted(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any, started: list[int]
) -> None:
    large, small, other = (request(scope_of(symbol, settings), [symbol]) for symbol in symbols)
    enlarge(large)
    assert "ended with 0" in tasks.train(large.pk)
    assert started == [small.pk]
    tasks.train(large.pk)
    assert started == [small.pk, other.pk]
    assert tasks.train(large.pk) == ""


def test_a_declined_run_is_rung_again_soon_for_the_host_that_can_but_never_in_a_busy_loop(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    run = enlarge(request(scope, symbols))
    beat("large", LARGE)
    rings = 0
    for _ in range(60 * 5):  # the large host is busy: every message goes to the small one
        sim.advance(SECOND)
        beat("large", LARGE)
        services.sweep()
        while sent:
            rings += 1
            assert tasks.train(int(sent.pop().args[0])) == ""
            assert sent == []
    assert 15 <= rings <= 21  # four a minute
    heartbeats.stop("large")
    beat("small", SMALL)
    sim.advance(20 * SECOND)
    services.sweep()
    sent.clear()
    assert not services.decline(run.pk), "nobody can take it: there is no reason to hurry"


def test_nothing_is_declined_that_fits_or_is_not_waiting(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    beat("large", LARGE)
    run = request(scope, symbols)
    assert not services.decline(run.pk)
    services.claim(run.pk, "worker")
    enlarge(run)
    assert not services.decline(run.pk)
    assert not services.decline(run.pk + 1)


def test_messages_do_not_pile_up_while_every_worker_is_busy(
    sim: SimulatedClock, sent: list[Message], settings: Any, monkeypatch: pytest.MonkeyPatch, db: None
) -> None:
    SymbolFactory.create_batch(RINGS_PER_SWEEP + 5)
    for symbol in Symbol.objects.all():
        request(scope_of(symbol, settings), [symbol])
    sent.clear()
    monkeypatch.setattr("ops_app.queue.waiting", lambda queue: len(sent))
    for _ in range(60):
        sim.advance(60 * SECOND)
        services.sweep()
    assert len(sent) == RINGS_PER_SWEEP
    sent.clear()
    sim.advance(60 * SECOND)
    assert services.sweep()["rung"] == RINGS_PER_SWEEP


def test_a_queued_run_says_what_it_waits_for(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = request(scope, symbols)
    assert capacity.why_waiting(run).startswith("NO_WORKER: fix=start `manage.py qworker --queue training`")
    beat("light one", LARGE, queue="light")
    assert capacity.live_shares() == {}
    beat("small", SMALL)
    assert capacity.why_waiting(run) == "WAITS_FOR_WORKER: workers=small"
    beat("large", LARGE)
    assert capacity.why_waiting(enlarge(run)) == "WAITS_FOR_WORKER: workers=large"
    heartbeats.stop("large")
    assert capacity.why_waiting(run).startswith(
        "NO_HOST: needs_mb=64000, needs_threads=4, largest_mb=1000, largest_threads=2, fix="
    )
    later = request(services.ensure_scope(market=scope.market), symbols)
    later.not_before = sim.now + 60 * SECOND
    assert capacity.why_waiting(later).startswith("NOT_YET: not_before=")
    later.state = "running"
    assert capacity.why_waiting(later) == ""


def test_one_alert_tells_of_the_runs_that_no_live_worker_can_take_and_is_resolved_when_one_can(
    symbols: list[Symbol], sim: SimulatedClock, sent: list[Message], settings: Any
) -> None:
    beat("small", SMALL)
    assert not capacity.is_due()
    assert capacity.watch_job() == ""
    for symbol in symbols:
        request(scope_of(symbol, settings), [symbol])
    assert capacity.is_due()
    assert capacity.watch_job() == ""
    enlarge(TrainingRun.objects.earliest("pk"))
    assert capacity.watch_job() == "1 runs fit no live worker"
    assert capacity.watch_job() == "", "it is open already"
    alert = Alert.objects.get()
    assert "needs_mb=64000" in alert.text
    assert "1 training runs fit" in alert.text
    beat("large", LARGE)
    assert capacity.watch_job() == "resolved"
    alert.refresh_from_db()
    assert alert.resolved_at is not None


def test_the_alert_ends_with_the_run(
    scope: TrainingScope, symbols: list[Symbol], sim: SimulatedClock, sent: list[Message]
) -> None:
    run = enlarge(request(scope, symbols))
    assert capacity.watch_job() == "1 runs fit no live worker"
    assert "NO_WORKER" in Alert.objects.get().text
    services.cancel(run=run)
    assert capacity.is_due(), "the alert is open"
    assert capacity.watch_job() == "resolved"
    assert not capacity.is_due()

"""The broker emptied, doubled, delayed and reordered while jobs and trainings run: nothing lost, nothing twice (T9).

The real queue, broker, sweepers, jobs and run protocol on a simulated clock; only the training itself is a small model
that is written at once. `manage.py clustertest --broker-chaos` is the same with real clusters.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.utils.module_loading import import_string
from django_q.brokers import get_broker
from django_q.conf import Conf
from django_q.signing import SignedPackage

from coverage_app.models import Symbol
from ops_app import jobs
from ops_app.clock import SimulatedClock
from ops_app.models import JobRun
from tests.factories import MARKET, SymbolFactory
from tests.training.conftest import finish, make_result, request
from training_app import services
from training_app.clustertest import judge
from training_app.clustertest.chaos import ACCIDENTS, BrokerChaos
from training_app.models import TrainingRun

pytestmark = pytest.mark.django_db(transaction=True)  # with Redis, messages are sent on commit

RUNS, MOST_ROUNDS = 12, 600
effects: Counter[str] = Counter()


def train(run_id: int) -> None:
    """What a worker does for a message: this run, or the one that waits longest (training_app.tasks.train)."""
    chosen: int | None = run_id if services.claimable(run_id) else services.next_claimable()
    claim = None if chosen is None else services.claim(chosen, "worker")
    if claim is None:
        return
    effects[f"run {claim.run_id}"] += 1
    codes = TrainingRun.objects.get(pk=claim.run_id).run_symbols.values_list("symbol__code", flat=True)
    finish(claim, make_result(list(codes), market_wide=False))


def tick() -> str:
    effects["tick"] += 1
    return "ticked"


@pytest.fixture
def own_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One job of every minute, and the sweeper of the runs."""
    monkeypatch.setattr(jobs, "_jobs", {})
    monkeypatch.setattr(jobs, "_followers", {})
    monkeypatch.setattr(jobs, "_sweepers", {"training runs": services.sweep})
    monkeypatch.setitem(sys.modules, __name__, sys.modules[tick.__module__])
    jobs.register(jobs.Job("tick", f"{__name__}.tick", dt.timedelta(minutes=1), "light", "Ticks."))
    effects.clear()


@pytest.fixture(params=["orm", "redis"])
def broker(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The broker that our settings and django-q2's, which are read once, name; its queues are empty."""
    rest = {key: value for key, value in settings.Q_CLUSTER.items() if key not in ("orm", "redis")}
    if request.param == "orm":
        settings.Q_CLUSTER = {**rest, "orm": "default"}
        monkeypatch.setattr(Conf, "ORM", "default")
    else:
        url = request.getfixturevalue("redis_url")
        settings.Q_CLUSTER = {**rest, "redis": url}
        monkeypatch.setattr(Conf, "ORM", None)
        monkeypatch.setattr(Conf, "REDIS", url)
    for name in ("light", "training"):
        get_broker(list_key=name).delete_queue()
    yield request.param
    for name in ("light", "training"):
        get_broker(list_key=name).delete_queue()


def deliver(name: str) -> int:
    """Take what the broker gives, as a pusher and a worker do; returns how many messages there were."""
    broker = get_broker(list_key=name)
    if not broker.queue_size():  # an empty queue would be waited for
        return 0
    taken = broker.dequeue() or []
    for ack_id, payload in taken:
        task = SignedPackage.loads(payload)
        function = train if task["func"] == "training_app.tasks.train" else import_string(task["func"])
        function(*task["args"])
        broker.acknowledge(ack_id)
    return len(taken)


def test_t9_with_a_hostile_broker_every_run_has_one_result_and_every_slot_one_job_run(
    broker: str, own_jobs: None, sim: SimulatedClock, settings: Any
) -> None:
    settings.TRAINING_MODE = "single_symbol"
    # Longer than the wait between two rounds, shorter than a test may take.
    chaos = BrokerChaos(seed=3, longest_delay=0.05)
    SymbolFactory.create_batch(RUNS)
    waiting = list(Symbol.objects.all())
    began, rounds = sim.now, 0
    while waiting or services.next_claimable() is not None or not all(chaos.counts[name] for name in ACCIDENTS):
        rounds += 1
        assert rounds < MOST_ROUNDS, f"{len(waiting)} runs to ask for; accidents: {chaos.counts}"
        if waiting and rounds % 3 == 1:
            symbol = waiting.pop()
            request(services.ensure_scope(market=MARKET, symbol=symbol), [symbol])
        jobs.ring("tick")
        chaos.step()
        for name in ("light", "training"):
            deliver(name)
        jobs.sweep()
        sim.advance(dt.timedelta(seconds=20))
    runs = [effects.pop(f"run {run.pk}") for run in TrainingRun.objects.all()]
    assert runs == [1] * RUNS
    assert judge.judge_runs(MARKET, asked=RUNS) == []
    assert judge.orphans() == []
    minutes = (sim.now - began) // dt.timedelta(minutes=1) + 1
    assert effects["tick"] == JobRun.objects.filter(job="tick").count() <= minutes
    assert effects["tick"] >= minutes / 3
    assert set(effects) == {"tick"}

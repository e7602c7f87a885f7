"""What the soak's workers play must be what the protocol promises: else the soak accuses the innocent."""

from __future__ import annotations

import datetime as dt

import pytest
from django.conf import settings

from ops_app import clock, jobs, queue
from tests.factories import EPOCH, RunSymbolFactory, TrainingRunFactory
from tradingsite.soak.chaos import Chaos
from tradingsite.soak.work import TRAINER, Hang, Workers
from training_app import services
from training_app.choices import RunState
from training_app.models import TrainingRun

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def only_sweepers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job is due and every message is lost, so that a run that was taken back stays where it is."""
    monkeypatch.setattr(jobs, "registered", lambda: ())
    monkeypatch.setattr(Chaos, "deliveries", lambda _chaos: 0)


def claimed_run() -> services.Claim:
    RunSymbolFactory(run=TrainingRunFactory(not_before=EPOCH))
    claim = services.claim(TrainingRun.objects.get().pk, TRAINER)
    assert claim is not None
    return claim


@pytest.mark.parametrize("outage", [dt.timedelta(0), dt.timedelta(hours=1)])
@pytest.mark.usefixtures("only_sweepers")
def test_a_zombie_is_refused_after_the_sweep_also_when_all_workers_were_down(outage: dt.timedelta) -> None:
    with clock.simulated(EPOCH) as simulated, queue.capture() as messages:
        claim = claimed_run()
        workers = Workers(chaos=Chaos(seed=1, enabled=False))
        workers._hangs.append(Hang(claim, dead_at=clock.real_now()))
        simulated.advance(outage)
        while workers._hangs:
            messages.clear()
            workers.work(messages)
            simulated.advance(dt.timedelta(minutes=1))
        assert workers.violations == []
        assert workers.chaos.counts["zombie_refused"] == 1
        assert TrainingRun.objects.get().state == RunState.QUEUED


@pytest.mark.usefixtures("only_sweepers")
def test_a_hanging_training_keeps_its_run_until_it_is_dead() -> None:
    minute = dt.timedelta(minutes=1)
    lease = dt.timedelta(seconds=settings.TRAIN_LEASE_SECONDS)
    with clock.simulated(EPOCH) as simulated, queue.capture() as messages:
        claim = claimed_run()
        workers = Workers(chaos=Chaos(seed=1, enabled=False))
        workers._hangs.append(Hang(claim, dead_at=clock.real_now() + 20 * minute))
        states: list[str] = []
        while workers._hangs:
            messages.clear()
            workers.work(messages)
            states.append(TrainingRun.objects.get().state)
            simulated.advance(minute if minute < lease else lease / 2)
        taken_back = states.index(RunState.QUEUED)
        assert set(states[:taken_back]) == {RunState.RUNNING}
        assert taken_back >= 20
        assert workers.violations == []

"""From an empty database to judged symbols, only by the bells that a fresh start rings."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils.module_loading import import_string

from coverage_app import market
from coverage_app.models import Symbol
from marketdata.store import CandleStore
from ops_app import jobs
from ops_app.clock import SimulatedClock
from ops_app.models import JobRun
from ops_app.queue import Message
from tests.coverage.scripted_market import ScriptedMarket
from tests.factories import EPOCH, HOUR

pytestmark = pytest.mark.django_db
OURS = ("universe", "ingest", "evaluate")


def work_off(messages: list[Message]) -> None:
    """Run what was sent, as a worker would, until nothing is left; other apps' jobs are not of interest here."""
    while messages:
        message = messages.pop(0)
        if message.dotted.startswith("coverage_app.") or message.args[0] in OURS:
            import_string(message.dotted)(*message.args)


def test_universe_candles_and_judging_follow_each_other_without_waiting_for_a_slot(
    sim: SimulatedClock, store: CandleStore, settings: Any, messages: list[Message]
) -> None:
    settings.HISTORY_TARGET_DAYS = 100
    market.use(ScriptedMarket("AAA/USDT:USDT", "BBB/USDT:USDT"))
    jobs.ring_idle()
    work_off(messages)
    assert Symbol.objects.ready().count() == 2, "all within the same instant"
    assert set(JobRun.objects.filter(slot__lt=0).values_list("job", flat=True)) == {"evaluate"}, "rung by the shard"

    jobs.ring_idle()
    work_off(messages)
    assert Symbol.objects.filter(evaluations=1).count() == 2, "nothing is done twice"

    sim.advance(HOUR * 1.01)
    jobs.sweepers()["candles due"]()
    work_off(messages)
    assert Symbol.objects.filter(last_candle_at=EPOCH, evaluations=2).count() == 2

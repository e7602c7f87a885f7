"""The old bug: thirty simulated days of 60-second passes with blocked, failing and new symbols.

The judge convicts the old design on every count. The same judge hears the real system in test_soak.py.
"""

from __future__ import annotations

import datetime as dt
import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.soak.old_bot import OldBot
from tradingsite.soak.judge import LoopJudge

START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
FIVE_MINUTES, HOUR = dt.timedelta(minutes=5), dt.timedelta(hours=1)


def new_judge() -> LoopJudge:
    return LoopJudge(interval=FIVE_MINUTES, bar=HOUR, violations=[])


def test_the_old_design_is_convicted_of_every_part_of_the_loop() -> None:
    judge = new_judge()
    bot = OldBot(judge)
    bot.live(start=START, days=30)
    text = "\n".join(judge.violations)
    assert "I3: YOUNG was evaluated" in text, "blocked symbols were evaluated on every pass"
    assert "I1: FAILING was queued" in text, "symbols were queued again while they were training"
    assert "although nothing had changed" in text, "a failed training led straight to the next"
    assert "I9: a model was loaded" in text, "each pass loaded the model again"
    assert "bars since" in text, "no bar was decided while a training ran"
    assert bot.evaluations > 30 * 24 * 60
    assert bot.runs > 1_000 * judge.causes


def test_work_with_a_cause_is_acquitted() -> None:
    judge = new_judge()
    judge.run_requested("1", ["A", "B"], cause="no model served")
    judge.run_ended("1")
    judge.reloaded(1, START)
    for hour in range(24):
        judge.evaluated("A", START + hour * FIVE_MINUTES)
        judge.decided(START + hour * HOUR)
    judge.bars_due(START + 23 * HOUR)
    judge.run_requested("2", ["A"], cause="new symbols")
    assert judge.violations == []
    assert (judge.causes, judge.reloads) == (2, 1)


@given(st.lists(st.integers(0, 3_600), min_size=2, max_size=30))
def test_evaluations_are_convicted_exactly_when_two_are_too_close(offsets: list[int]) -> None:
    judge = new_judge()
    times = sorted(offsets)
    for offset in times:
        judge.evaluated("A", START + dt.timedelta(seconds=offset))
    close = sum(later - earlier < 300 for earlier, later in itertools.pairwise(times))
    assert len(judge.violations) == close

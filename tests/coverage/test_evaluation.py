"""Judging: when it is due, what it costs, what it writes, and what it leaves alone."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from coverage_app import services
from coverage_app.choices import BlockReason
from coverage_app.models import Block, Symbol
from ops_app.clock import SimulatedClock
from ops_app.models import Event
from quant import policy
from quant.reasons import code_of
from tests.factories import DAY, EPOCH, HOUR, BlockFactory, SymbolFactory

pytestmark = pytest.mark.django_db

MINUTE = dt.timedelta(minutes=1)
MAX_QUERIES = 12


def open_reasons(symbol: Symbol) -> set[str]:
    return set(Block.objects.open().filter(symbol=symbol).values_list("reason", flat=True))


def make_due() -> None:
    Symbol.objects.update(next_evaluation_at=EPOCH - MINUTE)


def advance_to(sim: SimulatedClock, moment: dt.datetime) -> None:
    sim.advance(moment - sim.now)


#: Facts that lead to each reason, and facts that end it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SHORT_HISTORY": (
        {"history_start": EPOCH - 30 * DAY, "candle_count": 720, "expected_count": 720},
        {"history_start": EPOCH - 400 * DAY, "candle_count": 9600, "expected_count": 9600},
    ),
    "LOW_COVERAGE": ({"candle_count": 14_000}, {"candle_count": 17_500}),
    "STALE_DATA": ({"last_candle_at": EPOCH - 9 * HOUR}, {"last_candle_at": EPOCH + 2 * DAY}),
    "PRICE_BREAK": ({"price_break": "jump 20000 x after a gap of 437 bars"}, {"price_break": ""}),
    "DELISTED": ({"delisted_at": EPOCH - DAY}, {"delisted_at": None}),
    "NOT_IN_UNIVERSE": (
        {"in_universe": False, "universe_reason": "VOLUME_TOO_LOW: volume=1000, need=100000"},
        {"in_universe": True, "universe_reason": ""},
    ),
    "EXCHANGE_ERROR": (
        {"ingest_error": "MARKET_DATA: error=timeout", "ingest_failures": 2},
        {"ingest_error": "", "ingest_failures": 0},
    ),
}


@pytest.mark.parametrize("reason", sorted(CASES))
def test_each_reason_comes_from_its_facts_and_goes_with_them(reason: str, sim: SimulatedClock) -> None:
    bad, good = CASES[reason]
    symbol = SymbolFactory(next_evaluation_at=None, **bad)
    report = services.evaluate_due()
    assert (report.evaluated, report.opened, report.sufficient) == (1, 1, 0)
    block = Block.objects.get(symbol=symbol)
    assert block.reason == reason
    assert code_of(block.evidence) == reason
    assert block.opened_at == EPOCH
    assert block.permanent == (reason == "DELISTED")
    assert (block.recheck_at is None) == block.permanent
    assert list(Event.objects.values_list("kind", "subject", "text")) == [
        ("block_opened", f"symbol:{symbol.code}", block.evidence)
    ]

    sim.advance(2 * DAY)
    Symbol.objects.update(next_evaluation_at=sim.now, **{"last_candle_at": sim.now - HOUR, **good})
    report = services.evaluate_due()
    assert (report.sufficient, report.closed, report.opened) == (1, 1, 0)
    block.refresh_from_db()
    assert block.closed_at == sim.now
    assert block.close_reason
    assert Event.objects.filter(kind="block_closed", subject=f"symbol:{symbol.code}").count() == 1


def test_short_history_says_when_it_will_be_long_enough(sim: SimulatedClock) -> None:
    SymbolFactory(next_evaluation_at=None, history_start=EPOCH - 30 * DAY, candle_count=720, expected_count=720)
    services.evaluate_due()
    block = Block.objects.get()
    assert block.recheck_at == EPOCH + 60 * DAY
    assert "have_days=30, need_days=90" in block.evidence


def test_i3_a_symbol_is_evaluated_only_when_it_is_due(sim: SimulatedClock) -> None:
    healthy = SymbolFactory(next_evaluation_at=None)
    blocked = SymbolFactory(next_evaluation_at=None, candle_count=10_000)
    seen: dict[int, list[dt.datetime]] = {healthy.pk: [], blocked.pk: []}
    for _ in range(8 * 60):  # eight hours of passes, a minute apart, as the old bot made them
        Symbol.objects.update(last_candle_at=sim.now - HOUR)
        before = dict(Symbol.objects.values_list("pk", "evaluations"))
        services.evaluate_due()
        for pk, count in Symbol.objects.values_list("pk", "evaluations"):
            assert count - before[pk] in (0, 1)
            if count > before[pk]:
                seen[pk].append(sim.now)
        sim.advance(MINUTE)
    for times in seen.values():
        assert min(b - a for a, b in itertools.pairwise(times)) >= dt.timedelta(minutes=5)
    assert len(seen[healthy.pk]) == 8 * 12
    assert len(seen[blocked.pk]) <= 2 + 1, "a block that cannot go away by itself is looked at every six hours"


@pytest.mark.django_db(transaction=True)
def test_i3_the_next_time_is_stored_before_the_judging_begins(
    sim: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    SymbolFactory(next_evaluation_at=None)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        services.evaluate_due()
    connection.close()  # whatever was not committed is gone
    assert Symbol.objects.get().next_evaluation_at == EPOCH + 5 * MINUTE
    assert services.evaluate_due().evaluated == 0


def test_a_poison_pill_stops_only_its_own_symbol_and_waits_longer_each_time(
    sim: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = SymbolFactory(next_evaluation_at=None)
    BlockFactory(symbol=poison, reason=BlockReason.LOW_COVERAGE, recheck_at=EPOCH - HOUR)
    good, bad = SymbolFactory(next_evaluation_at=None), SymbolFactory(next_evaluation_at=None, candle_count=1000)
    judge = policy.judge

    def picky(facts: policy.SymbolFacts, rules: policy.CoveragePolicy, now_ms: int) -> policy.Judgement:
        if facts.symbol == poison.code:
            raise ZeroDivisionError("no")
        return judge(facts, rules, now_ms)

    monkeypatch.setattr(policy, "judge", picky)
    report = services.evaluate_due()
    assert report.evaluated == 3
    assert "ZeroDivisionError" in report.errors[poison.code]
    assert open_reasons(poison) == {"LOW_COVERAGE"}, "what nobody could judge stays as it was"
    assert open_reasons(good) == set()
    assert open_reasons(bad) == {"LOW_COVERAGE"}
    waits = []
    for _ in range(6):
        poison.refresh_from_db()
        waits.append(poison.next_evaluation_at - sim.now)
        advance_to(sim, poison.next_evaluation_at)
        services.evaluate_due()
    assert waits == sorted(waits)
    assert waits[0] >= 5 * MINUTE
    assert waits[-1] >= 2 * HOUR
    monkeypatch.setattr(policy, "judge", judge)
    poison.refresh_from_db()
    advance_to(sim, poison.next_evaluation_at)
    services.evaluate_due()
    poison.refresh_from_db()
    assert poison.evaluation_failures == 0


def test_the_number_of_statements_does_not_grow_with_the_symbols(sim: SimulatedClock) -> None:
    few = statements_of(100)
    assert statements_of(1_000) == few
    assert max(few.values()) <= MAX_QUERIES


def statements_of(count: int) -> dict[str, int]:
    """The statements of a pass over `count` symbols: every second gets a block, keeps it, loses it."""
    found = {}

    def judge(what: str) -> services.EvaluationReport:
        with CaptureQueriesContext(connection) as queries:
            report = services.evaluate_due()
        found[what] = len(queries)
        assert report.evaluated == count
        make_due()
        return report

    fill_market(count)
    assert judge("opened").opened == count // 2
    assert not judge("unchanged").changed
    Symbol.objects.filter(candle_count=10_000).update(candle_count=10_001)
    assert not judge("new evidence").changed
    Symbol.objects.update(candle_count=730 * 24)
    assert judge("healed").closed == count // 2
    assert Event.objects.count() == count // 2 * 2, "only changes are journaled"
    for model in (Event, Block, Symbol):
        model.objects.all().delete()
    return found


def test_a_pass_with_nothing_due_costs_two_statements(sim: SimulatedClock, django_assert_max_num_queries: Any) -> None:
    SymbolFactory.create_batch(3)
    with django_assert_max_num_queries(4):  # two of them are the test's savepoint
        assert str(services.evaluate_due()) == ""


def test_the_back_off_of_training_ends_by_time_and_a_persons_block_does_not(sim: SimulatedClock) -> None:
    symbol = SymbolFactory()
    BlockFactory(symbol=symbol, reason=BlockReason.TRAINING_FAILED, recheck_at=EPOCH + HOUR)
    BlockFactory(symbol=symbol, reason=BlockReason.MODEL_REJECTED, recheck_at=EPOCH + 2 * HOUR)
    BlockFactory(symbol=symbol, reason=BlockReason.MANUAL, permanent=True)
    BlockFactory(symbol=symbol, reason=BlockReason.ORDER_UNKNOWN, recheck_at=EPOCH + HOUR)
    Symbol.objects.update(next_evaluation_at=EPOCH + 5 * DAY)
    assert services.evaluate_due().closed == 0
    sim.advance(HOUR)
    assert services.evaluate_due().closed == 1
    assert open_reasons(symbol) == {"MODEL_REJECTED", "MANUAL", "ORDER_UNKNOWN"}
    sim.advance(30 * DAY)
    Symbol.objects.update(last_candle_at=sim.now - HOUR)
    services.evaluate_due()
    assert open_reasons(symbol) == {"MANUAL", "ORDER_UNKNOWN"}
    closed = Block.objects.get(reason="TRAINING_FAILED")
    assert closed.close_reason == "the back-off is over"


def test_evidence_follows_the_facts_without_a_new_block_or_event(sim: SimulatedClock) -> None:
    symbol = SymbolFactory(next_evaluation_at=None, candle_count=14_000)
    services.evaluate_due()
    Symbol.objects.update(next_evaluation_at=EPOCH, candle_count=15_000)
    services.evaluate_due()
    block = Block.objects.get(symbol=symbol)
    assert f"missing={730 * 24 - 15_000}" in block.evidence
    assert Event.objects.count() == 1


def test_a_block_that_a_person_lifted_during_the_judging_stays_lifted(
    sim: SimulatedClock, person: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    symbol = SymbolFactory(next_evaluation_at=None, candle_count=14_000)
    services.evaluate_due()
    Symbol.objects.update(next_evaluation_at=EPOCH, candle_count=14_001)
    judge = policy.judge

    def meanwhile(*arguments: Any) -> policy.Judgement:
        judgement = judge(*arguments)
        monkeypatch.setattr(policy, "judge", judge)
        services.unblock(symbol=symbol, user=person)
        return judgement

    monkeypatch.setattr(policy, "judge", meanwhile)
    services.evaluate_due()
    block = Block.objects.get(symbol=symbol)
    assert block.closed_by == person
    assert Symbol.objects.get().next_evaluation_at == EPOCH, "and what the person asked for is still due"
    services.evaluate_due()
    assert open_reasons(symbol) == {"LOW_COVERAGE"}
    assert Block.objects.filter(symbol=symbol).count() == 2


def test_another_market_is_not_touched(sim: SimulatedClock) -> None:
    SymbolFactory(market="elsewhere", next_evaluation_at=None)
    assert services.evaluate_due().evaluated == 0


def test_changed_facts_hasten_an_evaluation_but_never_below_the_interval(sim: SimulatedClock) -> None:
    long_ago = SymbolFactory(last_evaluated_at=EPOCH - HOUR, next_evaluation_at=EPOCH + DAY)
    just_now = SymbolFactory(last_evaluated_at=EPOCH - MINUTE, next_evaluation_at=EPOCH + DAY)
    never = SymbolFactory(last_evaluated_at=None, next_evaluation_at=None)
    services.hasten([long_ago.pk, just_now.pk, never.pk], now=EPOCH)
    times = dict(Symbol.objects.values_list("pk", "next_evaluation_at"))
    assert times == {long_ago.pk: EPOCH, just_now.pk: EPOCH + 4 * MINUTE, never.pk: None}


def fill_market(count: int) -> None:
    """`count` symbols that are due, every second of them with too many missing candles."""
    from ops_app import bulk

    bulk.insert_rows(
        SymbolFactory.build(next_evaluation_at=None, candle_count=10_000 if i % 2 else 730 * 24) for i in range(count)
    )

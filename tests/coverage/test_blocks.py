"""Blocks that other apps and people open and lift; and what the pages read of them."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import IntegrityError, transaction

from coverage_app import selectors, services
from coverage_app.choices import BlockReason
from coverage_app.exceptions import CoverageError
from coverage_app.models import Block, Symbol
from ops_app.clock import SimulatedClock
from ops_app.models import Event
from ops_app.queue import Message
from tests.factories import DAY, EPOCH, HOUR, BlockFactory, SymbolFactory

pytestmark = pytest.mark.django_db
EVALUATE = "coverage_app.tasks.evaluate_task"


def test_another_app_opens_blocks_with_an_evidence_for_each_symbol(
    sim: SimulatedClock, django_assert_max_num_queries: Any
) -> None:
    symbols = SymbolFactory.create_batch(200)
    texts = {symbol.pk: f"TRAINING_FAILED: error=no {symbol.code}" for symbol in symbols}
    with django_assert_max_num_queries(7):
        opened = services.open_block(
            symbol_ids=texts, reason=BlockReason.TRAINING_FAILED, evidence=texts, recheck_at=EPOCH + HOUR, failures=2
        )
    assert opened == 200
    assert dict(Block.objects.values_list("symbol_id", "evidence")) == texts
    assert set(Block.objects.values_list("failures", "opened_at", "recheck_at")) == {(2, EPOCH, EPOCH + HOUR)}
    assert Event.objects.filter(kind="block_opened").count() == 200


def test_a_second_block_of_the_same_reason_brings_the_first_up_to_date(sim: SimulatedClock) -> None:
    symbol = SymbolFactory()
    options: dict[str, Any] = {"symbol": symbol, "reason": BlockReason.MODEL_REJECTED}
    assert services.open_block(evidence="MODEL_REJECTED: gate=auc", recheck_at=EPOCH + HOUR, **options) == 1
    assert services.open_block(evidence="MODEL_REJECTED: gate=ece", recheck_at=EPOCH + DAY, **options) == 0
    block = Block.objects.get()
    assert (block.evidence, block.recheck_at, block.failures) == ("MODEL_REJECTED: gate=ece", EPOCH + DAY, 2)
    assert Event.objects.count() == 1


def test_the_database_refuses_a_second_open_block_of_a_reason(sim: SimulatedClock) -> None:
    block = BlockFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        BlockFactory(symbol=block.symbol)
    with pytest.raises(IntegrityError), transaction.atomic():
        BlockFactory(recheck_at=None)


def test_a_temporary_block_without_a_time_is_refused(sim: SimulatedClock) -> None:
    with pytest.raises(ValueError, match="recheck_at is None"):
        services.open_block(symbol=SymbolFactory(), reason="ORDER_UNKNOWN", evidence="ORDER_UNKNOWN: order=1")
    with pytest.raises(ValueError, match=r"symbols \[424242\] do not exist"):
        services.open_block(symbol_ids=[424242], reason="MANUAL", evidence="MANUAL", permanent=True)


def test_closing_twice_changes_nothing(sim: SimulatedClock) -> None:
    block = BlockFactory(reason=BlockReason.ORDER_UNKNOWN)
    request: dict[str, Any] = {
        "symbol_ids": [block.symbol_id], "reasons": [BlockReason.ORDER_UNKNOWN], "close_reason": "order found: filled",
    }  # fmt: skip
    assert services.close_blocks(**request) == 1
    assert services.close_blocks(**request) == 0
    block.refresh_from_db()
    assert (block.closed_at, block.close_reason) == (EPOCH, "order found: filled")
    assert Event.objects.filter(kind="block_closed").count() == 1


def test_a_person_lifts_a_block_and_the_symbol_is_evaluated_at_once(
    sim: SimulatedClock, person: Any, messages: list[Message]
) -> None:
    block = BlockFactory(reason=BlockReason.TRAINING_FAILED)
    outcome = services.unblock(block_id=block.pk, user=person)
    assert outcome.text == f"{block.symbol.code}: lifted TRAINING_FAILED."
    block.refresh_from_db()
    assert (block.closed_by, block.closed_at, block.close_reason) == (person, EPOCH, "lifted by anna")
    assert Symbol.objects.get().next_evaluation_at == EPOCH
    assert [message.dotted for message in messages] == [EVALUATE]
    event = Event.objects.get(kind="unblocked")
    assert (event.user, event.subject) == (person, f"symbol:{block.symbol.code}")
    assert block.history.count() == 2, "opened by save(), lifted by save(): both are kept (I21)"


def test_a_lifted_block_whose_cause_still_holds_comes_back_and_the_text_says_so(
    sim: SimulatedClock, person: Any
) -> None:
    symbol = SymbolFactory(next_evaluation_at=None, candle_count=1000)
    services.evaluate_due()
    BlockFactory(symbol=symbol, reason=BlockReason.MANUAL, permanent=True)
    outcome = services.unblock(symbol=symbol, user=person)
    assert outcome.changed == 2
    assert "The cause of LOW_COVERAGE still holds: the next evaluation brings it back." in outcome.text
    services.evaluate_due()
    assert [block.reason for block in selectors.open_blocks(symbol)] == ["LOW_COVERAGE"]
    assert [block.reason for block in selectors.block_history(symbol)].count("LOW_COVERAGE") == 2


def test_lifting_nothing_is_an_error_that_says_what_to_do(sim: SimulatedClock, person: Any) -> None:
    with pytest.raises(CoverageError, match="nothing open to lift; reload the page"):
        services.unblock(symbol=SymbolFactory(), user=person)
    with pytest.raises(CoverageError, match="block 99"):
        services.unblock(block_id=99, user=person)


def test_a_person_blocks_a_symbol_until_a_person_lifts_it(sim: SimulatedClock, person: Any) -> None:
    symbol = SymbolFactory()
    services.block_manually(symbol=symbol, user=person, why="  earnings\nof the issuer ")
    block = Block.objects.get()
    assert block.evidence == "MANUAL: by=anna, why=earnings of the issuer"
    assert (block.permanent, block.opened_by) == (True, person)
    with pytest.raises(CoverageError, match="already"):
        services.block_manually(symbol=symbol, user=person, why="again")
    with pytest.raises(CoverageError, match="why is empty"):
        services.block_manually(symbol=SymbolFactory(), user=person, why=" ")
    sim.advance(400 * DAY)
    services.evaluate_due()
    assert Block.objects.open().filter(reason="MANUAL").exists()


def test_a_person_may_ask_for_an_evaluation_within_the_interval(
    sim: SimulatedClock, person: Any, messages: list[Message]
) -> None:
    symbol = SymbolFactory(last_evaluated_at=EPOCH, next_evaluation_at=EPOCH + HOUR)
    outcome = services.evaluate_now(symbol_ids=[symbol.pk], user=person)
    assert outcome.changed == 1
    assert services.evaluate_due().evaluated == 1
    assert Event.objects.get(kind="evaluation_requested").user == person
    assert [message.dotted for message in messages] == [EVALUATE]


def test_ready_symbols_are_judged_ones_with_nothing_against_learning(sim: SimulatedClock) -> None:
    ready, unknown_order = SymbolFactory(), SymbolFactory()
    BlockFactory(symbol=unknown_order, reason=BlockReason.ORDER_UNKNOWN)
    BlockFactory(reason=BlockReason.LOW_COVERAGE)
    BlockFactory(reason=BlockReason.MANUAL, permanent=True)
    SymbolFactory(fresh=True)
    SymbolFactory(in_universe=False)
    SymbolFactory(market="elsewhere")
    assert list(selectors.ready_symbols()) == [ready, unknown_order]


def test_the_summary_counts_in_a_few_statements(sim: SimulatedClock, django_assert_num_queries: Any) -> None:
    SymbolFactory.create_batch(3)
    twice = BlockFactory(reason=BlockReason.LOW_COVERAGE).symbol
    BlockFactory(symbol=twice, reason=BlockReason.STALE_DATA)
    SymbolFactory(fresh=True)
    with django_assert_num_queries(3):
        summary = selectors.coverage_summary()
    assert (summary.symbols, summary.in_universe, summary.ready, summary.blocked) == (5, 5, 3, 1)
    assert summary.by_reason == {"LOW_COVERAGE": 1, "STALE_DATA": 1}
    assert (summary.never_evaluated, summary.backfill.done, summary.backfill.total) == (1, 4, 5)


def test_the_timeline_tells_everything_once_the_newest_first(sim: SimulatedClock, person: Any) -> None:
    old = BlockFactory(opened_at=EPOCH - DAY, closed_at=EPOCH - HOUR).symbol  # its events were pruned
    services.block_manually(symbol=old, user=person, why="test")
    sim.advance(HOUR)
    services.unblock(symbol=old, user=person)
    timeline = selectors.symbol_timeline(old)
    assert [(entry.kind, entry.source) for entry in timeline] == [
        ("unblocked", "event"), ("block_opened", "event"), ("block_opened", "block"),
    ]  # fmt: skip
    assert [entry.user for entry in timeline] == ["anna", "anna", ""]

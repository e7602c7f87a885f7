"""When symbols are evaluated and scopes train: the arithmetic that keeps the old loop out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.policy import (
    JUDGED_CODES,
    BlockCode,
    CoveragePolicy,
    RunCause,
    ScopeFacts,
    SymbolFacts,
    TrainingPolicy,
    back_off_ms,
    judge,
    run_due,
)
from quant.reasons import code_of, details_of
from quant.timeframes import DAY_MS, HOUR_MS, MINUTE_MS

NOW = 1_748_736_000_000  # 2025-06-01T00:00Z
POLICY = CoveragePolicy()
HEALTHY = SymbolFacts(
    symbol="BTC/USDT:USDT",
    listed_ms=NOW - 900 * DAY_MS,
    history_start_ms=NOW - 730 * DAY_MS,
    last_candle_ms=NOW - HOUR_MS,
    candle_count=17_500,
    expected_count=17_520,
)


def codes(facts: SymbolFacts) -> list[str]:
    return [finding.code for finding in judge(facts, POLICY, NOW).findings]


# ------------------------------------------------------------------- judge
def test_a_healthy_symbol_has_no_finding_and_is_due_again_after_the_interval() -> None:
    judgement = judge(HEALTHY, POLICY, NOW)
    assert judgement.sufficient
    assert judgement.next_evaluation_ms == NOW + 5 * MINUTE_MS


def test_short_history_says_what_it_has_and_when_it_will_be_long_enough() -> None:
    facts = HEALTHY._replace(listed_ms=NOW - 30 * DAY_MS, history_start_ms=NOW - 30 * DAY_MS)
    (finding,) = judge(facts, POLICY, NOW).findings
    assert finding.evidence == "SHORT_HISTORY: have_days=30, need_days=90, enough_at=2025-07-31T00:00Z"
    assert finding.recheck_at_ms == NOW + 60 * DAY_MS
    assert not finding.permanent


@pytest.mark.parametrize(
    "days_left, wait_ms",
    [(60, 6 * HOUR_MS), (2 / 24, 2 * HOUR_MS), (1 / 24 / 60, 5 * MINUTE_MS)],
    ids=["at most six hours", "as long as it takes", "at least five minutes"],
)
def test_short_history_waits_sensibly(days_left: float, wait_ms: int) -> None:
    facts = HEALTHY._replace(history_start_ms=NOW - 90 * DAY_MS + round(days_left * DAY_MS))
    judgement = judge(facts, POLICY, NOW)
    assert [finding.code for finding in judgement.findings] == ["SHORT_HISTORY"]
    assert judgement.next_evaluation_ms == NOW + wait_ms


def test_a_symbol_without_candles_is_short_of_history_and_looked_at_soon() -> None:
    facts = SymbolFacts(symbol="NEW/USDT:USDT", listed_ms=NOW - 400 * DAY_MS)
    judgement = judge(facts, POLICY, NOW)
    (finding,) = judgement.findings
    assert finding.evidence == ("SHORT_HISTORY: have_days=0, need_days=90, enough_at=when its candles are fetched")
    assert judgement.next_evaluation_ms == NOW + 5 * MINUTE_MS


def test_a_symbol_outside_the_universe_that_nobody_fetches_is_not_called_short_of_history() -> None:
    facts = SymbolFacts(symbol="THIN/USDT:USDT", in_universe=False, listed_ms=NOW - 400 * DAY_MS)
    assert [finding.code for finding in judge(facts, POLICY, NOW).findings] == ["NOT_IN_UNIVERSE"]


def test_exactly_the_minimum_history_is_enough() -> None:
    assert codes(HEALTHY._replace(history_start_ms=NOW - 90 * DAY_MS)) == []
    assert codes(HEALTHY._replace(history_start_ms=NOW - 90 * DAY_MS + 1)) == ["SHORT_HISTORY"]


def test_only_what_follows_a_suspension_counts_as_history() -> None:
    facts = HEALTHY._replace(unbroken_since_ms=NOW - 40 * DAY_MS)
    (finding,) = judge(facts, POLICY, NOW).findings
    assert finding.evidence == (
        "SHORT_HISTORY: have_days=40, need_days=90, enough_at=2025-07-21T00:00Z, since_at=2025-04-22T00:00Z, "
        "rule=history begins anew after a long gap"
    )
    assert finding.recheck_at_ms == NOW + 50 * DAY_MS
    assert codes(HEALTHY._replace(unbroken_since_ms=NOW - 90 * DAY_MS)) == []


def test_low_coverage_names_share_missing_candles_and_largest_gap() -> None:
    facts = HEALTHY._replace(candle_count=900, expected_count=1_000, largest_gap_bars=60)
    (finding,) = judge(facts, POLICY, NOW).findings
    assert finding.evidence == "LOW_COVERAGE: coverage=0.9, need=0.95, missing=100, largest_gap_bars=60"


@pytest.mark.parametrize("bars_late, expected", [(3, []), (4, ["STALE_DATA"])])
def test_data_is_stale_after_more_than_three_missing_bars(bars_late: int, expected: list[str]) -> None:
    assert codes(HEALTHY._replace(last_candle_ms=NOW - (bars_late + 1) * HOUR_MS)) == expected


def test_a_delisted_symbol_is_blocked_for_ever_and_its_silence_is_not_a_second_reason() -> None:
    facts = HEALTHY._replace(delisted_ms=NOW - DAY_MS, last_candle_ms=NOW - 2 * DAY_MS)
    judgement = judge(facts, POLICY, NOW)
    (finding,) = judgement.findings
    assert (finding.code, finding.permanent, finding.recheck_at_ms) == (BlockCode.DELISTED, True, None)
    assert judgement.next_evaluation_ms == NOW + DAY_MS


def test_a_delisting_that_is_announced_for_later_does_not_block_yet() -> None:
    assert codes(HEALTHY._replace(delisted_ms=NOW + 1)) == []


def test_every_reason_is_found_at_once() -> None:
    facts = SymbolFacts(
        symbol="BAD/USDT:USDT",
        in_universe=False,
        universe_reason="24 h volume below 1 M",
        history_start_ms=NOW - 20 * DAY_MS,
        last_candle_ms=NOW - 2 * DAY_MS,
        candle_count=1,
        expected_count=10,
        price_break="x1000 across a gap",
        ingest_error="timeout",
        failures=2,
    )
    expected = JUDGED_CODES - {BlockCode.DELISTED}
    judgement = judge(facts, POLICY, NOW)
    assert {finding.code for finding in judgement.findings} == expected
    assert all(code_of(finding.evidence) == finding.code for finding in judgement.findings)


def test_evidence_that_is_a_reason_already_is_not_wrapped_twice() -> None:
    (finding,) = judge(HEALTHY._replace(price_break="PRICE_BREAK: ratio=1000"), POLICY, NOW).findings
    assert finding.evidence == "PRICE_BREAK: ratio=1000"


def test_errors_of_the_exchange_back_off_to_the_cap() -> None:
    waits = [
        judge(HEALTHY._replace(ingest_error="timeout", failures=n), POLICY, NOW).next_evaluation_ms - NOW
        for n in range(1, 12)
    ]
    assert waits == sorted(waits)
    assert waits[0] < 6 * MINUTE_MS
    assert waits[-1] == 6 * HOUR_MS


times = st.none() | st.integers(NOW - 1_000 * DAY_MS, NOW + 10 * DAY_MS)
symbol_facts = st.builds(
    SymbolFacts,
    symbol=st.sampled_from(["A", "B"]),
    in_universe=st.booleans(),
    listed_ms=times,
    delisted_ms=times,
    history_start_ms=times,
    last_candle_ms=times,
    candle_count=st.integers(0, 100),
    expected_count=st.integers(0, 100),
    largest_gap_bars=st.integers(0, 100),
    unbroken_since_ms=times,
    price_break=st.text(max_size=5),
    ingest_error=st.text(max_size=5),
    failures=st.integers(0, 100),
)


@given(symbol_facts)
def test_i3_a_symbol_is_never_due_again_within_five_minutes_nor_forgotten(facts: SymbolFacts) -> None:
    judgement = judge(facts, POLICY, NOW)
    wait = judgement.next_evaluation_ms - NOW
    assert 5 * MINUTE_MS <= wait <= DAY_MS
    permanent = any(finding.permanent for finding in judgement.findings)
    assert permanent or wait <= 6 * HOUR_MS
    for finding in judgement.findings:
        assert finding.code in JUDGED_CODES
        assert code_of(finding.evidence) == finding.code
        assert (finding.recheck_at_ms is None) == finding.permanent
        assert finding.recheck_at_ms is None or finding.recheck_at_ms >= NOW + 5 * MINUTE_MS


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"min_history_days": 0}, "min_history_days"),
        ({"min_history_days": 800}, "target_history_days"),
        ({"min_coverage": 1.5}, "min_coverage"),
        ({"evaluation_interval_ms": 0}, "evaluation_interval_ms"),
        ({"recheck_cap_ms": 1}, "recheck_cap_ms"),
    ],
)
def test_a_wrong_coverage_setting_is_named(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CoveragePolicy(**changes)


# ------------------------------------------------------------------- back-off
@given(st.integers(0, 10_000), st.integers(1, HOUR_MS), st.integers(0, DAY_MS), st.text(max_size=5))
def test_back_off_never_passes_its_cap_and_is_the_same_every_time(
    attempt: int, base: int, extra: int, key: str
) -> None:
    wait = back_off_ms(attempt, base, base + extra, key=key)
    assert wait == back_off_ms(attempt, base, base + extra, key=key)
    assert wait <= base + extra
    assert (wait == 0) == (attempt == 0)
    assert attempt == 0 or wait >= base


def test_back_off_doubles() -> None:
    assert [back_off_ms(n, 100, 1_000) for n in range(7)] == [0, 100, 200, 400, 800, 1_000, 1_000]


def test_back_off_spreads_symbols_that_failed_together() -> None:
    waits = {back_off_ms(3, HOUR_MS, DAY_MS, key=f"S{i}") for i in range(50)}
    assert len(waits) > 45
    assert max(waits) <= 4.4 * HOUR_MS


@pytest.mark.parametrize("arguments", [(-1, 1, 2), (1, 0, 2), (1, 3, 2)])
def test_back_off_refuses_nonsense(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        back_off_ms(*arguments)


# ------------------------------------------------------------------- run_due
TRAINING = TrainingPolicy()
COVERED = ScopeFacts(
    scope="multi",
    trainable_symbols=10,
    has_compatible_model=True,
    model_trained_ms=NOW - DAY_MS,
    last_run_ms=NOW - DAY_MS,
    last_run_ended_ms=NOW - DAY_MS + MINUTE_MS,
)


def test_a_scope_with_a_fresh_model_waits_for_its_retraining() -> None:
    decision = run_due(COVERED, NOW)
    assert not decision.due
    assert decision.not_before_ms == NOW + 6 * DAY_MS
    assert code_of(decision.reason) == "NOT_YET_SCHEDULED"


def test_an_old_model_is_retrained() -> None:
    decision = run_due(replace(COVERED, model_trained_ms=NOW - 7 * DAY_MS), NOW)
    assert (decision.due, decision.cause) == (True, RunCause.SCHEDULED)


def test_without_a_compatible_model_a_run_is_due() -> None:
    decision = run_due(replace(COVERED, has_compatible_model=False, model_trained_ms=None), NOW)
    assert (decision.due, decision.cause) == (True, RunCause.NO_MODEL)


@pytest.mark.parametrize(
    "changes, code", [({"open_run": True}, "OPEN_RUN"), ({"trainable_symbols": 0}, "NOTHING_TO_TRAIN")]
)
def test_no_run_is_due_without_need(changes: dict[str, int], code: str) -> None:
    decision = run_due(replace(COVERED, has_compatible_model=False, manual_requested_ms=NOW, **changes), NOW)
    assert (decision.due, decision.not_before_ms, code_of(decision.reason)) == (False, None, code)


def test_new_symbols_wait_until_no_more_come_but_not_for_ever() -> None:
    arriving = replace(COVERED, new_symbols=1, first_new_ms=NOW, last_new_ms=NOW)
    early = run_due(arriving, NOW + MINUTE_MS)
    assert (early.due, early.cause, code_of(early.reason)) == (False, RunCause.NEW_SYMBOLS, "DEBOUNCE")
    assert run_due(arriving, NOW + 2 * MINUTE_MS).due
    late = NOW + 30 * MINUTE_MS
    assert not run_due(replace(arriving, last_new_ms=late - MINUTE_MS), late - 1).due
    assert run_due(replace(arriving, last_new_ms=late), late).due


def test_i5_symbols_that_become_trainable_after_a_run_wait_for_the_interval() -> None:
    facts = replace(
        COVERED, last_run_ms=NOW - 10 * MINUTE_MS, new_symbols=3, first_new_ms=NOW - HOUR_MS, last_new_ms=NOW - HOUR_MS
    )
    decision = run_due(facts, NOW)
    assert (decision.due, decision.not_before_ms) == (False, NOW + 50 * MINUTE_MS)
    assert code_of(decision.reason) == "MIN_TRAIN_INTERVAL"


def test_a_drifted_model_is_trained_anew_within_the_interval_the_debounce_and_the_back_off() -> None:
    drifted = replace(COVERED, drift_ms=NOW, drift="FEATURES_DRIFTED: features=9")
    early = run_due(drifted, NOW + MINUTE_MS)
    assert (early.due, early.cause, code_of(early.reason)) == (False, RunCause.DRIFT, "DEBOUNCE")
    decision = run_due(drifted, NOW + 2 * MINUTE_MS)
    assert (decision.due, decision.cause) == (True, RunCause.DRIFT)
    assert "FEATURES_DRIFTED" in details_of(decision.reason)["why"]
    just_ran = run_due(replace(drifted, last_run_ms=NOW - MINUTE_MS), NOW + 2 * MINUTE_MS)
    assert (just_ran.due, code_of(just_ran.reason)) == (False, "MIN_TRAIN_INTERVAL")
    failed = run_due(replace(drifted, failures=3, last_run_ended_ms=NOW - HOUR_MS), NOW + 2 * MINUTE_MS)
    assert (failed.due, code_of(failed.reason)) == (False, "BACK_OFF")
    assert run_due(replace(drifted, has_compatible_model=False), NOW).cause is RunCause.NO_MODEL


def test_what_a_person_chose_stays_for_a_retrain_interval_unless_a_drift_is_seen_or_a_person_asks() -> None:
    old = replace(COVERED, model_trained_ms=NOW - 8 * DAY_MS, last_run_ms=NOW - DAY_MS, chosen_ms=NOW)
    growing = replace(old, new_symbols=2, first_new_ms=NOW, last_new_ms=NOW)
    assert run_due(replace(old, chosen_ms=None), NOW).due, "without the choice it is overdue"
    for facts in (old, growing):
        for now, due in ((NOW + 2 * HOUR_MS, False), (NOW + 7 * DAY_MS - 1, False), (NOW + 7 * DAY_MS, True)):
            decision = run_due(facts, now)
            assert decision.due is due, decision
            assert due or (code_of(decision.reason), decision.not_before_ms) == (
                "CHOSEN_BY_A_PERSON",
                NOW + 7 * DAY_MS,
            )
    later = NOW + 2 * HOUR_MS
    assert run_due(replace(old, manual_requested_ms=later), later).cause is RunCause.MANUAL
    assert run_due(replace(old, drift_ms=NOW + HOUR_MS), later).cause is RunCause.DRIFT
    assert run_due(replace(old, has_compatible_model=False), later).cause is RunCause.NO_MODEL


def test_failures_back_off_and_a_person_does_not_wait_for_that() -> None:
    failed = replace(
        COVERED,
        has_compatible_model=False,
        failures=3,
        last_run_ms=NOW - 90 * MINUTE_MS,
        last_run_ended_ms=NOW - 80 * MINUTE_MS,
    )
    decision = run_due(failed, NOW)
    assert not decision.due
    assert code_of(decision.reason) == "BACK_OFF"
    assert decision.not_before_ms is not None
    assert decision.not_before_ms >= failed.last_run_ended_ms + 4 * HOUR_MS
    assert details_of(decision.reason)["failures"] == "3"
    asked = run_due(replace(failed, manual_requested_ms=NOW), NOW)
    assert (asked.due, asked.cause) == (True, RunCause.MANUAL)


offsets = st.none() | st.integers(-30 * DAY_MS, 0).map(lambda offset: NOW + offset)
scope_facts = st.builds(
    ScopeFacts,
    scope=st.just("multi"),
    trainable_symbols=st.integers(0, 5),
    new_symbols=st.integers(0, 5),
    first_new_ms=offsets,
    last_new_ms=offsets,
    has_compatible_model=st.booleans(),
    model_trained_ms=offsets,
    open_run=st.booleans(),
    last_run_ms=offsets,
    last_run_ended_ms=offsets,
    failures=st.integers(0, 9),
    manual_requested_ms=offsets,
    drift_ms=offsets,
    chosen_ms=offsets,
)


@given(scope_facts, st.integers(0, 40 * DAY_MS))
def test_i5_a_scope_is_never_due_within_the_interval_and_the_promised_time_holds(facts: ScopeFacts, later: int) -> None:
    now = NOW + later
    decision = run_due(facts, now)
    if decision.due:
        assert decision.cause is not None
        assert not facts.open_run
        assert facts.trainable_symbols > 0
        assert facts.last_run_ms is None or now - facts.last_run_ms >= TRAINING.min_train_interval_ms
    elif decision.not_before_ms is not None:
        assert decision.not_before_ms > now
        assert not run_due(facts, decision.not_before_ms - 1).due
        assert run_due(facts, decision.not_before_ms).due
    assert code_of(decision.reason)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["accepted", "rejected", "failed"]), min_size=1, max_size=5), st.booleans())
def test_i5_thirty_days_of_passes_start_few_runs_whatever_their_outcome(outcomes: list[str], new: bool) -> None:
    """The old loop in small: a pass every 10 minutes for 30 days, an outcome that may never be a success."""
    facts = ScopeFacts(scope="multi", trainable_symbols=3, new_symbols=3, first_new_ms=NOW, last_new_ms=NOW)
    starts: list[int] = []
    for now in range(NOW, NOW + 30 * DAY_MS, 10 * MINUTE_MS):
        if not run_due(facts, now).due:
            continue
        outcome = outcomes[len(starts) % len(outcomes)]
        starts.append(now)
        facts = replace(facts, last_run_ms=now, last_run_ended_ms=now + MINUTE_MS)
        if outcome == "accepted":
            facts = replace(
                facts, failures=0, has_compatible_model=True, model_trained_ms=now, new_symbols=int(new) * 3
            )
        else:
            facts = replace(facts, failures=facts.failures + 1)
    gaps = [after - before for before, after in pairwise(starts)]
    assert all(gap >= TRAINING.min_train_interval_ms for gap in gaps)
    if "accepted" not in outcomes:  # back-off: 1, 2, 4, 8, 16 hours, then daily
        assert len(starts) <= 5 + 31
    elif not new and set(outcomes) == {"accepted"}:
        assert len(starts) == 5  # once, and weekly


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"min_train_interval_ms": 0}, "min_train_interval_ms"),
        ({"retrain_interval_ms": 1}, "retrain_interval_ms"),
        ({"debounce_ms": HOUR_MS}, "max_debounce_ms"),
        ({"failure_base_ms": 2 * DAY_MS}, "failure_cap_ms"),
    ],
)
def test_a_wrong_training_policy_is_named(changes: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TrainingPolicy(**changes)

"""I12: one pure function decides compatibility and returns every reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.compatibility import ArtifactFacts, ModelRequirement, RefusalCode, check_compatibility
from quant.reasons import code_of

REQUIREMENT = ModelRequirement(
    training_mode="multi_symbol",
    symbol_encoding="index",
    timeframe="1h",
    schema_hash="schema",
    signal="trend",
    label_hash="label",
    symbols=frozenset({"BTC/USDT:USDT", "ETH/USDT:USDT"}),
)
GOOD = ArtifactFacts(
    artifact_id=1,
    version=1,
    training_mode="multi_symbol",
    symbol_encoding="index",
    timeframe="1h",
    schema_hash="schema",
    signal="trend",
    label_hash="label",
    symbols=frozenset({"BTC/USDT:USDT"}),
    score=0.1,
    created_ms=0,
    gates_passed=True,
)
DEFECTS = {
    RefusalCode.RETIRED: {"retired": "by operator"},
    RefusalCode.INTEGRITY: {"integrity_error": "sha256 differs"},
    RefusalCode.GATES_FAILED: {"gates_passed": False},
    RefusalCode.TRAINING_MODE: {"training_mode": "single_symbol"},
    RefusalCode.SYMBOL_ENCODING: {"symbol_encoding": "one_hot"},
    RefusalCode.TIMEFRAME: {"timeframe": "4h"},
    RefusalCode.FEATURE_SCHEMA: {"schema_hash": "other"},
    RefusalCode.SIGNAL: {"signal": "breakout"},
    RefusalCode.LABEL_SPEC: {"label_hash": "other"},
    RefusalCode.BLEND: {"blend": "logistic"},
    RefusalCode.NO_COMMON_SYMBOL: {"symbols": frozenset({"XRP/USDT:USDT"})},
}


def test_a_matching_artifact_has_no_refusal() -> None:
    assert check_compatibility(REQUIREMENT, GOOD) == ()


def test_every_refusal_code_has_a_defect_in_this_test() -> None:
    assert set(DEFECTS) == set(RefusalCode)


@given(st.sets(st.sampled_from(list(RefusalCode))))
def test_i12_compatibility_returns_every_reason_and_no_other(codes: set[RefusalCode]) -> None:
    changes = {name: value for code in codes for name, value in DEFECTS[code].items()}
    refusals = check_compatibility(REQUIREMENT, replace(GOOD, **changes))
    assert {refusal.code for refusal in refusals} == codes
    assert len(refusals) == len(codes)
    for refusal in refusals:
        assert code_of(refusal.text) == refusal.code


def test_a_refusal_names_what_the_artifact_has_and_what_is_needed() -> None:
    (refusal,) = check_compatibility(REQUIREMENT, replace(GOOD, timeframe="4h"))
    assert refusal.text == "TIMEFRAME: has=4h, needs=1h"


def test_the_encoding_does_not_matter_to_models_of_one_symbol() -> None:
    requirement = replace(REQUIREMENT, training_mode="single_symbol")
    facts = replace(GOOD, training_mode="single_symbol", symbol_encoding="one_hot")
    assert check_compatibility(requirement, facts) == ()


@pytest.mark.parametrize("symbols", [frozenset(), frozenset({"XRP/USDT:USDT"})])
def test_without_wanted_symbols_coverage_is_not_judged(symbols: frozenset[str]) -> None:
    requirement = replace(REQUIREMENT, symbols=frozenset())
    assert check_compatibility(requirement, replace(GOOD, symbols=symbols)) == ()

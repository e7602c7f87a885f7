from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from quant.compatibility import ArtifactFacts, ModelRequirement, check_compatibility
from quant.selection import select_best_model

SYMBOLS = ("A", "B", "C", "D")
REQUIREMENT = ModelRequirement(
    training_mode="multi_symbol",
    symbol_encoding="index",
    timeframe="1h",
    schema_hash="s",
    signal="trend",
    label_hash="l",
    symbols=frozenset("ABC"),
)


def facts(artifact_id: int, **changes: object) -> ArtifactFacts:
    base = ArtifactFacts(
        artifact_id=artifact_id,
        version=artifact_id,
        training_mode="multi_symbol",
        symbol_encoding="index",
        timeframe="1h",
        schema_hash="s",
        signal="trend",
        label_hash="l",
        symbols=frozenset("AB"),
        score=0.5,
        created_ms=1_000,
        gates_passed=True,
    )
    return replace(base, **changes)


def best(*candidates: ArtifactFacts) -> int | None:
    chosen = select_best_model(REQUIREMENT, candidates).best
    return None if chosen is None else chosen.artifact_id


def test_an_empty_registry_has_no_best_model() -> None:
    selection = select_best_model(REQUIREMENT, [])
    assert (selection.best, selection.ranking, selection.refusals) == (None, (), {})


def test_an_incompatible_model_never_wins_however_good_it_is() -> None:
    great = facts(2, symbols=frozenset("ABC"), score=9.0, created_ms=9_000, timeframe="4h", gates_passed=False)
    selection = select_best_model(REQUIREMENT, [great, facts(1)])
    assert selection.best is not None
    assert selection.best.artifact_id == 1
    assert [refusal.code for refusal in selection.refusals[2]] == ["GATES_FAILED", "TIMEFRAME"]


def test_covered_wanted_symbols_count_before_the_score() -> None:
    assert best(facts(1, symbols=frozenset("ABC"), score=0.1), facts(2, score=0.9)) == 1


def test_symbols_that_nobody_wants_do_not_count() -> None:
    assert best(facts(1, symbols=frozenset("ADEFG"), score=0.9), facts(2, symbols=frozenset("AB"), score=0.1)) == 2


def test_the_score_counts_before_recency_and_recency_before_the_version() -> None:
    assert best(facts(1, score=0.6), facts(2, created_ms=9_000)) == 1
    assert best(facts(1, created_ms=9_000), facts(2)) == 1
    assert best(facts(1, version=7), facts(2)) == 1


def test_a_score_that_is_not_a_number_ranks_last() -> None:
    assert best(facts(1, score=math.nan, created_ms=9_000), facts(2, score=-5.0)) == 2


candidate_lists = st.lists(
    st.builds(
        lambda symbols, score, created_ms, version, retired, timeframe: {
            "symbols": frozenset(symbols),
            "score": score,
            "created_ms": created_ms,
            "version": version,
            "retired": retired,
            "timeframe": timeframe,
        },
        st.sets(st.sampled_from(SYMBOLS)),
        st.floats(allow_nan=True),
        st.integers(0, 3),
        st.integers(1, 3),
        st.sampled_from([None, "old"]),
        st.sampled_from(["1h", "4h"]),
    ),
    max_size=8,
).map(lambda changes: [facts(i, **change) for i, change in enumerate(changes)])


@given(candidate_lists, st.randoms())
def test_the_order_of_the_candidates_does_not_matter_and_none_is_lost(candidates: list, random) -> None:
    selection = select_best_model(REQUIREMENT, candidates)
    shuffled = list(candidates)
    random.shuffle(shuffled)
    again = select_best_model(REQUIREMENT, shuffled)
    assert [f.artifact_id for f in again.ranking] == [f.artifact_id for f in selection.ranking]
    ids = [f.artifact_id for f in selection.ranking] + list(selection.refusals)
    assert sorted(ids) == [f.artifact_id for f in candidates]
    assert all(not check_compatibility(REQUIREMENT, f) for f in selection.ranking)
    assert all(selection.refusals.values())
    assert selection.best == (selection.ranking[0] if selection.ranking else None)

"""The best artifact of a registry for a requirement, with the ranking and every refusal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from quant.compatibility import ArtifactFacts, ModelRequirement, Refusal, check_compatibility


@dataclass(frozen=True, slots=True)
class Selection:
    """Result of a selection.

    ``ranking`` holds the compatible artifacts, best first; ``refusals`` maps the id of each other artifact to all
    reasons against it. Together they hold every candidate exactly once.
    """

    best: ArtifactFacts | None
    ranking: tuple[ArtifactFacts, ...]
    refusals: dict[int, tuple[Refusal, ...]]


def select_best_model(requirement: ModelRequirement, candidates: Iterable[ArtifactFacts]) -> Selection:
    """Rank the candidates: compatible ones only; more wanted symbols covered, higher score, newer, higher version.

    The order of ``candidates`` does not matter: the artifact id breaks the last tie. A score that is not a number
    ranks below every other score.
    """
    ranking: list[ArtifactFacts] = []
    refusals: dict[int, tuple[Refusal, ...]] = {}
    for facts in candidates:
        against = check_compatibility(requirement, facts)
        if against:
            refusals[facts.artifact_id] = against
        else:
            ranking.append(facts)

    def merit(facts: ArtifactFacts) -> tuple[int, float, int, int, int]:
        covered = facts.symbols & requirement.symbols if requirement.symbols else facts.symbols
        score = -math.inf if math.isnan(facts.score) else facts.score
        return len(covered), score, facts.created_ms, facts.version, facts.artifact_id

    ranking.sort(key=merit, reverse=True)
    return Selection(best=ranking[0] if ranking else None, ranking=tuple(ranking), refusals=refusals)

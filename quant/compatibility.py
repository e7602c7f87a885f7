"""May this artifact serve this requirement? One pure function that returns every reason against it (I12)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quant.reasons import reason


class RefusalCode(StrEnum):
    """Why an artifact cannot be used. The order is the order in which refusals are listed."""

    RETIRED = "RETIRED"
    INTEGRITY = "INTEGRITY"
    GATES_FAILED = "GATES_FAILED"
    TRAINING_MODE = "TRAINING_MODE"
    SYMBOL_ENCODING = "SYMBOL_ENCODING"
    TIMEFRAME = "TIMEFRAME"
    FEATURE_SCHEMA = "FEATURE_SCHEMA"
    SIGNAL = "SIGNAL"
    LABEL_SPEC = "LABEL_SPEC"
    BLEND = "BLEND"
    NO_COMMON_SYMBOL = "NO_COMMON_SYMBOL"


@dataclass(frozen=True, slots=True)
class ModelRequirement:
    """What the bot needs from a model.

    ``symbols`` are those that shall be traded; empty means that no symbol is demanded, so coverage is not judged.
    ``symbol_encoding`` counts only in ``multi_symbol`` mode: a model of one symbol encodes none.
    """

    training_mode: str
    symbol_encoding: str
    timeframe: str
    schema_hash: str
    signal: str
    label_hash: str
    symbols: frozenset[str]
    blend: str = "none"


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """What the registry knows about one artifact, without loading it.

    ``score`` is the validation score (higher is better); ``integrity_error`` and ``retired`` say why, or are None.
    """

    artifact_id: int
    version: int
    training_mode: str
    symbol_encoding: str
    timeframe: str
    schema_hash: str
    signal: str
    label_hash: str
    symbols: frozenset[str]
    score: float
    created_ms: int
    gates_passed: bool
    blend: str = "none"
    integrity_error: str | None = None
    retired: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason against an artifact: a stable code and a text ``CODE: key=value``."""

    code: RefusalCode
    text: str


def check_compatibility(requirement: ModelRequirement, facts: ArtifactFacts) -> tuple[Refusal, ...]:
    """Return every reason why the artifact cannot serve the requirement; an empty tuple means that it can."""
    refusals: list[Refusal] = []

    def refuse(code: RefusalCode, **evidence: object) -> None:
        refusals.append(Refusal(code=code, text=reason(code.value, **evidence)))

    if facts.retired is not None:
        refuse(RefusalCode.RETIRED, why=facts.retired)
    if facts.integrity_error is not None:
        refuse(RefusalCode.INTEGRITY, error=facts.integrity_error)
    if not facts.gates_passed:
        refuse(RefusalCode.GATES_FAILED, version=facts.version)
    compared = (
        (RefusalCode.TRAINING_MODE, facts.training_mode, requirement.training_mode),
        (RefusalCode.SYMBOL_ENCODING, facts.symbol_encoding, requirement.symbol_encoding),
        (RefusalCode.TIMEFRAME, facts.timeframe, requirement.timeframe),
        (RefusalCode.FEATURE_SCHEMA, facts.schema_hash, requirement.schema_hash),
        (RefusalCode.SIGNAL, facts.signal, requirement.signal),
        (RefusalCode.LABEL_SPEC, facts.label_hash, requirement.label_hash),
        (RefusalCode.BLEND, facts.blend, requirement.blend),
    )
    for code, has, needs in compared:
        if code is RefusalCode.SYMBOL_ENCODING and requirement.training_mode == facts.training_mode == "single_symbol":
            continue
        if has != needs:
            refuse(code, has=has, needs=needs)
    if requirement.symbols and not requirement.symbols & facts.symbols:
        refuse(RefusalCode.NO_COMMON_SYMBOL, covers=len(facts.symbols), needs=len(requirement.symbols))
    return tuple(refusals)

"""When to evaluate a symbol, what blocks it, when a scope trains, and how long to back off.

Everything here is a pure function of facts and a time that is passed in; the apps read the facts and write the
outcome. That is what keeps the old bot's loop (evaluate, reload, queue again, every pass) out: nothing in this module
can say "due" twice for the same cause inside its interval (I3, I5).
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from quant.reasons import code_of, reason
from quant.timeframes import DAY_MS, HOUR_MS, MINUTE_MS, from_ms


class BlockCode(StrEnum):
    """Why a symbol is blocked (DESIGN section 5). The first seven come from `judge`, the others from the apps."""

    SHORT_HISTORY = "SHORT_HISTORY"
    LOW_COVERAGE = "LOW_COVERAGE"
    STALE_DATA = "STALE_DATA"
    PRICE_BREAK = "PRICE_BREAK"
    DELISTED = "DELISTED"
    NOT_IN_UNIVERSE = "NOT_IN_UNIVERSE"
    EXCHANGE_ERROR = "EXCHANGE_ERROR"
    TRAINING_FAILED = "TRAINING_FAILED"
    MODEL_REJECTED = "MODEL_REJECTED"
    ORDER_UNKNOWN = "ORDER_UNKNOWN"
    MANUAL = "MANUAL"


JUDGED_CODES = frozenset(
    {
        BlockCode.SHORT_HISTORY,
        BlockCode.LOW_COVERAGE,
        BlockCode.STALE_DATA,
        BlockCode.PRICE_BREAK,
        BlockCode.DELISTED,
        BlockCode.NOT_IN_UNIVERSE,
        BlockCode.EXCHANGE_ERROR,
    }
)
"""Codes that an evaluation opens and closes. It must not touch blocks with any other code."""


def back_off_ms(attempt: int, base_ms: int, cap_ms: int, *, key: str = "") -> int:
    """Return the wait after failure number ``attempt`` (1, 2, ...): base, 2 base, 4 base ... at most the cap.

    A ``key`` adds up to 10 % on top, the same for the same key and attempt, so that many symbols that failed
    together do not return together; the cap holds with it. ``attempt`` 0 means nothing failed: no wait.
    """
    if attempt < 0:
        raise ValueError(f"attempt is {attempt}; it counts failures and must be 0 or more")
    if not 0 < base_ms <= cap_ms:
        raise ValueError(f"base_ms is {base_ms} and cap_ms {cap_ms}; they must satisfy 0 < base_ms <= cap_ms")
    if attempt == 0:
        return 0
    # 2**60 ms is 36 million years: beyond it only the cap can be the answer, and huge integers cost time.
    wait = min(base_ms << min(attempt - 1, 60), cap_ms)
    if key:
        digest = hashlib.sha256(f"{key}:{attempt}".encode()).digest()
        wait += wait * int.from_bytes(digest[:4], "big") // (10 << 32)
    return min(wait, cap_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveragePolicy:
    """Rules by which `judge` decides. ``bar_ms`` is the length of one candle of the traded timeframe."""

    bar_ms: int = HOUR_MS
    min_history_days: float = 90
    target_history_days: float = 730
    min_coverage: float = 0.95
    evaluation_interval_ms: int = 5 * MINUTE_MS
    stale_after_bars: int = 3
    recheck_cap_ms: int = 6 * HOUR_MS
    universe_recheck_ms: int = HOUR_MS
    permanent_recheck_ms: int = DAY_MS

    def __post_init__(self) -> None:
        if not 0 < self.min_history_days <= self.target_history_days:
            raise ValueError(
                f"min_history_days is {self.min_history_days} and target_history_days {self.target_history_days}; "
                "the minimum must be positive and not above the target"
            )
        if not 0 < self.min_coverage <= 1:
            raise ValueError(f"min_coverage is {self.min_coverage}; it is a fraction and must be in (0, 1]")
        for name in ("bar_ms", "evaluation_interval_ms", "stale_after_bars", "universe_recheck_ms"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("recheck_cap_ms", "permanent_recheck_ms"):
            if getattr(self, name) < self.evaluation_interval_ms:
                raise ValueError(
                    f"{name} is {getattr(self, name)} ms; it must not be below evaluation_interval_ms "
                    f"({self.evaluation_interval_ms} ms)"
                )


class SymbolFacts(NamedTuple):
    """What is known about one symbol at its evaluation. Candle times are OPEN times in ms.

    ``candle_count`` and ``expected_count`` belong to the same window of closed candles; ``failures`` counts
    consecutive failed ingests; ``price_break`` and ``ingest_error`` hold evidence, or nothing. ``unbroken_since_ms`` is
    the first candle after the last suspension: only from there on counts as history (None: there was none).
    A tuple, not a dataclass: a pass makes 10,000 of them from rows of the database, in this order.
    """

    symbol: str
    in_universe: bool = True
    universe_reason: str = ""
    listed_ms: int | None = None
    delisted_ms: int | None = None
    history_start_ms: int | None = None
    last_candle_ms: int | None = None
    candle_count: int = 0
    expected_count: int = 0
    largest_gap_bars: int = 0
    unbroken_since_ms: int | None = None
    price_break: str = ""
    ingest_error: str = ""
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason to block: code, evidence ``CODE: key=value``, and when it may have gone (None if permanent)."""

    code: BlockCode
    evidence: str
    permanent: bool
    recheck_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything against a symbol (nothing: its history is sufficient) and when to look again."""

    findings: tuple[Finding, ...]
    next_evaluation_ms: int

    @property
    def sufficient(self) -> bool:
        return not self.findings


def judge(facts: SymbolFacts, policy: CoveragePolicy, now_ms: int) -> Judgement:
    """Judge one symbol: every finding, and the next evaluation at least one interval after ``now_ms`` (I3).

    A blocked symbol is looked at again when its last block may have gone, since it cannot be free before, but at
    the latest after ``recheck_cap_ms``, because facts may change in ways that nobody foresaw; a permanently blocked
    one after ``permanent_recheck_ms``, so that its evidence stays true.
    """
    soonest = now_ms + policy.evaluation_interval_ms
    findings = [
        finding
        for finding in (
            _find_delisted(facts, now_ms),
            _find_outside_universe(facts, policy, now_ms),
            _find_exchange_error(facts, policy, now_ms),
            _find_short_history(facts, policy, now_ms),
            _find_low_coverage(facts, policy, now_ms),
            _find_stale_data(facts, policy, now_ms),
            _find_price_break(facts, policy, now_ms),
        )
        if finding is not None
    ]
    if not findings:
        return Judgement(findings=(), next_evaluation_ms=soonest)
    if any(finding.permanent for finding in findings):
        return Judgement(findings=tuple(findings), next_evaluation_ms=now_ms + policy.permanent_recheck_ms)
    last = max(finding.recheck_at_ms or soonest for finding in findings)
    next_ms = max(soonest, min(last, now_ms + policy.recheck_cap_ms))
    return Judgement(findings=tuple(findings), next_evaluation_ms=next_ms)


def _find_delisted(facts: SymbolFacts, now_ms: int) -> Finding | None:
    if facts.delisted_ms is None or facts.delisted_ms > now_ms:
        return None
    evidence = reason(BlockCode.DELISTED, delisted_at=from_ms(facts.delisted_ms))
    return Finding(BlockCode.DELISTED, evidence, permanent=True, recheck_at_ms=None)


def _find_outside_universe(facts: SymbolFacts, policy: CoveragePolicy, now_ms: int) -> Finding | None:
    if facts.in_universe:
        return None
    evidence = reason(BlockCode.NOT_IN_UNIVERSE, why=facts.universe_reason or "not listed by the exchange")
    return Finding(BlockCode.NOT_IN_UNIVERSE, evidence, False, now_ms + policy.universe_recheck_ms)


def _find_exchange_error(facts: SymbolFacts, policy: CoveragePolicy, now_ms: int) -> Finding | None:
    if not facts.ingest_error:
        return None
    evidence = reason(BlockCode.EXCHANGE_ERROR, error=facts.ingest_error, failures=max(facts.failures, 1))
    return Finding(BlockCode.EXCHANGE_ERROR, evidence, False, now_ms + _failure_wait_ms(facts, policy))


def _find_short_history(facts: SymbolFacts, policy: CoveragePolicy, now_ms: int) -> Finding | None:
    need_ms = round(policy.min_history_days * DAY_MS)
    first_ms, since_ms = facts.history_start_ms, facts.unbroken_since_ms
    if first_ms is None and not facts.in_universe:
        return None  # nobody fetches its candles: that it is not in the universe says it all
    start_ms = first_ms if since_ms is None else since_ms
    have_ms = 0
    if start_ms is not None and facts.last_candle_ms is not None:
        have_ms = facts.last_candle_ms + policy.bar_ms - start_ms
    if have_ms >= need_ms:
        return None
    start_ms = start_ms if start_ms is not None else facts.listed_ms
    enough_at_ms = None if start_ms is None else start_ms + need_ms
    recheck_at_ms = max(enough_at_ms or 0, now_ms + policy.evaluation_interval_ms)
    enough_at: dt.datetime | str = "unknown" if enough_at_ms is None else from_ms(enough_at_ms)
    if enough_at_ms is not None and enough_at_ms <= now_ms:  # they exist: look again as soon as allowed
        enough_at = "when its candles are fetched"
    evidence = reason(
        BlockCode.SHORT_HISTORY,
        have_days=round(have_ms / DAY_MS, 1),
        need_days=policy.min_history_days,
        enough_at=enough_at,
        **({"since_at_ms": since_ms, "rule": "history begins anew after a long gap"} if since_ms is not None else {}),
    )
    return Finding(BlockCode.SHORT_HISTORY, evidence, False, recheck_at_ms)


def _find_low_coverage(facts: SymbolFacts, policy: CoveragePolicy, now_ms: int) -> Finding | None:
    if facts.expected_count <= 0:
        return None
    coverage = facts.candle_count / facts.expected_count
    if coverage >= policy.min_coverage:
        return None
    evidence = reason(
        BlockCode.LOW_COVERAGE,
        coverage=coverage,
        need=policy.min_coverage,
        missing=facts.expected_count - facts.candle_count,
        largest_gap_bars=facts.largest_gap_bars,
    )
    return Finding(BlockCode.LOW_COVERAGE, evidence, False, now_ms + policy.recheck_cap_ms)


def _find_stale_data(facts: SymbolFacts, policy: CoveragePolicy, now_ms: int) -> Finding | None:
    delisted = facts.delisted_ms is not None and facts.delisted_ms <= now_ms
    if facts.last_candle_ms is None or delisted:  # no candle at all is SHORT_HISTORY, an ended series is DELISTED
        return None
    late_ms = now_ms - (facts.last_candle_ms + policy.bar_ms)
    if late_ms <= policy.stale_after_bars * policy.bar_ms:
        return None
    evidence = reason(
        BlockCode.STALE_DATA,
        last_candle=from_ms(facts.last_candle_ms),
        bars_late=late_ms // policy.bar_ms,
        allowed=policy.stale_after_bars,
    )
    return Finding(BlockCode.STALE_DATA, evidence, False, now_ms + _failure_wait_ms(facts, policy))


def _find_price_break(facts: SymbolFacts, policy: CoveragePolicy, now_ms: int) -> Finding | None:
    if not facts.price_break:
        return None
    # It heals only when the break leaves the window of the history, so there is no hurry.
    found = facts.price_break
    evidence = found if code_of(found) == BlockCode.PRICE_BREAK else reason(BlockCode.PRICE_BREAK, found=found)
    return Finding(BlockCode.PRICE_BREAK, evidence, False, now_ms + policy.permanent_recheck_ms)


def _failure_wait_ms(facts: SymbolFacts, policy: CoveragePolicy) -> int:
    wait = back_off_ms(max(facts.failures, 1), policy.evaluation_interval_ms, policy.recheck_cap_ms, key=facts.symbol)
    return max(wait, policy.evaluation_interval_ms)


class RunCause(StrEnum):
    """Why a training run starts. Every run has exactly one."""

    NO_MODEL = "NO_MODEL"
    NEW_SYMBOLS = "NEW_SYMBOLS"
    DRIFT = "DRIFT"
    SCHEDULED = "SCHEDULED"
    MANUAL = "MANUAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPolicy:
    """Rules by which `run_due` decides.

    ``debounce_ms`` is how long no further symbol must have become trainable before a run starts, so that symbols
    which become trainable together train together; ``max_debounce_ms`` bounds the wait of the first of them.
    """

    min_train_interval_ms: int = HOUR_MS
    retrain_interval_ms: int = 7 * DAY_MS
    debounce_ms: int = 2 * MINUTE_MS
    max_debounce_ms: int = 30 * MINUTE_MS
    failure_base_ms: int = HOUR_MS
    failure_cap_ms: int = DAY_MS

    def __post_init__(self) -> None:
        if self.min_train_interval_ms <= 0:
            raise ValueError(f"min_train_interval_ms is {self.min_train_interval_ms}; it must be positive")
        if self.retrain_interval_ms < self.min_train_interval_ms:
            raise ValueError(
                f"retrain_interval_ms is {self.retrain_interval_ms}; it must not be below min_train_interval_ms "
                f"({self.min_train_interval_ms})"
            )
        if not 0 <= self.debounce_ms <= self.max_debounce_ms:
            raise ValueError(
                f"debounce_ms is {self.debounce_ms} and max_debounce_ms {self.max_debounce_ms}; "
                "they must satisfy 0 <= debounce_ms <= max_debounce_ms"
            )
        if not 0 < self.failure_base_ms <= self.failure_cap_ms:
            raise ValueError(
                f"failure_base_ms is {self.failure_base_ms} and failure_cap_ms {self.failure_cap_ms}; "
                "they must satisfy 0 < failure_base_ms <= failure_cap_ms"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeFacts:
    """What is known about one training scope (all symbols in ``multi_symbol`` mode, one symbol otherwise).

    ``trainable_symbols`` counts the symbols that a run would train: history sufficient and no open block.
    ``new_symbols`` counts those of them that the active model does not cover, with the first and last time at which
    one of them became trainable. ``failures`` counts consecutive ended runs without an accepted model (failed or
    rejected); ``last_run_ms`` is the START of the newest run, ``last_run_ended_ms`` its end. ``drift_ms`` is when the
    watch of the active model asked for a training that no run has answered yet, ``drift`` what it saw. ``chosen_ms`` is
    when a person put the active model in its place, by a roll-back or by name.
    """

    scope: str
    trainable_symbols: int
    new_symbols: int = 0
    first_new_ms: int | None = None
    last_new_ms: int | None = None
    has_compatible_model: bool = False
    model_trained_ms: int | None = None
    open_run: bool = False
    last_run_ms: int | None = None
    last_run_ended_ms: int | None = None
    failures: int = 0
    manual_requested_ms: int | None = None
    drift_ms: int | None = None
    drift: str = ""
    chosen_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RunDecision:
    """Whether a scope trains now. Not due: ``reason`` says why and ``not_before_ms`` until when (None: no time)."""

    due: bool
    cause: RunCause | None
    not_before_ms: int | None
    reason: str


def run_due(facts: ScopeFacts, now_ms: int, policy: TrainingPolicy | None = None) -> RunDecision:
    """Decide whether a run of this scope starts now, and for which cause.

    ``min_train_interval_ms`` holds for every cause, also for a person's request (I5); the back-off after failures
    and the debounce do not hold for a person's request. Causes in order: MANUAL, NO_MODEL, NEW_SYMBOLS, DRIFT,
    SCHEDULED. What a person chose stays for ``retrain_interval_ms``: a training on nearly the same candles makes nearly
    the same model again as the one that was rolled back, and would undo it within hours. Only a drift that is seen
    since, or a person, trains before that.
    """
    policy = policy or TrainingPolicy()
    if facts.open_run:
        return RunDecision(False, None, None, reason("OPEN_RUN", scope=facts.scope))
    if facts.trainable_symbols <= 0:
        return RunDecision(False, None, None, reason("NOTHING_TO_TRAIN", scope=facts.scope))

    causes = _run_causes(facts, policy)
    if not causes:
        return RunDecision(False, None, None, reason("UP_TO_DATE", scope=facts.scope))
    cause, wanted_ms = min(causes, key=lambda item: max(item[1], _earliest_start(facts, policy, item[0])[0]))
    earliest_ms, code = _earliest_start(facts, policy, cause)
    not_before_ms = max(wanted_ms, earliest_ms)
    if now_ms >= not_before_ms:
        why = {"why": facts.drift} if cause is RunCause.DRIFT else {}
        text = reason(cause, scope=facts.scope, symbols=facts.trainable_symbols, new=facts.new_symbols, **why)
        return RunDecision(True, cause, not_before_ms, text)
    if wanted_ms > earliest_ms:
        code = "NOT_YET_SCHEDULED" if cause is RunCause.SCHEDULED else "DEBOUNCE"
        if wanted_ms == _chosen_until_ms(facts, policy):
            code = "CHOSEN_BY_A_PERSON"
    text = reason(code, cause=cause.value, not_before=from_ms(not_before_ms), failures=facts.failures)
    return RunDecision(False, cause, not_before_ms, text)


def _run_causes(facts: ScopeFacts, policy: TrainingPolicy) -> list[tuple[RunCause, int]]:
    """Every cause that holds, most important first, with the time from which it wants a run."""
    causes: list[tuple[RunCause, int]] = []
    if facts.manual_requested_ms is not None:
        causes.append((RunCause.MANUAL, facts.manual_requested_ms))
    settled_ms = 0
    if facts.first_new_ms is not None and facts.last_new_ms is not None:
        settled_ms = min(facts.last_new_ms + policy.debounce_ms, facts.first_new_ms + policy.max_debounce_ms)
    if not facts.has_compatible_model:
        causes.append((RunCause.NO_MODEL, settled_ms))
        return causes
    chosen_until_ms = _chosen_until_ms(facts, policy)
    if facts.new_symbols > 0:
        causes.append((RunCause.NEW_SYMBOLS, max(settled_ms, chosen_until_ms)))
    if facts.drift_ms is not None:
        causes.append((RunCause.DRIFT, facts.drift_ms + policy.debounce_ms))
    if facts.model_trained_ms is not None:
        causes.append((RunCause.SCHEDULED, max(facts.model_trained_ms + policy.retrain_interval_ms, chosen_until_ms)))
    return causes


def _chosen_until_ms(facts: ScopeFacts, policy: TrainingPolicy) -> int:
    """The time until which a person's choice of a model stands; 0 without one."""
    return 0 if facts.chosen_ms is None else facts.chosen_ms + policy.retrain_interval_ms


def _earliest_start(facts: ScopeFacts, policy: TrainingPolicy, cause: RunCause) -> tuple[int, str]:
    """The time before which no run may start for this cause, and the code of the rule that says so."""
    earliest_ms, code = 0, "MIN_TRAIN_INTERVAL"
    if facts.last_run_ms is not None:
        earliest_ms = facts.last_run_ms + policy.min_train_interval_ms
    if facts.failures > 0 and facts.last_run_ended_ms is not None and cause is not RunCause.MANUAL:
        wait = back_off_ms(facts.failures, policy.failure_base_ms, policy.failure_cap_ms, key=facts.scope)
        if facts.last_run_ended_ms + wait > earliest_ms:
            earliest_ms, code = facts.last_run_ended_ms + wait, "BACK_OFF"
    return earliest_ms, code

"""Judging symbols: read once, compare in memory, write the differences.

The number of statements does not grow with the number of symbols, and no candle is read (reference/performance.md). The
next time of every due symbol is stored, and committed, before the judging begins (I3): whatever fails afterwards, the
symbol does not come back before its time.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Greatest

from coverage_app import facts
from coverage_app.choices import BACK_OFF_REASONS, COVERAGE_REASONS
from coverage_app.models import Block, Symbol
from coverage_app.selectors import subject_of
from coverage_app.services.blocks import BLOCK_CLOSED, BLOCK_OPENED, EVIDENCE_LENGTH
from ops_app import bulk, clock, journal
from ops_app.choices import Severity
from quant import policy as rules
from quant.reasons import reason
from quant.timeframes import from_ms, to_ms

log = structlog.get_logger(__name__)

FAILURE_BASE_MS, FAILURE_CAP_MS = 5 * 60_000, 6 * 3_600_000
BLOCK_FIELDS = ("evidence", "permanent", "recheck_at", "failures")
NEW_BLOCK = ("symbol_id", "reason", "evidence", "permanent", "recheck_at", "failures")
COLUMNS = ("pk", "evaluation_failures", "evaluations", *facts.FACT_COLUMNS)


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What one pass did. `new` symbols were judged for the first time; `errors` names those whose judging failed."""

    evaluated: int = 0
    new: int = 0
    sufficient: int = 0
    opened: int = 0
    closed: int = 0
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether something is otherwise than before, so that somebody who follows must look."""
        return bool(self.new or self.opened or self.closed or self.errors)

    def __str__(self) -> str:
        if not (self.evaluated or self.closed):
            return ""
        text = f"{self.evaluated} evaluated, {self.sufficient} sufficient, {self.opened} opened, {self.closed} closed"
        return f"{text}, {len(self.errors)} failed" if self.errors else text


class _Due(NamedTuple):
    """A symbol that is judged in this pass; `failures` counts judgings in a row that raised, `before` all judgings."""

    pk: int
    failures: int
    before: int
    facts: rules.SymbolFacts


class _OpenBlock(NamedTuple):
    pk: int
    symbol_id: int
    code: str
    reason: str
    evidence: str
    permanent: bool
    recheck_ms: int | None


@dataclass(slots=True)
class _Differences:
    """What a pass has to write. `new` has a column for each of NEW_BLOCK; the others are {primary key: values}."""

    new: list[tuple[Any, ...]] = field(default_factory=list)
    changed: dict[int, dict[str, Any]] = field(default_factory=dict)
    closed: dict[int, dict[str, Any]] = field(default_factory=dict)
    symbols: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    sufficient: int = 0
    errors: dict[str, str] = field(default_factory=dict)

    def close(self, block: _OpenBlock, why: str, now: dt.datetime) -> None:
        self.closed[block.pk] = {"closed_at": now, "close_reason": why}
        self.events.append((BLOCK_CLOSED, subject_of(block.code), f"{block.reason} ended: {why}."))


def evaluate_due(*, market: str | None = None) -> EvaluationReport:
    """Judge every due symbol of the market, and end the back-offs whose time has come.

    Safe in any number of processes: a symbol is claimed by one of them. A symbol whose judging raises keeps its blocks,
    is journaled, and waits longer each time; the others are judged.
    """
    market = market or settings.EXCHANGE_MARKET
    now = from_ms(clock.market_now_ms())  # whole milliseconds, as the rules count
    claimed_until = now + facts.evaluation_interval()
    rows = _claim(market, now=now, until=claimed_until)
    blocks = _open_blocks(market, [row.pk for row in rows], now)
    if not rows and not blocks:
        return EvaluationReport()
    found = _compare(rows, blocks, now=now, claimed_until=claimed_until)
    opened = _write(found, now=now, claimed_until=claimed_until)
    return EvaluationReport(
        evaluated=len(rows),
        new=sum(row.before == 0 for row in rows),
        sufficient=found.sufficient,
        opened=opened,
        closed=len(found.closed),
        errors=found.errors,
    )


def hasten(symbol_ids: Iterable[int], *, now: dt.datetime) -> None:
    """Facts of these symbols changed: let them be judged as soon as the interval of I3 allows (1 statement)."""
    ids = list(symbol_ids)
    if not ids:
        return
    interval = facts.evaluation_interval()
    soonest = Greatest(F("last_evaluated_at") + interval, now)
    waiting = Symbol.objects.filter(pk__in=bulk.among(ids), last_evaluated_at__isnull=False)
    with transaction.atomic():
        waiting.filter(next_evaluation_at__gt=soonest).locked().update(next_evaluation_at=soonest)


def _claim(market: str, *, now: dt.datetime, until: dt.datetime) -> list[_Due]:
    """Take the due symbols: their next time is in the database, committed, before anybody judges them."""
    with transaction.atomic():
        due = Symbol.objects.of_market(market).due_for_evaluation(now=now).claimable()
        rows = list(due.order_by("pk").values_list(*COLUMNS))
        if rows:
            Symbol.objects.filter(pk__in=bulk.among(row[0] for row in rows)).update(
                next_evaluation_at=until, last_evaluated_at=now, evaluations=F("evaluations") + 1
            )
    return [_Due(row[0], row[1], row[2], rules.SymbolFacts(*row[3:])) for row in rows]


def _open_blocks(market: str, symbol_ids: list[int], now: dt.datetime) -> list[_OpenBlock]:
    """Return the coverage blocks of these symbols, and every block of the market whose back-off has ended."""
    wanted = Q(symbol_id__in=bulk.among(symbol_ids), reason__in=COVERAGE_REASONS) | Q(
        reason__in=BACK_OFF_REASONS, permanent=False, recheck_at__lte=now
    )
    columns = ("pk", "symbol_id", "symbol__code", "reason", "evidence", "permanent", facts.EpochMs("recheck_at"))
    rows = Block.objects.open().filter(wanted, symbol__market=market).order_by().values_list(*columns)
    return [_OpenBlock(*row) for row in rows]


def _compare(
    rows: Sequence[_Due], blocks: list[_OpenBlock], *, now: dt.datetime, claimed_until: dt.datetime
) -> _Differences:
    found = _Differences()
    present: dict[int, dict[str, _OpenBlock]] = defaultdict(dict)
    for block in blocks:
        if block.reason in BACK_OFF_REASONS:
            found.close(block, "the back-off is over", now)
        else:
            present[block.symbol_id][block.reason] = block
    coverage_policy, now_ms, claimed_ms = facts.coverage_policy(), to_ms(now), to_ms(claimed_until)
    for row in rows:
        try:
            judgement = rules.judge(row.facts, coverage_policy, now_ms)
        except Exception as error:  # noqa: BLE001 - one symbol's error stops that symbol only (I20); it is journaled
            _note_failure(found, row, error, now_ms)
            continue
        _note_findings(found, row, judgement.findings, present.get(row.pk, {}), now)
        found.sufficient += judgement.sufficient
        if judgement.next_evaluation_ms != claimed_ms or row.failures:
            next_at = from_ms(max(judgement.next_evaluation_ms, claimed_ms))
            found.symbols[row.pk] = {"next_evaluation_at": next_at, "evaluation_failures": 0}
    return found


def _note_findings(
    found: _Differences,
    row: _Due,
    findings: Sequence[rules.Finding],
    present: dict[str, _OpenBlock],
    now: dt.datetime,
) -> None:
    for finding in findings:
        evidence = finding.evidence[:EVIDENCE_LENGTH]
        block = present.get(finding.code)
        if block is not None and (block.evidence, block.permanent, block.recheck_ms) == (
            evidence, finding.permanent, finding.recheck_at_ms,
        ):  # fmt: skip
            continue
        recheck_at = None if finding.recheck_at_ms is None else from_ms(finding.recheck_at_ms)
        values = (evidence, finding.permanent, recheck_at, max(row.facts.failures, 1))
        if block is None:
            found.new.append((row.pk, finding.code.value, *values))
            found.events.append((BLOCK_OPENED, subject_of(row.facts.symbol), evidence))
        else:
            found.changed[block.pk] = dict(zip(BLOCK_FIELDS, values, strict=True))
    codes = {finding.code for finding in findings}
    for reason_code, block in present.items():
        if reason_code not in codes:
            found.close(block, "the evaluation no longer finds it", now)


def _note_failure(found: _Differences, row: _Due, error: Exception, now_ms: int) -> None:
    log.error("evaluation_failed", symbol=row.facts.symbol, exc_info=error)
    failures = min(row.failures + 1, 1000)
    wait = rules.back_off_ms(failures, FAILURE_BASE_MS, FAILURE_CAP_MS, key=row.facts.symbol)
    wait = max(wait, settings.EVALUATION_INTERVAL * 1000)
    found.symbols[row.pk] = {"next_evaluation_at": from_ms(now_ms + wait), "evaluation_failures": failures}
    found.errors[row.facts.symbol] = reason(
        "EVALUATION_FAILED", error=f"{type(error).__name__}: {error}", failures=failures
    )


def _write(found: _Differences, *, now: dt.datetime, claimed_until: dt.datetime) -> int:
    with transaction.atomic():
        opened = 0
        if found.new:
            columns = dict(zip(NEW_BLOCK, zip(*found.new, strict=True), strict=True))
            opened = bulk.insert_columns(Block, columns, opened_at=now)
        # A person may have lifted a block meanwhile: what is closed stays closed.
        still_open = {"closed_at": None}
        bulk.update_rows(Block, found.changed, fields=BLOCK_FIELDS, unless_changed=still_open)
        bulk.update_rows(Block, found.closed, fields=("closed_at", "close_reason"), unless_changed=still_open)
        # A person may have asked for an evaluation meanwhile: then the symbol stays due.
        bulk.update_rows(
            Symbol,
            found.symbols,
            fields=("next_evaluation_at", "evaluation_failures"),
            unless_changed={"next_evaluation_at": claimed_until},
        )
        journal.record_many(found.events)
        journal.record_many(
            [("evaluation_failed", subject_of(code), text) for code, text in found.errors.items()],
            severity=Severity.WARNING,
        )
    return opened

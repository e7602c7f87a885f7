"""Blocks: opened and closed by the other apps, lifted and set by people. The evaluation has its own, set-based way."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db import transaction

from coverage_app import facts
from coverage_app.choices import COVERAGE_REASONS, BlockReason
from coverage_app.exceptions import CoverageError
from coverage_app.models import Block, Symbol
from coverage_app.selectors import subject_of
from ops_app import bulk, clock, journal, queue
from quant import policy
from quant.reasons import reason as reason_text

EVALUATE_TASK = "coverage_app.tasks.evaluate_task"
EVIDENCE_LENGTH = 500
BLOCK_OPENED, BLOCK_CLOSED = "block_opened", "block_closed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a person's request did: how many rows changed, and a text that says it."""

    changed: int
    text: str


def open_block(
    *,
    reason: str,
    evidence: str | Mapping[int, str],
    symbol: Symbol | None = None,
    symbol_ids: Iterable[int] = (),
    recheck_at: dt.datetime | None = None,
    permanent: bool = False,
    failures: int = 1,
    user: User | None = None,
) -> int:
    """Open a block for each symbol, or bring its open block of this reason up to date; returns how many were opened.

    `evidence` is one text, or one per symbol id. `failures` in a row are shown to people; an open block counts on by
    itself. A constant number of statements; part of the caller's transaction. Raises ValueError for a temporary block
    without `recheck_at`: nobody would ever look at it again.
    """
    if not permanent and recheck_at is None:
        raise ValueError(f"block {reason}: recheck_at is None; a temporary block needs a time, or permanent=True")
    ids = {symbol.pk} if symbol is not None else set(symbol_ids)
    now = clock.market_now()
    texts = {
        pk: (evidence if isinstance(evidence, str) else evidence[pk])[:EVIDENCE_LENGTH] for pk in ids
    }  # a missing text is a bug of the caller: KeyError
    with transaction.atomic():
        codes = dict(Symbol.objects.filter(pk__in=ids).values_list("pk", "code"))
        if unknown := ids - codes.keys():
            raise ValueError(f"block {reason}: symbols {sorted(unknown)} do not exist; pass ids of coverage_app.Symbol")
        known = {
            pk: (block_id, count)
            for block_id, pk, count in Block.objects.open()
            .filter(symbol_id__in=ids, reason=reason)
            .values_list("pk", "symbol_id", "failures")
        }
        bulk.update_rows(
            Block,
            {
                block_id: {
                    "evidence": texts[pk],
                    "recheck_at": recheck_at,
                    "permanent": permanent,
                    "failures": max(failures, count + 1),
                }
                for pk, (block_id, count) in known.items()
            },
            fields=("evidence", "recheck_at", "permanent", "failures"),
            unless_changed={"closed_at": None},
        )
        new = sorted(ids - known.keys())
        opened = bulk.insert_rows(
            Block(
                symbol_id=pk,
                reason=reason,
                evidence=texts[pk],
                permanent=permanent,
                failures=failures,
                opened_at=now,
                opened_by=user,
                recheck_at=recheck_at,
            )
            for pk in new
        )
        journal.record_many([(BLOCK_OPENED, subject_of(codes[pk]), texts[pk]) for pk in new], user=user)
    return opened


def close_blocks(
    *,
    symbol_ids: Iterable[int],
    reasons: Iterable[str],
    close_reason: str,
    user: User | None = None,
) -> int:
    """Close the open blocks of these symbols and reasons; returns how many. Closing twice changes nothing."""
    now = clock.market_now()
    with transaction.atomic():
        rows = list(
            Block.objects.open()
            .filter(symbol_id__in=list(symbol_ids), reason__in=list(reasons))
            .values_list("pk", "symbol__code", "reason")
        )
        if not rows:
            return 0
        closed = (
            Block.objects.open()
            .filter(pk__in=[pk for pk, _, _ in rows])
            .update(closed_at=now, closed_by=user, close_reason=close_reason[:200])
        )
        journal.record_many(
            [(BLOCK_CLOSED, subject_of(code), f"{reason}: {close_reason}") for _, code, reason in rows], user=user
        )
    return closed


def unblock(*, user: User, block_id: int | None = None, symbol: Symbol | None = None) -> Outcome:
    """Close one block, or all open blocks of a symbol, in a person's name, and evaluate the symbol at once.

    A coverage reason that still holds is found again by that evaluation: the text says so. Raises CoverageError if
    there is nothing to close.
    """
    with transaction.atomic():
        blocks = Block.objects.open().select_related("symbol").order_by("id")
        if block_id is not None:
            chosen = list(blocks.filter(pk=block_id))
        elif symbol is not None:
            chosen = list(blocks.filter(symbol=symbol))
        else:
            raise TypeError("unblock() needs block_id or symbol")
        if not chosen:
            what = f"block {block_id}" if block_id is not None else f"{symbol}: it"
            raise CoverageError(f"{what} has nothing open to lift; reload the page to see the present state")
        target = chosen[0].symbol
        now = clock.market_now()
        for block in chosen:
            block.closed_at, block.closed_by, block.close_reason = now, user, f"lifted by {user.get_username()}"
            block.save(update_fields=["closed_at", "closed_by", "close_reason"])
        names = ", ".join(block.reason for block in chosen)
        returning = _still_holding(target) & {block.reason for block in chosen}
        text = f"{target.code}: lifted {names}."
        if returning:
            text += f" The cause of {', '.join(sorted(returning))} still holds: the next evaluation brings it back."
        journal.record("unblocked", text, subject=subject_of(target.code), user=user)
        _evaluate_soon([target.pk])
    return Outcome(len(chosen), text)


def block_manually(*, symbol: Symbol, user: User, why: str) -> Outcome:
    """Block a symbol until a person lifts it. Raises CoverageError without a reason, or if it is blocked so already."""
    why = " ".join(why.split())
    if not why:
        raise CoverageError(f"{symbol.code}: why is empty; say why it is blocked, the next person will want to know")
    with transaction.atomic():
        if Block.objects.open().filter(symbol=symbol, reason=BlockReason.MANUAL).exists():
            raise CoverageError(f"{symbol.code} is blocked by a person already; lift that block first")
        block = Block(
            symbol=symbol,
            reason=BlockReason.MANUAL,
            evidence=reason_text(BlockReason.MANUAL, by=user.get_username(), why=why)[:EVIDENCE_LENGTH],
            permanent=True,
            opened_at=clock.market_now(),
            opened_by=user,
        )
        block.save()
        journal.record(BLOCK_OPENED, block.evidence, subject=subject_of(symbol.code), user=user)
    return Outcome(1, f"{symbol.code}: blocked until a person lifts it.")


def evaluate_now(*, symbol_ids: Iterable[int], user: User) -> Outcome:
    """Make these symbols due for evaluation at once: a person may ask for it inside the interval of I3."""
    ids = list(symbol_ids)
    with transaction.atomic():
        codes = list(Symbol.objects.filter(pk__in=ids).values_list("code", flat=True))
        changed = _evaluate_soon(ids)
        text = f"Evaluation asked for by {user.get_username()}."
        journal.record_many([("evaluation_requested", subject_of(code), text) for code in codes], user=user)
    return Outcome(changed, f"{changed} symbols are evaluated now; reload the page in a few seconds.")


def _evaluate_soon(symbol_ids: list[int]) -> int:
    changed = Symbol.objects.filter(pk__in=symbol_ids).locked().update(next_evaluation_at=clock.market_now())
    queue.enqueue(EVALUATE_TASK)
    return changed


def _still_holding(symbol: Symbol) -> frozenset[str]:
    judgement = policy.judge(facts.symbol_facts(symbol), facts.coverage_policy(), clock.market_now_ms())
    return frozenset(str(finding.code) for finding in judgement.findings) & COVERAGE_REASONS

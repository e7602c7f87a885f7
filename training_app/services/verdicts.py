"""What a run leaves behind for each of its symbols: COVERED, or a block with a reason and a time (I2)."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Mapping

from coverage_app import services as coverage
from ops_app import bulk, clock
from quant.reasons import reason
from training_app import policies, selectors
from training_app.choices import Verdict
from training_app.models import RunSymbol, TrainingRun


def leave_verdicts(
    run: TrainingRun,
    *,
    block_reason: str,
    evidence: str,
    recheck_at: dt.datetime,
    dropped: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Close every open symbol of `run` with a verdict; part of the transaction that ends the run.

    A symbol that a usable active model covers stays COVERED, whatever became of this run: it can be traded. `dropped`
    maps the code of a symbol that the training could not use to the reason; it comes back later each time. All others
    are blocked with `evidence` until `recheck_at`. Returns the number of each verdict.
    """
    dropped = dropped or {}
    now = clock.market_now()
    rows = list(RunSymbol.objects.filter(run=run, open=True).select_related("symbol").order_by("symbol_id"))
    covering = selectors.covering_artifacts(market=run.scope.market, ids=[row.symbol_id for row in rows])
    times = _times_blocked([row.symbol_id for row in rows if row.symbol.code in dropped])
    blocks: dict[dt.datetime, dict[int, str]] = defaultdict(dict)
    verdicts: dict[int, dict[str, object]] = {}
    for row in rows:
        artifact = covering.get(row.symbol_id)
        if artifact is not None:
            why = reason("COVERED", artifact=artifact.pk, version=artifact.version)
            verdicts[row.pk] = {"open": False, "verdict": Verdict.COVERED, "reason": why}
            continue
        why = dropped.get(row.symbol.code, evidence)[:500]
        verdicts[row.pk] = {"open": False, "verdict": Verdict.BLOCKED, "reason": why}
        until = recheck_at
        if row.symbol.code in dropped:
            until = max(recheck_at, policies.dropped_back_off(row.symbol.code, times[row.symbol_id] + 1, now))
        blocks[until][row.symbol_id] = why
    bulk.update_rows(RunSymbol, verdicts, fields=("open", "verdict", "reason"))
    for until, texts in blocks.items():
        coverage.open_block(symbol_ids=texts, reason=block_reason, evidence=texts, recheck_at=until)
    blocked = sum(len(texts) for texts in blocks.values())
    return {Verdict.COVERED: len(rows) - blocked, Verdict.BLOCKED: blocked}


def _times_blocked(symbol_ids: list[int]) -> dict[int, int]:
    """Return how often in a row the last runs of each symbol blocked it."""
    times: dict[int, int] = defaultdict(int)
    ended: set[int] = set()
    verdicts = RunSymbol.objects.filter(symbol__in=symbol_ids, open=False).order_by("-id")
    for symbol_id, verdict in verdicts.values_list("symbol_id", "verdict"):
        if verdict == Verdict.COVERED:
            ended.add(symbol_id)
        elif symbol_id not in ended:
            times[symbol_id] += 1
    return times

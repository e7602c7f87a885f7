"""Whether the lock protocol held: what processes were told, compared with what the database did. Pure.

What a process was told can be missing (it was killed before it wrote it down), but never wrong; what the database did
is complete. So everything that was granted to a token must be found in the history under that token.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from statistics import median

from training_app.choices import OPEN_STATES, RunState, Verdict

ACCEPTED = (RunState.SUCCEEDED, RunState.REJECTED)
ATTEMPTS_PER_TOKEN = 65_536
TAKEN_FROM_HOLDER = ("LEASE_EXPIRED", "TRAINER_DIED")
"""How the sweeper's reason for giving a run to the next one begins."""
CLOCK_STEP = 0.002
"""Seconds: SQLite tells the time in thousandths."""


class Broken(StrEnum):
    """What must never be."""

    TWO_RESULTS = "two accepted results for one run"
    SYMBOL_IN_TWO_RUNS = "a symbol in two open runs"
    TWO_OPEN_RUNS = "two open runs of one scope"
    LOST = "a run lost"
    WITHOUT_VERDICT = "a run ended without verdicts"
    STALE_TOKEN = "a stale token accepted"  # noqa: S105 - no password
    TOKEN_TWICE = "a token given twice"  # noqa: S105
    TOKEN_FELL = "a token that fell"  # noqa: S105
    OVERLAP = "accepted executions that overlap"
    TAKEN_EARLY = "a run taken before its lease was over"
    ATTEMPTS = "attempts that were not counted"
    FILES = "an accepted artifact whose files are not what was written"


@dataclass(frozen=True, slots=True)
class Change:
    """A change that the database wrote down. `kind`: run, scope, symbol or artifact; times are seconds since 1970.

    `lease_end` and `owner` are those before the change.
    """

    at: float
    kind: str
    run_id: int | None = None
    scope_id: int | None = None
    symbol_id: int | None = None
    before: str = ""
    after: str = ""
    old_token: int | None = None
    token: int | None = None
    lease_end: float | None = None
    owner: str = ""
    note: str = ""

    @property
    def is_claim(self) -> bool:
        return self.kind == "run" and self.after == RunState.RUNNING and self.token != self.old_token

    @property
    def accepts(self) -> bool:
        return self.kind == "run" and self.before == RunState.RUNNING and self.after in ACCEPTED


@dataclass(frozen=True, slots=True)
class Told:
    """What a process was told by the protocol: `what` was granted (or refused) to `token` of the run."""

    what: str
    run_id: int = 0
    token: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's row at the end. `verdicts`: (still open, verdict, has a block with a reason and a time) per symbol."""

    id: int
    scope_id: int
    state: str
    attempt: int
    max_attempts: int
    token: int | None
    verdicts: tuple[tuple[bool, str, bool], ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An accepted result. `broken` says what is wrong with its files, if anything."""

    run_id: int
    scope_id: int
    token: int
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything the judge looks at. `active_tokens`: scope id -> its token at the end."""

    runs: Sequence[Run] = ()
    artifacts: Sequence[Artifact] = ()
    active_tokens: dict[int, int] = field(default_factory=dict)
    history: Sequence[Change] = ()
    told: Sequence[Told] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    broken: Broken
    text: str

    def __str__(self) -> str:
        return f"{self.broken.value}: {self.text}"


def judge(evidence: Evidence) -> list[Violation]:
    """Return everything that must never be and was."""
    checks = (_results, _open_at_once, _endings, _told_and_done, _tokens, _overlaps, _takings, _attempts, _files)
    return [violation for check in checks for violation in check(evidence)]


def _of_runs(history: Sequence[Change]) -> list[Change]:
    return [change for change in history if change.kind == "run"]


def _results(evidence: Evidence) -> Iterator[Violation]:
    """T5: one result per run, of the token that the run has, and nothing after an end."""
    artifacts = Counter(artifact.run_id for artifact in evidence.artifacts)
    ends = Counter(
        change.run_id
        for change in _of_runs(evidence.history)
        if change.before == RunState.RUNNING and change.after in ACCEPTED
    )
    told = Counter(told.run_id for told in evidence.told if told.what in ACCEPTED)
    for name, counted in (("artifacts", artifacts), ("accepted ends", ends), ("processes told so", told)):
        for run_id, count in counted.items():
            if count > 1:
                yield Violation(Broken.TWO_RESULTS, f"run {run_id} has {count} {name}")
    for change in _of_runs(evidence.history):
        if change.before and change.before not in OPEN_STATES and change.after != change.before:
            yield Violation(Broken.TWO_RESULTS, f"run {change.run_id} was {change.before} and became {change.after}")
    tokens = {run.id: run.token for run in evidence.runs}
    for artifact in evidence.artifacts:
        if tokens.get(artifact.run_id) != artifact.token:
            text = f"run {artifact.run_id} has token {tokens.get(artifact.run_id)}, its result {artifact.token}"
            yield Violation(Broken.STALE_TOKEN, text)


def _open_at_once(evidence: Evidence) -> Iterator[Violation]:
    """I1, T1, at every moment of the history."""
    of_symbol: dict[int | None, int | None] = {}
    of_scope: dict[int | None, int | None] = {}
    for change in evidence.history:
        if change.kind == "symbol":
            present, key, broken = of_symbol, change.symbol_id, Broken.SYMBOL_IN_TWO_RUNS
            is_open = change.after == "open"
        elif change.kind == "run":
            present, key, broken = of_scope, change.scope_id, Broken.TWO_OPEN_RUNS
            is_open = change.after in OPEN_STATES
        else:
            continue
        holder = present.get(key)
        if is_open and holder is not None and holder != change.run_id:
            yield Violation(broken, f"{change.kind} {key} was in run {holder} when it came into run {change.run_id}")
        if is_open:
            present[key] = change.run_id
        elif holder == change.run_id:
            present[key] = None


def _endings(evidence: Evidence) -> Iterator[Violation]:
    """T9: every run ends. I2: no end without a verdict for every symbol, no block without a reason and a time."""
    for run in evidence.runs:
        if run.state in OPEN_STATES:
            yield Violation(Broken.LOST, f"run {run.id} is {run.state} after everybody has gone")
            continue
        if not run.verdicts:
            yield Violation(Broken.WITHOUT_VERDICT, f"run {run.id} ended as {run.state} and has no symbols")
        for is_open, verdict, has_block in run.verdicts:
            if is_open or not verdict or (verdict == Verdict.BLOCKED and not has_block):
                told = f"open={is_open}, verdict={verdict or 'none'}, block={has_block}"
                yield Violation(Broken.WITHOUT_VERDICT, f"run {run.id} ended as {run.state} with a symbol {told}")
                break


def _told_and_done(evidence: Evidence) -> Iterator[Violation]:
    """T4, T5: nothing is granted to a token but under this token."""
    done: Counter[tuple[int | None, int | None, str]] = Counter()
    for change in _of_runs(evidence.history):
        if change.is_claim:
            done[change.run_id, change.token, "claim"] += 1
        elif change.before == RunState.RUNNING:
            act = "beat" if change.after == RunState.RUNNING else change.after
            done[change.run_id, change.old_token, act] += 1
    granted = {"claim", "beat", RunState.QUEUED, RunState.FAILED, *ACCEPTED}
    told = Counter((each.run_id, each.token, each.what) for each in evidence.told if each.what in granted)
    for (run_id, token, what), count in sorted(told.items()):
        found = done[run_id, token, what]
        if found < count:
            text = f"run {run_id}: {what} was granted {count} times to token {token}, and done {found} times under it"
            yield Violation(Broken.STALE_TOKEN, text)


def _tokens(evidence: Evidence) -> Iterator[Violation]:
    """T2, T6: tokens only grow, none is given twice, and the scope's is the largest of its artifacts."""
    given: dict[int | None, list[int]] = defaultdict(list)
    for change in _of_runs(evidence.history):
        if change.is_claim and change.token is not None:
            given[change.scope_id].append(change.token)
    for scope_id, tokens in given.items():
        for earlier, later in pairwise(tokens):
            if later < earlier:
                yield Violation(Broken.TOKEN_FELL, f"scope {scope_id} gave {later} after {earlier}")
        for token, count in Counter(tokens).items():
            if count > 1:
                yield Violation(Broken.TOKEN_TWICE, f"scope {scope_id} gave {token} {count} times")
    claims = Counter((told.run_id, told.token) for told in evidence.told if told.what == "claim")
    for (run_id, token), count in claims.items():
        if count > 1:
            yield Violation(Broken.TOKEN_TWICE, f"{count} processes were told that they hold run {run_id} by {token}")
    for change in evidence.history:
        if change.kind == "scope" and (change.token or 0) < (change.old_token or 0):
            yield Violation(Broken.TOKEN_FELL, f"scope {change.scope_id}: {change.old_token} became {change.token}")
    largest: dict[int, int] = defaultdict(int)
    for artifact in evidence.artifacts:
        largest[artifact.scope_id] = max(largest[artifact.scope_id], artifact.token)
    for scope_id, token in evidence.active_tokens.items():
        if token != largest[scope_id]:
            text = f"scope {scope_id} holds {token}, the largest of its artifacts is {largest[scope_id]}"
            yield Violation(Broken.TOKEN_FELL, text)


def _overlaps(evidence: Evidence) -> Iterator[Violation]:
    """T7: an accepted execution begins when the one before has ended, by the database's clock."""
    claimed: dict[tuple[int | None, int | None], float] = {}
    ended_at: dict[int | None, tuple[float, int | None]] = {}
    for change in _of_runs(evidence.history):
        if change.is_claim:
            claimed[change.run_id, change.token] = change.at
        elif change.accepts:
            began = claimed.get((change.run_id, change.token), float("-inf"))
            before, run_id = ended_at.get(change.scope_id, (float("-inf"), None))
            if began < before:
                text = f"scope {change.scope_id}: run {change.run_id} was claimed before run {run_id} ended"
                yield Violation(Broken.OVERLAP, text)
            ended_at[change.scope_id] = (change.at, change.run_id)


def _takings(evidence: Evidence) -> Iterator[Violation]:
    """T3: a running run is claimed only when its lease is over."""
    for change in _of_runs(evidence.history):
        taken = change.is_claim and change.before == RunState.RUNNING
        if taken and change.lease_end is not None and change.at < change.lease_end - CLOCK_STEP:
            text = f"run {change.run_id} was taken {change.lease_end - change.at:.3f} s early"
            yield Violation(Broken.TAKEN_EARLY, text)


def _attempts(evidence: Evidence) -> Iterator[Violation]:
    """T8: as many attempts as claims, never more than allowed."""
    claims = Counter(change.run_id for change in _of_runs(evidence.history) if change.is_claim)
    for run in evidence.runs:
        if claims[run.id] != run.attempt or run.attempt > run.max_attempts:
            text = f"run {run.id}: {claims[run.id]} claims, {run.attempt} attempts, {run.max_attempts} allowed"
            yield Violation(Broken.ATTEMPTS, text)


def _files(evidence: Evidence) -> Iterator[Violation]:
    """T13: what was accepted is there, as it was written."""
    for artifact in evidence.artifacts:
        if artifact.broken:
            yield Violation(Broken.FILES, artifact.broken)
    for told in evidence.told:
        if told.what == "files":
            yield Violation(Broken.FILES, told.text)


def takeovers(history: Sequence[Change], killed: Mapping[str, float]) -> list[float]:
    """Return, for every run that was taken from a holder, the seconds for which nobody could go on with it.

    Counted from the holder's kill (`killed`: owner -> time), or from the end of its lease when that came first.
    """
    over: dict[int | None, float] = {}
    waits = []
    for change in _of_runs(history):
        lease_end = change.lease_end if change.lease_end is not None else change.at
        stood_still = min(lease_end, killed.get(change.owner, lease_end))
        if change.before == RunState.RUNNING and change.note.startswith(TAKEN_FROM_HOLDER):
            over[change.run_id] = stood_still
        if change.is_claim and change.before == RunState.RUNNING:
            waits.append(change.at - stood_still)
        elif change.is_claim and change.run_id in over:
            waits.append(change.at - over.pop(change.run_id))
    return waits


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and worst, rounded to milliseconds; both 0 when there are none."""
    if not values:
        return {"median": 0.0, "worst": 0.0}
    return {"median": round(median(values), 3), "worst": round(max(values), 3)}

"""Faults by schedule: which requests go wrong, when, and how. Seeded, so that a run can be repeated.

A rule matches requests by method and path (a regular expression that is searched), and acts `before` the venue has seen
anything, `during` (it has checked key, signature and age, and looks at the age again right before the effect), or
`after` the effect. `times` bounds how often, `skip` lets the first matches pass, `nth` acts on the n-th match only.
"""

from __future__ import annotations

import random
import re
import threading
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Phase = Literal["before", "during", "after"]
KINDS = (
    "reset",  # TCP RST
    "close",  # closed without an answer
    "delay",  # `seconds` of real time, then on as if nothing had happened
    "delay_close",  # `seconds`, then closed without an answer
    "status",  # HTTP `status` with `body`, and `location` if it redirects
    "html",  # HTTP 200 and a web page
    "truncated",  # the true answer, torn in the middle (Content-Length says so)
    "broken_json",  # the true answer with its end cut off, HTTP length right
    "empty",  # HTTP 200, no body
    "ret_code",  # `code` and `message` of the venue
    "rate_limit",  # 10006 with X-Bapi-Limit-Reset-Timestamp
    "duplicate_rows",  # every row of the answer's list twice
    "shuffle_rows",  # the answer's list in another order
    "no_rows",  # the answer's list empty: a read that succeeds and lies
)
#: Kinds that change an answer, so they can only act after the effect.
OF_ANSWERS = frozenset({"truncated", "broken_json", "duplicate_rows", "shuffle_rows", "no_rows"})


@dataclass(slots=True)
class Fault:
    """One rule. `seconds` are real ones. `probability` is asked for each match that counts otherwise."""

    kind: str
    path: str = "."
    method: str = ""
    phase: Phase = "before"
    probability: float = 1.0
    nth: int = 0
    skip: int = 0
    times: int = 0
    seconds: float = 0.0
    status: int = 503
    code: int = 10016
    message: str = "Server error"
    body: str = "<html><body>503 Service Temporarily Unavailable</body></html>"
    location: str = ""
    contains: str = ""
    matched: int = 0
    acted: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"fault {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.phase not in ("before", "during", "after"):
            raise ValueError(f"phase {self.phase!r}: choose before, during or after")
        if self.kind in OF_ANSWERS:
            self.phase = "after"
        re.compile(self.path)

    def is_about(self, method: str, path: str, payload: str) -> bool:
        return (
            (not self.method or self.method == method)
            and re.search(self.path, path) is not None
            and (not self.contains or self.contains in payload)
        )


@dataclass
class FaultPlan:
    """The rules in force; the first one of a phase that acts, acts alone. Used by many threads."""

    seed: int = 0
    rules: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def add(self, kind: str, path: str = ".", **settings: Any) -> Fault:
        """Add a rule and return it: its `matched` and `acted` count. Raises ValueError or TypeError for a wrong one."""
        rule = Fault(kind, path, **settings)
        with self._lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        with self._lock:
            self.rules.clear()

    def load(self, plan: dict[str, Any]) -> None:
        """Replace everything: {"seed": 1, "rules": [{"kind": "reset", "path": "order/create", ...}]}."""
        rules = [Fault(**rule) for rule in plan.get("rules", [])]
        with self._lock:
            self.rules = rules
            self.seed = int(plan.get("seed", self.seed))
            self._random = random.Random(self.seed)

    def to_json(self) -> dict[str, Any]:
        with self._lock:
            return {"seed": self.seed, "rules": [asdict(rule) for rule in self.rules]}

    def pick(self, phase: Phase, method: str, path: str, payload: str) -> Fault | None:
        """The rule that acts on this request in this phase, if one does."""
        with self._lock:
            for rule in self.rules:
                if rule.phase != phase or not rule.is_about(method, path, payload):
                    continue
                rule.matched += 1
                due = rule.matched == rule.nth if rule.nth else rule.matched > rule.skip
                if not due or (rule.times and rule.acted >= rule.times):
                    continue
                if rule.probability < 1 and self._random.random() >= rule.probability:
                    continue
                rule.acted += 1
                return rule
        return None

    def shuffled(self, rows: list[Any]) -> list[Any]:
        with self._lock:
            return self._random.sample(rows, len(rows))

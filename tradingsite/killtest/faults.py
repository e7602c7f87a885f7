"""Everything that can go wrong between a bot and its exchange, as rules of the loopback exchange (`tests/bybit`)."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

WRITES, READS, PUBLIC = (
    "order/(create|cancel)",
    "order/(realtime|history)|execution/list|position/list|wallet",
    "market/",
)
RARE = {"probability": 0.001}
"""Each of these looks like maintenance or asks for silence: the bot then waits, which more of them would only test."""
SILENT: list[dict[str, Any]] = [
    {"kind": "reset"},
    {"kind": "close"},
    {"kind": "delay", "seconds": 0.3},
    {"kind": "delay_close", "seconds": 0.3},
    {"kind": "status", "status": 503, **RARE},
    {"kind": "status", "status": 524},
    {"kind": "html", **RARE},
    {"kind": "empty"},
    {"kind": "ret_code", "code": 10000, "message": "Server Timeout"},
    {"kind": "ret_code", "code": 10016, "message": "Server error"},
]
TORN: list[dict[str, Any]] = [{"kind": "truncated"}, {"kind": "broken_json"}]
LIES: list[dict[str, Any]] = [{"kind": "duplicate_rows"}, {"kind": "shuffle_rows"}, {"kind": "no_rows"}]
ON_WRITES, ON_READS = 0.01, 0.003
"""Probabilities of each rule at each request: a quarter of the orders and 4 % of the reads go wrong."""


def plan(seed: int) -> dict[str, Any]:
    """Return the schedule: every kind on orders before, during and after the effect, and every kind on reads."""
    rules = [
        {"probability": ON_WRITES, **fault, "path": WRITES, "method": "POST", "phase": phase}
        for fault in SILENT
        for phase in ("before", "during", "after")
    ]
    rules += [{**fault, "path": WRITES, "method": "POST", "probability": ON_WRITES} for fault in TORN]
    rules.append({"kind": "rate_limit", "path": WRITES, **RARE})
    rules += [{"probability": ON_READS, **fault, "path": READS} for fault in (*SILENT, *TORN, *LIES)]
    rules += [{"probability": ON_READS, **fault, "path": PUBLIC} for fault in (*SILENT, *TORN)]
    return {"seed": seed, "rules": rules}


def start(url: str, seed: int) -> None:
    """Let the exchange at `url` fail by the schedule from now on."""
    body = json.dumps(plan(seed)).encode()
    with urllib.request.urlopen(f"{url}/control/faults", data=body, timeout=10):  # noqa: S310 - our own server
        pass


def happened(url: str) -> dict[str, int]:
    """Return how often each kind has happened."""
    with urllib.request.urlopen(f"{url}/control/faults", timeout=10) as answer:  # noqa: S310 - our own server
        rules = json.load(answer)["rules"]
    return {kind: sum(rule["acted"] for rule in rules if rule["kind"] == kind) for kind in {r["kind"] for r in rules}}

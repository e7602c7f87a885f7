"""Answers of the exchange that the database could not take: kept in memory and in a file until it can (F29, F30).

Between a send and its row's next state lies the only moment at which a lost database loses knowledge. The file is made
before it is needed, with room for its records: a disk that is full then cannot keep an answer from being written.
Nothing here is trusted more than the venue: an answer moves an order that still waits for one, once, and the next
reconciliation reads the order all the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import structlog

from exchanges.port import Ack, PlaceOutcome, Rejected, Throttled, Unknown, VenueOrder

log = structlog.get_logger(__name__)

RESERVED_BYTES = 65_536
"""Room of the file, allocated when the bot starts: about a hundred answers; a bar sends a few."""
_KINDS: dict[str, type[Rejected] | type[Throttled] | type[Unknown]] = {
    "Rejected": Rejected,
    "Throttled": Throttled,
    "Unknown": Unknown,
}
_DECIMALS = ("quantity", "filled", "average_price", "price", "trigger_price")


class Spool:
    """The kept answers of one account, by client order id. One process uses it: the holder of the account's lease.

    One that was frozen, or that waits for the account, may have an old picture of the file and write over a line. So
    `refresh` reads it again at each takeover, and a line that cannot be read costs that answer only, never a start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, PlaceOutcome] = {}
        self._size = 0
        self.refresh()

    def refresh(self) -> None:
        """Take over what the file holds by now, beside what is in memory. Never raises."""
        try:
            self._open()
        except OSError as error:
            # A bot without a spool still trades: what it loses here, the venue tells at the next reconciliation.
            log.error("spool_not_ready", path=str(self.path), error=str(error))  # noqa: TRY400 - the errno says it all

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() < RESERVED_BYTES:
                _allocate(file.fileno())
                os.fsync(file.fileno())
        written = self.path.read_bytes().partition(b"\0")[0]
        whole = written[: written.rfind(b"\n") + 1]  # a kill in the middle of a write leaves half a line
        self._size = len(whole)
        for line in whole.splitlines():
            try:
                client_order_id, outcome = _read(json.loads(line))
            except (ValueError, LookupError, TypeError, ArithmeticError) as error:
                log.error("spool_line_unreadable", path=str(self.path), error=str(error))  # noqa: TRY400 - as above
                continue
            self._kept.setdefault(client_order_id, outcome)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, client_order_id: str, outcome: PlaceOutcome) -> None:
        """Keep an answer in memory, and on the disk before this returns. Never raises: the caller has an error."""
        self._kept[client_order_id] = outcome
        line = json.dumps(_written(client_order_id, outcome), separators=(",", ":")).encode() + b"\n"
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.seek(self._size)
                file.write(line)
                os.fsync(file.fileno())
            self._size += len(line)
        except OSError as error:
            log.error("spool_not_written", order=client_order_id, error=str(error))  # noqa: TRY400 - as above
        log.error("answer_spooled", order=client_order_id, outcome=type(outcome).__name__)

    def kept(self) -> Mapping[str, PlaceOutcome]:
        return dict(self._kept)

    def clear(self) -> None:
        """Forget everything: the database has it now. The file keeps its room. Never raises.

        A file that cannot be emptied does no harm: none of its orders waits for an answer any more.
        """
        self._kept.clear()
        if not self._size:
            return
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.write(b"\0" * self._size)
                os.fsync(file.fileno())
            self._size = 0
        except OSError as error:
            log.error("spool_not_emptied", path=str(self.path), error=str(error))  # noqa: TRY400 - as above


def _allocate(descriptor: int) -> None:
    """Give the file its blocks now. Where the system cannot promise them, zeros are written instead (macOS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, RESERVED_BYTES)
    else:
        os.write(descriptor, b"\0" * (RESERVED_BYTES - os.fstat(descriptor).st_size))


def _written(client_order_id: str, outcome: PlaceOutcome) -> dict[str, Any]:
    kind = type(outcome).__name__
    values = asdict(outcome.order) if isinstance(outcome, Ack) else asdict(outcome)
    plain = {name: str(value) if isinstance(value, Decimal) else value for name, value in values.items()}
    return {"id": client_order_id, "kind": kind, "values": plain}


def _read(record: Mapping[str, Any]) -> tuple[str, PlaceOutcome]:
    values = dict(record["values"])
    if record["kind"] != "Ack":
        return record["id"], _KINDS[record["kind"]](**values)
    for name in _DECIMALS:
        values[name] = None if values[name] is None else Decimal(values[name])
    return record["id"], Ack(VenueOrder(**values))

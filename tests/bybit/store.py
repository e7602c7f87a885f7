"""The loopback exchange's memory on disk: one SQLite file that survives `kill -9` of its process.

Everything is held in memory and written through; `flush` puts what changed since the last one into one transaction.
WAL without fsync: a killed process loses nothing that was flushed, only a power cut would.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tests.bybit.records import Episode, Execution, Order, Position, from_json, to_json

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (order_id TEXT PRIMARY KEY, link_id TEXT NOT NULL, body TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_link_id ON orders (link_id) WHERE link_id != '';
CREATE TABLE IF NOT EXISTS executions (sequence INTEGER PRIMARY KEY, exec_id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS positions (symbol TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS episodes (number INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (number INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, body TEXT NOT NULL);
"""


class Store:
    """All records by their keys. One thread at a time (the exchange's lock)."""

    def __init__(self, path: Path | str) -> None:
        self._connection = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.executescript(_SCHEMA)
        self.orders: dict[str, Order] = {o.order_id: o for o in self._load("orders", Order, "rowid")}
        self.by_link: dict[str, Order] = {o.link_id: o for o in self.orders.values() if o.link_id}
        self.executions: list[Execution] = self._load("executions", Execution, "sequence")
        self.positions: dict[str, Position] = {p.symbol: p for p in self._load("positions", Position, "symbol")}
        self.episodes: list[Episode] = self._load("episodes", Episode, "number")
        self.attempts: list[dict[str, Any]] = [
            json.loads(body) for (body,) in self._connection.execute("SELECT body FROM attempts ORDER BY number")
        ]
        self.state: dict[str, Any] = {
            name: json.loads(body) for name, body in self._connection.execute("SELECT name, body FROM state")
        }
        self.open_orders: dict[str, Order] = {o.order_id: o for o in self.orders.values() if o.is_open}
        self._dirty: dict[tuple[str, Any], Any] = {}

    def _load(self, table: str, kind: type[Any], order: str) -> list[Any]:
        rows = self._connection.execute(f"SELECT body FROM {table} ORDER BY {order}")
        return [from_json(kind, json.loads(body)) for (body,) in rows]

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------------- writes
    def put_order(self, order: Order) -> None:
        self.orders[order.order_id] = order
        if order.link_id:
            self.by_link[order.link_id] = order
        if order.is_open:
            self.open_orders[order.order_id] = order
        else:
            self.open_orders.pop(order.order_id, None)
        self._dirty["orders", order.order_id] = order

    def put_execution(self, execution: Execution) -> None:
        self.executions.append(execution)
        self._dirty["executions", execution.sequence] = execution

    def put_position(self, position: Position) -> None:
        self.positions[position.symbol] = position
        self._dirty["positions", position.symbol] = position

    def put_episode(self, number: int, episode: Episode) -> None:
        if number == len(self.episodes):
            self.episodes.append(episode)
        self._dirty["episodes", number] = episode

    def put_attempt(self, attempt: dict[str, Any]) -> None:
        self.attempts.append(attempt)
        self._dirty["attempts", len(self.attempts)] = attempt

    def put_state(self, name: str, value: Any) -> None:
        self.state[name] = value
        self._dirty["state", name] = value

    def flush(self) -> None:
        """Write what changed, all or nothing."""
        if not self._dirty:
            return
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        for (table, key), record in self._dirty.items():
            body = json.dumps(record if table in ("state", "attempts") else to_json(record))
            if table == "orders":
                run(
                    "INSERT INTO orders VALUES (?, ?, ?) ON CONFLICT (order_id) DO UPDATE SET body = excluded.body",
                    (key, record.link_id, body),
                )
            elif table == "executions":
                run("INSERT OR REPLACE INTO executions VALUES (?, ?, ?)", (key, record.exec_id, body))
            else:
                run(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (key, body))
        run("COMMIT")
        self._dirty.clear()

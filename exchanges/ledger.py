"""The book of one matched account: cash, positions, orders and fills in a SQLite file of its own.

It plays the exchange's memory. A bot that was killed finds its orders here, and a second process with the same file
sees the same account. SQLite in WAL mode with one writer at a time is all that needs; ":memory:" serves tests and the
soak.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import cast

from exchanges.errors import LedgerError
from exchanges.fill_model import Holding
from exchanges.port import FillKind, OrderKind, OrderSide, OrderStatus, VenueFill, VenueOrder

_VERSION = 1
_BUSY_SECONDS = 20.0
_SCHEMA = """
CREATE TABLE account (name TEXT PRIMARY KEY, currency TEXT NOT NULL, cash TEXT NOT NULL);
CREATE TABLE orders (
    client_order_id TEXT PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE, symbol TEXT NOT NULL, side TEXT NOT NULL,
    kind TEXT NOT NULL, quantity TEXT NOT NULL, filled TEXT NOT NULL, average_price TEXT, status TEXT NOT NULL,
    price TEXT, trigger_price TEXT, reduce_only INTEGER NOT NULL, time_ms INTEGER NOT NULL);
CREATE INDEX open_orders ON orders (symbol) WHERE status = 'open';
CREATE TABLE fills (
    sequence INTEGER PRIMARY KEY, client_order_id TEXT NOT NULL, venue_order_id TEXT NOT NULL, symbol TEXT NOT NULL,
    side TEXT NOT NULL, quantity TEXT NOT NULL, price TEXT NOT NULL, fee TEXT NOT NULL, time_ms INTEGER NOT NULL,
    kind TEXT NOT NULL);
CREATE INDEX fills_by_time ON fills (time_ms, sequence);
CREATE TABLE positions (symbol TEXT PRIMARY KEY, quantity TEXT NOT NULL, entry_price TEXT NOT NULL);
CREATE TABLE cursors (
    symbol TEXT PRIMARY KEY, matched_until_ms INTEGER NOT NULL, funded_until_ms INTEGER NOT NULL);
CREATE TABLE leverages (symbol TEXT PRIMARY KEY, leverage TEXT NOT NULL);
"""
_ORDER_COLUMNS = (
    "client_order_id, sequence, symbol, side, kind, quantity, filled, average_price, status, price, trigger_price, "
    "reduce_only, time_ms"
)
_FILL_COLUMNS = "sequence, client_order_id, venue_order_id, symbol, side, quantity, price, fee, time_ms, kind"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a symbol's candles are matched, and its funding is paid."""

    matched_until_ms: int
    funded_until_ms: int


class Ledger:
    """Open (or create) the book of `account`. Raises LedgerError if the file is not one, or another account's."""

    def __init__(self, path: Path | str, *, account: str, currency: str, initial_balance: Decimal) -> None:
        self._path = str(path)
        self._account = account
        try:
            if self._path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            # Whoever forgets to close it, or fails below, leaves no open file behind: Python 3.13 warns of those.
            weakref.finalize(self, self._connection.close)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._create(currency, initial_balance)
        except (sqlite3.DatabaseError, OSError) as error:
            raise LedgerError(
                f"ledger {self._path} cannot be opened ({error}); give a writable path, or move the file away to start "
                "a new simulated account"
            ) from error
        row = self._connection.execute("SELECT name, currency FROM account").fetchone()
        if row != (account, currency):
            raise LedgerError(
                f"ledger {self._path} belongs to account {row[0]!r} in {row[1]}, not to {account!r} in {currency}; "
                "use one ledger file per account"
            )

    def _create(self, currency: str, initial_balance: Decimal) -> None:
        with self.transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(
                    "INSERT INTO account VALUES (?, ?, ?)", (self._account, currency, str(initial_balance))
                )
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise LedgerError(
                    f"ledger {self._path} has version {version}, this program reads {_VERSION}; move the file away"
                )

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else writes meanwhile."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def data_version(self) -> int:
        """Changes when *another* process has written: what is held in memory must then be read again."""
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    # --------------------------------------------------------------------- reads
    def cash(self) -> Decimal:
        return Decimal(self._connection.execute("SELECT cash FROM account").fetchone()[0])

    def positions(self) -> dict[str, Holding]:
        rows = self._connection.execute("SELECT symbol, quantity, entry_price FROM positions ORDER BY symbol")
        return {symbol: Holding(Decimal(quantity), Decimal(entry)) for symbol, quantity, entry in rows}

    def cursors(self) -> dict[str, Cursor]:
        rows = self._connection.execute("SELECT symbol, matched_until_ms, funded_until_ms FROM cursors")
        return {symbol: Cursor(matched, funded) for symbol, matched, funded in rows}

    def leverages(self) -> dict[str, Decimal]:
        rows = self._connection.execute("SELECT symbol, leverage FROM leverages")
        return {symbol: Decimal(leverage) for symbol, leverage in rows}

    def open_orders(self) -> dict[str, VenueOrder]:
        rows = self._connection.execute(
            f"SELECT {_ORDER_COLUMNS} FROM orders WHERE status = 'open' ORDER BY sequence"  # noqa: S608 - constant
        )
        return {row[0]: _order(row) for row in rows}

    def order(self, client_order_id: str) -> VenueOrder | None:
        row = self._connection.execute(
            f"SELECT {_ORDER_COLUMNS} FROM orders WHERE client_order_id = ?",  # noqa: S608 - constant
            (client_order_id,),
        ).fetchone()
        return None if row is None else _order(row)

    def fills_since(self, time_ms: int) -> list[VenueFill]:
        rows = self._connection.execute(
            f"SELECT {_FILL_COLUMNS} FROM fills WHERE time_ms >= ? ORDER BY time_ms, sequence",  # noqa: S608 - constant
            (time_ms,),
        )
        return [_fill(row) for row in rows]

    # -------------------------------------------------------------------- writes
    def next_sequence(self, table: str) -> int:
        """The next number of `orders` or `fills`; only inside a transaction."""
        row = self._connection.execute(
            f"SELECT COALESCE(MAX(sequence), 0) + 1 FROM {table}"  # noqa: S608 - a constant of this package
        ).fetchone()
        return int(row[0])

    def save_cash(self, cash: Decimal) -> None:
        self._connection.execute("UPDATE account SET cash = ?", (str(cash),))

    def save_position(self, symbol: str, holding: Holding) -> None:
        if holding.quantity == 0:
            self._connection.execute("DELETE FROM positions WHERE symbol = ?", (symbol,))
        else:
            self._connection.execute(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                (symbol, str(holding.quantity), str(holding.entry_price)),
            )

    def save_cursor(self, symbol: str, cursor: Cursor) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (symbol, cursor.matched_until_ms, cursor.funded_until_ms)
        )

    def save_leverage(self, symbol: str, leverage: Decimal) -> None:
        self._connection.execute("INSERT OR REPLACE INTO leverages VALUES (?, ?)", (symbol, str(leverage)))

    def save_order(self, order: VenueOrder) -> None:
        values = (
            order.client_order_id, _sequence_of(order.venue_order_id), order.symbol, order.side, order.kind,
            str(order.quantity), str(order.filled), _text(order.average_price), order.status, _text(order.price),
            _text(order.trigger_price), int(order.reduce_only), order.time_ms,
        )  # fmt: skip
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT OR REPLACE INTO orders ({_ORDER_COLUMNS}) VALUES ({marks})", values)  # noqa: S608 - constant

    def add_fill(self, fill: VenueFill) -> None:
        values = (
            int(fill.trade_id[1:]), fill.client_order_id, fill.venue_order_id, fill.symbol, fill.side,
            str(fill.quantity), str(fill.price), str(fill.fee), fill.time_ms, fill.kind,
        )  # fmt: skip
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT INTO fills ({_FILL_COLUMNS}) VALUES ({marks})", values)  # noqa: S608 - constant


def order_id(sequence: int) -> str:
    return f"O{sequence}"


def trade_id(sequence: int) -> str:
    return f"T{sequence}"


def _sequence_of(venue_order_id: str) -> int:
    return int(venue_order_id[1:])


def _text(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _order(row: tuple[object, ...]) -> VenueOrder:
    client_id, sequence, symbol, side, kind, quantity, filled, average, status, price, trigger, reduce_only, time = row
    return VenueOrder(
        client_order_id=str(client_id),
        venue_order_id=order_id(cast(int, sequence)),
        symbol=str(symbol),
        side=cast(OrderSide, side),
        kind=cast(OrderKind, kind),
        quantity=Decimal(str(quantity)),
        filled=Decimal(str(filled)),
        average_price=_decimal(cast("str | None", average)),
        status=cast(OrderStatus, status),
        price=_decimal(cast("str | None", price)),
        trigger_price=_decimal(cast("str | None", trigger)),
        reduce_only=bool(reduce_only),
        time_ms=cast(int, time),
    )


def _fill(row: tuple[object, ...]) -> VenueFill:
    sequence, client_id, venue_id, symbol, side, quantity, price, fee, time, kind = row
    return VenueFill(
        trade_id=trade_id(cast(int, sequence)),
        client_order_id=str(client_id),
        venue_order_id=str(venue_id),
        symbol=str(symbol),
        side=cast(OrderSide, side),
        quantity=Decimal(str(quantity)),
        price=Decimal(str(price)),
        fee=Decimal(str(fee)),
        time_ms=cast(int, time),
        kind=cast(FillKind, kind),
    )

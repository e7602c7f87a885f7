"""What the database itself writes down while it is hammered: triggers that record every change of runs and tokens.

A process that is killed cannot tell what it did, and rows only show the end. The triggers write in the transaction that
they record, so what was rolled back leaves nothing. They exist only in the hammer's own database.
"""

from __future__ import annotations

from django.db import connection

from training_app.locktest.judge import Change

TABLE = "locktest_history"
COLUMNS = (
    "kind",
    "run_id",
    "scope_id",
    "symbol_id",
    "before",
    "after",
    "old_token",
    "token",
    "lease_end",
    "owner",
    "note",
)
#: (name, event, table, values of COLUMNS). `epoch(...)` stands for seconds since 1970 in the database's own words.
TRIGGERS = (
    (
        "run_new", "INSERT", "training_app_trainingrun",
        ("'run'", "NEW.id", "NEW.scope_id", "NULL", "''", "NEW.state", "NULL", "NEW.fencing_token", "NULL", "''", "''"),
    ),
    (
        "run", "UPDATE", "training_app_trainingrun",
        ("'run'", "NEW.id", "NEW.scope_id", "NULL", "OLD.state", "NEW.state", "OLD.fencing_token", "NEW.fencing_token",
         "epoch(OLD.lease_expires_at)", "OLD.owner", "SUBSTR(NEW.error, 1, 40)"),
    ),
    (
        "run_gone", "DELETE", "training_app_trainingrun",
        ("'run'", "OLD.id", "OLD.scope_id", "NULL", "OLD.state", "'taken back'", "OLD.fencing_token", "NULL", "NULL",
         "OLD.owner", "''"),
    ),
    (
        "scope", "UPDATE", "training_app_trainingscope",
        ("'scope'", "NULL", "NEW.id", "NULL", "''", "''", "OLD.active_token", "NEW.active_token", "NULL", "''", "''"),
    ),
    (
        "symbol_new", "INSERT", "training_app_runsymbol",
        ("'symbol'", "NEW.run_id", "NULL", "NEW.symbol_id", "''", "'open'", "NULL", "NULL", "NULL", "''", "''"),
    ),
    (
        "symbol", "UPDATE", "training_app_runsymbol",
        ("'symbol'", "NEW.run_id", "NULL", "NEW.symbol_id", "''",
         "CASE WHEN NEW.open THEN 'open' ELSE 'closed' END", "NULL", "NULL", "NULL", "''", "''"),
    ),
    (
        "artifact", "INSERT", "training_app_modelartifact",
        ("'artifact'", "NEW.run_id", "NEW.scope_id", "NULL", "''", "''", "NULL", "NEW.fencing_token", "NULL", "''",
         "''"),
    ),
)  # fmt: skip


def install() -> None:
    """Make the table and the triggers in the present, empty database."""
    postgresql = connection.vendor == "postgresql"
    number = "BIGSERIAL PRIMARY KEY" if postgresql else "INTEGER PRIMARY KEY AUTOINCREMENT"
    now = "EXTRACT(EPOCH FROM CLOCK_TIMESTAMP())" if postgresql else _epoch("'now'")
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE {TABLE} (id {number}, at DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, run_id BIGINT, "
            "scope_id BIGINT, symbol_id BIGINT, before TEXT, after TEXT, old_token BIGINT, token BIGINT, "
            "lease_end DOUBLE PRECISION, owner TEXT, note TEXT)"
        )
        for name, event, table, values in TRIGGERS:
            told = ", ".join(_epoch(value[6:-1]) if value.startswith("epoch(") else value for value in values)
            insert = f"INSERT INTO {TABLE} (at, {', '.join(COLUMNS)}) VALUES ({now}, {told});"  # noqa: S608 - constants
            if postgresql:
                cursor.execute(
                    f"CREATE FUNCTION locktest_{name}() RETURNS trigger LANGUAGE plpgsql AS "
                    f"$$ BEGIN {insert} RETURN NULL; END $$"
                )
                body = f"FOR EACH ROW EXECUTE FUNCTION locktest_{name}()"
            else:
                body = f"BEGIN {insert} END"
            cursor.execute(f"CREATE TRIGGER locktest_{name} AFTER {event} ON {table} {body}")


def _epoch(value: str) -> str:
    if connection.vendor == "postgresql":
        return f"EXTRACT(EPOCH FROM {value})"
    return f"((julianday({value}) - 2440587.5) * 86400.0)"


def read() -> list[Change]:
    """Return every change in the order in which the database made them."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT at, {', '.join(COLUMNS)} FROM {TABLE} ORDER BY id")  # noqa: S608 - constants
        return [Change(*row) for row in cursor.fetchall()]

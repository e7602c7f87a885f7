"""A fixed piece of work, timed beside the soak: it tells a slower machine from a day that costs more.

A soak of a year takes hours on a machine that does other things too, and a processor that is shared gives less for a
second of its time. So every simulated hour the same work is timed here, and a day's cost is given in it as well.
"""

from __future__ import annotations

import json
import sqlite3
import time

import numpy as np

ROWS = 1500


def measure() -> float:
    """Do the fixed work and return its CPU seconds (0.004 to 0.008 on the machine of docs/soak.md).

    It is made of what a pass is made of: interpreted Python, rows of SQLite, JSON, and arrays.
    """
    began = time.process_time()
    rows = [(index, f"SYM{index % 97}/USDT", index * 0.25) for index in range(ROWS)]
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, code TEXT, price REAL)")
        connection.executemany("INSERT INTO row VALUES (?, ?, ?)", rows)
        found = connection.execute("SELECT code, price FROM row ORDER BY code, price DESC").fetchall()
    connection.close()
    by_code: dict[str, list[float]] = {}
    for code, price in found:
        by_code.setdefault(code, []).append(price)
    json.loads(json.dumps(by_code))
    values = np.array([price for _, price in found])
    for _ in range(20):
        np.sort(np.sqrt(values + 1.0))
    return time.process_time() - began

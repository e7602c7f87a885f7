"""The whole live path on a fast clock: `python -m tests.bybit.hour --minutes 20` (from the project's folder).

Starts the loopback exchange and `runall` with EXCHANGE=live on a folder of its own: histories are fetched through ccxt,
a model is trained, the bot trades. Half-way everything is stopped and started again. At the end it prints what the
tables hold, and every warning and error of the logs by kind and number: each must be one that can be explained.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"\[(?P<level>warning|error|critical)\s*\] (?P<event>\S+)")
CLOCK = (
    "import datetime as dt; from ops_app.models import MarketClock; "
    "MarketClock.objects.create(market='bybit', source='live', speed={speed}, "
    "market_start=dt.datetime.fromtimestamp({origin}, dt.UTC), real_start=dt.datetime.fromtimestamp({origin}, dt.UTC))"
)
TABLES = (
    "import json; from trading_app.models import *; from training_app.models import *; "
    "from django.db.models import Count; "
    "print(json.dumps({{'runs': TrainingRun.objects.count(), 'models': ModelArtifact.objects.count(), "
    "'decisions': Decision.objects.count(), 'orders': dict(Order.objects.values_list('state').annotate(Count('pk'))), "
    "'fills': Fill.objects.count(), 'closed': dict(Position.objects.exclude(closed_at=None).values_list('close_reason')"
    ".annotate(Count('pk'))), 'missed_bars': Bot.objects.get().missed_bars}}))"
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bybit.hour", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=20, help="real minutes, half before and half after the restart"
    )
    parser.add_argument("--speed", type=float, default=60, help="exchange seconds per real second")
    parser.add_argument("--symbols", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hour-", ignore_cleanup_errors=True) as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    origin = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0).timestamp()
    exchange = subprocess.Popen(
        [
            sys.executable, "-m", "tests.bybit", "--state", str(folder / "exchange.sqlite3"), "--no-specials",
            "--symbols", str(options.symbols), "--speed", str(options.speed), "--fill-slices", "2",
            "--origin-ms", str(round(origin * 1000)), "--real-origin-ms", str(round(origin * 1000)),
            "--api-key", "hour-key", "--api-secret", "hour-secret",
        ],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert exchange.stdout is not None
    url = exchange.stdout.readline().removeprefix("listening on ").strip()
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "EXCHANGE": "live", "EXCHANGE_MARKET": "bybit", "EXCHANGE_URL": url, "LIVE_TRADING_CONFIRM": "main",
        "API_KEY": "hour-key", "API_SECRET": "hour-secret", "WEB_BIND": f"127.0.0.1:{free_port()}",
        "HISTORY_TARGET_DAYS": "200", "TRAIN_TREES": "150", "OMP_NUM_THREADS": "1", "LOG_LEVEL": "info",
    }  # fmt: skip
    log = folder / "runall.log"
    try:
        manage(environment, "migrate", "-v", "0")
        manage(environment, "shell", "-v", "0", "-c", CLOCK.format(speed=options.speed, origin=origin))
        manage(environment, "setup")
        for _ in range(2):
            live(environment, log, options.minutes * 30)
        print(manage(environment, "shell", "-v", "0", "-c", TABLES.format()))
        with urllib.request.urlopen(f"{url}/control/books", timeout=30) as answer:
            books = json.load(answer)
        longest = max((each["naked_longest_ms"] for each in books["episodes"]), default=0)
        held = len(books["positions"])
        print(f"exchange: {len(books['orders'])} orders, {held} positions, longest without a stop {longest} ms")
        texts = [
            path.read_text(errors="replace")
            for path in [log, *sorted((folder / "data" / "logs").glob("*"))]
            if path.is_file()
        ]
        found = Counter(f"{match['level']} {match['event']}" for text in texts for match in LINE.finditer(text))
        for name, times in found.most_common():
            print(f"{times:6} {name}")
        print("tracebacks:", sum(text.count("Traceback (most recent call last)") for text in texts))
        kept = Path(tempfile.gettempdir()) / "hour.log"
        kept.write_text("\n".join(texts))
        print(f"whole log: {kept}")
    finally:
        exchange.terminate()
        exchange.wait()


def live(environment: dict[str, str], log: Path, seconds: float) -> None:
    """Run everything for so long, then stop it as Ctrl-C does."""
    with log.open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "runall"], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def manage(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"manage.py {arguments[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()

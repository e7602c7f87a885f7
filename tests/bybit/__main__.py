"""`python -m tests.bybit --port 0 --state FILE.sqlite3`: the loopback exchange as a process of its own."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from exchanges.simulated import SimulatedMarket
from tests.bybit.server import BybitServer

START_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC


def market_clock(*, origin_ms: float | None, real_origin_ms: float | None, speed: float) -> Callable[[], int]:
    """The clock of `ops_app.clock.market_time`: origin + (real - real origin) * speed, in ms; real time by default."""
    if origin_ms is None and speed == 1:
        return lambda: time.time_ns() // 1_000_000
    real_origin = time.time_ns() / 1e6 if real_origin_ms is None else real_origin_ms
    origin = real_origin if origin_ms is None else origin_ms
    return lambda: int(origin + (time.time_ns() / 1e6 - real_origin) * speed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bybit", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one; the line `listening on` names it")
    parser.add_argument("--state", default=":memory:", help="SQLite file that survives kill -9")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--symbols", type=int, default=5)
    parser.add_argument("--no-specials", action="store_true", help="healthy symbols only")
    parser.add_argument("--not-learnable", action="store_true", help="nothing is to be found in the prices")
    parser.add_argument("--speed", type=float, default=1.0, help="exchange seconds per real second")
    parser.add_argument("--origin-ms", type=float, help="exchange time at the real origin, ms since 1970")
    parser.add_argument("--real-origin-ms", "--real-origin", dest="real_origin_ms", type=float, help="ms; default now")
    parser.add_argument("--balance", default="10000", help="USDT")
    parser.add_argument("--api-key", default="loopback-key")
    parser.add_argument("--api-secret", default="loopback-secret")
    parser.add_argument("--rate-limited", action="store_true", help="Bybit's limits per second and endpoint")
    parser.add_argument("--fill-slices", type=int, default=2, help="executions that make one taker fill")
    parser.add_argument("--fill-delay-ms", type=int, default=0, help="exchange ms between them")
    parser.add_argument("--match-delay-ms", type=int, default=0, help="until an accepted order begins to fill")
    parser.add_argument("--cancel-delay-ms", type=int, default=0, help="until an accepted cancel is done")
    parser.add_argument("--visible-delay-ms", type=int, default=0, help="until a new order can be looked up")
    parser.add_argument("--history-delay-ms", type=int, default=0, help="until an ended order is in the history")
    parser.add_argument("--log", type=Path, help="every request and its answer")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    given = parse(arguments)
    market = SimulatedMarket(
        seed=given.seed,
        symbols=given.symbols,
        specials=not given.no_specials,
        learnable=not given.not_learnable,
        now_ms=market_clock(origin_ms=given.origin_ms, real_origin_ms=given.real_origin_ms, speed=given.speed),
    )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    log = given.log.open("a", encoding="utf-8") if given.log else None
    server = BybitServer(
        market,
        port=given.port,
        state=given.state,
        balance=given.balance,
        api_key=given.api_key,
        api_secret=given.api_secret,
        speed=given.speed,
        rate_limited=given.rate_limited,
        log=log,
        fill_slices=given.fill_slices,
        fill_delay_ms=given.fill_delay_ms,
        match_delay_ms=given.match_delay_ms,
        cancel_delay_ms=given.cancel_delay_ms,
        visible_delay_ms=given.visible_delay_ms,
        history_delay_ms=given.history_delay_ms,
    )
    with server:
        print(f"listening on {server.url}", flush=True)
        ended.wait()
    if log is not None:
        log.close()


if __name__ == "__main__":
    main()

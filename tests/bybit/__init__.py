"""A Bybit v5 on loopback: linear perpetuals for an unmodified ccxt client (sync or async), and a venue's lies.

By hand, from the root of the clone:

    python -m tests.bybit --port 8765 --state /tmp/bybit.sqlite3 --speed 60 --log /tmp/bybit.log

prints `listening on http://127.0.0.1:8765`. Then, with ccxt:

    base = "http://127.0.0.1:8765"
    client = ccxt.bybit({"apiKey": "loopback-key", "secret": "loopback-secret", "urls": {"api": dict.fromkeys(
        ("public", "private", "spot", "futures", "v2"), base)}, "options": {"defaultType": "swap",
        "fetchMarkets": {"types": ["linear"]}}})

`curl $base/control/books` (`?brief=1` for a short one) shows the truth,
`curl -d '{"type": "liquidate"}' $base/control/event` lets something happen (`control.py` lists the events),
`curl -d '{"seed": 1, "rules": [{"kind": "reset", "path": "order/create", "phase": "after", "probability": 0.1}]}'
$base/control/faults` lets things go wrong (`faults.py` lists the kinds). The state file survives `kill -9`; stop the
server with SIGTERM.

With `--speed S` an exchange second takes 1/S of a real one: `origin + (real - real origin) * speed`, the very function
of `ops_app.clock.market_time`; give the row's `market_start` and `real_start` as `--origin-ms` and `--real-origin-ms`.
The receive window counts exchange ms, so an accelerated client asks for a wider one (`options["recvWindow"]`).

In a test: `with BybitServer(market) as server: ccxt.bybit(server.ccxt_account)`. What is not served: hedge mode,
isolated margin, spot, inverse, options, Partial-mode take profit and stop loss, trailing stops, batches, websockets.
"""

from tests.bybit.engine import BybitExchange
from tests.bybit.faults import Fault, FaultPlan
from tests.bybit.server import BybitServer

__all__ = ["BybitExchange", "BybitServer", "Fault", "FaultPlan"]

"""What every template knows."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest

LABELS = {
    "simulated": "Simulated market",
    "replay": "Replay of real candles",
    "paper": "Paper trading",
    "live": "Live: real orders",
}


def site(_request: HttpRequest) -> dict[str, Any]:
    return {
        "exchange_kind": settings.EXCHANGE,
        "exchange_label": LABELS[settings.EXCHANGE],
        "market": settings.EXCHANGE_MARKET,
    }


def environment_badge(_request: HttpRequest) -> list[str]:
    """Return unfold's badge: what kind of market the numbers on the page come from."""
    return [LABELS[settings.EXCHANGE], "danger" if settings.EXCHANGE == "live" else "warning"]

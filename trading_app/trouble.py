"""How often something outside failed in a row, and when it is asked again: a back-off, and the silence it asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ops_app import clock
from quant.policy import back_off_ms

RETRY_BASE_MS, RETRY_CAP_MS = 1_000, 60_000


@dataclass(slots=True)
class Trouble:
    """Something outside that fails: how often in a row, and when to try again."""

    name: str
    failures: int = 0
    retry_at: float = 0.0
    detail: str = ""
    asked_for_quiet: bool = False

    @property
    def due(self) -> bool:
        return clock.monotonic() >= self.retry_at

    @property
    def quiet(self) -> bool:
        """Whether the exchange asked not to be asked for a while: maintenance, a rate limit, a ban (F26, F39)."""
        return self.asked_for_quiet and not self.due

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self.detail = f"{type(error).__name__}: {error}"[:200]
        asked = getattr(error, "retry_after_ms", None)
        self.asked_for_quiet = asked is not None
        wait_ms = max(back_off_ms(self.failures, RETRY_BASE_MS, RETRY_CAP_MS, key=self.name), asked or 0)
        self.retry_at = clock.monotonic() + wait_ms / 1000

    def over(self) -> bool:
        """Forget it; returns whether there was any."""
        had, self.failures, self.retry_at, self.detail = self.failures > 0, 0, 0.0, ""
        self.asked_for_quiet = False
        return had

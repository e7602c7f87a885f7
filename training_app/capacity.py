"""Which host can do which run: a run carries what it needs, a worker says what it has, a claim compares the two.

A run that is too large for a host stays in the queue for another one; nobody holds it up, and it holds up nobody: a
worker takes the run that waits longest among those that fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from django.conf import settings
from django.db.models import Q

from ops_app import alerts, clock, heartbeats, host
from ops_app.choices import Severity
from ops_app.host import MEGABYTE, Share
from ops_app.models import Alert
from quant.reasons import reason
from quant.timeframes import DAY_MS, timeframe_ms
from training_app import registry
from training_app.choices import RunState
from training_app.models import TrainingRun

PROCESS_MB = 450
"""A training process before it has read a candle (Django, NumPy, LightGBM, numba's kernels), with a margin."""
BYTES_PER_FEATURE, BYTES_PER_CELL = 9, 60
"""What grows with the panel. A cell is a bar of a symbol; the panel is as long as the longest history for each."""
SECONDS_PER_CELL_AND_TREE = 130e-9
"""CPU of a whole training on one thread, per tree of its final model: 6.05 s for 500,000 cells and 83 trees."""
TIMEOUT_PART = 0.5
"""A run asks for as many threads as bring it to its end within this part of TRAIN_TIMEOUT_MINUTES."""

ALERT_KEY = "training:no_host"


def estimate(*, bars: int, symbols: int, features: int) -> Share:
    """Return what a training of `symbols` histories, the longest of `bars` candles, needs of its host.

    memory [MB] = 450 + cells * (9 * features + 60) / 2**20, cells = bars * symbols: the feature array of the whole
    panel is by far the largest thing that a training holds. threads = cpu seconds / (half of TRAIN_TIMEOUT_MINUTES),
    where cpu seconds = 130e-9 * cells * TRAIN_TREES. Both measured on the simulated market, 1h, 300 trees, 38 and 48
    features, peak of the resident memory: 1 symbol x 5,000 bars 323 MB, 10 x 5,000 347 MB, 40 x 5,000 420 MB,
    100 x 5,000 538 MB, 200 x 5,000 745 MB, without Django (about 75 MB more); CPU of the last two 6.3 s and 13.0 s.
    """
    cells = bars * symbols
    memory = PROCESS_MB + cells * (features * BYTES_PER_FEATURE + BYTES_PER_CELL) / MEGABYTE
    seconds = SECONDS_PER_CELL_AND_TREE * cells * settings.TRAIN_TREES
    threads = math.ceil(seconds / (settings.TRAIN_TIMEOUT_MINUTES * 60 * TIMEOUT_PART))
    return Share(memory_mb=math.ceil(memory), threads=max(1, threads))


def needs(history_days: Sequence[float], *, timeframe: str) -> Share:
    """Return what a run of symbols with these histories needs. One that nobody has measured yet counts as short."""
    bars = math.ceil(max(history_days, default=0.0) * DAY_MS / timeframe_ms(timeframe))
    return estimate(bars=bars, symbols=len(history_days), features=len(registry.feature_schema().names))


def fits(share: Share) -> Q:
    """Return the condition that a host which gives a training `share` can do the run."""
    return Q(needs_memory_mb__lte=share.memory_mb, needs_threads__lte=share.threads)


def fits_here() -> Q:
    """Return the condition that this host can do the run."""
    return fits(host.training_share())


def live_shares() -> dict[str, Share]:
    """Return what each live training worker gives to a training, by the worker's name: one query."""
    return {
        pulse.name: Share(memory_mb=pulse.detail["memory_mb"], threads=pulse.detail["threads"])
        for pulse in heartbeats.pulses(kind="worker")
        if pulse.alive and pulse.detail.get("queue") == settings.TRAINING_QUEUE and "memory_mb" in pulse.detail
    }


def waiting() -> list[TrainingRun]:
    """Return the runs that are due and wait for a worker, the longest waiting first: one query."""
    due = TrainingRun.objects.filter(state=RunState.QUEUED, not_before__lte=clock.market_now())
    return list(due.select_related("scope").defer("log", "error").order_by("not_before", "id"))


def takers(run: TrainingRun, shares: dict[str, Share]) -> list[str]:
    """Return the names of the workers that can do the run."""
    return [
        name
        for name, share in sorted(shares.items())
        if run.needs_memory_mb <= share.memory_mb and run.needs_threads <= share.threads
    ]


def why_waiting(run: TrainingRun, shares: dict[str, Share] | None = None) -> str:
    """Return why a queued run has not begun, as `CODE: key=value` for a person; "" for a run in any other state."""
    if run.state != RunState.QUEUED:
        return ""
    if run.not_before > clock.market_now():
        return reason("NOT_YET", not_before=run.not_before)
    shares = live_shares() if shares is None else shares
    able = takers(run, shares)
    if able:
        return reason("WAITS_FOR_WORKER", workers=" and ".join(able))
    return no_host([run], shares)


def no_host(runs: Iterable[TrainingRun], shares: dict[str, Share]) -> str:
    """Return the sentence for runs that no live worker can take, with what would mend it."""
    if not shares:
        return reason("NO_WORKER", fix="start `manage.py qworker --queue training`, or runall, which starts one")
    large = list(runs)
    return reason(
        "NO_HOST",
        needs_mb=max(run.needs_memory_mb for run in large),
        needs_threads=max(run.needs_threads for run in large),
        largest_mb=max(share.memory_mb for share in shares.values()),
        largest_threads=max(share.threads for share in shares.values()),
        fix="add a larger host or lower TRAINING_WORKERS or train fewer symbols",
    )


def is_due() -> bool:
    """Return whether a run waits, or waited when the alert was raised: at most two reads."""
    due = TrainingRun.objects.filter(state=RunState.QUEUED, not_before__lte=clock.market_now())
    return due.exists() or Alert.objects.filter(key=ALERT_KEY, resolved_at__isnull=True).exists()


def watch_job() -> str:
    """Raise one alert for all runs that no live worker can take; resolve it when there are none. The job calls this."""
    runs = waiting()
    shares = live_shares() if runs else {}
    stuck = [run for run in runs if not takers(run, shares)]
    if not stuck:
        return "resolved" if alerts.resolve_alert(ALERT_KEY) else ""
    text = f"{len(stuck)} training runs fit no live worker, the first is run {stuck[0].pk} of {stuck[0].scope.key}. "
    raised = alerts.raise_alert(ALERT_KEY, text + no_host(stuck, shares), Severity.WARNING)
    return f"{len(stuck)} runs fit no live worker" if raised is not None else ""

"""Rules of training from the settings, in one place: when a scope trains, how it trains, what its gates demand."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from django.conf import settings

from ops_app import host
from quant.policy import DAY_MS, HOUR_MS, MINUTE_MS, TrainingPolicy, back_off_ms
from quant.timeframes import from_ms, to_ms
from training_app import registry

if TYPE_CHECKING:
    from quant.gates import GateBounds
    from quant.training_spec import TrainingSpec

RETRY_BASE_MS, RETRY_CAP_MS = 5 * MINUTE_MS, HOUR_MS
"""Wait between the attempts of one run."""
DROPPED_BASE_MS, DROPPED_CAP_MS = DAY_MS, 14 * DAY_MS
"""Wait before a symbol that a run could not use may ask for another one: it asks for a training of the whole scope."""


def training_policy() -> TrainingPolicy:
    """Return when a scope trains. A model that fails is not tried more often than one that serves is retrained."""
    least = round(settings.TRAIN_MIN_INTERVAL_HOURS * HOUR_MS)
    retrain = max(round(settings.TRAIN_INTERVAL_HOURS * HOUR_MS), least)
    debounce = round(settings.TRAIN_DEBOUNCE_MINUTES * MINUTE_MS)
    return TrainingPolicy(
        min_train_interval_ms=least,
        retrain_interval_ms=retrain,
        debounce_ms=debounce,
        max_debounce_ms=3 * debounce,
        failure_base_ms=least,
        failure_cap_ms=retrain,
    )


def scope_back_off(key: str, failures: int, now: dt.datetime) -> dt.datetime:
    """Return the market time before which the scope `key` does not train after `failures` failed runs in a row."""
    policy = training_policy()
    return from_ms(to_ms(now) + back_off_ms(failures, policy.failure_base_ms, policy.failure_cap_ms, key=key))


def retry_back_off(key: str, attempt: int, now: dt.datetime) -> dt.datetime:
    """Return the market time of a run's next attempt after attempt number `attempt` failed."""
    return from_ms(to_ms(now) + back_off_ms(attempt, RETRY_BASE_MS, RETRY_CAP_MS, key=key))


def dropped_back_off(code: str, times: int, now: dt.datetime) -> dt.datetime:
    """Return when a symbol that runs left out `times` times in a row may come back."""
    return from_ms(to_ms(now) + back_off_ms(max(times, 1), DROPPED_BASE_MS, DROPPED_CAP_MS, key=code))


def lease_time() -> dt.timedelta:
    return dt.timedelta(seconds=settings.TRAIN_LEASE_SECONDS)


def training_threads() -> int:
    """Return TRAIN_THREADS, or this host's cores shared by the trainings that may run on it."""
    return host.training_share().threads


def training_spec() -> TrainingSpec:
    """Return how a run trains: the ONE place where settings become a TrainingSpec."""
    from quant.training_spec import TrainingSpec  # NumPy, which not every page needs

    return TrainingSpec(
        training_mode=settings.TRAINING_MODE,
        symbol_encoding=settings.SYMBOL_ENCODING,
        timeframe=settings.TIMEFRAME,
        signal=settings.PRIMARY_SIGNAL,
        label=registry.label_spec(),
        blend=settings.TRAIN_BLEND,
        seed=settings.TRAIN_SEED,
        num_threads=training_threads(),
        max_trees=settings.TRAIN_TREES,
    )


def gate_bounds() -> GateBounds:
    """Return what a model must show before it may trade."""
    from quant.gates import GateBounds

    return GateBounds()

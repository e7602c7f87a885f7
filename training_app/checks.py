"""System checks of what is learned, with stable ids."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register


@register("training")
def check_signal(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 - Django's
    """Refuse a primary signal that does not exist, before a training does."""
    from quant import signals

    if settings.PRIMARY_SIGNAL in signals.names():
        return []
    return [
        Error(
            f"PRIMARY_SIGNAL={settings.PRIMARY_SIGNAL!r}: there is no such signal.",
            hint=f"Use one of {', '.join(signals.names())}, or a file of your own (docs/signals.md).",
            id="training.E001",
        )
    ]


@register("training")
def check_tuning(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 - Django's
    """Refuse a search for hyper-parameters without its library, before a training fails for want of it."""
    if settings.TRAIN_TUNING_TRIALS == 0 or util.find_spec("optuna") is not None:
        return []
    return [
        Error(
            f"TRAIN_TUNING_TRIALS={settings.TRAIN_TUNING_TRIALS}: optuna is not installed.",
            hint="Install requirements-tuning.txt (`python3 run.py` does), or set 0, as on a host that does not train.",
            id="training.E002",
        )
    ]

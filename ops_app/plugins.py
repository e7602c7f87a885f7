"""What an app adds to a tool of another: `<app>/<name>.py`, imported when the tool starts, registers it."""

from __future__ import annotations

import importlib

from django.apps import apps
from django.utils.module_loading import module_has_submodule


def load(name: str) -> None:
    """Import `<app>/<name>.py` of every installed app that has one, lowest app first."""
    for config in apps.get_app_configs():
        if config.module is not None and module_has_submodule(config.module, name):
            importlib.import_module(f"{config.name}.{name}")

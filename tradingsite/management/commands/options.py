"""List the settings: name, value, default, meaning."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from tradingsite.options import OPTIONS, Option


def shown(option: Option, value: Any) -> str:
    """Return the value as a person would write it; a secret is never shown, only whether it is set."""
    if option.secret:
        return "(set)" if value else "(empty)"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)


class Command(BaseCommand):
    help = "List all settings. Set one in the environment, as NAME_FILE (a path, for secrets), or in .env."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("word", nargs="?", default="", help="Only settings whose name or meaning contains it.")
        parser.add_argument("--changed", action="store_true", help="Only settings that differ from their default.")
        parser.add_argument("--json", action="store_true", help="For machines.")

    def handle(self, *_args: Any, **options: Any) -> None:
        word = options["word"].lower()
        rows = []
        for option in OPTIONS:
            value = settings.DATA_DIR if option.name == "DATA_DIR" else getattr(settings, option.name)
            if options["changed"] and value == option.default:
                continue
            if word and word not in f"{option.name} {option.help}".lower():
                continue
            rows.append((option, shown(option, value)))
        if options["json"]:
            document = [
                {"name": option.name, "value": value, "default": shown(option, option.default), "help": option.help}
                for option, value in rows
            ]
            self.stdout.write(json.dumps(document, indent=1))
            return
        for option, value in rows:
            changed = "*" if value != shown(option, option.default) else " "
            self.stdout.write(f"{changed} {option.name}={value}\n    {option.help}")
        if not rows:
            self.stdout.write("No setting matches.")

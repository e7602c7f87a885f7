"""A primary signal in a file of the user's own: PRIMARY_SIGNAL=path/to/rule.py. How to write one: docs/signals.md."""

from __future__ import annotations

import hashlib
import re
import runpy
from dataclasses import replace
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

HASH_DIGITS = 8
STEM = re.compile(r"[a-z][a-z0-9_]{0,29}")


def resolve(value: str, *, folder: Path) -> str:
    """Return the name of the signal that PRIMARY_SIGNAL's `value` means; a file is loaded and registered.

    The name of a file's signal ends with the hash of the file, so a rule that was changed is another signal: models
    that were trained on the old one no longer fit, and are trained again. Raises ImproperlyConfigured that names the
    file and what is wrong with it.
    """
    if not value.endswith(".py"):
        return value
    path = (folder / value).resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImproperlyConfigured(
            f"PRIMARY_SIGNAL={value}: {path} cannot be read ({error.strerror}). Mend the path or its rights."
        ) from error
    if not STEM.fullmatch(path.stem):
        raise ImproperlyConfigured(
            f"PRIMARY_SIGNAL={value}: the file's name is the signal's: at most 30 small letters, digits and _, the "
            "first a letter. Rename it."
        )
    from quant import signals  # NumPy, only where a file of one's own is used

    name = f"{path.stem}@{hashlib.sha256(content).hexdigest()[:HASH_DIGITS]}"
    if name in signals.names():
        return name
    try:
        signals.register(replace(runpy.run_path(str(path))["SIGNAL"], name=name))
    except Exception as error:  # whatever a stranger's file raises
        raise ImproperlyConfigured(
            f"PRIMARY_SIGNAL={value}: {path} is no signal ({type(error).__name__}: {error}). It must define SIGNAL = "
            "PrimarySignal(...): see docs/signals.md."
        ) from error
    return name

"""Numbers of a report, where a missing one is a dash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import template

register = template.Library()
MISSING = "–"


@register.filter
def percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2%}"


@register.filter
def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


@register.filter
def at(values: Mapping[str, Any], key: str) -> Any:
    return values.get(key)

"""How numbers, sides and reasons are written on the pages."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

from django import template

register = template.Library()

NOTHING = "–"


@register.filter
def percent(value: float | Decimal | None, digits: int = 2) -> str:
    """Write a fraction as percent: 0.0123 as `1.23 %`."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


@register.filter
def signed_percent(value: float | Decimal | None, digits: int = 2) -> str:
    """Write a change as percent with its sign: 0.0123 as `+1.23 %`, and no change as `0.00 %`."""
    if value is None:
        return NOTHING
    text = f"{100 * value:+.{digits}f}"
    return f"{text[1:] if float(text) == 0 else text} %"


@register.filter
def amount(value: Decimal | float | None) -> str:
    """Write money with its sign and two decimals: 12.345 as `+12.35`."""
    if value is None:
        return NOTHING
    text = f"{value:+,.2f}"
    return text[1:] if text in ("+0.00", "-0.00") else text


@register.filter
def exact(value: Decimal | None) -> str:
    """Write a price or quantity without the zeros that the table's column adds: 101.500000000000 as `101.5`."""
    if value is None:
        return NOTHING
    return f"{value.normalize():f}"


@register.filter
def side(value: int) -> str:
    return "long" if value > 0 else "short" if value < 0 else NOTHING


@register.filter
def duration(value: dt.timedelta) -> str:
    """Write how long something lasts in its largest whole unit: `90 s`, `5 min`, `3 h`, `2 days`."""
    seconds = int(value.total_seconds())
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


@register.filter
def details(evidence: str) -> str:
    """Return evidence `CODE: key=value` without its code, for places that show the code beside it."""
    code, separator, rest = evidence.partition(": ")
    return rest if separator and code.isupper() else evidence

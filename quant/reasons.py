"""Reasons as text that people read and machines parse: ``CODE: key=value, key=value``.

One helper builds every one, so that a number or a time looks the same on each page, in each log and in each row.
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from numbers import Integral, Real

from quant.timeframes import from_ms, to_ms

_CODE = re.compile(r"[A-Z][A-Z0-9_]*")
_TIME_SUFFIX = "_at_ms"


def reason(code: str, /, **details: object) -> str:
    """Build ``CODE: key=value, key=value``.

    Floats get four significant digits, aware datetimes are ISO minutes in UTC, and an integer whose key ends in
    ``_at_ms`` is shown as the time that it is, under the key without ``_ms``. Text keeps to one line and loses the
    separators. Raises ValueError for a code that is not UPPER_SNAKE_CASE.
    """
    if not _is_code(code):
        raise ValueError(f"reason code {code!r} must be UPPER_SNAKE_CASE, e.g. SHORT_HISTORY")
    # Nearly all are floats, and a bar gives a reason for every symbol.
    parts = [f"{key}={value:.4g}" if type(value) is float else _pair(key, value) for key, value in details.items()]
    return f"{code}: {', '.join(parts)}" if parts else code


@lru_cache(maxsize=1024)  # there are some dozens, and a bar names one for every symbol
def _is_code(text: str) -> bool:
    return _CODE.fullmatch(text) is not None


def code_of(text: str) -> str:
    """Return the code of a reason, or an empty string if the text does not begin with one."""
    head = text.partition(":")[0].strip()
    return head if _is_code(head) else ""


def details_of(text: str) -> dict[str, str]:
    """Return the details of a reason as text, in their order."""
    if not code_of(text):
        return {}
    pairs = (part.partition("=") for part in text.partition(":")[2].strip().split(", "))
    return {key: value for key, separator, value in pairs if separator}


def _pair(key: str, value: object) -> str:
    if key.endswith(_TIME_SUFFIX) and isinstance(value, Integral):
        return f"{key.removesuffix('_ms')}={_minutes(from_ms(int(value)))}"
    return f"{key}={_text(value)}"


def _text(value: object) -> str:
    kind = type(value)  # nearly all are plain: to ask for an abstract type costs ten times as much
    if kind is float:
        return f"{value:.4g}"
    if kind is int:
        return str(value)
    if isinstance(value, str) and kind is str:
        return _one_line(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return _minutes(value)
    if isinstance(value, Enum):
        return _text(value.value)
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"  # a database's padding zeros say nothing
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return f"{float(value):.4g}"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    """Without the separators, which mean something: free text (an exchange's error, say) must not contain them."""
    return " ".join(text.split()).replace("=", ":").replace(",", ";")


def _minutes(moment: datetime) -> str:
    return from_ms(to_ms(moment)).strftime("%Y-%m-%dT%H:%MZ")

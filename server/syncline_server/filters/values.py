"""Values in filters: what a bare word is, and how each is written canonically."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from syncline_server.filters.syntax import Scalar

KEYWORDS: Final = frozenset({"AND", "OR", "NOT", "IN"})
LITERALS: Final = {"true": True, "false": False, "null": None}

_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt].*)?")
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_PLAIN_INTEGER: Final = 10**16
"""From here on an integer that a double holds is written as one, which is shorter."""


def read_bare(word: str) -> Scalar:
    """Value of a word without quotes. Raises ValueError with what is wrong.

    It is true, false, null, a number as JSON writes it, a date or time, or text that begins with a letter or
    ``_``. Anything else would be text for one reader and a misspelt number for another.
    """
    if word in LITERALS:
        return LITERALS[word]
    if word.lower() in LITERALS:
        raise ValueError(f"write {word.lower()}, or put it in quotes if it is text")
    if word.upper() in KEYWORDS:
        raise ValueError(f"{word} is a word of the language: put it in quotes if it is text")
    number = _NUMBER.fullmatch(word)
    if number:
        return _number(word, exact=number[2] is None and number[3] is None)
    if word[0].isalpha() or word[0] == "_" or _DATE.fullmatch(word):
        return word
    raise ValueError(f"{word[:40]} is neither a number nor a word: put it in quotes if it is text")


def _number(word: str, *, exact: bool) -> int | float:
    if exact:
        return int(word)
    value = float(word)
    if math.isinf(value):
        raise ValueError("the number is too large for a double")
    return value


def read_time_us(text: str) -> int:
    """Microseconds since 1970-01-01 UTC of an RFC 3339 time. Raises ValueError with what is wrong."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise ValueError("write a time as RFC 3339 does, such as 2026-11-22T10:00:00Z")
    date, clock, fraction, offset = parts.groups()
    fraction = (fraction or "").ljust(9, "0")
    if fraction[6:] != "000":
        raise ValueError("times are known to the microsecond")
    try:
        instant = datetime.fromisoformat(f"{date}T{clock}.{fraction[:6]}{offset.upper()}")
        return (instant.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise ValueError("there is no such time") from None


def write_time(time_us: int) -> str:
    """Write a time canonically."""
    return (
        (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    )


def write_number(value: float) -> str:
    """One text for each number: 1, 1.0 and 1e0 are the same."""
    if isinstance(value, float) and not value.is_integer():
        return repr(value)
    if abs(value) < _PLAIN_INTEGER:
        return str(int(value))
    try:
        double = float(value)
    except OverflowError:
        return str(value)
    return repr(double) if double == value else str(int(value))


def write_text(text: str, *, prefix: bool = False) -> str:
    """Text in quotes, with a star at the end of a prefix."""
    quoted = json.dumps(text, ensure_ascii=False).replace("*", "\\*")
    return quoted[:-1] + '*"' if prefix else quoted


def write_value(value: Scalar) -> str:
    """Write a value canonically."""
    if isinstance(value, str):
        return write_text(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return write_number(value)

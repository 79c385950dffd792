"""How long the validator can take with one record, at most: the cost of a schema times what is in the record.

All in nanoseconds; keyword_cost tells of which machine. What is counted in a record is counted in its bytes, at
some gigabytes a second, and never too low: what stands in a string may count as well.
"""

import re
from collections.abc import Iterator
from typing import Final

from syncline_server.catalog.keyword_cost import SLOW_NUMBER_NS
from syncline_server.catalog.schema_cost import SchemaCost

_ENTRY_NS: Final = 25.0
_DIGIT_PAIR_NS: Final = 0.35
"""Arithmetic with long numbers takes time by the square of their digits, written out."""
_PLAIN_DIGITS: Final = 20
_VALUE_BYTES: Final = 2
"""At least so many, with its separator; the record itself comes on top."""
_CONTAINER_BYTES: Final = 3
_FRACTION_BYTES: Final = 4
_EXPONENT_BYTES: Final = 6
"""Of the shortest number of hundreds of digits, ``,1e300``."""
_EXPONENT_DIGITS: Final = 345
_UNIQUE_NS: Final = 400.0
"""For each value in an array whose items are compared; up to 15 items each with each, more by their hash."""
_PAIRS: Final = 15
_LISTED_ERROR_NS: Final = 8_000.0
_SKETCHED_ERROR_NS: Final = 2_000.0
_QUOTED_BYTE_NS: Final = 5.0
"""Messages quote an ``enum``."""
_LISTED_COPY_NS: Final = 250.0
"""Of one value."""
_LISTED_COPY_BYTE_NS: Final = 1.0
_SKETCHED_COPY_NS: Final = 120.0
_SKETCHED_COPY_BYTE_NS: Final = 8.0
_COPIED_DIGIT_PAIR_NS: Final = 0.03

_SHAPE: Final = bytes.maketrans(b"123456789E", b"000000000e")
_LONG_DIGITS: Final = b"0" * 19
_SCANNED_VALUE_NS: Final = 60.0
_SCANNED_NS: Final = 40e6
"""Long numbers are not looked for when the time without them is more: no budget is as large."""
_LONG_NUMBER: Final = re.compile(rb"[:,\[]-?(?:\d[\d.]*[eE]([-+]?\d+)|(\d{19,}))")


def quick_bytes(cost: SchemaCost, budget_ns: float) -> int:
    """Bytes of the longest record that is certainly checked within the budget, whatever is in it."""
    work = cost.work
    if work.unique:
        return 0
    number_ns = (
        _number_ns(_EXPONENT_DIGITS + cost.digits) / _EXPONENT_BYTES + SLOW_NUMBER_NS / _FRACTION_BYTES
    )
    value_ns = work.value_ns + work.slow_numbers * _number_ns(_PLAIN_DIGITS + cost.digits)
    entries_ns = cost.entries * _ENTRY_NS
    byte_ns = (
        work.byte_ns
        + work.start_byte_ns
        + work.numbers * number_ns
        + work.fractions * SLOW_NUMBER_NS / _FRACTION_BYTES
        + value_ns / _VALUE_BYTES
        + entries_ns / _CONTAINER_BYTES
    )
    return max(0, int((budget_ns - value_ns - entries_ns) / byte_ns))


def checking_ns(cost: SchemaCost, data: bytes) -> float:
    """Longest time in which a record, in canonical form, can be checked."""
    work = cost.work
    values, size = _count_values(data), len(data)
    longest_ns = (
        values * work.value_ns
        + size * work.byte_ns
        + min(values * work.start_ns, size * work.start_byte_ns)
        + _count_containers(data) * cost.entries * _ENTRY_NS
    )
    if work.slow_numbers and cost.digits > _PLAIN_DIGITS:
        longest_ns += values * work.slow_numbers * _number_ns(_PLAIN_DIGITS + cost.digits)
    if work.numbers or work.unique:
        longest_ns += values * work.unique * _UNIQUE_NS + _fractions_ns(cost, data)
        if _may_have_long_numbers(data):
            longest_ns += values * _SCANNED_VALUE_NS
            if longest_ns <= _SCANNED_NS:
                longest_ns += _long_numbers_ns(cost, data)
    return longest_ns


def listing_ns(cost: SchemaCost, data: bytes) -> float:
    """Longest time in which everything that is wrong with a record can be listed."""
    return _describing_ns(
        cost, data, _LISTED_ERROR_NS, copy_ns=_LISTED_COPY_NS, copy_byte_ns=_LISTED_COPY_BYTE_NS
    )


def sketching_ns(cost: SchemaCost, data: bytes) -> float:
    """Longest time in which what is wrong at the ends of all branches can be told."""
    return _describing_ns(
        cost, data, _SKETCHED_ERROR_NS, copy_ns=_SKETCHED_COPY_NS, copy_byte_ns=_SKETCHED_COPY_BYTE_NS
    )


def _describing_ns(
    cost: SchemaCost, data: bytes, error_ns: float, *, copy_ns: float, copy_byte_ns: float
) -> float:
    """The validator checks before it describes, and each error holds a copy of what it is about."""
    values = _count_values(data)
    errors = cost.evaluations * values + cost.entries * _count_containers(data)
    copies = cost.errors_above + (cost.evaluations * values if cost.has_names else 0)
    longest_ns = (
        2 * checking_ns(cost, data)
        + errors * (error_ns + cost.longest_keyword * _QUOTED_BYTE_NS)
        + copies * (values * copy_ns + len(data) * copy_byte_ns)
    )
    if longest_ns <= _SCANNED_NS and _may_have_long_numbers(data):
        digits = (digits for digits, _ in _long_numbers(data))
        longest_ns += copies * sum(_COPIED_DIGIT_PAIR_NS * count * count for count in digits)
    return longest_ns


def _fractions_ns(cost: SchemaCost, data: bytes) -> float:
    operations = cost.work.fractions + cost.work.unique * _PAIRS / 2
    return data.count(b".") * SLOW_NUMBER_NS * operations


def _long_numbers_ns(cost: SchemaCost, data: bytes) -> float:
    """Time for long numbers, by themselves and in comparing items."""
    alone_ns = pair_ns = 0.0
    whole = 0
    for digits, is_whole in _long_numbers(data):
        alone_ns += _number_ns(digits + max(cost.digits, _PLAIN_DIGITS))
        pair_ns += _number_ns(2 * digits)
        whole += is_whole
    # Hashes of big integers are all the same, so each is compared with each.
    return alone_ns * cost.work.numbers + pair_ns * cost.work.unique * (_PAIRS + whole)


def _may_have_long_numbers(data: bytes) -> bool:
    """Quickly; text that looks like such numbers counts as well."""
    shape = data.translate(_SHAPE)
    return b"0e" in shape or _LONG_DIGITS in shape


def _long_numbers(data: bytes) -> Iterator[tuple[int, bool]]:
    """Digits of each number with an exponent or beyond 64 bits, and whether it is one of the latter."""
    for match in _LONG_NUMBER.finditer(data):
        exponent, whole = match.groups()
        if whole:
            yield len(whole), True
        else:
            yield _PLAIN_DIGITS + min(abs(int(exponent[:6])), _EXPONENT_DIGITS), False


def _number_ns(digits: int) -> float:
    return SLOW_NUMBER_NS + _DIGIT_PAIR_NS * digits * digits


def _count_values(data: bytes) -> int:
    """The number of values in a record, or more: one for each comma, one for each container, and the record."""
    return 1 + data.count(b",") + _count_containers(data)


def _count_containers(data: bytes) -> int:
    return data.count(b"{") + data.count(b"[")

"""What the keywords of one subschema cost for one value.

Times are of jsonschema-rs 0.60 on one core of a server of 2020 (test_schema_time measures them against the
machine that it runs on), rounded up by half and more; what takes longest of a kind stands for all of the kind.
Where a cost depends on the value, it is split by what can be counted in a record without walking it: values,
bytes, fractions, long numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from syncline_server.catalog.pattern_cost import PatternCost, pattern_cost

_EVALUATION_NS: Final = 10.0
_KEYWORD_NS: Final = 8.0
_MEMBERS_NS: Final = 30.0
"""Of keywords that look up or go through members and items."""
_MEMBERS_KEYWORDS: Final = frozenset(
    [
        "properties",
        "patternProperties",
        "additionalProperties",
        "propertyNames",
        "unevaluatedProperties",
        "dependentSchemas",
        "items",
        "prefixItems",
        "contains",
        "unevaluatedItems",
    ]
)
_NOTES: Final = frozenset(
    [
        "$schema",
        "$id",
        "$anchor",
        "$dynamicAnchor",
        "$comment",
        "$defs",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
    ]
)
SLOW_NUMBER_NS: Final = 1_600.0
"""Comparing fractions, which is done exactly; also anything with an argument that is a fraction."""
_NUMBER_NS: Final = 200.0
_OPTION_NS: Final = 250.0
"""For each value inside of an ``enum`` or ``const``; equal arrays are compared to their ends."""
_OPTION_BYTE_NS: Final = 0.1
_FORMAT_NS: Final = 1_500.0
_FORMAT_BYTE_NS: Final = 8.0
_SLOW_FORMATS_BYTE_NS: Final[Mapping[str, float]] = {"idn-hostname": 40.0, "idn-email": 40.0, "regex": 60.0}
_PATTERN_NS: Final = 150.0
_NAME_BYTE_NS: Final = 1.0

_NUMBER_KEYWORDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_MACHINE_INTEGERS: Final = range(-(1 << 63), 1 << 63)
_MAX_EXPONENT_DIGITS: Final = 340
"""Digits of the smallest double, about, with its zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What there is to do for one value. Times are nanoseconds."""

    value_ns: float = 0.0
    """For any value, and for each member or item of it."""
    byte_ns: float = 0.0
    """For each byte of a string or name."""
    start_ns: float = 0.0
    """For any value, in patterns that look at the beginning of a string only …"""
    start_byte_ns: float = 0.0
    """… and for each byte of it, when that is less."""
    numbers: int = 0
    """Operations on a number, each of which may be long."""
    fractions: int = 0
    """Those that take long when the number is a fraction: all but comparing it with an integer."""
    slow_numbers: int = 0
    """Those that have a fraction or a big integer as their argument."""
    unique: int = 0
    """How often it is compared as a whole with its neighbours."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            value_ns=self.value_ns + other.value_ns,
            byte_ns=self.byte_ns + other.byte_ns,
            start_ns=self.start_ns + other.start_ns,
            start_byte_ns=self.start_byte_ns + other.start_byte_ns,
            numbers=self.numbers + other.numbers,
            fractions=self.fractions + other.fractions,
            slow_numbers=self.slow_numbers + other.slow_numbers,
            unique=self.unique + other.unique,
        )

    def __mul__(self, times: int) -> "Work":
        return Work(
            value_ns=self.value_ns * times,
            byte_ns=self.byte_ns * times,
            start_ns=self.start_ns * times,
            start_byte_ns=self.start_byte_ns * times,
            numbers=self.numbers * times,
            fractions=self.fractions * times,
            slow_numbers=self.slow_numbers * times,
            unique=self.unique * times,
        )

    def __or__(self, other: "Work") -> "Work":
        """The larger of each."""
        return Work(
            value_ns=max(self.value_ns, other.value_ns),
            byte_ns=max(self.byte_ns, other.byte_ns),
            start_ns=max(self.start_ns, other.start_ns),
            start_byte_ns=max(self.start_byte_ns, other.start_byte_ns),
            numbers=max(self.numbers, other.numbers),
            fractions=max(self.fractions, other.fractions),
            slow_numbers=max(self.slow_numbers, other.slow_numbers),
            unique=max(self.unique, other.unique),
        )


NO_WORK: Final = Work()


def work_of(schema: Mapping[str, Any]) -> Work:
    """Work of a subschema for one value, without the subschemas in it. Raises ValueError for a pattern."""
    value_ns = _EVALUATION_NS + _KEYWORD_NS * len(schema.keys() - _NOTES)
    value_ns += _MEMBERS_NS * len(_MEMBERS_KEYWORDS & schema.keys())
    byte_ns = _NAME_BYTE_NS if "propertyNames" in schema else 0.0
    start_ns = start_byte_ns = 0.0
    if isinstance(schema.get("format"), str):
        value_ns += _FORMAT_NS
        byte_ns += _SLOW_FORMATS_BYTE_NS.get(schema["format"], _FORMAT_BYTE_NS)
    for pattern in _patterns(schema):
        cost: PatternCost = pattern_cost(pattern)
        value_ns += _PATTERN_NS
        byte_ns += cost.byte_ns
        start_ns += cost.start_ns
        start_byte_ns += cost.start_byte_ns
    arguments = [schema[keyword] for keyword in _NUMBER_KEYWORDS if keyword in schema]
    slow = sum(map(_is_slow, arguments))
    options = _options(schema)
    inner = [value for option in options for value in _values(option)]
    if "const" in schema or not _is_looked_up(options):
        value_ns += _OPTION_NS * len(inner)
        slow += sum(map(_is_slow, inner))
    value_ns += _OPTION_BYTE_NS * sum(len(value) for value in inner if isinstance(value, str))
    options_numbers = sum(map(_is_number, inner))
    value_ns += _NUMBER_NS * len(arguments) + SLOW_NUMBER_NS * slow
    return Work(
        value_ns=value_ns,
        byte_ns=byte_ns,
        start_ns=start_ns,
        start_byte_ns=start_byte_ns,
        numbers=len(arguments) + options_numbers,
        fractions=sum(map(_is_slow, arguments)) + ("multipleOf" in schema) + options_numbers,
        slow_numbers=slow,
        unique=int(schema.get("uniqueItems") is True),
    )


def most_digits(schema: Mapping[str, Any]) -> int:
    """Most decimal digits of a number in the keywords of a subschema, written out."""
    numbers = [schema[keyword] for keyword in _NUMBER_KEYWORDS if keyword in schema]
    numbers += [value for option in _options(schema) for value in _values(option)]
    return max(map(_digits, numbers), default=0)


def longest_keyword(schema: Mapping[str, Any]) -> int:
    """Bytes of the ``enum`` and ``const`` of a subschema, about: what a message may quote."""
    inner = (value for option in _options(schema) for value in _values(option))
    return sum(20 + (4 * len(value) if isinstance(value, str) else _digits(value)) for value in inner)


def _patterns(schema: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(schema.get("pattern"), str):
        yield schema["pattern"]
    if isinstance(schema.get("patternProperties"), Mapping):
        yield from schema["patternProperties"]


def _options(schema: Mapping[str, Any]) -> Sequence[Any]:
    options = schema.get("enum")
    constant = [schema["const"]] if "const" in schema else []
    return [*options, *constant] if isinstance(options, list) else constant


def _is_looked_up(options: Sequence[Any]) -> bool:
    """Whether the library finds the options of an ``enum`` by their hash."""
    return {type(option) for option in options} in ({str}, {int})


def _values(option: object) -> Iterator[Any]:
    """Every value from this one down; names count as values."""
    pending = [option]
    while pending:
        here = pending.pop()
        if isinstance(here, Mapping):
            pending.extend(here)
            pending.extend(here.values())
        elif isinstance(here, list):
            pending.extend(here)
        yield here


def _is_number(value: object) -> bool:
    return type(value) in {int, float}


def _is_slow(value: object) -> bool:
    return type(value) is float or (type(value) is int and value not in _MACHINE_INTEGERS)


def _digits(value: object) -> int:
    if type(value) is int:
        return value.bit_length() // 3 + 1
    if type(value) is float:
        return 20 if 1e-20 < abs(value) < 1e20 or value == 0 else _MAX_EXPONENT_DIGITS
    return 0

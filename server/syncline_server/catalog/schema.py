r"""JSON Schemas of datasets, draft 2020-12: compiled once, with nothing in them that reaches out or runs away.

Decided, and part of what users see:

* References stay inside the schema; nothing is ever fetched. ``$id`` stands at the top or not at all.
* Patterns run on an engine without backtracking, so look-around and back references are refused. ``\d`` and
  ``\w`` mean ASCII, as in ECMAScript.
* ``format`` is checked for the formats that the draft defines; other names are notes, as the draft has it.
* What a schema can cost is bounded when it is registered (schema_cost, pattern_cost). Few schemas come near
  the bounds. Where the product of a schema's cost and a record's size is too large, the record is refused
  (keyword ``size``), and where checking it is affordable but a list of everything that is wrong with it would
  not be, only a part of the list is given.
"""

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

import jiter
import jsonschema_rs

from syncline_server.catalog.schema_cost import SchemaCost, SchemaRefused, examine
from syncline_server.catalog.violations import MESSAGE_CHARACTERS, VALUE_CHARACTERS, pointer_of, shown
from syncline_server.errors import InvalidArgument
from syncline_server.model import Violation

MAX_BYTES: Final = 64 << 10
VIOLATIONS_PER_RECORD: Final = 100
"""More of one record are not told."""
CHECKED_EVALUATIONS: Final = 2_000_000
"""Most evaluations for one record: about 50 ms."""
SKETCHED_EVALUATIONS: Final = 50_000
"""Most evaluations for which anything is told of what is wrong: about 1 µs each."""
LISTED_EVALUATIONS: Final = 4_000
"""Most evaluations for which it is told in full: up to 15 µs each, hardly ever more than a tenth of that."""
LISTED_COPIES_PER_EVALUATION: Final = 128
SKETCHED_COPIES_PER_EVALUATION: Final = 8
"""Copying a value into an error takes 0.3 µs or less. These let a record of 500 required members be listed."""
PATTERN_STEPS: Final = 32 << 20
"""Most states times bytes for one record: the worst patterns admitted take about a second for them."""
BIG_INTEGERS: Final = 40
"""Most integers beyond 64 bits in a record under ``uniqueItems`` or ``multipleOf``: about 50 ms."""
PATTERN_PROGRAM_BYTES: Final = 10 << 20
"""Most memory for one compiled pattern."""

_BIG_INTEGER: Final = re.compile(rb"[:,\[]-?\d{19}")
_VALUE: Final = "\x00"
"""Stands for the value in the library's messages: otherwise a whole record could be in them."""
_PATTERNS: Final = jsonschema_rs.RegexOptions(size_limit=PATTERN_PROGRAM_BYTES)


class Schema:
    """A schema that records can be checked against. Made by ``compile_schema``."""

    def __init__(
        self, validator: jsonschema_rs.Draft202012Validator | None, cost: SchemaCost, *, unusable: str = ""
    ) -> None:
        self._validator = validator
        self._cost = cost
        self._unusable = unusable
        self.accepts_everything = validator is None and not unusable
        """Records need not be shown to it."""
        self.light_bytes = (
            0
            if cost.slow_on_big_integers or unusable
            else min(
                2 * CHECKED_EVALUATIONS // (cost.evaluations + cost.entries),
                PATTERN_STEPS // max(cost.pattern, 1),
            )
        )
        """Records of at most so many bytes need not be shown to ``refusal``: a value takes at least two."""

    def refusal(self, data: bytes) -> str:
        """Why a record, in canonical form, is too much to be checked; empty when it is not."""
        if self._unusable:
            return self._unusable
        if self._evaluations(data) > CHECKED_EVALUATIONS:
            return "the record has too many values to be checked against a schema as involved as this one"
        if self._cost.pattern * len(data) > PATTERN_STEPS:
            return "the record is too long to be checked against a schema with patterns as involved as these"
        if self._cost.slow_on_big_integers and sum(1 for _ in _BIG_INTEGER.finditer(data)) > BIG_INTEGERS:
            return (
                f"more than {BIG_INTEGERS} integers beyond 64 bits are too many for a schema "
                "with uniqueItems or multipleOf"
            )
        return ""

    def is_valid(self, value: Mapping[str, Any]) -> bool:
        """Whether a parsed record fits."""
        return self._validator is None or self._validator.is_valid(value)

    def violations(self, value: Mapping[str, Any], index: int, *, data: bytes) -> list[Violation]:
        """What is wrong with a parsed record that does not fit; ``data`` is the record in canonical form.

        Everything, up to VIOLATIONS_PER_RECORD. For records that are too large for their schema to describe
        that in time: what is wrong at the ends of all branches, or only that something is.
        """
        if self._validator is None or self._validator.is_valid(value):
            return []
        evaluations = self._evaluations(data)
        # Each error of the library holds a copy of the value that it is about.
        copied = (self._cost.evaluations + self._cost.entries) * _count_values(data)
        if evaluations + copied // LISTED_COPIES_PER_EVALUATION <= LISTED_EVALUATIONS:
            return [
                _violation(error, index)
                for error in islice(self._validator.iter_errors(value), VIOLATIONS_PER_RECORD)
            ]
        if evaluations + copied // SKETCHED_COPIES_PER_EVALUATION <= SKETCHED_EVALUATIONS:
            return [
                Violation(
                    index=index,
                    pointer=shown(error["instanceLocation"], MESSAGE_CHARACTERS),
                    keyword=error["schemaLocation"].rpartition("/")[2],
                    message=_shortened(error["error"]),
                )
                for error in self._validator.evaluate(value).errors()[:VIOLATIONS_PER_RECORD]
            ]
        message = "the record does not fit the schema, and is too large for a list of what is wrong"
        return [Violation(index=index, pointer="", keyword="size", message=message)]

    def _evaluations(self, data: bytes) -> int:
        """Most evaluations that this record can cause."""
        containers = data.count(b"{") + data.count(b"[")
        return self._cost.evaluations * _count_values(data) + self._cost.entries * containers


_NO_COST: Final = SchemaCost(evaluations=1, entries=0, pattern=0, slow_on_big_integers=False)

ANYTHING: Final = Schema(None, _NO_COST)
"""Accepts every object."""


def compile_schema(text: str) -> Schema:
    """Compile the text of a schema. Raises InvalidArgument(SCHEMA_INVALID), which says what is wrong and where."""
    if not text.strip():
        return ANYTHING
    raw = text.encode()
    if len(raw) > MAX_BYTES:
        raise _invalid(f"the schema has {len(raw)} bytes, at most {MAX_BYTES} are allowed")
    try:
        schema = jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise _invalid(f"the schema is not JSON: {error}") from None
    if type(schema) is not dict:
        raise _invalid("the schema is not a JSON object")
    if not schema:
        return ANYTHING
    try:
        cost = examine(schema)
        validator = jsonschema_rs.Draft202012Validator(
            schema, validate_formats=True, offline=True, pattern_options=_PATTERNS, mask=_VALUE
        )
    except jsonschema_rs.ValidationError as error:
        place = f" at {pointer_of(error.instance_path)}" if error.instance_path else ""
        raise _invalid(f"the schema is not valid{place}: {_message(error)}{_hint(error)}") from None
    except (SchemaRefused, ValueError) as error:
        raise _invalid(f"the schema is not accepted: {error}") from None
    return Schema(validator, cost)


def stored_schema(text: str) -> Schema:
    """Compile a schema that was accepted once.

    One that this version accepts no more refuses every record, and says so; what is there can still be read.
    """
    try:
        return compile_schema(text)
    except InvalidArgument as error:
        reason = f"nothing can be written until the dataset's schema is replaced: {error.message}"
        return Schema(None, _NO_COST, unusable=reason)


def _count_values(data: bytes) -> int:
    """The number of values in a record, or more: one for each comma, one for each container, and the record."""
    return 1 + data.count(b",") + data.count(b"{") + data.count(b"[")


def _violation(error: jsonschema_rs.ValidationError, index: int) -> Violation:
    return Violation(
        index=index,
        pointer=shown(pointer_of(error.instance_path), MESSAGE_CHARACTERS),
        keyword=error.kind.name,
        message=shown(_message(error), MESSAGE_CHARACTERS),
    )


def _message(error: jsonschema_rs.ValidationError) -> str:
    """The library's words, with the value shortened."""
    message = error.message
    return message.replace(_VALUE, _excerpt(error.instance)) if _VALUE in message else message


def _hint(error: jsonschema_rs.ValidationError) -> str:
    if error.message.endswith('is not a "regex"'):
        return " that the engine knows; it has no look-around and no back references"
    return ""


def _shortened(message: str) -> str:
    """A message with the value in it: what is wrong stands behind the value."""
    if len(message) > 2 * VALUE_CHARACTERS:
        message = f"{message[:VALUE_CHARACTERS]}…{message[-VALUE_CHARACTERS:]}"
    return shown(message, MESSAGE_CHARACTERS)


def _excerpt(value: object) -> str:
    if isinstance(value, dict):
        return "the object"
    if isinstance(value, list):
        return "the array"
    return shown(json.dumps(value, ensure_ascii=False))


def _invalid(message: str) -> InvalidArgument:
    message = shown(message, 2 * MESSAGE_CHARACTERS)
    return InvalidArgument("SCHEMA_INVALID", message, fields=[("schema", message)])

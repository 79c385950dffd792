r"""JSON Schemas of datasets, draft 2020-12: compiled once, with nothing in them that reaches out or runs away.

Decided, and part of what users see:

* References stay inside the schema; nothing is ever fetched. ``$id`` stands at the top or not at all.
* Patterns run on an engine without backtracking, so look-around and back references are refused. ``\d`` and
  ``\w`` mean ASCII, as in ECMAScript.
* ``format`` is checked for the formats that the draft defines; other names are notes, as the draft has it.
* What a schema can cost is bounded when it is registered (schema_cost, keyword_cost, pattern_cost). Few schemas
  come near the bounds. Nothing can interrupt the validator, and it keeps the interpreter to itself. So before a
  record is shown to it, the time is estimated from above, from what can be counted in the record: a record that
  could take longer than CHECKING_NS is refused (keyword ``size``), always and on every machine, and where
  checking it is affordable but a list of everything that is wrong with it would not be, only a part of the list
  is given.
"""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

import jiter
import jsonschema_rs

from syncline_server.catalog.schema_cost import SchemaCost, SchemaRefused, examine
from syncline_server.catalog.schema_time import checking_ns, listing_ns, quick_bytes, sketching_ns
from syncline_server.catalog.violations import MESSAGE_CHARACTERS, VALUE_CHARACTERS, pointer_of, shown
from syncline_server.errors import InvalidArgument
from syncline_server.model import Violation

MAX_BYTES: Final = 64 << 10
VIOLATIONS_PER_RECORD: Final = 100
"""More of one record are not told."""
CHECKING_NS: Final = 40e6
"""Longest time in which a record may be checked. Estimates are upper bounds, times are mostly a tenth."""
DESCRIBING_NS: Final = 40e6
"""Longest time in which it may be checked once more and what is wrong with it be listed."""
PATTERN_PROGRAM_BYTES: Final = 10 << 20
"""Most memory for one compiled pattern."""

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
        self.light_bytes = 0 if unusable else quick_bytes(cost, CHECKING_NS)
        """Records of at most so many bytes need not be shown to ``refusal``."""

    def refusal(self, data: bytes) -> str:
        """Why a record, in canonical form, is too much to be checked; empty when it is not."""
        if self._unusable:
            return self._unusable
        if (longest_ns := checking_ns(self._cost, data)) > CHECKING_NS:
            return (
                f"checking the record against this schema could take {longest_ns / 1e6:.0f} ms, at most "
                f"{CHECKING_NS / 1e6:.0f} ms are allowed: make the record smaller or the schema simpler"
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
        if self._validator is None:
            return []
        if listing_ns(self._cost, data) <= DESCRIBING_NS:
            return [
                _violation(error, index)
                for error in islice(self._validator.iter_errors(value), VIOLATIONS_PER_RECORD)
            ]
        if sketching_ns(self._cost, data) <= DESCRIBING_NS:
            return [
                Violation(
                    index=index,
                    pointer=shown(error["instanceLocation"], MESSAGE_CHARACTERS),
                    keyword=error["schemaLocation"].rpartition("/")[2],
                    message=_shortened(error["error"]),
                )
                for error in self._validator.evaluate(value).errors()[:VIOLATIONS_PER_RECORD]
            ]
        if self._validator.is_valid(value):
            return []
        message = "the record does not fit the schema, and is too large for a list of what is wrong"
        return [Violation(index=index, pointer="", keyword="size", message=message)]


_NO_COST: Final = examine({})

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

"""JSON Schemas of datasets: compiled once, with nothing in them that could reach out or run away."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

import jiter
import jsonschema_rs

from syncline_server.catalog.violations import MESSAGE_CHARACTERS, pointer_of, shown
from syncline_server.errors import InvalidArgument
from syncline_server.model import Violation

MAX_BYTES: Final = 64 << 10
VIOLATIONS_PER_RECORD: Final = 100


class Schema:
    """A schema that records can be checked against. Made by ``compile_schema``."""

    def __init__(self, validator: jsonschema_rs.Draft202012Validator | None) -> None:
        self._validator = validator
        self.accepts_everything = validator is None

    def is_valid(self, value: Mapping[str, Any]) -> bool:
        """Whether a parsed record fits."""
        return self._validator is None or self._validator.is_valid(value)

    def violations(self, value: Mapping[str, Any], index: int) -> list[Violation]:
        """Everything that is wrong with a parsed record, at most VIOLATIONS_PER_RECORD."""
        if self._validator is None:
            return []
        return [
            Violation(
                index=index,
                pointer=pointer_of(error.instance_path),
                keyword=error.kind.name,
                message=shown(error.message, MESSAGE_CHARACTERS),
            )
            for error in islice(self._validator.iter_errors(value), VIOLATIONS_PER_RECORD)
        ]


ANYTHING: Final = Schema(None)


def compile_schema(text: str) -> Schema:
    """Compile a schema. Raises InvalidArgument(SCHEMA_INVALID)."""
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise InvalidArgument("SCHEMA_INVALID", f"a schema has at most {MAX_BYTES} bytes")
    if not text.strip():
        return ANYTHING
    try:
        schema = jiter.from_json(text.encode(), allow_inf_nan=False, catch_duplicate_keys=True)
        if schema in ({}, True):
            return ANYTHING
        validator = jsonschema_rs.Draft202012Validator(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions(), validate_formats=True
        )
    except ValueError as error:
        raise InvalidArgument("SCHEMA_INVALID", str(error)[:300]) from None
    return Schema(validator)

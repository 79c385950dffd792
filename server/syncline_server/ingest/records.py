"""Checking of posted records: strict JSON, limits, identity, schema; and their canonical bytes.

A record is looked at once, in this order: size, JSON, depth, size of the canonical bytes, key, schema. What is
wrong with it is told completely as far as it was looked at; a record that is not JSON has no key.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from syncline.names import encode_key
from syncline_server.catalog.schema import ANYTHING, Schema
from syncline_server.catalog.violations import pointer_of, type_name
from syncline_server.clock import SystemClock
from syncline_server.errors import FailedPrecondition, InvalidArgument
from syncline_server.ids import UuidSequence
from syncline_server.ingest.strict_json import JsonObject, Refused, parse, parse_canonical
from syncline_server.model import Identity, IdentityKind, RecordScope, Violation

VIOLATIONS_PER_READ: Final = 10_000
"""Once a read has found so many, it only tells of each further bad record that it is bad."""

_blake2b = hashlib.blake2b
_KEY_TYPES: Final = frozenset({str, int, float, bool})
_PLAIN_KEY: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f~,/]+")
_SURELY_SHORT: Final = 4
"""A character takes at most 4 bytes of UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call and one record may weigh. Bytes of a record count as posted, and again as canonical JSON."""

    records_per_call: int = 10_000
    bytes_per_call: int = 4 << 20
    bytes_per_record: int = 1 << 20
    depth: int = 64
    bytes_per_record_id: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecords:
    """Columns with an entry for each record, in the order posted; a refused one has empty entries."""

    record_ids: list[str]
    data: list[bytes]
    """Canonical JSON."""
    hashes: list[bytes]
    """BLAKE2b-128 of each ``data``."""
    violations: list[Violation]
    """Ordered by index. Past VIOLATIONS_PER_READ each further refused record has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedKeys:
    """The ids that posted objects stand for, in the order posted; a refused one has an empty entry."""

    record_ids: list[str]
    violations: list[Violation]


class RecordReader:
    """Checks records for one dataset, as its settings were when it was opened."""

    def __init__(
        self,
        identity: Identity,
        scope: RecordScope,
        schema: Schema,
        limits: Limits,
        *,
        uuids: UuidSequence | None = None,
    ) -> None:
        self._identity = identity
        self._per_source = scope is RecordScope.PER_SOURCE
        self._schema = schema
        self._limits = limits
        self._uuids = uuids or UuidSequence(SystemClock().now_us)
        self._key_paths = [tuple(field.split(".")) for field in identity.key_fields]
        self._make_id: Callable[[JsonObject, bytes, str], str] = {
            IdentityKind.KEY: self._id_by_key,
            IdentityKind.CONTENT: self._id_by_content,
            IdentityKind.APPEND: self._id_by_order,
        }[identity.kind]
        if identity.kind is IdentityKind.KEY and len(self._key_paths) == 1 and len(self._key_paths[0]) == 1:
            self._make_id = self._id_by_one_field

    def read(self, records: Sequence[bytes], source_id: str) -> CheckedRecords:
        """Check records for a push. Raises InvalidArgument(LIMIT_EXCEEDED)."""
        self.check_size(records)
        longest, depth = self._limits.bytes_per_record, self._limits.depth
        fits = None if self._schema.accepts_everything else self._schema.is_valid
        prefix, make_id = self._prefix(source_id), self._make_id
        if self._identity.kind is IdentityKind.APPEND:
            fresh = iter(self._uuids.take(len(records)))
            make_id = lambda _value, _text, prefix: prefix + next(fresh)  # noqa: E731 - must bind fresh
        checked = CheckedRecords(record_ids=[], data=[], hashes=[], violations=[])
        add_id, add_data, add_hash = checked.record_ids.append, checked.data.append, checked.hashes.append
        canonical = True  # until one is not: whoever posts them makes all of them in the same way
        for raw in records:
            try:
                if len(raw) > longest:
                    raise _too_long(len(raw), longest)
                text = raw
                value = parse_canonical(raw, depth=depth) if canonical else None
                if value is None:
                    canonical = False
                    value, text = parse(raw, depth=depth)
                    if len(text) > longest:
                        raise _too_long(len(text), longest)
                record_id = make_id(value, text, prefix)
                if fits is None or fits(value):
                    add_hash(_blake2b(text, digest_size=16).digest())
                    add_id(record_id)
                    add_data(text)
                    continue
                found = self._schema.violations(value, len(checked.data))
            except Refused as refused:
                found = [_violation(len(checked.data), refused)]
            checked.violations.extend(found if len(checked.violations) < VIOLATIONS_PER_READ else found[:1])
            add_id("")
            add_data(b"")
            add_hash(b"")
        return checked

    def read_keys(self, records: Sequence[bytes], source_id: str) -> CheckedKeys:
        """Find which records are meant, for a delete by values; the schema does not matter.

        Raises InvalidArgument(LIMIT_EXCEEDED), FailedPrecondition(IDENTITY_NOT_ADDRESSABLE) under APPEND.
        """
        self.check_size(records)
        if records and self._identity.kind is IdentityKind.APPEND:
            raise FailedPrecondition(
                "IDENTITY_NOT_ADDRESSABLE",
                "under APPEND every push is a new record, so values do not name one; delete by id",
            )
        record_ids: list[str] = []
        violations: list[Violation] = []
        for index, raw in enumerate(records):
            try:
                record_ids.append(self._id_of(raw, source_id))
            except Refused as refused:
                violations.append(_violation(index, refused))
                record_ids.append("")
        return CheckedKeys(record_ids=record_ids, violations=violations)

    def make_record_id(self, data: bytes, source_id: str) -> str:
        """Id of a stored record under this identity. Raises InvalidArgument(RECORD_INVALID)."""
        try:
            return self._id_of(data, source_id)
        except Refused as refused:
            raise InvalidArgument(
                "RECORD_INVALID", refused.message, violations=[_violation(0, refused)]
            ) from None

    def check_size(self, records: Sequence[bytes]) -> None:
        """Raise InvalidArgument(LIMIT_EXCEEDED) when these are too many or too heavy for one call."""
        _check_limit("records_per_call", "records", len(records), self._limits.records_per_call)
        _check_limit(
            "bytes_per_call", "bytes of records", sum(map(len, records)), self._limits.bytes_per_call
        )

    def _id_of(self, raw: bytes, source_id: str) -> str:
        longest = self._limits.bytes_per_record
        if len(raw) > longest:
            raise _too_long(len(raw), longest)
        value, text = parse(raw, depth=self._limits.depth)
        return self._make_id(value, text, self._prefix(source_id))

    def _prefix(self, source_id: str) -> str:
        return f"{source_id}/" if self._per_source else ""

    def _id_by_one_field(self, value: JsonObject, _text: bytes, prefix: str) -> str:
        """The common case: one string member that stands in the id as it is."""
        key = value.get(self._key_paths[0][0])
        if type(key) is str and (key.isalnum() or _PLAIN_KEY.fullmatch(key)):
            return self._checked(prefix + key)
        return self._id_by_key(value, _text, prefix)

    def _id_by_key(self, value: JsonObject, _text: bytes, prefix: str) -> str:
        return self._checked(prefix + encode_key([_key_value(value, path) for path in self._key_paths]))

    def _id_by_content(self, _value: JsonObject, text: bytes, prefix: str) -> str:
        return prefix + _blake2b(text, digest_size=20).hexdigest()

    def _id_by_order(self, _value: JsonObject, _text: bytes, prefix: str) -> str:
        return prefix + self._uuids.take(1)[0]

    def _checked(self, record_id: str) -> str:
        longest = self._limits.bytes_per_record_id
        if len(record_id) * _SURELY_SHORT > longest and (size := len(record_id.encode())) > longest:
            raise Refused("key", f"the record id made of it has {size} bytes, at most {longest} are allowed")
        return record_id


def _key_value(value: JsonObject, path: Sequence[str]) -> Any:
    here: Any = value
    for depth, name in enumerate(path):
        if type(here) is not dict:
            raise Refused(
                "key", f"key field must be in an object, not in {type_name(here)}", pointer_of(path[:depth])
            )
        if name not in here:
            raise Refused("key", "key field is missing", pointer_of(path[: depth + 1]))
        here = here[name]
    if type(here) not in _KEY_TYPES:
        raise Refused(
            "key",
            f"key field must be a string, a number or a boolean, not {type_name(here)}",
            pointer_of(path),
        )
    if type(here) is str and "\0" in here:
        raise Refused("key", "key field must not hold NUL", pointer_of(path))
    return here


def _too_long(size: int, longest: int) -> Refused:
    return Refused("size", f"the record has {size} bytes, at most {longest} are allowed")


def _violation(index: int, refused: Refused) -> Violation:
    return Violation(index=index, pointer=refused.pointer, keyword=refused.keyword, message=refused.message)


def _check_limit(limit: str, what: str, actual: int, maximum: int) -> None:
    if actual > maximum:
        raise InvalidArgument(
            "LIMIT_EXCEEDED",
            f"{actual} {what} in one call, at most {maximum} are allowed",
            limit=limit,
            maximum=maximum,
            actual=actual,
        )


def record_id_rule(limits: Limits) -> Callable[[Identity, RecordScope], Callable[[bytes, str], str]]:
    """What the catalog needs to re-key a dataset: given an identity and scope, the function that makes ids."""

    def rule(identity: Identity, scope: RecordScope) -> Callable[[bytes, str], str]:
        return RecordReader(identity, scope, ANYTHING, limits).make_record_id

    return rule

"""Checking of posted records: strict JSON, limits, identity, schema; and their canonical bytes.

A good record is looked at once and quickly. One that is refused for whatever reason is looked at again, with
patience, to tell everything that is wrong with it. Keywords of what is found here are ``json``, ``depth``,
``size`` and ``key``; all others are those of JSON Schema.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
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
"""Once a read has found so many, it gives one for each further bad record."""
EXPLAINING_SECONDS: Final = 0.25
"""After so long a read gives one violation for each further bad record: a thousand bad ones take a tenth."""
TURN_SECONDS: Final = 0.004
"""How long records are checked before other tasks get a turn: about a thousand ordinary ones."""

MakeId = Callable[[JsonObject, bytes, str], str]
"""(record, its canonical bytes, prefix) → record id."""

_blake2b = hashlib.blake2b
_KEY_TYPES: Final = frozenset({str, int, float, bool})
_PLAIN_KEY: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f~,/]+")
_UTF8_BYTES_PER_CHARACTER: Final = 4
_UNFIT: Final = (
    "the record does not fit the schema; too much is wrong in this call to tell of each record what"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call and one record may weigh. A record counts as posted, and again as canonical JSON."""

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
    """Ordered by index; at least one for each refused record."""


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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind = identity.kind
        self._per_source = scope is RecordScope.PER_SOURCE
        self._schema = schema
        self._limits = limits
        self._uuids = uuids or UuidSequence(SystemClock().now_us)
        self._monotonic = monotonic
        self._key_paths = [tuple(field.split(".")) for field in identity.key_fields]
        self._one_field = self._key_paths[0][0] if [len(path) for path in self._key_paths] == [1] else ""

    def read(self, records: Sequence[bytes], source_id: str) -> CheckedRecords:
        """Check records for a push at one go. Raises InvalidArgument(LIMIT_EXCEEDED)."""
        checked = CheckedRecords(record_ids=[], data=[], hashes=[], violations=[])
        for _ in self.read_in_turns(records, source_id, checked):
            pass
        return checked

    def read_in_turns(  # noqa: C901, PLR0912 - calls cost here
        self, records: Sequence[bytes], source_id: str, checked: CheckedRecords
    ) -> Iterator[None]:
        """Check records for a push, and add what is found to ``checked``.

        Pauses after TURN_SECONDS, or when one record has taken longer than that, so that others get a turn: no
        turn takes more than TURN_SECONDS and the longest that one record can. Raises
        InvalidArgument(LIMIT_EXCEEDED).
        """
        self.check_size(records)
        longest, depth = self._limits.bytes_per_record, self._limits.depth
        schema, prefix, make_id = self._schema, self._prefix(source_id), self._id_maker(len(records))
        fits = None if schema.accepts_everything else schema.is_valid
        light, monotonic = schema.light_bytes, self._monotonic
        add_id, add_data, add_hash = checked.record_ids.append, checked.data.append, checked.hashes.append
        explaining_seconds = EXPLAINING_SECONDS
        canonical = True  # until one is not: whoever posts them makes all of them in the same way
        turn_ends = monotonic() + TURN_SECONDS
        for raw in records:
            if monotonic() >= turn_ends:
                yield
                turn_ends = monotonic() + TURN_SECONDS
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
                if fits is not None:
                    if len(text) > light and (reason := schema.refusal(text)):
                        raise Refused("size", reason)  # noqa: TRY301 - as above
                    if not fits(value):
                        raise Refused("size", _UNFIT)  # noqa: TRY301 - as above
            except Refused as error:
                refused = error
            else:
                add_id(record_id)
                add_data(text)
                add_hash(_blake2b(text, digest_size=16).digest())
                continue
            started = monotonic()
            if started >= turn_ends:
                yield
                started = monotonic()
                turn_ends = started + TURN_SECONDS
            index = len(checked.data)
            if len(checked.violations) < VIOLATIONS_PER_READ and explaining_seconds > 0:
                checked.violations.extend(self._explain(raw, index, prefix))
                explaining_seconds -= monotonic() - started
            else:
                checked.violations.append(_violation(index, refused))
            add_id("")
            add_data(b"")
            add_hash(b"")

    def read_keys(self, records: Sequence[bytes], source_id: str) -> CheckedKeys:
        """Find which records are meant, for a delete by values; the schema does not matter.

        Raises InvalidArgument(LIMIT_EXCEEDED), FailedPrecondition(IDENTITY_NOT_ADDRESSABLE) under APPEND.
        """
        self.check_size(records)
        if records and self._kind is IdentityKind.APPEND:
            raise FailedPrecondition(
                "IDENTITY_NOT_ADDRESSABLE",
                "under APPEND every push is a new record, so values do not name one; delete by id",
            )
        prefix, make_id = self._prefix(source_id), self._id_maker(0)
        checked = CheckedKeys(record_ids=[], violations=[])
        for index, raw in enumerate(records):
            record_id = ""
            try:
                record_id = make_id(*self._parse(raw), prefix)
            except Refused as refused:
                checked.violations.append(_violation(index, refused))
            checked.record_ids.append(record_id)
        return checked

    def make_record_id(self, data: bytes, source_id: str) -> str:
        """Id of a stored record under this identity. Raises InvalidArgument(RECORD_INVALID)."""
        try:
            return self._id_maker(1)(*self._parse(data), self._prefix(source_id))
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

    def _parse(self, raw: bytes) -> tuple[JsonObject, bytes]:
        longest = self._limits.bytes_per_record
        if len(raw) > longest:
            raise _too_long(len(raw), longest)
        value, text = parse(raw, depth=self._limits.depth)
        if len(text) > longest:
            raise _too_long(len(text), longest)
        return value, text

    def _explain(self, raw: bytes, index: int, prefix: str) -> list[Violation]:
        """Everything that is wrong with a record that was refused; what is not JSON has neither key nor schema."""
        try:
            value, text = self._parse(raw)
        except Refused as refused:
            return [_violation(index, refused)]
        found = [_violation(index, refused) for refused in self._wrong_with_key(value, text, prefix)]
        if reason := self._schema.refusal(text):
            return [*found, _violation(index, Refused("size", reason))]
        return found + self._schema.violations(value, index, data=text)

    # -- identity -----------------------------------------------------------------------------------------

    def _prefix(self, source_id: str) -> str:
        return f"{source_id}/" if self._per_source else ""

    def _id_maker(self, count: int) -> MakeId:
        """What makes the ids of up to ``count`` records."""
        if self._kind is IdentityKind.APPEND:
            fresh = iter(self._uuids.take(count))
            return lambda _value, _text, prefix: prefix + next(fresh)
        if self._kind is IdentityKind.CONTENT:
            return _id_by_content
        return self._id_by_one_field if self._one_field else self._id_by_key

    def _id_by_one_field(self, value: JsonObject, text: bytes, prefix: str) -> str:
        """The common case: one string that stands in the id as it is."""
        key = value.get(self._one_field)
        if type(key) is str and (key.isalnum() or _PLAIN_KEY.fullmatch(key)):
            return self._limited(prefix + key)
        return self._id_by_key(value, text, prefix)

    def _id_by_key(self, value: JsonObject, _text: bytes, prefix: str) -> str:
        return self._limited(prefix + encode_key([_key_value(value, path) for path in self._key_paths]))

    def _limited(self, record_id: str) -> str:
        longest = self._limits.bytes_per_record_id
        if len(record_id) * _UTF8_BYTES_PER_CHARACTER > longest:
            size = len(record_id.encode())
            if size > longest:
                raise Refused("key", f"the key makes an id of {size} bytes, at most {longest} are allowed")
        return record_id

    def _wrong_with_key(self, value: JsonObject, text: bytes, prefix: str) -> list[Refused]:
        wrong = []
        for path in self._key_paths:
            try:
                _key_value(value, path)
            except Refused as refused:
                wrong.append(refused)
        if self._key_paths and not wrong:
            try:
                self._id_by_key(value, text, prefix)
            except Refused as refused:
                wrong.append(refused)
        return wrong


def record_id_rule(limits: Limits) -> Callable[[Identity, RecordScope], Callable[[bytes, str], str]]:
    """What the catalog needs to re-key a dataset: given an identity and a scope, the function that makes ids."""

    def rule(identity: Identity, scope: RecordScope) -> Callable[[bytes, str], str]:
        return RecordReader(identity, scope, ANYTHING, limits).make_record_id

    return rule


def _id_by_content(_value: JsonObject, text: bytes, prefix: str) -> str:
    return prefix + _blake2b(text, digest_size=20).hexdigest()


def _key_value(value: JsonObject, path: Sequence[str]) -> Any:
    here: Any = value
    for depth, name in enumerate(path):
        if type(here) is not dict:
            raise Refused(
                "key", f"part of the key must be an object, not {type_name(here)}", pointer_of(path[:depth])
            )
        if name not in here:
            raise Refused("key", "part of the key is missing", pointer_of(path[: depth + 1]))
        here = here[name]
    if type(here) not in _KEY_TYPES:
        message = f"part of the key must be a string, a number or a boolean, not {type_name(here)}"
        raise Refused("key", message, pointer_of(path))
    if type(here) is str and "\0" in here:
        raise Refused("key", "part of the key holds NUL", pointer_of(path))
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

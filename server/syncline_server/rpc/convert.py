"""Requests to values: shape checks that collect everything wrong into one BadRequest, names, request ids."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Final, TypeVar

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from syncline import names
from syncline.v1 import push_service_pb2, record_pb2
from syncline_server.clock import Clock
from syncline_server.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from syncline_server.model import Condition, Principal, RequestIdentity, Violation

_Enum = TypeVar("_Enum", bound=IntEnum)

MAX_AHEAD_US: Final = 3_600_000_000
"""A request id from further in the future comes from a broken clock, and would be remembered too long."""


class Problems:
    """What is wrong with a request. Collect all of it, then ``raise_any``."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: list[tuple[str, str]] = []

    def add(self, field: str, problem: str) -> None:
        """Note that ``field`` has this problem; read as one sentence: "source is required"."""
        self.fields.append((field, problem))

    def raise_any(self) -> None:
        """Raise InvalidArgument(INVALID_REQUEST) naming every wrong field, if there is one."""
        if self.fields:
            text = "; ".join(f"{field} {problem}" for field, problem in self.fields)
            raise InvalidArgument("INVALID_REQUEST", text, fields=self.fields)


# -- required fields --------------------------------------------------------------------------------------

_Check = Callable[[Message, str, Problems], None]

_checks: dict[type[Message], tuple[_Check, ...]] = {}


def begin(request: Message) -> Problems:
    """Check the fields that are annotated as required, and return what is missing.

    Numbers are passed over: 0 cannot be told from absent, and a method whose 0 is wrong says so itself.
    """
    problems = Problems()
    checks = _checks.get(type(request))
    if checks is None:
        checks = _checks[type(request)] = _required_checks(type(request).DESCRIPTOR, ())
    for check in checks:
        check(request, "", problems)
    return problems


def _required_checks(message: Any, above: tuple[Any, ...]) -> tuple[_Check, ...]:
    checks: list[_Check] = []
    is_update = "update_mask" in message.fields_by_name  # what is required of a whole is not of a change
    for field in message.fields:
        required = (
            field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        )
        kind = field.message_type
        if required and (kind is not None or field.is_repeated or _zero_means_absent(field)):
            checks.append(_presence_check(field))
        if kind is not None and not is_update and kind not in above and not kind.GetOptions().map_entry:
            inner = _required_checks(kind, (*above, message))
            if inner:
                checks.append(_inner_check(field, inner))
    return tuple(checks)


def _zero_means_absent(field: FieldDescriptor) -> bool:
    return field.type in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_ENUM}


def _presence_check(field: FieldDescriptor) -> _Check:
    name = field.name
    if field.has_presence:

        def check(message: Message, path: str, problems: Problems) -> None:
            if not message.HasField(name):
                problems.add(path + name, "is required")

    else:

        def check(message: Message, path: str, problems: Problems) -> None:
            if not getattr(message, name):
                problems.add(path + name, "is required")

    return check


def _inner_check(field: FieldDescriptor, inner: tuple[_Check, ...]) -> _Check:
    name = field.name

    def check_each(message: Message, path: str, problems: Problems) -> None:
        for index, part in enumerate(getattr(message, name)):
            for check in inner:
                check(part, f"{path}{name}[{index}].", problems)

    def check_one(message: Message, path: str, problems: Problems) -> None:
        if message.HasField(name):
            for check in inner:
                check(getattr(message, name), f"{path}{name}.", problems)

    return check_each if field.is_repeated else check_one


# -- names ------------------------------------------------------------------------------------------------


def dataset_of(name: str, problems: Problems, field: str = "dataset") -> str:
    """Id in ``datasets/{dataset}``; what is wrong is noted, and then the result has no meaning."""
    if name:
        try:
            return names.parse_dataset_name(name)
        except ValueError as error:
            problems.add(field, f"is {error}")
    return ""


def source_of(name: str, problems: Problems, field: str = "source") -> tuple[str, str]:
    """Ids in ``datasets/{dataset}/sources/{source}``; what is wrong is noted."""
    if name:
        try:
            return names.parse_source_name(name)
        except ValueError as error:
            problems.add(field, f"is {error}")
    return "", ""


def key_of(name: str, problems: Problems, field: str = "name") -> str:
    """Id in ``keys/{key}``; what is wrong is noted."""
    collection, _, key_id = name.partition("/")
    if name and (collection != "keys" or not key_id.isascii() or not key_id.isalnum() or len(key_id) > 64):
        problems.add(field, f"is not a key name: {name[:80]!r} (expected keys/{{key}})")
    return key_id


def new_id(resource_id: str, name: str, expected_name: str, problems: Problems, field: str) -> None:
    """Check the id that a caller chose, and that a name given beside it agrees."""
    if resource_id and not names.ID_PATTERN.fullmatch(resource_id):
        problems.add(
            f"{field}_id",
            "must be 1 to 63 characters, lower-case letters, digits, `-`, `_`, `.`, "
            "beginning with a letter and ending with a letter or digit",
        )
    elif name and name != expected_name:
        problems.add(f"{field}.name", f"must be empty or {expected_name!r}")


def check_member_id(member_id: str, problems: Problems, field: str) -> None:
    """Note an id that no replica or producer can have; an empty one is for the caller to judge."""
    if member_id and not names.MEMBER_ID_PATTERN.fullmatch(member_id):
        problems.add(field, "must be 1 to 128 characters, letters, digits, `.`, `_`, `-`")


def enum_of(kind: type[_Enum], number: int, problems: Problems, field: str) -> _Enum | None:
    """Member with this number; None for 0, and for numbers of a newer protocol, which are noted."""
    if not number:
        return None
    try:
        return kind(number)
    except ValueError:
        problems.add(field, f"is {number}, which this server does not know")
        return None


# -- times ------------------------------------------------------------------------------------------------


def timestamp(time_us: int | None) -> Timestamp | None:
    """Protobuf form of a time in microseconds."""
    if time_us is None:
        return None
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1_000)


def time_us(value: Timestamp) -> int:
    """Microseconds since 1970-01-01 UTC."""
    return value.seconds * 1_000_000 + value.nanos // 1_000


def duration(length_us: int) -> Duration:
    """Protobuf form of a length in microseconds."""
    return Duration(seconds=length_us // 1_000_000, nanos=length_us % 1_000_000 * 1_000)


def duration_us(value: Duration) -> int:
    """Microseconds."""
    return value.seconds * 1_000_000 + value.nanos // 1_000


# -- request ids ------------------------------------------------------------------------------------------


class RequestIds:
    """Makes the identity of a request, and refuses ids whose first use may have been forgotten."""

    def __init__(self, clock: Clock, *, retention_us: int) -> None:
        self._clock = clock
        self._retention_us = retention_us

    def identity(self, method: str, request: Message, problems: Problems) -> RequestIdentity | None:
        """Identity of a request that has a ``request_id``, None when it has none.

        A malformed id is noted. Raises FailedPrecondition(REQUEST_ID_EXPIRED), but for a request in which
        nothing else is wrong so far.
        """
        request_id: str = request.request_id  # type: ignore[attr-defined]
        if not request_id:
            return None
        try:
            made_us = names.request_id_time_ms(request_id) * 1_000
        except ValueError:
            problems.add("request_id", f"is not a UUIDv7: {request_id[:80]!r}")
            return None
        now_us = self._clock.now_us()
        if made_us > now_us + MAX_AHEAD_US:
            problems.add(
                "request_id", "is from more than an hour in the future; GetServerInfo tells the server's time"
            )
            return None
        problems.raise_any()
        if made_us < now_us - self._retention_us:
            raise FailedPrecondition(
                "REQUEST_ID_EXPIRED",
                "the request id is older than what is remembered, so a retry cannot be recognised: "
                "look whether the first try had effect, then use a new id",
                server_time_ms=now_us // 1_000,
            )
        fingerprint = blake2b(method.encode(), digest_size=16)
        fingerprint.update(request.SerializeToString(deterministic=True))
        return RequestIdentity(
            request_id=request_id.lower(), fingerprint=fingerprint.digest(), time_us=made_us
        )


# -- rights and waiting ------------------------------------------------------------------------------------


def check_may_read(principal: Principal, dataset_id: str) -> None:
    """Raise PermissionDenied unless this key may read the dataset; absent and forbidden look the same."""
    if not principal.may_read(dataset_id):
        raise PermissionDenied(
            "PERMISSION_DENIED", f"this key may not read dataset {dataset_id!r}, or there is no such dataset"
        )


def check_revision(min_revision: int, problems: Problems) -> None:
    """Note a revision to wait for that no dataset can reach."""
    if min_revision < 0:
        problems.add("min_revision", "must not be negative")


def wait_seconds(context: Any, *, longest_seconds: float) -> float:
    """How long to wait for ``min_revision``: a little less than the caller does, so that it learns why."""
    left: float | None = context.time_remaining()
    return longest_seconds if left is None else max(0.0, min(longest_seconds, left * 0.9 - 0.02))


# -- records ----------------------------------------------------------------------------------------------


def conditions_of(request: push_service_pb2.PushRequest, problems: Problems) -> dict[int, Condition]:
    """Conditions of a Push by position; what is wrong with them is noted."""
    conditions: dict[int, Condition] = {}
    count = len(request.records)
    for place, condition in enumerate(request.conditions):
        index, field = condition.index, f"conditions[{place}]"
        kind = condition.WhichOneof("condition")
        if not 0 <= index < count:
            problems.add(f"{field}.index", f"must be from 0 to {count - 1}, the positions of the records")
        elif index in conditions:
            problems.add(f"{field}.index", f"is {index} again; a record has at most one condition")
        elif kind is None:
            problems.add(field, "needs if_revision or if_absent")
        elif kind == "if_absent" and not condition.if_absent:
            problems.add(f"{field}.if_absent", "cannot be false")
        elif kind == "if_revision" and condition.if_revision < 1:
            problems.add(f"{field}.if_revision", "must be at least 1, the first revision")
        elif kind == "if_absent":
            conditions[index] = Condition(if_absent=True)
        else:
            conditions[index] = Condition(if_revision=condition.if_revision)
    return conditions


def violations_out(violations: Sequence[Violation]) -> list[record_pb2.RecordViolation]:
    """Violations as messages."""
    return [
        record_pb2.RecordViolation(index=v.index, pointer=v.pointer, keyword=v.keyword, message=v.message)
        for v in violations
    ]

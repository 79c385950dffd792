"""Errors as gRPC tells them: ``google.rpc.Status`` with one ErrorInfo, from one table.

Details travel in the trailers, which break above 8 KiB, so they stay below 4 KiB: the first 20 violations and
the total. ``validate_only`` is for those who want all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from syncline_server import errors
from syncline_server.errors import SynclineError

DOMAIN: Final = "syncline"
DETAILS_KEY: Final = "grpc-status-details-bin"

MAX_VIOLATIONS: Final = 20
MAX_DETAILS_BYTES: Final = 4096
MAX_MESSAGE_BYTES: Final = 1024
"""As it travels: percent-encoded in ``grpc-message``, outside the details."""

CODES: Final[Mapping[type[SynclineError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

RETRY_SECONDS: Final[Mapping[str, float]] = {
    "OVERLOADED": 0.2,
    "STORE_FULL": 5.0,
    "STORE_UNAVAILABLE": 1.0,
    "SHUTTING_DOWN": 1.0,
    "MOVED": 0.0,
    "REVISION_NOT_REACHED": 0.1,
    "DATASET_CHANGED": 0.0,
}
"""When to try again, for reasons where waiting helps and the error itself does not say."""

_Told = tuple[str, str, str]
"""Field, description, keyword."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error in the form that ``ServicerContext.abort`` takes."""

    code: grpc.StatusCode
    message: str
    details: bytes
    """A serialised ``google.rpc.Status``."""

    @property
    def trailers(self) -> tuple[tuple[str, bytes]]:
        """Metadata that carries the details."""
        return ((DETAILS_KEY, self.details),)


def refusal(error: SynclineError) -> Refusal:
    """Tell a domain error."""
    retry_seconds = error.retry_after_seconds
    if retry_seconds is None:
        retry_seconds = RETRY_SECONDS.get(error.reason)
    violations = _violations(error)
    metadata = dict(error.metadata)
    if violations:
        total = error.total_violations if isinstance(error, errors.InvalidArgument) else 0
        metadata["total_violations"] = str(max(total, len(violations)))
    return _build(_code(error), error.reason, error.message, metadata, violations, retry_seconds)


def internal(incident_id: str) -> Refusal:
    """Tell that something broke that the caller cannot help; what it was is in the log under this id."""
    return _build(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"internal error, incident {incident_id}",
        {"incident_id": incident_id},
        (),
        None,
    )


def _code(error: SynclineError) -> grpc.StatusCode:
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.UNKNOWN


def _violations(error: SynclineError) -> Sequence[_Told]:
    told = [(field, description, "INVALID") for field, description in getattr(error, "fields", ())]
    told.extend(
        (f"records[{violation.index}]{violation.pointer}", violation.message, violation.keyword)
        for violation in getattr(error, "violations", ())
    )
    return told


def _build(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    metadata: Mapping[str, str],
    violations: Sequence[_Told],
    retry_seconds: float | None,
) -> Refusal:
    status = Status(code=code.value[0], message=_fit_message(message))
    info = ErrorInfo(
        reason=reason,
        domain=DOMAIN,
        metadata={_cut(key, 63): _cut(value, 160) for key, value in list(metadata.items())[:10]},
    )
    status.details.add().Pack(info)
    if retry_seconds is not None:
        status.details.add().Pack(RetryInfo(retry_delay=_duration(retry_seconds)))
    if violations:
        room = MAX_DETAILS_BYTES - status.ByteSize() - 64  # the type URL of one more detail, and lengths
        status.details.add().Pack(_bad_request(violations[:MAX_VIOLATIONS], room))
    return Refusal(code=code, message=status.message, details=status.SerializeToString())


def _bad_request(violations: Sequence[_Told], room: int) -> BadRequest:
    """Tell as many as there is room for, in fewer words if need be."""
    count = len(violations)
    words = 200
    while True:
        told = BadRequest(
            field_violations=[
                BadRequest.FieldViolation(
                    field=_cut(field, 160), description=_cut(text, words), reason=keyword
                )
                for field, text, keyword in violations[:count]
            ]
        )
        if told.ByteSize() <= room or not count:
            return told
        if words > 50:
            words //= 2
        else:
            count -= 1


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def _fit_message(message: str) -> str:
    """Shorten until the message fits its header, where most bytes beyond ASCII take three."""
    message = _cut(message, MAX_MESSAGE_BYTES)
    while len(quote(message, safe=" /:;,.!?'\"()[]{}<>=+-_*&^$#@~|`\\")) > MAX_MESSAGE_BYTES:
        message = _cut(message, len(message.encode()) * 3 // 4)
    return message


def _cut(text: str, max_bytes: int) -> str:
    data = text.encode("utf-8", "replace")  # a lone surrogate cannot be sent
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - 3].decode("utf-8", "ignore") + "…"

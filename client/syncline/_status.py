"""gRPC's errors to ours: the only place. Nothing of gRPC's own classes reaches a user."""

import re
from collections.abc import Mapping
from typing import Final

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from syncline import errors
from syncline._transport import ADMIN_KEY_FILE, DATA_VARIABLE, KEY_VARIABLE, Endpoint
from syncline.errors import SynclineError
from syncline.models import Violation

DOMAIN: Final = "syncline"

_BY_CODE: Final[Mapping[grpc.StatusCode, type[SynclineError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: errors.NotAuthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotOffered,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.INTERNAL: errors.ServerError,
}
_BY_REASON: Final[Mapping[str, type[SynclineError]]] = {
    "RECORD_INVALID": errors.InvalidRecords,
    "LIMIT_EXCEEDED": errors.LimitExceeded,
    "SCHEMA_INVALID": errors.SchemaInvalid,
    "TOKEN_INVALID": errors.TokenInvalid,
    "SESSION_INVALID": errors.SessionInvalid,
    "SOURCE_DISABLED": errors.SourceDisabled,
    "IDENTITY_IN_USE": errors.IdentityInUse,
    "MASS_DELETE": errors.MassDeleteRefused,
    "CONDITION_FAILED": errors.ConditionFailed,
    "ETAG_MISMATCH": errors.EtagMismatch,
    "SESSION_CONFLICT": errors.SessionConflict,
    "PRODUCER_FENCED": errors.ProducerFenced,
}
_HINTS: Final[Mapping[str, str]] = {
    "LIMIT_EXCEEDED": "load() and sessions split their rows by themselves",
    "MASS_DELETE": "if that is meant, open the session with allow_mass_delete=True",
    "IDENTITY_IN_USE": "pass rekey=True to give all records their new ids",
}
_CONNECTION_CODES: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    }
)
"""What a connection that breaks can look like, when no server of ours says otherwise."""

_CODE_BY_NUMBER: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

_RECORD_FIELD: Final = re.compile(r"records\[(\d+)\](.*)", re.DOTALL)


def to_error(error: grpc.aio.AioRpcError, endpoint: Endpoint) -> SynclineError:
    """The error of a call, in our terms and with a hint where there is something to do.

    Where there are several servers and this one is in trouble, the next call goes to another.
    """
    details = _details(error)
    if _is_ours(details):
        failure = _typed(error.code(), error.details() or "", details, endpoint)
    else:
        failure = _foreign(error, endpoint)
    if is_connection_trouble(failure) or isinstance(failure, errors.DeadlineExceeded):
        endpoint.route.leave()
    return failure


def silent(seconds: float, endpoint: Endpoint) -> SynclineError:
    """The error of a stream that brought nothing for so long."""
    endpoint.route.leave()
    return errors.Unavailable(f"nothing was heard for {seconds:g} s")


def to_part_error(status: Status, endpoint: Endpoint) -> SynclineError:
    """The error of one subscription of a stream, which comes as a message."""
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    details = _unpack(status)
    if not _is_ours(details):
        return _BY_CODE.get(code, errors.ServerError)(status.message or code.name, code=code.name)
    return _typed(code, status.message, details, endpoint)


def _is_ours(details: Mapping[type, object]) -> bool:
    info = details.get(ErrorInfo)
    return isinstance(info, ErrorInfo) and info.domain == DOMAIN


def _typed(
    code: grpc.StatusCode, message: str, details: Mapping[type, object], endpoint: Endpoint
) -> SynclineError:
    info = details[ErrorInfo]
    assert isinstance(info, ErrorInfo)
    retry = details.get(RetryInfo)
    bad_request = details.get(BadRequest)
    violations, fields = _read_violations(
        bad_request if isinstance(bad_request, BadRequest) else BadRequest()
    )
    metadata = dict(info.metadata)
    total = metadata.get("total_violations", "")
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, errors.ServerError)
    return kind(
        _with_hint(message or info.reason, info.reason, endpoint),
        reason=info.reason,
        code=code.name,
        violations=violations,
        total_violations=int(total) if violations and total.isdigit() else None,
        fields=fields,
        retry_after_seconds=_seconds(retry) if isinstance(retry, RetryInfo) else None,
        metadata=metadata,
    )


def is_connection_trouble(error: SynclineError) -> bool:
    """Whether the connection failed, rather than the server saying no."""
    return isinstance(error, errors.Unavailable) and error.reason != "REVISION_NOT_REACHED"


def _details(error: grpc.aio.AioRpcError) -> dict[type, object]:
    try:
        status: Status | None = rpc_status.from_call(error)
    except ValueError:  # the transport's code is not the one in the details: something between us rewrote it
        status = None
    return _unpack(status) if status is not None else {}


def _unpack(status: Status) -> dict[type, object]:
    found: dict[type, object] = {}
    for packed in status.details:
        for kind in (ErrorInfo, RetryInfo, BadRequest):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found[kind] = message
    return found


def _read_violations(bad_request: BadRequest) -> tuple[list[Violation], dict[str, str]]:
    """Those of records, and those of other fields of the request."""
    violations: list[Violation] = []
    fields: dict[str, str] = {}
    for told in bad_request.field_violations:
        if match := _RECORD_FIELD.fullmatch(told.field):
            violations.append(
                Violation(
                    index=int(match[1]), pointer=match[2], keyword=told.reason, message=told.description
                )
            )
        else:
            fields[told.field] = told.description
    return violations, fields


def _seconds(retry: RetryInfo) -> float:
    return float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)


def _with_hint(message: str, reason: str, endpoint: Endpoint) -> str:
    if reason == "KEY_MISSING":
        return (
            f"{message}; pass key=… to connect(), set {KEY_VARIABLE}, or on the server's machine set "
            f"{DATA_VARIABLE} to its data directory, where {ADMIN_KEY_FILE} is"
        )
    if reason == "KEY_INVALID":
        return f"{message}; the key came from {endpoint.key_origin}"
    hint = _HINTS.get(reason)
    return f"{message}; {hint}" if hint else message


def _foreign(error: grpc.aio.AioRpcError, endpoint: Endpoint) -> SynclineError:
    """An error that no Syncline server wrote: the network, TLS, a proxy, or another program on the port."""
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"{endpoint.target} did not answer in time", code=code.name)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return errors.LimitExceeded(
            f"the call is too large for the connection ({text}); {_HINTS['LIMIT_EXCEEDED']}",
            reason="LIMIT_EXCEEDED",
            code=code.name,
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.NotOffered(
            f"{endpoint.target} does not know this call: it is not a Syncline server, or an older one ({text})",
            code=code.name,
        )
    if code in _CONNECTION_CODES:
        return errors.Unavailable(_explain_connection(text, endpoint), code=code.name)
    kind = _BY_CODE.get(code, errors.ServerError)
    return kind(f"{endpoint.target}: {text or code.name}", code=code.name)


def _explain_connection(text: str, endpoint: Endpoint) -> str:
    """What to do about a connection that cannot be made, by the words of gRPC's core."""
    target, lower = endpoint.target, text.lower()
    if "certificate_verify_failed" in lower or "certificate verify failed" in lower:
        advice = "its certificate is not trusted here; pass tls=Tls(ca=…) with the authority that signed it"
    elif "hostname" in lower and ("verif" in lower or "mismatch" in lower or "peer name" in lower):
        advice = "its certificate is for another name; pass tls=Tls(server_name=…)"
    elif "certificate_required" in lower or "certificate required" in lower:
        advice = "it asks for a client certificate; pass tls=Tls(certificate=…, private_key=…)"
    elif "wrong_version_number" in lower or "handshake" in lower or "ssl" in lower:
        advice = "the TLS handshake failed; if it speaks plain text, leave out tls="
    elif "connection refused" in lower or "no such file" in lower:
        advice = "nothing listens there; start a server with `syncline-server serve`, or check the address"
    elif "name resolution" in lower or "dns" in lower or "domain name" in lower:
        advice = "the name does not resolve; check the address"
    elif "http1" in lower or "http/1" in lower or "frame size" in lower or "http2 settings" in lower:
        advice = "what answers there is not a gRPC server; check the port (Syncline's is 7420, 7421 is its metrics)"
    elif endpoint.tls is None and any(word in lower for word in ("closed", "reset", "goaway", "eof")):
        advice = "the connection was closed; the server stopped, or it speaks TLS: then pass tls=True"
    elif endpoint.tls is not None and endpoint.tls.certificate is None and "closed" in lower:
        advice = (
            "the connection was closed; the server stopped, or it asks for a client certificate: then pass "
            "tls=Tls(certificate=…, private_key=…)"
        )
    else:
        advice = "the connection failed"
    return f"cannot reach {target}: {advice} ({text})" if text else f"cannot reach {target}: {advice}"

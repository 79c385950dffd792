"""Errors as gRPC tells them (contract section 6)."""

import inspect

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from syncline_server import errors
from syncline_server.model import Violation
from syncline_server.rpc.status import MAX_DETAILS_BYTES, MAX_MESSAGE_BYTES, internal, refusal


def details(told, kind):
    found = [detail for detail in Status.FromString(told.details).details if detail.Is(kind.DESCRIPTOR)]
    assert len(found) == 1, f"{len(found)} details of kind {kind.DESCRIPTOR.name}"
    message = kind()
    found[0].Unpack(message)
    return message


def kinds(told):
    return {detail.type_url.rpartition(".")[2] for detail in Status.FromString(told.details).details}


ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.SynclineError) and kind is not errors.SynclineError
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_error_has_the_code_of_its_name(kind):
    words = "".join("_" + c if c.isupper() else c.upper() for c in kind.__name__).lstrip("_")
    told = refusal(kind("SOME_REASON", "what happened", dataset="books"))
    assert told.code is grpc.StatusCode[words]
    status = Status.FromString(told.details)
    assert (status.code, status.message) == (told.code.value[0], "what happened")
    info = details(told, ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "SOME_REASON",
        "syncline",
        {"dataset": "books"},
    )


def test_there_are_eleven_kinds_of_error():
    assert len(ALL) == 11


def test_g4_unknown_outcomes_are_unavailable_and_internal_only():
    """G4: every other code promises that nothing was done."""
    unknown = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
    assert refusal(errors.Unavailable("MOVED", "")).code in unknown
    assert internal("0").code in unknown
    assert not unknown & {refusal(k("X", "")).code for k in ALL if k is not errors.Unavailable}


def test_t29_first_20_violations_with_index_pointer_keyword_and_the_total():
    bad = [
        Violation(index=i, pointer="/isbn", keyword="type", message="5 is not a string") for i in range(1000)
    ]
    told = refusal(errors.InvalidArgument("RECORD_INVALID", "1000 of 1000", violations=bad))
    shown = details(told, BadRequest).field_violations
    assert [(v.field, v.reason, v.description) for v in shown] == [
        (f"records[{i}]/isbn", "type", "5 is not a string") for i in range(20)
    ]
    assert details(told, ErrorInfo).metadata["total_violations"] == "1000"


def test_failed_conditions_are_told_like_violations():
    bad = [Violation(index=3, pointer="", keyword="if_revision", message="is at 7")]
    told = refusal(errors.Aborted("CONDITION_FAILED", "1 condition", violations=bad))
    assert details(told, BadRequest).field_violations[0].field == "records[3]"
    assert details(told, ErrorInfo).metadata["total_violations"] == "1"


def test_wrong_fields_are_all_told():
    told = refusal(
        errors.InvalidArgument("INVALID_REQUEST", "x", fields=[("a", "is required"), ("b", "is odd")])
    )
    assert [(v.field, v.description) for v in details(told, BadRequest).field_violations] == [
        ("a", "is required"),
        ("b", "is odd"),
    ]


@pytest.mark.parametrize(
    "text", ["x" * 5000, "é" * 5000, "\U0001f600" * 5000, "\ud800" * 5000, "\n\x1b" * 5000]
)
def test_details_and_message_stay_small_whatever_the_text(text):
    bad = [Violation(index=i, pointer="/" + text, keyword="type", message=text) for i in range(1000)]
    metadata = {f"k{i}": text for i in range(10)}
    told = refusal(errors.InvalidArgument("RECORD_INVALID", text, violations=bad, **metadata))
    assert len(told.details) <= MAX_DETAILS_BYTES
    percent_encoded = sum(1 if 0x20 <= b < 0x7F and b != 0x25 else 3 for b in told.message.encode())
    assert percent_encoded <= MAX_MESSAGE_BYTES
    assert details(told, ErrorInfo).reason == "RECORD_INVALID"


def test_retry_is_told_where_waiting_helps():
    assert (
        details(refusal(errors.ResourceExhausted("OVERLOADED", "")), RetryInfo).retry_delay.nanos
        == 200_000_000
    )
    named = refusal(errors.ResourceExhausted("TOO_MANY_SESSIONS", "", retry_after_seconds=60))
    assert details(named, RetryInfo).retry_delay.seconds == 60
    assert "RetryInfo" not in kinds(refusal(errors.InvalidArgument("INVALID_REQUEST", "")))


def test_internal_tells_an_incident_and_nothing_else():
    told = internal("abc123")
    assert told.code is grpc.StatusCode.INTERNAL
    assert told.message == "internal error, incident abc123"
    assert dict(details(told, ErrorInfo).metadata) == {"incident_id": "abc123"}

"""PushStream: readings of a producer up, acknowledgements down.

Two tasks for a stream, none for a message: the call's own writes what the stream has to tell, the other reads.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Final

from google.rpc.status_pb2 import Status

from syncline.names import MEMBER_ID_PATTERN
from syncline.v1 import push_service_pb2 as pb
from syncline_server.errors import InvalidArgument, Unavailable
from syncline_server.ingest.producers import (
    Acknowledged,
    Event,
    GoingAway,
    Opening,
    Paused,
    ProducerStream,
    ProducerStreams,
    Refused,
    Resumed,
)
from syncline_server.model import Principal
from syncline_server.rpc.calls import allow_while, caller
from syncline_server.rpc.convert import Problems, RequestIds, begin, duration, source_of, violations_out
from syncline_server.rpc.status import refusal

MAX_VIOLATIONS: Final = 10_000
"""In one acknowledgement: about 2 MB."""
RETURN_SECONDS: Final = 1.0
"""Producers of a server that goes come back within this, not all in the same moment."""

Requests = AsyncIterator[pb.PushStreamRequest]


async def push_stream(
    streams: ProducerStreams, request_ids: RequestIds, requests: Requests
) -> AsyncGenerator[pb.PushStreamResponse, None]:
    """Serve one stream."""
    first = await anext(requests, None)
    dataset_id, source_id, opening = _opening_of(first, request_ids)
    allow_while(partial(Principal.may_push, dataset_id=dataset_id, source_id=source_id))
    async with streams.open(caller(), dataset_id, source_id, opening) as stream:
        yield pb.PushStreamResponse(
            opened=pb.Opened(
                epoch=stream.producer.epoch,
                last_sequence=stream.producer.last_sequence,
                previous_last_sequence=stream.previous_last_sequence,
                credit_bytes=streams.settings.credit_bytes,
            )
        )
        if opening.validate_only:
            return
        reader = asyncio.create_task(_read(requests, stream))
        try:
            async with aclosing(stream.events()) as events:
                async for event in events:
                    yield _response(event)
                    if isinstance(event, GoingAway):
                        raise _shutting_down()
        finally:
            reader.cancel()
            await asyncio.wait([reader])


async def _read(requests: Requests, stream: ProducerStream) -> None:
    """Hand over what arrives until the peer has sent everything, or something wrong."""
    try:
        async for request in requests:
            if not request.HasField("readings"):
                stream.end(_not_readings())
                return
            readings = request.readings
            first_sequence = readings.first_sequence
            records = list(readings.records)
            if first_sequence < 1 or not records:
                _check_readings(readings)
            if not stream.receive(first_sequence, records):
                await stream.space()
            del request, readings, records  # not kept while the next ones are waited for
    except Exception as error:  # noqa: BLE001 - the call's own task tells it
        stream.end(error)
    finally:
        stream.end()


def _opening_of(request: pb.PushStreamRequest | None, request_ids: RequestIds) -> tuple[str, str, Opening]:
    if request is None or request.WhichOneof("message") != "open":
        raise InvalidArgument(
            "INVALID_REQUEST", "open: the first message opens a producer", fields=[("open", "is required")]
        )
    problems = begin(request)
    asked = request.open
    dataset_id, source_id = source_of(asked.source, problems, "open.source")
    if asked.producer_id and not MEMBER_ID_PATTERN.fullmatch(asked.producer_id):
        problems.add("open.producer_id", "must be 1 to 128 characters: letters, digits and `._-`")
    for field in ("epoch", "previous_epoch"):
        if getattr(asked, field) < 0:
            problems.add(f"open.{field}", "must not be negative")
    identity = request_ids.identity("PushStream", asked, problems)
    problems.raise_any()
    return (
        dataset_id,
        source_id,
        Opening(
            producer_id=asked.producer_id,
            epoch=asked.epoch,
            previous_epoch=asked.previous_epoch,
            validate_only=asked.validate_only,
            identity=identity,
        ),
    )


def _check_readings(readings: pb.Readings) -> None:
    problems = Problems()
    if readings.first_sequence < 1:
        problems.add("readings.first_sequence", "is required, and counts from 1")
    if not readings.records:
        problems.add("readings.records", "is required")
    problems.raise_any()


def _not_readings() -> InvalidArgument:
    return InvalidArgument(
        "INVALID_REQUEST",
        "every message after the first brings readings",
        fields=[("readings", "is required after the first message")],
    )


def _shutting_down() -> Unavailable:
    return Unavailable(
        "SHUTTING_DOWN",
        "the server is shutting down; open the producer again with the same epoch",
        retry_after_seconds=random.uniform(0.1, RETURN_SECONDS),  # noqa: S311 - spreads load, hides nothing
    )


def _response(event: Event) -> pb.PushStreamResponse:
    if isinstance(event, Acknowledged):
        return pb.PushStreamResponse(
            ack=pb.ReadingsAck(
                last_sequence=event.last_sequence,
                revision=event.revision,
                first_sequence=event.first_sequence,
                statuses=event.statuses,  # type: ignore[arg-type]  # the numbers are ours
                violations=violations_out(event.violations[:MAX_VIOLATIONS]),
            )
        )
    return pb.PushStreamResponse(control=_control(event))


def _control(event: Paused | Refused | Resumed | GoingAway) -> pb.ProducerControl:
    if isinstance(event, Paused):
        return pb.ProducerControl(pause=duration(round(event.seconds * 1e6)))
    if isinstance(event, Refused):
        return pb.ProducerControl(
            refused=Status.FromString(refusal(event.error).details),
            expected_sequence=event.expected_sequence,
        )
    if isinstance(event, Resumed):
        return pb.ProducerControl(expected_sequence=event.expected_sequence)
    return pb.ProducerControl(going_away=True)

"""PushService: writes outside sessions."""

# ruff: noqa: N802 - methods are named by the proto

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from syncline.v1 import push_service_pb2 as pb
from syncline.v1.push_service_pb2_grpc import PushServiceServicer
from syncline_server.ingest.producers import ProducerStreams
from syncline_server.ingest.write_path import DeleteIds, DeleteValues, Upsert, WritePath
from syncline_server.rpc.calls import caller
from syncline_server.rpc.convert import RequestIds, begin, conditions_of, source_of, violations_out
from syncline_server.rpc.push_stream import push_stream

MAX_VIOLATIONS: Final = 10_000
"""In one answer: about 2 MB."""


class PushService(PushServiceServicer):
    """See the proto."""

    def __init__(self, write_path: WritePath, streams: ProducerStreams, request_ids: RequestIds) -> None:
        self._write_path = write_path
        self._streams = streams
        self._request_ids = request_ids

    async def Push(self, request: pb.PushRequest, context: Any) -> pb.PushResponse:
        """Upsert records as one commit."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.source, problems)
        conditions = conditions_of(request, problems) if request.conditions else {}
        identity = self._request_ids.identity("Push", request, problems)
        problems.raise_any()
        report = await self._write_path.write(
            caller(),
            dataset_id,
            source_id,
            Upsert(records=list(request.records), conditions=conditions, partial=request.partial),
            identity=identity,
            validate_only=request.validate_only,
        )
        return pb.PushResponse(
            revision=report.revision,
            record_ids=report.record_ids,
            statuses=report.statuses,  # type: ignore[arg-type]  # the numbers are ours
            violations=violations_out(report.violations[:MAX_VIOLATIONS]),
            violations_complete=len(report.violations) <= MAX_VIOLATIONS,
        )

    async def DeleteByValues(
        self, request: pb.DeleteByValuesRequest, context: Any
    ) -> pb.DeleteByValuesResponse:
        """Delete the records that a Push of these values would write."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.source, problems)
        identity = self._request_ids.identity("DeleteByValues", request, problems)
        problems.raise_any()
        report = await self._write_path.write(
            caller(),
            dataset_id,
            source_id,
            DeleteValues(records=list(request.records)),
            identity=identity,
            validate_only=request.validate_only,
        )
        return pb.DeleteByValuesResponse(
            revision=report.revision,
            record_ids=report.record_ids,
            statuses=report.statuses,  # type: ignore[arg-type]  # the numbers are ours
            violations=violations_out(report.violations[:MAX_VIOLATIONS]),
        )

    async def DeleteByIds(self, request: pb.DeleteByIdsRequest, context: Any) -> pb.DeleteByIdsResponse:
        """Delete records by id."""
        del context
        problems = begin(request)
        dataset_id, source_id = source_of(request.source, problems)
        identity = self._request_ids.identity("DeleteByIds", request, problems)
        problems.raise_any()
        report = await self._write_path.write(
            caller(),
            dataset_id,
            source_id,
            DeleteIds(record_ids=list(request.record_ids)),
            identity=identity,
            validate_only=request.validate_only,
        )
        return pb.DeleteByIdsResponse(
            revision=report.revision,
            record_ids=report.record_ids,
            statuses=report.statuses,  # type: ignore[arg-type]  # the numbers are ours
        )

    def PushStream(
        self, request_iterator: AsyncIterator[pb.PushStreamRequest], context: Any
    ) -> AsyncGenerator[pb.PushStreamResponse, None]:
        """Readings of a producer up, durable acknowledgements down."""
        del context
        return push_stream(self._streams, self._request_ids, request_iterator)

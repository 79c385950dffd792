"""RecordService: point reads."""

# ruff: noqa: N802 - methods are named by the proto

from typing import Any

from syncline.names import source_name
from syncline.v1 import record_pb2
from syncline.v1 import record_service_pb2 as pb
from syncline.v1.record_service_pb2_grpc import RecordServiceServicer
from syncline_server.catalog.catalog import Catalog
from syncline_server.filters.selection import parse_selection
from syncline_server.model import Record
from syncline_server.query.records import Records
from syncline_server.rpc.calls import caller
from syncline_server.rpc.convert import (
    begin,
    check_may_read,
    check_revision,
    dataset_of,
    timestamp,
    wait_seconds,
)


class RecordService(RecordServiceServicer):
    """See the proto."""

    def __init__(self, catalog: Catalog, records: Records, *, revision_wait_seconds: float) -> None:
        self._catalog = catalog
        self._records = records
        self._revision_wait_seconds = revision_wait_seconds

    async def GetRecord(self, request: pb.GetRecordRequest, context: Any) -> pb.GetRecordResponse:
        """Read one record."""
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        check_revision(request.min_revision, problems)
        problems.raise_any()
        check_may_read(caller(), dataset_id)
        record = await self._catalog.use(
            dataset_id,
            lambda dataset: self._records.get(
                dataset,
                request.record_id,
                min_revision=request.min_revision,
                timeout_seconds=wait_seconds(context, longest_seconds=self._revision_wait_seconds),
            ),
        )
        return pb.GetRecordResponse(record=_record_out(dataset_id, record))

    async def BatchGetRecords(
        self, request: pb.BatchGetRecordsRequest, context: Any
    ) -> pb.BatchGetRecordsResponse:
        """Read up to 1,000 records by id from one snapshot."""
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        check_revision(request.min_revision, problems)
        problems.raise_any()
        selection = parse_selection("", request.read_mask.paths)
        check_may_read(caller(), dataset_id)
        batch = await self._catalog.use(
            dataset_id,
            lambda dataset: self._records.batch_get(
                dataset,
                list(request.record_ids),
                selection=selection,
                min_revision=request.min_revision,
                timeout_seconds=wait_seconds(context, longest_seconds=self._revision_wait_seconds),
            ),
        )
        return pb.BatchGetRecordsResponse(
            records=[_record_out(dataset_id, record) for record in batch.records],
            missing_record_ids=batch.missing_record_ids,
            unread_record_ids=batch.unread_record_ids,
            revision=batch.revision,
        )

    async def ListRecords(self, request: pb.ListRecordsRequest, context: Any) -> pb.ListRecordsResponse:
        """Read a page of records ordered by id."""
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        check_revision(request.min_revision, problems)
        if request.page_size < 0:
            problems.add("page_size", "must not be negative")
        problems.raise_any()
        selection = parse_selection(request.filter, request.read_mask.paths)
        check_may_read(caller(), dataset_id)
        page = await self._catalog.use(
            dataset_id,
            lambda dataset: self._records.list(
                dataset,
                page_size=request.page_size,
                page_token=request.page_token,
                selection=selection,
                min_revision=request.min_revision,
                timeout_seconds=wait_seconds(context, longest_seconds=self._revision_wait_seconds),
            ),
        )
        return pb.ListRecordsResponse(
            records=[_record_out(dataset_id, record) for record in page.records],
            next_page_token=page.next_page_token,
            revision=page.revision,
        )


def _record_out(dataset_id: str, record: Record) -> record_pb2.Record:
    return record_pb2.Record(
        record_id=record.record_id,
        data=record.data,
        revision=record.revision,
        source=source_name(dataset_id, record.source_id),
        create_time=timestamp(record.create_time_us),
        update_time=timestamp(record.update_time_us),
    )

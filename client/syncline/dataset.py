"""A dataset to write and read: ``Client.dataset`` makes the handle, without I/O."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from syncline import errors
from syncline._call import INTERACTIVE, LOG, RetryPolicy, complete_violations
from syncline._convert import Codec
from syncline._events import Order
from syncline._load import Loader
from syncline._reconnect import DEFAULT_OPTIONS, FeedOptions
from syncline._selection import Selection, selection_of
from syncline._standing import get_uptake
from syncline._wire import to_dataset, to_record, to_violations
from syncline.events import Record, SyncPage
from syncline.feed import ChangeFeed, sync_all, sync_page
from syncline.models import (
    ConflictPolicy,
    DatasetInfo,
    IfAbsent,
    IfRevision,
    LoadResult,
    PushResult,
    RefusedReading,
    Results,
    SessionMode,
    Uptake,
)
from syncline.names import dataset_name, source_name
from syncline.producer import MEMORY_LIMITS, SPOOL_LIMITS, Limits, Producer, WhenFull
from syncline.session import Session, SessionBlock
from syncline.v1.catalog_service_pb2 import GetDatasetRequest
from syncline.v1.push_service_pb2 import DeleteByIdsRequest, DeleteByValuesRequest, PushRequest, PushResponse
from syncline.v1.record_pb2 import Condition
from syncline.v1.record_service_pb2 import BatchGetRecordsRequest, GetRecordRequest, ListRecordsRequest

if TYPE_CHECKING:
    from os import PathLike

    from syncline.client import Client
    from syncline.replica._changes import OnError
    from syncline.replica._verify import ReplicaProof
    from syncline.replica.replica import Replica

T = TypeVar("T")

DEFAULT_SOURCE: Final = "default"

UPTAKE_SECONDS: Final = 60.0
"""How long replicas are waited for."""

IDS_PER_READ: Final = 1_000
"""Most ids in one BatchGetRecords call."""


class Dataset(Generic[T]):
    """Handle of a dataset; cheap, without I/O, usable as long as its client is open.

    ``T`` is the model of its records. Wherever records are taken, ``bytes`` are JSON text that goes as it is.
    """

    __slots__ = ("_client", "_codec", "dataset")

    def __init__(self, client: "Client", dataset: str, model: type[T] | None) -> None:
        self._client = client
        self._codec: Codec[T] = Codec(model)
        self.dataset = dataset

    def __repr__(self) -> str:
        return f"<dataset {self.dataset!r}>"

    async def info(self, *, min_revision: int = 0) -> DatasetInfo:
        """Settings and head of the dataset. Raises NotFound."""
        request = GetDatasetRequest(name=dataset_name(self.dataset), min_revision=min_revision)
        connection = self._client.connection
        return to_dataset((await connection.caller.read(connection.catalog.GetDataset, request)).dataset)

    # -- writing --------------------------------------------------------------------------------------------

    async def push(
        self,
        records: Iterable[T | bytes | IfRevision[T] | IfAbsent[T]],
        *,
        source: str = DEFAULT_SOURCE,
        partial: bool = False,
        validate_only: bool = False,
        wait_uptake: float | None = None,
        timeout: float = UPTAKE_SECONDS,  # noqa: ASYNC109 - of the replicas; that of the call is timeout_seconds
        timeout_seconds: float | None = None,
        policy: RetryPolicy = INTERACTIVE,
    ) -> PushResult:
        """Upsert records as one commit: all of them, or with an error none.

        A record overwrites the one with the same id whole. ``IfRevision(record, 17)`` and ``IfAbsent(record)``
        make it conditional. With ``partial`` good records are applied and the others reported in the result;
        with ``validate_only`` everything is checked and nothing changed. A retry has one effect.

        With ``wait_uptake=0.95`` it returns when that part of the registered replicas (those with a ``replica_id``)
        has the revision, or after ``timeout`` seconds; ``uptake`` of the result tells who has it. That too few have it
        is no error: the push is done. ``timeout_seconds`` is the deadline of the push itself.

        Raises InvalidRecords (all violations), ConditionFailed, LimitExceeded (``load`` splits), SourceDisabled,
        NotFound, OutcomeUnknown.
        """
        _refuse_single(records, "push")
        rows, conditions = _split_conditions(records)
        request = PushRequest(
            source=source_name(self.dataset, source),
            records=self._codec.encode_all(rows),
            conditions=conditions,
            partial=partial,
            validate_only=validate_only,
        )
        result = await self.push_request(request, timeout_seconds=timeout_seconds, policy=policy)
        if wait_uptake is None or validate_only:
            return result
        uptake = await self._uptake_of(result, wait_uptake, timeout)
        return replace(result, uptake=uptake)

    async def _uptake_of(self, result: PushResult, wait_ratio: float, timeout_seconds: float) -> Uptake:
        """Who has a push; whatever goes wrong while asking, the push is done, and its result must not be lost."""
        try:
            return await self.uptake(result.revision, wait_ratio=wait_ratio, timeout_seconds=timeout_seconds)
        except errors.SynclineError as error:
            LOG.warning(
                "who has revision %d of %s is not known: %s", result.revision, self.dataset, error.message
            )
            return Uptake(
                revision=result.revision, head_revision=0, replica_count=-1, reached_count=0, replicas=()
            )

    async def push_request(
        self, request: PushRequest, *, timeout_seconds: float | None, policy: RetryPolicy
    ) -> PushResult:
        """Send a push that is encoded already."""
        connection = self._client.connection
        try:
            response: PushResponse = await connection.caller.write(
                connection.push.Push, request, timeout_seconds=timeout_seconds, policy=policy
            )
        except errors.InvalidRecords as error:
            check = PushRequest(source=request.source, records=request.records, validate_only=True)
            await complete_violations(error, lambda: connection.caller.write(connection.push.Push, check))
            raise
        return PushResult(
            revision=response.revision,
            results=Results(response.record_ids, response.statuses, to_violations(response.violations)),
            records=len(request.records),
            violations=to_violations(response.violations),
        )

    async def delete(
        self,
        records: Iterable[T | bytes | Mapping[str, Any]],
        *,
        source: str = DEFAULT_SOURCE,
        validate_only: bool = False,
        timeout_seconds: float | None = None,
    ) -> PushResult:
        """Delete the records that a push of these would write, as one commit: under KEY the key fields suffice.

        Deleting what is not there is no error (NOT_FOUND). Raises FailedPrecondition under APPEND, and as push.
        """
        _refuse_single(records, "delete")
        request = DeleteByValuesRequest(
            source=source_name(self.dataset, source),
            records=self._codec.encode_all(records),
            validate_only=validate_only,
        )
        connection = self._client.connection
        try:
            response = await connection.caller.write(
                connection.push.DeleteByValues, request, timeout_seconds=timeout_seconds
            )
        except errors.InvalidRecords as error:
            check = DeleteByValuesRequest(source=request.source, records=request.records, validate_only=True)
            await complete_violations(
                error, lambda: connection.caller.write(connection.push.DeleteByValues, check)
            )
            raise
        violations = to_violations(response.violations)
        return PushResult(
            revision=response.revision,
            results=Results(response.record_ids, response.statuses, violations),
            records=len(request.records),
            violations=violations,
        )

    async def delete_ids(
        self,
        record_ids: Iterable[str],
        *,
        source: str = DEFAULT_SOURCE,
        validate_only: bool = False,
        timeout_seconds: float | None = None,
    ) -> PushResult:
        """Delete records by id, as one commit. Deleting what is not there is no error (NOT_FOUND)."""
        if isinstance(record_ids, str):
            raise TypeError("delete_ids() takes a list of ids; put the one you have in a list")
        request = DeleteByIdsRequest(
            source=source_name(self.dataset, source), record_ids=record_ids, validate_only=validate_only
        )
        connection = self._client.connection
        response = await connection.caller.write(
            connection.push.DeleteByIds, request, timeout_seconds=timeout_seconds
        )
        return PushResult(
            revision=response.revision,
            results=Results(response.record_ids, response.statuses),
            records=len(request.record_ids),
        )

    async def load(
        self,
        rows: Iterable[T | bytes] | AsyncIterable[T | bytes],
        *,
        source: str = DEFAULT_SOURCE,
        batch: int = 1_000,
        in_flight: int = 4,
        partial: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> LoadResult:
        """Push any number of rows in bounded memory: ``batch`` per commit (or 1 MiB), ``in_flight`` at a time.

        Each batch is a commit of its own and survives a restart of the server of up to two minutes. Batches in
        flight may commit in any order, so of a key that comes again in a later batch either version may stay;
        ``in_flight=1`` keeps the order of the rows. ``progress`` is called with the number of rows accepted so
        far; what it raises ends the load.

        An error ends the load after the batches under way: what was accepted stays, ``index`` of its violations
        counts from the first row, and its notes tell how many rows were accepted. Raises as push.
        """
        loader = Loader(
            self,
            self._codec,
            source_name(self.dataset, source),
            batch=batch,
            in_flight=in_flight,
            partial=partial,
            progress=progress,
        )
        return await loader.run(rows)

    def session(
        self,
        mode: SessionMode,
        *,
        source: str = DEFAULT_SOURCE,
        allow_mass_delete: bool = False,
        idle_timeout: timedelta | None = None,
        on_conflict: ConflictPolicy = "overwrite",
    ) -> SessionBlock[T]:
        """Open a session for the length of an ``async with`` block: commit on leaving, rollback on error.

        ``stream``: every call is visible at once. ``accrue``: visible together on commit. ``replace``: on commit
        the source holds exactly what was upserted. A commit that would delete more than the guard of the server
        allows raises MassDeleteRefused, unless ``allow_mass_delete``. Opening a session rolls back the one that
        the source has open.

        ``on_conflict`` says what the commit does to records that anybody changed or deleted since the session was
        opened, and that it would change: ``overwrite`` them, ``keep_newer`` leaves them as they are and counts them
        as ``kept``, ``abort`` raises SessionConflict. Stream sessions only overwrite.
        """
        return SessionBlock(
            lambda: self.open_session(
                mode,
                source=source,
                allow_mass_delete=allow_mass_delete,
                idle_timeout=idle_timeout,
                on_conflict=on_conflict,
            )
        )

    async def open_session(
        self,
        mode: SessionMode,
        *,
        source: str = DEFAULT_SOURCE,
        allow_mass_delete: bool = False,
        idle_timeout: timedelta | None = None,
        on_conflict: ConflictPolicy = "overwrite",
    ) -> Session[T]:
        """The same without a block: end it with ``close``. Raises as push, and Overloaded(TOO_MANY_SESSIONS)."""
        return await Session.open(
            self._client.connection,
            self._codec,
            source_name(self.dataset, source),
            mode=mode,
            allow_mass_delete=allow_mass_delete,
            idle_timeout=idle_timeout,
            on_conflict=on_conflict,
        )

    def attach_session(self, session_id: str, *, source: str = DEFAULT_SOURCE) -> Session[T]:
        """A session that was opened elsewhere, without I/O: to go on with it, or to end it with ``close``."""
        return Session(self._client.connection, self._codec, source_name(self.dataset, source), session_id)

    def producer(
        self,
        producer_id: str,
        *,
        source: str = DEFAULT_SOURCE,
        spool: str | Path | None = None,
        on_full: WhenFull = "wait",
        on_refused: Callable[[RefusedReading], object] | None = None,
        max_records: int | None = None,
        max_bytes: int | None = None,
        linger_seconds: float = 10.0,
        options: FeedOptions = DEFAULT_OPTIONS,
    ) -> Producer[T]:
        """A sensor or job that sends readings one by one, each applied exactly once; for ``async with``.

        ``producer_id`` is its name within the source: 1 to 128 letters, digits and ``._-``, the same at every start.
        ``spool`` is a file that keeps readings over crashes and losses of power. ``max_records`` and ``max_bytes``
        bound what waits for the server (10,000 and 16 MiB; with a spool 1,000,000 and 256 MiB); ``on_full``
        says what ``send`` does then. ``on_refused`` is called for each reading that is not valid; without it
        ``flush`` raises them. Leaving waits ``linger_seconds`` for the last acknowledgements. See Producer.
        """
        default = SPOOL_LIMITS if spool else MEMORY_LIMITS
        return Producer(
            self._client.connection,
            self._codec,
            source_name(self.dataset, source),
            producer_id,
            spool=Path(spool) if spool else None,
            on_full=on_full,
            on_refused=on_refused,
            limits=Limits(
                records=default.records if max_records is None else max_records,
                size_bytes=default.size_bytes if max_bytes is None else max_bytes,
            ),
            linger_seconds=linger_seconds,
            options=options,
        )

    async def uptake(
        self,
        revision: int = 0,
        *,
        wait_ratio: float = 0.0,
        timeout_seconds: float = UPTAKE_SECONDS,
        replicas: int = 100,
    ) -> Uptake:
        """Which registered replicas have ``revision`` (0: the newest), and since when the others are behind.

        With ``wait_ratio`` above 0 it waits until that part of them has it, and answers in any case after
        ``timeout_seconds``. ``replicas`` bounds how many are named, those furthest behind first; at most 1,000.
        Raises NotFound, PermissionDenied.
        """
        connection = self._client.connection
        return await get_uptake(
            connection.sync,
            connection.caller,
            self.dataset,
            revision=revision,
            wait_ratio=wait_ratio,
            timeout_seconds=timeout_seconds,
            replicas=replicas,
        )

    # -- reading --------------------------------------------------------------------------------------------

    async def get(
        self, record_id: str, *, min_revision: int = 0, timeout_seconds: float | None = None
    ) -> Record[T]:
        """Read a record. ``min_revision``, from a push, makes sure that its write is seen. Raises NotFound."""
        request = GetRecordRequest(
            dataset=dataset_name(self.dataset), record_id=record_id, min_revision=min_revision
        )
        connection = self._client.connection
        response = await connection.caller.read(
            connection.records.GetRecord, request, timeout_seconds=timeout_seconds
        )
        return to_record(response.record, self._codec.decode)

    async def get_many(
        self, record_ids: Sequence[str], *, fields: Iterable[str] | None = None, min_revision: int = 0
    ) -> dict[str, Record[T]]:
        """Read records by id; ids that do not exist are left out. Above 1,000 ids: from several snapshots.

        ``fields``: only these fields of the records, dotted paths. Raises InvalidArgument for a path that is none.
        """
        found: dict[str, Record[T]] = {}
        mask = selection_of(None, fields).mask
        connection = self._client.connection
        waiting = list(record_ids)
        while waiting:
            request = BatchGetRecordsRequest(
                dataset=dataset_name(self.dataset),
                record_ids=waiting[:IDS_PER_READ],
                min_revision=min_revision,
                read_mask=mask,
            )
            response = await connection.caller.read(connection.records.BatchGetRecords, request)
            found.update(
                (record.record_id, to_record(record, self._codec.decode)) for record in response.records
            )
            waiting = [*response.unread_record_ids, *waiting[IDS_PER_READ:]]
        return found

    async def records(
        self,
        *,
        filter: str | None = None,  # noqa: A002 - the word for it
        fields: Iterable[str] | None = None,
        page_size: int = 1_000,
        min_revision: int = 0,
    ) -> AsyncIterator[Record[T]]:
        """All records ordered by id, a page at a time, each page a snapshot of its own. For a copy: changes().

        ``filter``: only records that match, as in ``'year >= 1990 AND publisher = "Penguin"'``. ``fields``: only
        these fields of them, dotted paths. Raises InvalidArgument (FILTER_INVALID, with ``position``).
        """
        selection = selection_of(filter, fields)
        request = ListRecordsRequest(
            dataset=dataset_name(self.dataset),
            page_size=page_size,
            min_revision=min_revision,
            filter=selection.filter,
            read_mask=selection.mask,
        )
        connection = self._client.connection
        while True:
            response = await connection.caller.read(connection.records.ListRecords, request)
            for record in response.records:
                yield to_record(record, self._codec.decode)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def sync(
        self,
        token: bytes | None = None,
        *,
        all: bool = False,  # noqa: A002 - the word for it
        min_revision: int = 0,
        page_size: int = 0,
        timeout_seconds: float | None = None,
        filter: str | None = None,  # noqa: A002 - the word for it
        fields: Iterable[str] | None = None,
    ) -> SyncPage[T]:
        """One page of what changed since ``token`` (None: everything), or with ``all`` everything at once.

        Keep ``page.token``, and ask again until ``page.checkpoint`` is set. ``page_size`` 0 is the server's.
        ``filter`` and ``fields`` as in ``changes``. Raises TokenInvalid, NotFound, PermissionDenied,
        InvalidArgument (FILTER_INVALID).
        """
        selection = selection_of(filter, fields)
        order = Order(token or b"", self._codec.decode, filtered=selection.is_filtered)
        connection = self._client.connection

        async def next_page() -> SyncPage[T]:
            return await sync_page(
                connection.sync,
                connection.caller,
                self.dataset,
                order,
                min_revision=min_revision,
                page_size=page_size,
                timeout_seconds=timeout_seconds,
                selection=selection,
            )

        return await (sync_all(next_page, order) if all else next_page())

    def changes(
        self,
        token: bytes | None = None,
        *,
        from_now: bool = False,
        min_revision: int = 0,
        options: FeedOptions = DEFAULT_OPTIONS,
        filter: str | None = None,  # noqa: A002 - the word for it
        fields: Iterable[str] | None = None,
    ) -> ChangeFeed[T]:
        """Follow the dataset for ever: everything since ``token`` (None: a complete copy first), then live.

        Each event's ``token`` resumes with nothing skipped. ``from_now`` leaves out what is there; such a copy
        is not exact. See ChangeFeed.

        ``filter``: only records that match, as in ``'year >= 1990 AND publisher = "Penguin"'``; one that ceases to
        match comes as Remove. ``fields``: only these fields of the records, dotted paths. A token belongs to its
        filter and fields: with others comes a reset, and a complete new copy.
        """
        connection = self._client.connection
        feed = ChangeFeed(
            connection.subscriptions,
            connection.caller,
            self.dataset,
            token=token,
            from_now=from_now,
            min_revision=min_revision,
            decode=self._codec.decode,
            options=options,
            selection=selection_of(filter, fields),
        )
        connection.feeds.add(feed)
        return feed

    def replica(
        self,
        path: "str | PathLike[str] | None" = None,
        *,
        filter: str | None = None,  # noqa: A002 - the word for it
        fields: Iterable[str] | None = None,
        replica_id: str | None = None,
        on_error: "OnError[T] | None" = None,
    ) -> "Replica[T]":
        """An exact copy that keeps itself, to be entered with ``async with``: in memory, or in a SQLite file.

        A file that is there is used at once, and brought up to date from where it is. ``filter`` and ``fields`` as
        in ``changes``. ``replica_id`` makes the server keep how far it has come. ``on_error(error, change)`` takes
        what callbacks raise; without it that stops the replica. See Replica.

        Entering raises ReplicaUnusable when the file is something else, or a copy of another dataset.
        """
        from syncline.replica._origin import Origin
        from syncline.replica.replica import Replica

        origin = Origin(
            dataset=self.dataset,
            selection=selection_of(filter, fields),
            decode=self._codec.decode,
            connection=lambda: self._client.connection,
            replica_id=replica_id or "",
        )
        return Replica(origin, path, on_error=on_error)

    async def verify_replica(self, path: "str | PathLike[str]") -> "ReplicaProof":
        """Prove a replica's file against the dataset, from its bytes, while another process may be writing it.

        The file is not changed, and opened with the filter and fields that it was made with. Reads all of it, and
        from the server what changed since. Raises ReplicaUnusable, NotFound, PermissionDenied.
        """
        from syncline.replica._verify import verify_file

        async def read(token: bytes, selection: Selection) -> SyncPage[T]:
            return await self.sync(token, all=True, filter=selection.filter, fields=selection.fields)

        return await verify_file(Path(path), self.dataset, read)


def _split_conditions(records: Iterable[Any]) -> tuple[list[Any], list[Condition]]:
    """Records without their conditions, and the conditions by position."""
    rows = list(records)
    conditions: list[Condition] = []
    for index, row in enumerate(rows):
        if isinstance(row, IfRevision):
            conditions.append(Condition(index=index, if_revision=row.revision))
            rows[index] = row.record
        elif isinstance(row, IfAbsent):
            conditions.append(Condition(index=index, if_absent=True))
            rows[index] = row.record
    return rows, conditions


def _refuse_single(records: object, method: str) -> None:
    if isinstance(records, (Mapping, str, bytes)) or hasattr(records, "__aiter__"):
        advice = (
            "for an async iterable use load()"
            if hasattr(records, "__aiter__")
            else "put the one record that you have in a list"
        )
        raise TypeError(f"{method}() takes a list of records; {advice}")

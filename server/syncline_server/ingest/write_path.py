"""Push and delete: check rights, look up the dataset, check the records, commit, report.

The order of checks is the contract's: (shape of the request, at the edge,) rights, dataset and source exist and
are enabled, session, records. A refused call that carries an identity first looks whether the same call was
carried out before, so that a retry gets its first answer even when settings changed in between (G5).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from syncline_server.catalog.catalog import Catalog, OpenDataset
from syncline_server.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    SynclineError,
)
from syncline_server.ids import UuidSequence, has_controls
from syncline_server.ingest.committer import Committer
from syncline_server.ingest.records import CheckedRecords, Limits, RecordReader
from syncline_server.model import (
    Commit,
    CommitResult,
    Condition,
    Deletes,
    IdentityKind,
    Principal,
    RequestIdentity,
    Source,
    Status,
    Upserts,
    Violation,
)
from syncline_server.store.abc import Store

COMMIT_OVERHEAD_BYTES: Final = 500
"""What a commit weighs beside its data."""


_STALE: Final = frozenset(
    {"DATASET_CHANGED", "DATASET_NOT_FOUND", "SOURCE_NOT_FOUND", "SOURCE_DISABLED", "SESSION_INVALID"}
)
"""Reasons of the store that may say no more than that what is cached is old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReport:
    """What became of a call: an entry in each column for each posted record, key or id."""

    revision: int
    record_ids: Sequence[str]
    statuses: Sequence[int]
    violations: Sequence[Violation] = ()
    calls: int = 0
    """Accepted calls of the session, for a call in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsert:
    """Records to upsert, as posted."""

    records: Sequence[bytes]
    conditions: Mapping[int, Condition]
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteValues:
    """Objects whose records are to go, as posted."""

    records: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteIds:
    """Ids to delete, as posted."""

    record_ids: Sequence[str]


Action = Upsert | DeleteValues | DeleteIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A source that may be written, and what is needed to check records for it."""

    opened: OpenDataset
    source: Source
    reader: RecordReader


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWrite:
    """A checked action: what to commit, and how its verdicts map back to what was posted."""

    write: Upserts | Deletes
    record_ids: Sequence[str]
    """One for each posted entry."""
    places: Mapping[str, int]
    """Where each id that counts stands in what was posted."""
    violations: Sequence[Violation]
    size_bytes: int

    def report(self, result: CommitResult) -> WriteReport:
        """Spread the verdicts over the posted entries."""
        if len(result.statuses) != len(self.places):
            raise Aborted(
                "DATASET_CHANGED",
                f"this call was carried out before, as revision {result.revision}; its first answer cannot be "
                "told again because the dataset's settings have changed since",
                revision=result.revision,
            )
        record_ids = result.record_ids or self.record_ids
        statuses: Sequence[int]
        if len(self.places) == len(self.record_ids):
            statuses = result.statuses
        else:
            spread = [int(Status.SUPERSEDED)] * len(self.record_ids)
            for violation in self.violations:
                spread[violation.index] = int(Status.INVALID)
            for place, status in zip(self.places.values(), result.statuses, strict=True):
                spread[place] = status
            statuses = spread
            if result.record_ids:
                record_ids = [""] * len(self.record_ids)
                for place, record_id in zip(self.places.values(), result.record_ids, strict=True):
                    record_ids[place] = record_id
        return WriteReport(
            revision=result.revision,
            record_ids=record_ids,
            statuses=statuses,
            violations=self.violations,
            calls=result.calls,
        )


class WritePath:
    """Writes outside sessions, and the checks that sessions share."""

    def __init__(self, catalog: Catalog, store: Store, committer: Committer, *, limits: Limits) -> None:
        self._catalog = catalog
        self._store = store
        self._committer = committer
        self._limits = limits
        self._uuids = UuidSequence(store.clock.now_us)
        self._readers: dict[int, tuple[OpenDataset, RecordReader]] = {}

    async def write(
        self,
        principal: Principal,
        dataset_id: str,
        source_id: str,
        action: Action,
        *,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> WriteReport:
        """Carry out one action as one commit.

        Raises PermissionDenied, NotFound, FailedPrecondition(SOURCE_DISABLED, IDENTITY_NOT_ADDRESSABLE),
        InvalidArgument(RECORD_INVALID, LIMIT_EXCEEDED, REQUEST_ID_REUSED), Aborted(CONDITION_FAILED), and
        whatever the commit raises. With ``validate_only`` nothing is changed, and records that are refused
        are reported instead of raised.
        """
        check_may_push(principal, dataset_id, source_id)
        again = False
        while True:
            try:
                target = await self.target(principal, dataset_id, source_id)
                prepared = await self.prepare(target, action, report_violations=validate_only)
                result = await self._committer.commit(
                    Commit(
                        dataset_number=target.opened.dataset.number,
                        generation=target.opened.dataset.generation,
                        source_number=target.source.number,
                        write=prepared.write,
                        partial=validate_only or (isinstance(action, Upsert) and action.partial),
                        dry_run=validate_only,
                        identity=None if validate_only else identity,
                        key_id=principal.key_id,
                        size_bytes=prepared.size_bytes,
                    )
                )
            except SynclineError as error:
                stale = self.forget_stale(error, dataset_id)
                report = await self._first_answer(dataset_id, source_id, action, identity, error)
                if report is not None:
                    return report
                if again or not stale:
                    raise
                again = True
            else:
                return prepared.report(result)

    async def target(
        self, principal: Principal, dataset_id: str, source_id: str, *, afresh: bool = False
    ) -> Target:
        """Find the source and what checks its records; ``afresh``: the source as it is in the store now.

        Raises NotFound, PermissionDenied, FailedPrecondition(SOURCE_DISABLED).
        """
        opened = await self._catalog.dataset(dataset_id)
        source = await self._catalog.source(dataset_id, source_id, afresh=afresh)
        another = principal.source is not None and principal.source_number != source.number
        if another or source.disabled:  # if the store says so too
            source = await self._catalog.source(dataset_id, source_id, afresh=True)
        if source.dataset_number != opened.dataset.number:  # another node has replaced the dataset
            self._catalog.forget(dataset_id)
            opened = await self._catalog.dataset(dataset_id)
            source = await self._catalog.source(dataset_id, source_id)
        if principal.source is not None and principal.source_number != source.number:
            raise _not_allowed(dataset_id, source_id)  # a source made again under the name is another one
        if source.disabled:
            raise FailedPrecondition(
                "SOURCE_DISABLED",
                f"source {source_id!r} of dataset {dataset_id!r} is disabled; enable it to write again",
                dataset=dataset_id,
                source=source_id,
            )
        return Target(opened=opened, source=source, reader=self._reader(opened))

    async def prepare(
        self, target: Target, action: Action, *, report_violations: bool = False
    ) -> PreparedWrite:
        """Check what was posted and bring it into the form that the store takes.

        Raises InvalidArgument(RECORD_INVALID) with every violation, unless the action is partial or violations
        are to be reported.
        """
        if isinstance(action, Upsert):
            checked = await self._read(target, action.records)
            if checked.violations and not (action.partial or report_violations):
                raise records_invalid(checked.violations, len(action.records))
            return _prepare_upsert(checked, action.conditions)
        if isinstance(action, DeleteValues):
            if target.opened.dataset.identity.kind is IdentityKind.APPEND:
                raise FailedPrecondition(
                    "IDENTITY_NOT_ADDRESSABLE",
                    "under APPEND every push is a new record, so values do not name one; delete by id",
                )
            keys = target.reader.read_keys(action.records, target.source.source_id)
            if keys.violations and not report_violations:
                raise records_invalid(keys.violations, len(action.records))
            return _prepare_delete(keys.record_ids, keys.violations)
        self._check_ids(action.record_ids)
        return _prepare_delete(action.record_ids, ())

    async def _read(self, target: Target, records: Sequence[bytes]) -> CheckedRecords:
        checked = CheckedRecords(record_ids=[], data=[], hashes=[], violations=[])
        for _ in target.reader.read_in_turns(records, target.source.source_id, checked):
            await asyncio.sleep(0)
        return checked

    def _check_ids(self, record_ids: Sequence[str]) -> None:
        if len(record_ids) > self._limits.records_per_call:
            raise InvalidArgument(
                "LIMIT_EXCEEDED",
                f"{len(record_ids)} ids in one call, at most {self._limits.records_per_call} are allowed",
                limit="records_per_call",
                maximum=self._limits.records_per_call,
                actual=len(record_ids),
            )
        longest = self._limits.bytes_per_record_id
        for index, record_id in enumerate(record_ids):
            if not record_id or len(record_id.encode()) > longest or has_controls(record_id):
                raise InvalidArgument(
                    "INVALID_REQUEST",
                    f"record_ids[{index}]: an id has 1 to {longest} bytes and no control characters",
                    fields=[
                        (f"record_ids[{index}]", f"must have 1 to {longest} bytes and no control characters")
                    ],
                )

    def _reader(self, opened: OpenDataset) -> RecordReader:
        cached = self._readers.get(opened.dataset.number)
        if cached is not None and cached[0] is opened:
            return cached[1]
        dataset = opened.dataset
        reader = RecordReader(
            dataset.identity, dataset.record_scope, opened.schema, self._limits, uuids=self._uuids
        )
        self._readers[dataset.number] = (opened, reader)
        return reader

    def forget_stale(self, error: SynclineError, dataset_id: str) -> bool:
        """Drop cached settings when the store has just called them outdated; whether the next try sees new ones."""
        stale = error.reason in _STALE
        if stale:
            self._catalog.forget(dataset_id)
        return stale

    async def _first_answer(
        self,
        dataset_id: str,
        source_id: str,
        action: Action,
        identity: RequestIdentity | None,
        error: SynclineError,
    ) -> WriteReport | None:
        if identity is None or error.reason == "REQUEST_ID_REUSED":
            return None
        result = await self._store.find_answer(identity)
        if result is None:
            return None
        record_ids = result.record_ids
        if not record_ids:
            if isinstance(action, DeleteIds):
                record_ids = tuple(action.record_ids)
            else:
                opened = await self._catalog.dataset(dataset_id)
                record_ids = tuple(self._reader(opened).read_keys(action.records, source_id).record_ids)
        return _prepare_delete(record_ids, ()).report(result)


def check_may_push(principal: Principal, dataset_id: str, source_id: str) -> None:
    """Raise PermissionDenied unless this key may write into the source; absent and forbidden look the same."""
    if not principal.may_push(dataset_id, source_id):
        raise _not_allowed(dataset_id, source_id)


def records_invalid(violations: Sequence[Violation], posted: int) -> InvalidArgument:
    """Make the error that reports refused records."""
    bad = len({violation.index for violation in violations})
    first = violations[0]
    return InvalidArgument(
        "RECORD_INVALID",
        f"{bad} of {posted} records refused, nothing was written; "
        f"first: records[{first.index}]{first.pointer}: {first.message}",
        violations=violations,
        invalid_records=bad,
    )


def _not_allowed(dataset_id: str, source_id: str) -> PermissionDenied:
    return PermissionDenied(
        "PERMISSION_DENIED",
        f"this key may not write to source {source_id!r} of dataset {dataset_id!r}, or there is no such source",
    )


def _prepare_upsert(checked: CheckedRecords, conditions: Mapping[int, Condition]) -> PreparedWrite:
    record_ids = checked.record_ids
    places = dict(zip(record_ids, range(len(record_ids)), strict=True))
    if checked.violations:
        places.pop("", None)
        for violation in checked.violations:  # a bad repeat must not stand for an earlier good one
            if places.get(record_ids[violation.index]) == violation.index:
                del places[record_ids[violation.index]]
    if len(places) == len(record_ids):
        data, hashes = checked.data, checked.hashes
        kept = conditions
    else:
        data = [checked.data[place] for place in places.values()]
        hashes = [checked.hashes[place] for place in places.values()]
        kept = _kept_conditions(record_ids, places, conditions)
    return PreparedWrite(
        write=Upserts(record_ids=list(places), data=data, hashes=hashes, conditions=kept),
        record_ids=record_ids,
        places=places,
        violations=checked.violations,
        size_bytes=sum(map(len, data)) + 64 * len(data) + COMMIT_OVERHEAD_BYTES,
    )


def _kept_conditions(
    record_ids: Sequence[str], places: Mapping[str, int], conditions: Mapping[int, Condition]
) -> dict[int, Condition]:
    order = {place: position for position, place in enumerate(places.values())}
    kept = {}
    for index, condition in conditions.items():
        if index in order:
            kept[order[index]] = condition
        elif record_ids[index]:
            raise InvalidArgument(
                "INVALID_REQUEST",
                f"conditions: records[{index}] is superseded by a later record of the call with the same id",
                fields=[("conditions", f"records[{index}] is superseded by a later record with the same id")],
            )
    return kept


def _prepare_delete(record_ids: Sequence[str], violations: Sequence[Violation]) -> PreparedWrite:
    places = dict(zip(record_ids, range(len(record_ids)), strict=True))
    places.pop("", None)
    return PreparedWrite(
        write=Deletes(record_ids=list(places)),
        record_ids=record_ids,
        places=places,
        violations=violations,
        size_bytes=64 * len(places) + COMMIT_OVERHEAD_BYTES,
    )

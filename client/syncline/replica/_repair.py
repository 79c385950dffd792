"""Finding what differs between a copy and its dataset, by digests of ranges of record ids.

Each round asks the server to cut the ranges that differ into parts, compares their digests with our own, and goes
on with the parts that differ, until a part is one record. So what travels grows with what differs (and the
logarithm of the rest), not with the dataset: 100 stale records of a million are some 150 KB.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from syncline._call import Caller
from syncline._digest import Tally
from syncline._selection import Selection
from syncline._wire import to_record
from syncline.errors import FeedBroken
from syncline.events import ChangeReason, Put, Record
from syncline.names import dataset_name
from syncline.replica._copy import CopyStore, Range, time_us
from syncline.v1.record_service_pb2 import BatchGetRecordsRequest
from syncline.v1.record_service_pb2_grpc import RecordServiceStub
from syncline.v1.sync_service_pb2 import DigestRangesRequest, DigestRangesResponse, RecordIdRange
from syncline.v1.sync_service_pb2_grpc import SyncServiceStub

PARTS: Final = 16
"""Each range that differs is cut into so many."""

FIRST_PARTS: Final = 256
"""The whole is cut into so many. With 16 the second round would look through nearly all of it again, on both sides,
where a hundred records differ."""

RANGES_PER_CALL: Final = 250
"""So that an answer stays far below what one message may hold: 250 · 16 parts of up to 550 bytes."""

IDS_PER_READ: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What one repair of a replica took."""

    revision: int
    """The copy that was mended is proven at this revision or a later one."""
    records: int
    """Records that were fetched."""
    removed: int
    """Records that were dropped, because the dataset does not have them."""
    bytes: int
    """All messages of the repair, in both directions."""
    calls: int
    seconds: float


@dataclass(slots=True)
class _Traffic:
    bytes: int = 0
    calls: int = 0
    revision: int = 0


@dataclass(slots=True)
class _Found:
    """What differs."""

    stale: list[str]
    """Ids that the server has, and this copy lacks or has otherwise."""
    gone: list[str]
    """Ids that the server does not have."""


class Mender:
    """Mends copies of one dataset."""

    def __init__(
        self,
        sync: SyncServiceStub,
        records: RecordServiceStub,
        caller: Caller,
        dataset: str,
        selection: Selection,
        decode: Callable[[bytes], Any],
    ) -> None:
        self._sync = sync
        self._records = records
        self._caller = caller
        self._dataset = dataset_name(dataset)
        self._selection = selection
        self._decode = decode

    async def mend(self, store: CopyStore[Any], revision: int) -> Repair:
        """Give the copy that ``store`` works on what the dataset has, at ``revision`` or later.

        Raises SynclineError, FeedBroken where the answers make no sense; the copy is then as it was, or mended in
        part.
        """
        begun = asyncio.get_running_loop().time()
        traffic = _Traffic(revision=revision)
        found = await self._find(store, traffic)
        async for puts, missing in self._fetch(found.stale, traffic):
            await store.mend(puts, missing)
        await store.mend((), found.gone)
        return Repair(
            revision=traffic.revision,
            records=len(found.stale),
            removed=len(found.gone),
            bytes=traffic.bytes,
            calls=traffic.calls,
            seconds=asyncio.get_running_loop().time() - begun,
        )

    async def _find(self, store: CopyStore[Any], traffic: _Traffic) -> _Found:
        found = _Found([], [])
        whole = [Range()]
        answer = await self._ask(whole, FIRST_PARTS, traffic)
        ranges = await _compare(store, whole, answer, found, parts=FIRST_PARTS)
        while ranges:
            asked, ranges = ranges[:RANGES_PER_CALL], ranges[RANGES_PER_CALL:]
            answer = await self._ask(asked, PARTS, traffic)
            ranges = [*await _compare(store, asked, answer, found), *ranges]
        return found

    async def _ask(self, ranges: Sequence[Range], parts: int, traffic: _Traffic) -> DigestRangesResponse:
        request = DigestRangesRequest(
            dataset=self._dataset,
            filter=self._selection.filter,
            read_mask=self._selection.mask,
            ranges=[RecordIdRange(after=part.after, through=part.through) for part in ranges],
            parts=parts,
            min_revision=traffic.revision,
        )
        answer: DigestRangesResponse = await self._caller.read(self._sync.DigestRanges, request)
        traffic.calls += 1
        traffic.bytes += request.ByteSize() + answer.ByteSize()
        traffic.revision = max(traffic.revision, answer.revision)
        return answer

    async def _fetch(
        self, record_ids: Sequence[str], traffic: _Traffic
    ) -> AsyncIterator[tuple[list[Put[Any]], list[str]]]:
        waiting = list(record_ids)
        while waiting:
            request = BatchGetRecordsRequest(
                dataset=self._dataset, record_ids=waiting[:IDS_PER_READ], read_mask=self._selection.mask
            )
            answer = await self._caller.read(self._records.BatchGetRecords, request)
            traffic.calls += 1
            traffic.bytes += request.ByteSize() + answer.ByteSize()
            traffic.revision = max(traffic.revision, answer.revision)
            records = [to_record(message, self._decode) for message in answer.records]
            yield [_put(record, self._decode) for record in records], list(answer.missing_record_ids)
            waiting = [*answer.unread_record_ids, *waiting[IDS_PER_READ:]]


async def _compare(
    store: CopyStore[Any],
    asked: Sequence[Range],
    answer: DigestRangesResponse,
    found: _Found,
    *,
    parts: int = PARTS,
) -> list[Range]:
    """Add what is known to differ to ``found``; returns the parts to look into, in order.

    ``parts`` is how many each range was to be cut into.
    """
    told = list(_parts(asked, answer, parts))
    own = await store.summarise([part.range for part in told])
    narrower: list[Range] = []
    for part, tally in zip(told, own, strict=True):
        if (tally.count, tally.digest) == (part.count, part.digest):
            continue
        if part.count > 1 or not part.is_record:
            if part.count > 1 and part.range in asked:
                raise FeedBroken("the server does not cut ranges that differ")  # asking on would never end
            narrower.append(part.range)
            continue
        entries = await store.entries(part.range)
        if part.count and not _holds(entries, part):
            found.stale.append(part.range.through)
        found.gone += [
            record_id for record_id in entries if not (part.count and record_id == part.range.through)
        ]
    return narrower


@dataclass(frozen=True, slots=True)
class _Part:
    range: Range
    count: int
    digest: bytes
    is_record: bool
    """It is one record, whose id is its end, or none."""


def _parts(asked: Sequence[Range], answer: DigestRangesResponse, parts: int) -> Iterator[_Part]:
    """The parts of an answer, each as a range of its own."""
    place = 0
    for whole, number in zip(asked, answer.part_counts, strict=True):
        counts = answer.record_counts[place : place + number]
        # The server cuts into records where there are no more than parts; elsewhere a part of one is cut once more.
        cut_into_records = sum(counts) <= parts
        after = whole.after
        for i, count in enumerate(counts):
            through = answer.through[place + i]
            yield _Part(Range(after, through), count, answer.digests[place + i], cut_into_records)
            after = through
        place += number


def _holds(entries: dict[str, bytes], part: _Part) -> bool:
    """Whether the one record of a part is here as it is there."""
    entry = entries.get(part.range.through)
    if entry is None:
        return False
    tally = Tally()
    tally.add((entry,))
    return tally.digest == part.digest


def _put(record: Record[Any], decode: Callable[[bytes], Any]) -> Put[Any]:
    return Put(
        record_id=record.record_id,
        json=record.json,
        revision=record.revision,
        commit_time_us=time_us(record.update_time),
        reason=ChangeReason.UNSPECIFIED,
        token=b"",
        _decode=decode,
    )

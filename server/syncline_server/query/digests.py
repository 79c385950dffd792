"""Digests of ranges of record ids, so that a copy that differs finds where without being sent whole.

A range is cut into parts by the number of the dataset's records; of each part that differs from its own the client
asks again, until a part is a record. Entries are read a page at a time, without data unless a filter or a mask needs
it, and summed on a thread: a million records take some seconds of one, and no other caller waits for it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from syncline_server.digests import digest_sum
from syncline_server.feed.feed import Feed
from syncline_server.filters.selection import Row, Selection
from syncline_server.model import DIGEST_MODULUS, EMPTY_DIGEST, Dataset
from syncline_server.store.abc import Store

DEFAULT_PARTS: Final = 16
MAX_PARTS: Final = 1_024
MAX_RANGES: Final = 1_000

_PAGE_ENTRIES: Final = 5_000
_PAGE_RECORDS: Final = 1_000
_PAGE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of record ids: from where the part before ended, up to and including ``through``."""

    through: str
    """Empty: the end of all."""
    record_count: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """A page of entries, as columns. All of them count for where parts end, also those that the copy does not have."""

    record_ids: Sequence[str]
    revisions: Sequence[int]
    hashes: Sequence[bytes | None]
    """Of the data as the copy has it; None: a filter leaves the record out."""

    def tally(self, start: int, end: int) -> tuple[int, int]:
        """Count and sum of the digests of a stretch of them."""
        columns = (self.record_ids[start:end], self.revisions[start:end], self.hashes[start:end])
        kept = [
            (record_id, revision, value_hash)
            for record_id, revision, value_hash in zip(*columns, strict=True)
            if value_hash is not None
        ]
        return len(kept), digest_sum(kept)


class Digests:
    """Tells digests of ranges, one question at a time."""

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store = store
        self._feed = feed
        self._turn = asyncio.Semaphore()

    async def ranges(
        self,
        dataset: Dataset,
        ranges: Sequence[tuple[str, str]],
        *,
        selection: Selection | None = None,
        parts: int = DEFAULT_PARTS,
        min_revision: int = 0,
        timeout_seconds: float | None = None,
    ) -> tuple[Sequence[Sequence[Part]], int]:
        """Parts of each (after, through), and the dataset's revision when the last of it was read.

        Raises NotFound(DATASET_NOT_FOUND), Unavailable(REVISION_NOT_REACHED).
        """
        if min_revision > dataset.head.revision:
            await self._feed.wait_revision(dataset.number, min_revision, timeout_seconds=timeout_seconds)
        async with self._turn:
            cut = [
                await self._cut(dataset.number, after, through, selection, parts) for after, through in ranges
            ]
        return cut, (await self._store.read_head(dataset.number)).revision

    async def _cut(
        self, number: int, after: str, through: str, selection: Selection | None, parts: int
    ) -> Sequence[Part]:
        count = await self._store.count_entries(number, after=after, through=through)
        if count <= parts:
            return await self._records(number, after, through, selection)
        step = -(-count // parts)
        cut = _Cut(step=step, parts=parts)
        more = True
        while more:
            page, after, more = await self._page(number, after, through, selection)
            await asyncio.to_thread(cut.add, page)
        return cut.finish(through)

    async def _records(
        self, number: int, after: str, through: str, selection: Selection | None
    ) -> Sequence[Part]:
        found: list[Part] = []
        more = True
        while more:
            page, after, more = await self._page(number, after, through, selection)
            for place, record_id in enumerate(page.record_ids):
                count, digest = page.tally(place, place + 1)
                if count:
                    found.append(Part(through=record_id, record_count=1, digest=digest))
        if not found or found[-1].through != through:
            found.append(Part(through=through, record_count=0, digest=EMPTY_DIGEST))
        return found

    async def _page(
        self, number: int, after: str, through: str, selection: Selection | None
    ) -> tuple[_Entries, str, bool]:
        """A page of entries; where it ended; whether the range goes on."""
        if selection is None:
            page = await self._store.list_entries(number, after=after, through=through, limit=_PAGE_ENTRIES)
            entries = _Entries(record_ids=page.record_ids, revisions=page.revisions, hashes=page.hashes)
            return entries, page.record_ids[-1] if page.record_ids else after, page.more
        records, more, _ = await self._store.list_records(
            number, after=after, limit=_PAGE_RECORDS, max_bytes=_PAGE_BYTES
        )
        if through:
            kept = [record for record in records if record.record_id.encode() <= through.encode()]
            more = more and len(kept) == len(records)
            records = kept
        rows = [
            Row(
                record_id=record.record_id,
                revision=record.revision,
                update_time_us=record.update_time_us,
                data=record.data,
            )
            for record in records
        ]
        entries = _Entries(
            record_ids=[row.record_id for row in rows],
            revisions=[row.revision for row in rows],
            hashes=await asyncio.to_thread(_hashes, rows, selection),
        )
        return entries, rows[-1].record_id if rows else after, more


def _hashes(rows: Sequence[Row], selection: Selection) -> Sequence[bytes | None]:
    return [
        blake2b(selection.project(row), digest_size=16).digest() if selection.matches(row) else None
        for row in rows
    ]


class _Cut:
    """Sums entries into parts of ``step`` records of the dataset; the last part takes what is over."""

    def __init__(self, *, step: int, parts: int) -> None:
        self._step = step
        self._parts = parts
        self._done: list[Part] = []
        self._passed = self._count = self._sum = 0

    def add(self, page: _Entries) -> None:
        """Take in entries, in the order of their ids."""
        start, end = 0, len(page.record_ids)
        while start < end:
            is_last = len(self._done) == self._parts - 1
            stop = end if is_last else min(end, start + self._step - self._passed)
            count, total = page.tally(start, stop)
            self._passed += stop - start
            self._count += count
            self._sum += total
            if self._passed == self._step and not is_last:
                self._close(page.record_ids[stop - 1])
            start = stop

    def finish(self, through: str) -> Sequence[Part]:
        """All parts, the last one up to the end of the range."""
        self._close(through)
        return self._done

    def _close(self, through: str) -> None:
        part = Part(through=through, record_count=self._count, digest=self._sum % DIGEST_MODULUS)
        self._done.append(part)
        self._passed = self._count = self._sum = 0

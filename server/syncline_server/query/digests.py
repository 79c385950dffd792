"""Digests of ranges of record ids, so that a copy that differs finds where without being sent whole.

A range is cut into parts by the number of the dataset's records; of each part that differs from its own the client
asks again, until a part is a record. Entries are read a page at a time, without data unless a filter or a mask needs
it, and summed on a thread: a million records take some seconds of one, and no other caller waits for it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from syncline_server.digests import record_digest
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


_Entry = tuple[str, int, bool]
"""Record id, what it adds to the digest of the copy, and whether the copy has it: a filter may leave it out."""


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
            found.extend(
                Part(through=record_id, record_count=1, digest=digest)
                for record_id, digest, counts in page
                if counts
            )
        if not found or found[-1].through != through:
            found.append(Part(through=through, record_count=0, digest=EMPTY_DIGEST))
        return found

    async def _page(
        self, number: int, after: str, through: str, selection: Selection | None
    ) -> tuple[Iterator[_Entry], str, bool]:
        """Entries of a page, made when they are looked at; where it ended; whether the range goes on."""
        if selection is None:
            page = await self._store.list_entries(number, after=after, through=through, limit=_PAGE_ENTRIES)
            entries = (
                (record_id, record_digest(record_id, revision, value_hash), True)
                for record_id, revision, value_hash in zip(
                    page.record_ids, page.revisions, page.hashes, strict=True
                )
            )
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
        return _selected(rows, selection), records[-1].record_id if records else after, more


def _selected(rows: Sequence[Row], selection: Selection) -> Iterator[_Entry]:
    for row in rows:
        if selection.matches(row):
            value_hash = blake2b(selection.project(row), digest_size=16).digest()
            yield row.record_id, record_digest(row.record_id, row.revision, value_hash), True
        else:
            yield row.record_id, 0, False


class _Cut:
    """Sums entries into parts of ``step`` records of the dataset; the last part takes what is over."""

    def __init__(self, *, step: int, parts: int) -> None:
        self._step = step
        self._parts = parts
        self._done: list[Part] = []
        self._passed = self._count = self._sum = 0

    def add(self, entries: Iterator[_Entry]) -> None:
        """Take in entries, in the order of their ids."""
        for record_id, digest, counts in entries:
            self._passed += 1
            self._count += counts
            self._sum += digest
            if self._passed == self._step and len(self._done) < self._parts - 1:
                self._close(record_id)

    def finish(self, through: str) -> Sequence[Part]:
        """All parts, the last one up to the end of the range."""
        self._close(through)
        return self._done

    def _close(self, through: str) -> None:
        part = Part(through=through, record_count=self._count, digest=self._sum % DIGEST_MODULUS)
        self._done.append(part)
        self._passed = self._count = self._sum = 0

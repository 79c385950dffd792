"""One page of a list under a filter or a mask: bounded in what it looks through, and of one snapshot."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from syncline_server.filters.selection import Row, Selection
from syncline_server.model import Record
from syncline_server.query.id_ranges import IdRanges
from syncline_server.store.abc import Store

MAX_SEEN_RECORDS: Final = 10_000
"""Looked at for one page."""
MAX_SEEN_BYTES: Final = 4 << 20

_READ_RECORDS: Final = 1_000
"""Read in one go."""
_READ_RECORDS_EXACT: Final = 8
"""The same where only the first can match."""
_TURN_SECONDS: Final = 0.002
"""After so long others get their turn on the event loop."""
_TURN_RECORDS: Final = 16
"""Looked at between two looks at the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What was found."""

    records: Sequence[Record]
    last_id: str | None
    """Go on after this one; None: that was all."""
    revision: int
    """The dataset's, in the snapshot that was read."""


async def select_page(
    store: Store, dataset_number: int, selection: Selection, *, after: str, limit: int, max_bytes: int
) -> Selected:
    """Select at most ``limit`` records with ids after ``after``, of about ``max_bytes`` as projected.

    It reads until the page is full or has looked at 10,000 records or 4 MiB. When the dataset changes between two
    reads it ends before the second, so that a page is of one snapshot. Raises NotFound.
    """
    page = _Page(selection, limit, max_bytes)
    ranges = IdRanges(selection.terms)
    read_records = limit if not selection.has_filter else _READ_RECORDS
    if ranges.exact:
        read_records = _READ_RECORDS_EXACT
    place = ranges.seek(after)
    revision: int | None = None
    while True:
        found, more, now = await store.list_records(
            dataset_number,
            after=after if place is None else place,
            limit=read_records,
            max_bytes=max_bytes,
        )
        if revision is not None and now != revision:
            return Selected(records=page.records, last_id=after, revision=revision)
        revision = now
        taken = await page.take(found)
        more = more or taken < len(found)
        if taken:
            after = found[taken - 1].record_id
        place = ranges.seek(after) if more else None
        if place is None or page.full:
            return Selected(records=page.records, last_id=None if place is None else after, revision=revision)


def masked(record: Record, selection: Selection | None) -> Record:
    """Leave of a record what the mask lets through."""
    if selection is None or not selection.has_mask:
        return record
    return replace(record, data=selection.project(_row(record)))


def _row(record: Record) -> Row:
    return Row(record.record_id, record.revision, record.update_time_us, record.data)


class _Page:
    """Collects what matches."""

    __slots__ = ("_bytes", "_limit", "_max_bytes", "_seen", "_seen_bytes", "_selection", "records")

    def __init__(self, selection: Selection, limit: int, max_bytes: int) -> None:
        self._selection = selection
        self._limit = limit
        self._max_bytes = max_bytes
        self._bytes = self._seen = self._seen_bytes = 0
        self.records: list[Record] = []

    @property
    def full(self) -> bool:
        """Nothing more is to be looked at."""
        return (
            len(self.records) >= self._limit
            or self._bytes >= self._max_bytes
            or self._seen >= MAX_SEEN_RECORDS
            or self._seen_bytes >= MAX_SEEN_BYTES
        )

    async def take(self, found: Sequence[Record]) -> int:
        """Look at records until the page is full; returns at how many."""
        began = time.monotonic()
        for index, record in enumerate(found):
            if self.full:
                return index
            if index % _TURN_RECORDS == 0 and time.monotonic() - began > _TURN_SECONDS:
                await asyncio.sleep(0)
                began = time.monotonic()
            self._look_at(record)
        return len(found)

    def _look_at(self, record: Record) -> None:
        self._seen += 1
        self._seen_bytes += len(record.data)
        row = _row(record)
        if not self._selection.matches(row):
            return
        kept = replace(record, data=self._selection.project(row)) if self._selection.has_mask else record
        self.records.append(kept)
        self._bytes += len(kept.data)

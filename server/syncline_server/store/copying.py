"""Moving a whole store to another place, while servers go on writing it.

Records are followed in the order of their positions: an update moves a row to a new position, so whoever reads on gets
the newest version of everything, and a newer row takes the place of the older one of the same record id. Pass after
pass less is left. Then comes a moment in which nobody writes: the rest, a comparison, and the old store is set aside.

The new store is one that servers refuse, until it is complete. After a crash the same command goes on where it was; the
old store is as it was, unless it was set aside, and then the new one has everything and is only opened.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Final

from syncline_server import failpoints
from syncline_server.model import SessionMode
from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_sides import (
    CATALOG,
    POSITION,
    REQUEST,
    SESSION,
    SOURCE,
    SOURCES,
    Change,
    Copied,
    CopySource,
    CopyTarget,
    Head,
    Key,
    Phase,
    Reporter,
    Row,
    Side,
    Table,
)

BATCH_ROWS: Final = 10_000
BATCH_BYTES: Final = 8 << 20
LITTLE_SECONDS: Final = 1.0
"""A pass as short as this leaves little."""
MAX_PASSES: Final = 20
"""Then the store is written about as fast as it is copied, and more passes would not help."""
REQUEST_OVERLAP_US: Final = 120_000_000
"""Requests are followed by time; one that was noted later than its time says is found here if it is not later than
this, and else by comparing all of them."""

_REMEMBER_UNTIL: Final = REQUEST.columns.index("remember_until_us")
_MODE: Final = SESSION.columns.index("mode")
_ACTIVE_TIME: Final = SESSION.columns.index("active_time_us")
_CALLS: Final = SESSION.columns.index("calls")
_END_OF_TIME_US: Final = (1 << 63) - 1
_UNKNOWN: Final = (-1, -2)
"""Owners of what an earlier run copied: more than one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What a copy did."""

    datasets: int
    records: int
    """Live records of the new store."""
    rows: int
    """Rows that this run copied, tombstones and repeated versions of a record included."""
    passes: int
    seconds: float
    final_seconds: float
    """How long nobody could write."""


async def copy(source: CopySource, target: CopyTarget, reporter: Reporter, *, wait: bool) -> CopyReport:
    """Move a store. ``wait``: until nobody has the old one open, where only one process can.

    Raises StoreRefused when there is no store to copy, the target holds something else, the two differ at the end, or
    the old store cannot be had alone now.
    """
    started = time.monotonic()
    run = _Copy(source, target, reporter)
    if await _finish_interrupted(source, target):
        reporter.say("an earlier run had copied everything; the new store is opened now")
        return CopyReport(
            datasets=0, records=0, rows=0, passes=0, seconds=time.monotonic() - started, final_seconds=0.0
        )
    identity = await source.identity()
    await target.begin(identity)
    async with source.snapshot():
        await run.check_past()
    await run.follow()
    if not await target.checked():
        reporter.say("checking the copy")
        async with source.snapshot():
            await run.settle()
            await run.compare()
        await target.check()
    await run.catch_up()
    async with source.final(reporter, wait=wait, meanwhile=run.catch_up):
        locked = time.monotonic()
        if await source.identity() != identity:
            raise StoreRefused(f"{source.name} holds another store than it did")
        await run.settle()
        heads = await run.compare()
        failpoints.hit("copy.compared")
        await target.equal(await source.sequences())
        failpoints.hit("copy.equal")
        await source.set_aside(target.name)
    failpoints.hit("copy.set_aside")
    await target.finish()
    return CopyReport(
        datasets=len(heads),
        records=sum(head.record_count for head in heads),
        rows=run.rows,
        passes=run.passes,
        seconds=time.monotonic() - started,
        final_seconds=time.monotonic() - locked,
    )


async def _finish_interrupted(source: CopySource, target: CopyTarget) -> bool:
    """Whether an earlier copy got as far as to set the old store aside; then the new one is opened.

    Raises StoreRefused when there is nothing to copy, or the target holds another store.
    """
    phase, copied = await target.phase()
    moved = await source.moved_identity()
    if moved is not None:
        if phase is Phase.EQUAL and moved == copied:
            await target.finish()
            return True
        here = f"; {target.name} has it" if phase is Phase.STORE and moved == copied else ""
        raise StoreRefused(f"the store of {source.name} was moved away already{here}")
    identity = await source.identity()
    if phase is Phase.STORE:
        raise StoreRefused(f"{target.name} holds a store already; give an empty place")
    if copied not in (None, identity):
        raise StoreRefused(
            f"{target.name} holds the unfinished copy of another store; empty it, or give another place"
        )
    return False


class _Copy:
    """One run."""

    def __init__(self, source: CopySource, target: CopyTarget, reporter: Reporter) -> None:
        self._source = source
        self._target = target
        self._reporter = reporter
        self._copied: dict[int, Copied] = {}
        self._owners: dict[int, set[int]] = {}
        """Who owned the records of a dataset when they were copied."""
        self._purged: dict[int, int] = {}
        self._done = 0
        self._total = 0
        self.rows = 0
        self.passes = 0

    async def check_past(self) -> None:
        """Make sure that what is in the target is the past of the source. Raises StoreRefused."""
        self._copied = await self._target.copied()
        self._owners = {number: set(_UNKNOWN) for number in self._copied}
        for head in await self._source.heads():
            copied = self._of(head.number)
            lost = head.revision < copied.revision or head.last_position < copied.position
            if not lost and copied.revision > head.purge_revision:
                there = await self._source.commit_id(head.number, copied.revision)
                lost = there != await self._target.commit_id(head.number, copied.revision)
            if lost:
                raise StoreRefused(
                    f"{self._source.name} lost commits since this copy began (a restore, a fail-over); "
                    f"empty {self._target.name} and begin again"
                )

    async def catch_up(self) -> None:
        """Leave as little as possible for the time in which nobody can write."""
        await self.follow()
        async with self._source.snapshot():
            await self.settle()

    async def follow(self) -> None:
        """Copy records until little is left."""
        for _ in range(MAX_PASSES):
            self.passes += 1
            began = time.monotonic()
            heads = await self._source.heads()
            self._total = sum(head.last_position for head in heads)
            self._done = sum(self._of(head.number).position for head in heads)
            for head in heads:
                await self._records(head)
            await self._requests()
            if time.monotonic() - began < LITTLE_SECONDS:
                return

    async def settle(self) -> None:
        """Make the target equal to what the source shows, which must not change meanwhile."""
        heads = await self._source.heads()
        before = {row[0]: row for row in await _all(self._target, SOURCES)}
        await self._end_sessions()
        for table in CATALOG:
            await self._table(table)
        await self._requests()
        await self._compare_requests()
        for number in set(self._copied) - {head.number for head in heads}:
            await self._target.drop(number)
            del self._copied[number]
        for head in heads:
            await self._records(head)
            await self._revisions(head)
            if self._purged.get(head.number) != head.purge_revision:
                await self._target.purge(head.number, head.purge_revision)
                self._purged[head.number] = head.purge_revision
        await self._compare_entries(heads, before)
        await self._note_settled(heads)
        if self._source.stages:
            await self._sessions()

    async def compare(self) -> Sequence[Head]:
        """Compare each dataset with what was copied of it; the heads. Raises StoreRefused."""
        heads = await self._source.heads()
        for head in heads:
            copied = self._of(head.number)
            digest = copied.digest.to_bytes(16, "big")
            if (copied.record_count, digest) != (head.record_count, head.digest):
                raise StoreRefused(
                    f"the copy of dataset {head.dataset_id} has {copied.record_count} records, digest "
                    f"{digest.hex()}; {self._source.name} says {head.record_count} and {head.digest.hex()}; "
                    f"check {self._source.name} (syncline-server fsck)"
                )
        return heads

    def _of(self, dataset_number: int) -> Copied:
        return self._copied.get(dataset_number, Copied())

    async def _records(self, head: Head) -> None:
        """Follow the records of a dataset to where it stood when ``head`` was read."""
        number = head.number
        after = self._of(number).position
        if after >= head.last_position:
            return
        self._copied.setdefault(number, Copied(since=head.revision))
        owners = self._owners.setdefault(number, set())
        async with aclosing(self._batches(number, after, head.last_position)) as batches:
            async for batch in batches:
                before = self._of(number)
                self._copied[number] = await self._target.put(number, before, batch)
                owners.update(change[SOURCE] for change in batch)
                self.rows += len(batch)
                failpoints.hit("copy.batch")
                self._done += self._of(number).position - before.position
                self._reporter.progress(self._done, max(self._total, self._done))

    async def _batches(self, number: int, after: int, last: int) -> AsyncGenerator[Sequence[Change], None]:
        """Batches of changes up to a position at least; while one is written the next one is read."""

        def read(position: int) -> asyncio.Task[Sequence[Change]]:
            return asyncio.create_task(
                self._source.changes(number, position, max_rows=BATCH_ROWS, max_bytes=BATCH_BYTES)
            )

        reading = read(after)
        try:
            while batch := await reading:
                if batch[-1][POSITION] < last:
                    reading = read(batch[-1][POSITION])
                    yield batch
                else:
                    yield batch
                    return
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def _revisions(self, head: Head) -> None:
        after = self._of(head.number).revision
        while after < head.revision:
            rows = await self._source.revisions(head.number, after, limit=BATCH_ROWS)
            if not rows:
                raise StoreRefused(
                    f"dataset {head.dataset_id} of {self._source.name} lacks revisions; "
                    "check it (syncline-server fsck)"
                )
            await self._target.put_revisions(head.number, rows)
            after = rows[-1][0]
            self._copied[head.number] = replace(self._of(head.number), revision=after)

    async def _requests(self) -> None:
        """Follow the remembered requests by their time."""
        until_us = max(0, await self._target.newest_request_us() - REQUEST_OVERLAP_US)
        after = (until_us, "")
        while rows := await self._source.requests(after, REQUEST.chunk_rows):
            await self._target.put_requests(rows)
            after = (rows[-1][_REMEMBER_UNTIL], rows[-1][0])

    async def _compare_requests(self) -> None:
        first_us = await self._source.first_request_us()
        await self._target.forget_requests(_END_OF_TIME_US if first_us is None else first_us)
        if await self._source.request_sums() != await self._target.request_sums():
            await self._table(REQUEST)

    async def _table(self, table: Table) -> None:
        """Make a table equal, by going through both in the order of the keys."""
        gone: list[Key] = []
        rows: list[Row] = []
        async with aclosing(_side_by_side(self._source, self._target, table)) as pairs:
            async for key, wanted, present in pairs:
                if wanted is None:
                    gone.append(key)
                elif wanted != present:
                    rows.append(wanted)
                if len(gone) + len(rows) >= table.chunk_rows:
                    await self._target.apply(table, gone, rows)
                    gone, rows = [], []
        if gone or rows:
            await self._target.apply(table, gone, rows)

    async def _compare_entries(self, heads: Sequence[Head], before: dict[int, Row]) -> None:
        """Find what changed without leaving a row at a new position, where that is possible.

        A record went over to another source without a change; then that source has received something since the
        sources were copied. Or it was deleted, and its tombstone purged before it was copied.
        """
        sources = await _all(self._source, SOURCES)
        heard = {row[1] for row in sources if before.get(row[0]) != row}
        for head in heads:
            owners = self._owners.get(head.number, set()) | {
                row[0] for row in sources if row[1] == head.number
            }
            went_over = head.shared and head.number in heard and len(owners) > 1
            if not went_over and head.purge_revision <= self._of(head.number).since:
                continue
            wanted = await self._source.owners(head.number)
            present = await self._target.owners(head.number)
            different = {
                place[0] for place in {**wanted, **present} if wanted.get(place) != present.get(place)
            }
            for bucket in sorted(different):
                rows = await self._source.owned(head.number, bucket)
                copied = self._of(head.number)
                self._copied[head.number] = await self._target.correct(head.number, copied, bucket, rows)

    async def _note_settled(self, heads: Sequence[Head]) -> None:
        for head in heads:
            if head.number in self._copied and self._of(head.number).since != head.revision:
                await self._target.settled(head.number, head.revision)
                self._copied[head.number] = replace(self._of(head.number), since=head.revision)

    async def _end_sessions(self) -> None:
        """Sessions go before the sources that they are of, and before others of the same source come."""
        present = {row[0] for row in await _all(self._source, SESSION)}
        gone = [(row[0],) for row in await _all(self._target, SESSION) if row[0] not in present]
        if gone:
            await self._target.apply(SESSION, gone, [])

    async def _sessions(self) -> None:
        """Follow what open sessions hold. Calls come after what is in them, so a crash repeats and loses nothing."""
        for row in await _all(self._source, SESSION):
            session_id, active_time_us = row[0], row[_ACTIVE_TIME]
            if row[_MODE] == SessionMode.STREAM:
                continue
            calls, records = await self._target.staged(session_id)
            if calls >= row[_CALLS]:
                continue
            while actions := await self._source.staged_actions(
                session_id, records, max_rows=BATCH_ROWS, max_bytes=BATCH_BYTES
            ):
                await self._target.stage(session_id, actions)
                records = actions[-1][0]
            while accepted := await self._source.staged_calls(session_id, calls):
                await self._target.accept(session_id, accepted, active_time_us)
                calls = accepted[-1][0]


async def _all(side: Side, table: Table) -> list[Row]:
    """All rows of a table that has few."""
    found: list[Row] = []
    while rows := await side.rows(table, table.key_of(found[-1]) if found else None):
        found += rows
    return found


async def _rows(side: Side, table: Table) -> AsyncGenerator[Row, None]:
    after: Key | None = None
    while rows := await side.rows(table, after):
        for row in rows:
            yield row
        after = table.key_of(rows[-1])


async def _side_by_side(
    source: Side, target: Side, table: Table
) -> AsyncGenerator[tuple[Key, Row | None, Row | None], None]:
    """(key, row of the source, row of the target), in the order of the keys."""
    async with aclosing(_rows(source, table)) as wanted, aclosing(_rows(target, table)) as present:
        left, right = await anext(wanted, None), await anext(present, None)
        while left is not None or right is not None:
            if right is None or (left is not None and table.key_of(left) < table.key_of(right)):
                assert left is not None
                yield table.key_of(left), left, None
                left = await anext(wanted, None)
            elif left is None or table.key_of(right) < table.key_of(left):
                yield table.key_of(right), None, right
                right = await anext(present, None)
            else:
                yield table.key_of(left), left, right
                left, right = await anext(wanted, None), await anext(present, None)

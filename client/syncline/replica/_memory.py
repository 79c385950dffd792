"""A replica's records in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from syncline._digest import Tally, entry_digests
from syncline.events import Change, ChangeBatch, ChangeReason, Checkpoint, Delete, Put, Remove
from syncline.replica._copy import Point, Range, now_us, point_of, time_us

T = TypeVar("T")

_CHANGES_AT_ONCE: Final = 1_000


class _Layer(Generic[T]):
    """Records with their digests."""

    __slots__ = ("entries", "records", "tally")

    def __init__(self) -> None:
        self.records: dict[str, Put[T]] = {}
        self.entries: dict[str, bytes] = {}
        self.tally = Tally()

    def apply(self, changes: dict[str, tuple[Change[T], bytes]]) -> list[Change[T]]:
        """Take in changes; returns those that changed something."""
        made: list[Change[T]] = []
        for record_id, (change, entry) in changes.items():
            old = self.entries.get(record_id)
            if isinstance(change, Put):
                self.records[record_id] = change
                self.entries[record_id] = entry
                self.tally.add((entry,))
            elif old is None:
                continue
            else:
                del self.records[record_id], self.entries[record_id]
            if old is not None:
                self.tally.remove((old,))
            if old != entry or not isinstance(change, Put):
                made.append(change)
        return made


class MemoryCopy(Generic[T]):
    """See CopyStore."""

    def __init__(self, *, is_filtered: bool) -> None:
        self.point = Point()
        self.is_read_only = False
        self._vanished: Any = Remove if is_filtered else Delete
        self._shown: _Layer[T] = _Layer()
        self._new: _Layer[T] | None = None
        self._waiting: dict[str, tuple[Change[T], bytes]] = {}  # newest change of each record, for ``_shown``
        self._changes: Iterator[Change[T]] = iter(())

    async def take_over(self) -> bool:
        """Nobody else works on it."""
        return True

    def version(self) -> int:
        """There are no other processes."""
        return 0

    @property
    def resume(self) -> bytes:
        """The token to go on with."""
        return self.point.token

    @property
    def has_new_copy(self) -> bool:
        """Never: what is in memory begins with the process."""
        return False

    async def begin(self) -> None:
        """Work on a new copy."""
        self._new = _Layer()
        self._waiting = {}

    async def add(self, batch: ChangeBatch[T], token: bytes) -> None:
        """Take in changes."""
        del token
        entries = entry_digests(batch.record_ids, batch.revisions, batch.json)
        changes: dict[str, tuple[Change[T], bytes]] = {}
        for change, entry in zip(batch, entries, strict=True):
            changes.pop(change.record_id, None)  # the newest stands where it happened
            changes[change.record_id] = (change, entry)
        self._take(changes)

    def _take(self, changes: dict[str, tuple[Change[T], bytes]]) -> None:
        if self._new is not None:
            self._new.apply(changes)
            return
        for record_id in changes:
            self._waiting.pop(record_id, None)
        self._waiting.update(changes)

    def _tally(self) -> Tally:
        """Count and digest of the copy that is worked on."""
        if self._new is not None:
            return replace(self._new.tally)
        tally = replace(self._shown.tally)
        old = [entry for record_id in self._waiting if (entry := self._shown.entries.get(record_id))]
        tally.remove(old)
        tally.add([entry for change, entry in self._waiting.values() if isinstance(change, Put)])
        return tally

    async def settle(self, checkpoint: Checkpoint, *, want_changes: bool) -> Tally:
        """Make it visible if it agrees; all at once, because nothing is awaited in between."""
        tally = self._tally()
        if not tally.agrees(checkpoint):
            return tally
        if self._new is not None:
            old, self._shown, self._new = self._shown, self._new, None
            self._changes = self._differences(old, self._shown, checkpoint) if want_changes else iter(())
        else:
            self._changes = iter(self._shown.apply(self._waiting))
            self._waiting = {}
        self.point = point_of(checkpoint, tally)
        return tally

    def _differences(self, old: _Layer[T], new: _Layer[T], checkpoint: Checkpoint) -> Iterator[Change[T]]:
        committed_us = time_us(checkpoint.commit_time)
        for record_id in old.records:
            if record_id not in new.records:
                yield self._vanished(
                    record_id=record_id,
                    revision=checkpoint.revision,
                    commit_time_us=committed_us,
                    reason=ChangeReason.UNSPECIFIED,
                    token=checkpoint.token,
                )
        for record_id, put in new.records.items():
            if old.entries.get(record_id) != new.entries[record_id]:
                yield put

    async def take_changes(self) -> Sequence[Change[T]]:
        """The next changes that became visible."""
        return [change for change, _ in zip(self._changes, range(_CHANGES_AT_ONCE), strict=False)]

    async def touch(self, checkpoint: Checkpoint) -> None:
        """The dataset is still what is visible."""
        self.point = replace(self.point, token=checkpoint.token, equal_time_us=now_us())

    # -- finding out where it differs -----------------------------------------------------------------------

    def _worked_on(self) -> dict[str, bytes]:
        if self._new is not None:
            return self._new.entries
        entries = dict(self._shown.entries)
        for record_id, (change, entry) in self._waiting.items():
            entries.pop(record_id, None)
            if isinstance(change, Put):
                entries[record_id] = entry
        return entries

    async def summarise(self, ranges: Sequence[Range]) -> Sequence[Tally]:
        """Count and digest of ranges. Ids compare as text as their bytes do, by code point."""
        entries = self._worked_on()
        ordered = sorted(entries)
        tallies = [Tally() for _ in ranges]
        place = 0
        for part, tally in zip(ranges, tallies, strict=True):
            while place < len(ordered) and ordered[place] <= part.after:
                place += 1
            first = place
            while place < len(ordered) and (not part.through or ordered[place] <= part.through):
                place += 1
            tally.add([entries[record_id] for record_id in ordered[first:place]])
        return tallies

    async def entries(self, part: Range) -> dict[str, bytes]:
        """Digests of a small range."""
        return {
            record_id: entry
            for record_id, entry in self._worked_on().items()
            if record_id > part.after and (not part.through or record_id <= part.through)
        }

    async def mend(self, puts: Sequence[Put[Any]], gone: Sequence[str]) -> None:
        """Put and drop records."""
        entries = entry_digests(
            (put.record_id for put in puts), (put.revision for put in puts), (put.json for put in puts)
        )
        changes: dict[str, tuple[Change[T], bytes]] = {
            put.record_id: (put, entry) for put, entry in zip(puts, entries, strict=True)
        }
        for record_id in gone:
            removed = self._vanished(
                record_id=record_id,
                revision=self.point.revision,
                commit_time_us=0,
                reason=ChangeReason.UNSPECIFIED,
                token=self.point.token,
            )
            changes[record_id] = (removed, b"")
        self._take(changes)

    async def recount(self) -> bool:
        """Compute count and digest from the bytes."""
        records = self._shown.records.values()
        entries = entry_digests(
            self._shown.records, (put.revision for put in records), (put.json for put in records)
        )
        tally = Tally()
        tally.add(entries)
        as_before = tally == self._shown.tally
        self._shown.entries = dict(zip(self._shown.records, entries, strict=True))
        self._shown.tally = tally
        return as_before

    # -- reads ----------------------------------------------------------------------------------------------

    def get(self, record_id: str) -> Put[T] | None:
        """A record."""
        return self._shown.records.get(record_id)

    def has(self, record_id: str) -> bool:
        """Whether it is there."""
        return record_id in self._shown.records

    def count(self) -> int:
        """Number of records."""
        return len(self._shown.records)

    def record_ids(self) -> Iterator[str]:
        """All ids of one state."""
        return iter(list(self._shown.records))

    def records(self) -> Iterator[Put[T]]:
        """All records of one state."""
        return iter(list(self._shown.records.values()))

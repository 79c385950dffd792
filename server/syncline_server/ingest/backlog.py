"""The numbered readings that one stream brought and that are not durable yet. No I/O, no clock.

Numbers go in as the peer sends them: with repeats, after a broken link, and never with a gap. They come out in
batches, one under way at a time, each beginning where the one before it ended, so that the store, which takes a
batch whole or not at all, sees every number once.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from syncline_server.errors import OutOfRange

OVERHEAD_BYTES: Final = 64
"""What a reading weighs beside its bytes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Readings that follow each other."""

    first_sequence: int
    records: Sequence[bytes]
    size_bytes: int
    """Of the records."""

    @property
    def last_sequence(self) -> int:
        """Number of the last one."""
        return self.first_sequence + len(self.records) - 1

    @property
    def weight(self) -> int:
        """Bytes of memory, roughly."""
        return self.size_bytes + OVERHEAD_BYTES * len(self.records)

    def after(self, sequence: int) -> "Batch":
        """The readings above this number."""
        records = self.records[sequence + 1 - self.first_sequence :]
        return Batch(sequence + 1, records, sum(map(len, records)))


class Taken(Enum):
    """What became of readings that arrived."""

    QUEUED = auto()
    REPEATED = auto()
    """All of them had arrived before."""
    DROPPED = auto()
    """The source refuses readings, or they are some that were under way when it began to."""


class _Mode(Enum):
    OPEN = auto()
    REFUSING = auto()
    RESUMING = auto()
    """Readings are taken again, but what was sent before the peer knew may still arrive first."""


class Backlog:
    """What waits, and how far the producer came."""

    __slots__ = ("_chunks", "_mode", "_under_way", "durable", "received", "weight")

    def __init__(self, *, last_sequence: int) -> None:
        self.durable = last_sequence
        """Number of the last durable reading."""
        self.received = last_sequence
        """Number of the last one that was taken."""
        self.weight = 0
        """Bytes of what waits and of what is under way."""
        self._chunks: deque[Batch] = deque()
        self._under_way: Batch | None = None
        self._mode = _Mode.OPEN

    def receive(self, first_sequence: int, records: Sequence[bytes]) -> Taken:
        """Take readings as they arrive. Raises OutOfRange(SEQUENCE_GAP) when some before them are missing."""
        if self._mode is _Mode.REFUSING:
            return Taken.DROPPED
        expected = self.received + 1
        if first_sequence > expected:
            if self._mode is _Mode.RESUMING:
                return Taken.DROPPED
            raise OutOfRange(
                "SEQUENCE_GAP",
                f"reading {first_sequence} cannot come next; {expected} is expected",
                expected=expected,
            )
        last_sequence = first_sequence + len(records) - 1
        if last_sequence < expected:
            return Taken.REPEATED
        self._mode = _Mode.OPEN
        chunk = Batch(first_sequence, records, sum(map(len, records)))
        if first_sequence < expected:
            chunk = chunk.after(expected - 1)
        self._chunks.append(chunk)
        self.weight += chunk.weight
        self.received = last_sequence
        return Taken.QUEUED

    def take(self, *, max_records: int, max_bytes: int) -> Batch | None:
        """What is to be written next: one chunk at least, and as many more as fit. None: nothing waits.

        The same again as long as what was taken last has neither become durable nor been cut.
        """
        if self._under_way is None and self._chunks:
            self._under_way = self._join(max_records, max_bytes)
        return self._under_way

    def _join(self, max_records: int, max_bytes: int) -> Batch:
        chunks = self._chunks
        first = chunks.popleft()
        if not chunks:
            return first
        records, size = list(first.records), first.size_bytes
        while chunks:
            following = chunks[0]
            if len(records) + len(following.records) > max_records or size + following.size_bytes > max_bytes:
                break
            records += following.records
            size += following.size_bytes
            chunks.popleft()
        return Batch(first.first_sequence, records, size)

    def applied(self) -> None:
        """What was under way is durable."""
        batch = self._under_way
        assert batch is not None
        self.weight -= batch.weight
        self.durable = batch.last_sequence
        self._under_way = None

    def holds(self, expected: int) -> bool:
        """Whether the number that the store wants next lies within what is under way, behind its first."""
        batch = self._under_way
        return batch is not None and batch.first_sequence < expected <= batch.last_sequence

    def cut(self, expected: int) -> None:
        """Another stream of the same epoch made what is under way durable up to ``expected``."""
        batch = self._under_way
        assert batch is not None
        rest = batch.after(expected - 1)
        self.weight += rest.weight - batch.weight
        self.durable = expected - 1
        self._under_way = rest

    def drop(self) -> None:
        """Forget whatever is not durable; the next reading to be taken is the one after the last durable."""
        self._chunks.clear()
        self._under_way = None
        self.weight = 0
        self.received = self.durable

    def refuse(self) -> None:
        """Drop everything, and whatever arrives until ``resume``."""
        self.drop()
        self._mode = _Mode.REFUSING

    def resume(self) -> None:
        """Take readings again, from the one after the last durable on."""
        self._mode = _Mode.RESUMING

"""Copies that can be proven: ``Digest`` and ``Copy``."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from syncline._digest import MODULUS, entry_digest
from syncline.errors import CopyDiverged
from syncline.events import Change, ChangeBatch, Checkpoint, Event, Put, Reset

T = TypeVar("T")


class Digest:
    """Count and digest of a copy that lives elsewhere (a table, a file), kept up record by record.

    Where they match a checkpoint, the copy holds the same records, bytes and revisions as the dataset. Keeps 16
    bytes and the id of each record in memory.
    """

    def __init__(self) -> None:
        self._entries: dict[str, int] = {}
        self._sum = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def value(self) -> bytes:
        """16 bytes: the sum of all records' digests modulo 2^128, big-endian."""
        return self._sum.to_bytes(16, "big")

    def put(self, record_id: str, revision: int, json: bytes) -> None:
        """A record has this content now."""
        entry = int.from_bytes(entry_digest(record_id, revision, json), "big")
        self._sum = (self._sum - self._entries.get(record_id, 0) + entry) % MODULUS
        self._entries[record_id] = entry

    def remove(self, record_id: str) -> None:
        """A record is gone; without effect when it was not there."""
        self._sum = (self._sum - self._entries.pop(record_id, 0)) % MODULUS

    def clear(self) -> None:
        """Begin again with nothing."""
        self._entries.clear()
        self._sum = 0

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether the copy is what the checkpoint says."""
        return len(self) == checkpoint.record_count and self.value == checkpoint.digest


class Copy(Mapping[str, T], Generic[T]):
    """An exact copy of a dataset in memory, by record id.

    Give it every event (or batch) of ``changes()``. It changes only at checkpoints, all at once, so what is read
    is always the dataset as it was at ``revision``; during a reset that is the old content. At every checkpoint
    that has them count and digest are verified. After a restart go on with ``token`` only if the content was kept
    as well. A copy that does all of this by itself is ``Dataset.replica``.
    """

    def __init__(self) -> None:
        self._records: dict[str, Put[T]] = {}
        self._digest = Digest()
        self._waiting: dict[str, Change[T]] = {}
        self._replacing = False
        self.revision = 0
        """The revision that the copy equals."""
        self.token = b""
        """Resumes after it."""
        self.is_complete = False
        """Whether there has been a checkpoint yet."""
        self.is_verified = False
        """Whether the last checkpoint had count and digest, which were those of the copy."""

    def __getitem__(self, record_id: str) -> T:
        return self._records[record_id].data

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<copy of {len(self)} records at revision {self.revision}>"

    @property
    def digest(self) -> bytes:
        """Digest of the content, 16 bytes."""
        return self._digest.value

    def event(self, record_id: str) -> Put[T]:
        """The event that gave a record its content. Raises KeyError."""
        return self._records[record_id]

    def apply(self, event: Event[T] | ChangeBatch[T]) -> None:
        """Take in one event or batch, in order. Raises CopyDiverged: begin again with a new copy and no token."""
        if isinstance(event, Checkpoint):
            self._settle(event)
        elif isinstance(event, Reset):
            self._waiting.clear()
            self._replacing = True
        elif isinstance(event, ChangeBatch):
            self._waiting.update(zip(event.record_ids, event, strict=True))
        else:
            self._waiting[event.record_id] = event

    def _settle(self, checkpoint: Checkpoint) -> None:
        records, digest = self._records, self._digest
        if self._replacing:
            records, digest = {}, Digest()
        for record_id, event in self._waiting.items():
            if event.revision > checkpoint.revision:
                # Of a feed that was left in the middle of a batch. The one that goes on from before that batch may
                # pass earlier checkpoints first, and brings this again after them.
                continue
            if isinstance(event, Put):
                records[record_id] = event
                digest.put(record_id, event.revision, event.json)
            else:
                records.pop(record_id, None)
                digest.remove(record_id)
        if checkpoint.digest and not digest.matches(checkpoint):
            raise CopyDiverged(
                f"at revision {checkpoint.revision} the copy has {len(digest)} records with digest "
                f"{digest.value.hex()}, the dataset {checkpoint.record_count} with {checkpoint.digest.hex()}; "
                "begin again with a new copy and no token",
                metadata={"revision": str(checkpoint.revision)},
            )
        self._records, self._digest = records, digest
        self._waiting, self._replacing = {}, False
        self.revision, self.token, self.is_complete = checkpoint.revision, checkpoint.token, True
        self.is_verified = bool(checkpoint.digest)

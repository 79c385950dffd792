"""What the loop of a replica asks of the place where the records are: memory, or a file."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

from syncline._digest import Tally
from syncline.events import Change, ChangeBatch, Checkpoint, Put

T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The checkpoint that the visible copy equals."""

    revision: int = 0
    record_count: int = 0
    digest: bytes = bytes(16)
    token: bytes = b""
    commit_time: datetime | None = None
    is_verified: bool = False
    """Count and digest were those of the checkpoint; False also where it had none."""
    is_complete: bool = False
    """There has been a checkpoint."""
    equal_time_us: int = 0
    """When the dataset was last known to be the same, microseconds since 1970 by this machine's clock."""


@dataclass(frozen=True, slots=True)
class Range:
    """Record ids after ``after``, up to and including ``through``; empty: no bound."""

    after: str = ""
    through: str = ""


def now_us() -> int:
    """This machine's clock: microseconds since 1970."""
    return time.time_ns() // 1_000


def time_us(moment: datetime | None) -> int:
    """A time as microseconds since 1970; 0 when there is none."""
    return 0 if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)


def time_of(us: int) -> datetime | None:
    """The other way round."""
    return _EPOCH + timedelta(microseconds=us) if us else None


def point_of(checkpoint: Checkpoint, tally: Tally) -> Point:
    """The point that a copy with this tally has reached."""
    return Point(
        revision=checkpoint.revision,
        record_count=tally.count,
        digest=tally.digest,
        token=checkpoint.token,
        commit_time=checkpoint.commit_time,
        is_verified=bool(checkpoint.digest),
        is_complete=True,
        equal_time_us=now_us(),
    )


class CopyStore(Protocol[T]):
    """A visible copy, and beside it one that is being worked on: the same at first, or a new one.

    Only ``settle`` changes what is visible. One caller at a time, apart from the reads.
    """

    @property
    def point(self) -> Point:
        """What is visible."""

    @property
    def is_read_only(self) -> bool:
        """Whether another process works on it, and here it can only be read."""

    async def take_over(self) -> bool:
        """Work on it from now on, if nobody else does."""

    def version(self) -> int:
        """Another number after each commit of another process."""

    @property
    def resume(self) -> bytes:
        """The token to go on with; of a new copy that was begun, else of the visible one."""

    @property
    def has_new_copy(self) -> bool:
        """Whether a new copy was begun, and can be gone on with."""

    # -- the copy that is worked on -------------------------------------------------------------------------

    async def begin(self) -> None:
        """Work on a new copy from now on, empty at first."""

    async def add(self, batch: ChangeBatch[T], token: bytes) -> None:
        """Take in changes; ``token`` (empty: there is none) goes on after them."""

    async def settle(self, checkpoint: Checkpoint, *, want_changes: bool) -> Tally:
        """Make it visible with the checkpoint's token, if it agrees with that; its count and digest in any case."""

    async def take_changes(self) -> Sequence[Change[T]]:
        """The next few changes that the last ``settle`` made visible; empty when there are no more."""

    async def touch(self, checkpoint: Checkpoint) -> None:
        """The dataset is still what is visible."""

    # -- finding out where it differs -----------------------------------------------------------------------

    async def summarise(self, ranges: Sequence[Range]) -> Sequence[Tally]:
        """Count and digest of ranges of it, in ascending order and without overlap."""

    async def entries(self, part: Range) -> dict[str, bytes]:
        """Digest by record id of a small range of it."""

    async def mend(self, puts: Sequence[Put[Any]], gone: Sequence[str]) -> None:
        """Put and drop records of it."""

    async def recount(self) -> bool:
        """Compute count and digest of the visible copy from its bytes; whether they are as they were."""

    # -- reads of the visible copy, from any thread ----------------------------------------------------------

    def get(self, record_id: str) -> Put[T] | None:
        """A record; None when it is not there."""

    def has(self, record_id: str) -> bool:
        """Whether it is there."""

    def count(self) -> int:
        """Number of records."""

    def record_ids(self) -> Iterator[str]:
        """All ids of one state of it."""

    def records(self) -> Iterator[Put[T]]:
        """All records of one state of it."""

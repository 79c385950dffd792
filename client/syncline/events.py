"""What reads and feeds give: records, events, batches, pages.

They come by the hundred thousand, so they are ``msgspec.Struct`` rather than dataclasses, which makes them in a
tenth of the time, and decode their JSON only when it is asked for.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar, cast, overload

import msgspec

from syncline.models import Key, key_of

T = TypeVar("T")


class ChangeReason(enum.IntEnum):
    """Why a change was made. The numbers are those of ``syncline.v1.ChangeReason``."""

    UNSPECIFIED = 0
    API = 1
    SESSION = 2
    REPLACE = 3
    SOURCE = 4
    EXPIRED = 5

    @classmethod
    def _missing_(cls, value: object) -> "ChangeReason":
        del value  # a reason only informs
        return cls.UNSPECIFIED


class ResetReason(enum.IntEnum):
    """Why a copy cannot be continued. The numbers are those of ``syncline.v1.Reset.Reason``."""

    UNSPECIFIED = 0
    COMPACTED = 1
    HISTORY_CHANGED = 2
    FILTER_CHANGED = 3
    DATASET_REPLACED = 4
    SCHEMA = 5

    @classmethod
    def _missing_(cls, value: object) -> "ResetReason":
        del value  # whatever the reason, the copy begins anew
        return cls.UNSPECIFIED


class _Undecoded(enum.Enum):
    UNDECODED = 0


UNDECODED = _Undecoded.UNDECODED
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _decoded(value: "Put[T] | Record[T]") -> T:
    """Decode once, on first use: a follower that only counts or copies bytes does not pay for it."""
    if value._data is UNDECODED:  # noqa: SLF001
        msgspec.structs.force_setattr(value, "_data", value._decode(value.json))  # noqa: SLF001
    return cast("T", value._data)  # noqa: SLF001


class Record(msgspec.Struct, Generic[T], frozen=True, kw_only=True, eq=False):
    """A record as a read finds it."""

    record_id: str
    json: bytes
    """The object as canonical JSON: UTF-8, sorted keys, no white space."""
    revision: int
    """Of the commit that last changed it."""
    source: str
    """Id of the source that owns it: the last one to write it."""
    create_time: datetime
    update_time: datetime
    _decode: Callable[[bytes], T]
    _data: Any = UNDECODED

    @property
    def data(self) -> T:
        """The record as the dataset handle's model. Raises DecodeError."""
        return _decoded(self)

    @property
    def key(self) -> Key:
        """The record's key; see ``key_of``."""
        return key_of(self.record_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and (
            (self.record_id, self.revision, self.json, self.source, self.create_time, self.update_time)
            == (
                other.record_id,
                other.revision,
                other.json,
                other.source,
                other.create_time,
                other.update_time,
            )
        )

    def __hash__(self) -> int:
        return hash((self.record_id, self.revision))

    def __repr__(self) -> str:
        return f"Record({self.record_id!r}, {self.json.decode()}, revision={self.revision})"


class Put(msgspec.Struct, Generic[T], frozen=True, kw_only=True, eq=False):
    """The record has this content."""

    record_id: str
    json: bytes
    """The object as canonical JSON: UTF-8, sorted keys, no white space."""
    revision: int
    """The revision that made the change."""
    commit_time_us: int
    """Microseconds since 1970-01-01 UTC."""
    reason: ChangeReason
    token: bytes
    """Resumes with nothing skipped: after this event or, inside a batch, at its beginning."""
    _decode: Callable[[bytes], T]
    _data: Any = UNDECODED

    @property
    def data(self) -> T:
        """The record as the dataset handle's model. Raises DecodeError."""
        return _decoded(self)

    @property
    def key(self) -> Key:
        """The record's key; see ``key_of``."""
        return key_of(self.record_id)

    @property
    def commit_time(self) -> datetime:
        """When the change was committed, by the server's clock."""
        return _EPOCH + timedelta(microseconds=self.commit_time_us)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Put) and (
            (self.record_id, self.revision, self.json, self.commit_time_us, self.reason, self.token)
            == (other.record_id, other.revision, other.json, other.commit_time_us, other.reason, other.token)
        )

    def __hash__(self) -> int:
        return hash((self.record_id, self.revision))

    def __repr__(self) -> str:
        return f"Put({self.record_id!r}, {self.json.decode()}, revision={self.revision})"


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """The record is gone."""

    record_id: str
    revision: int
    """The revision that made the change."""
    commit_time_us: int
    """Microseconds since 1970-01-01 UTC."""
    reason: ChangeReason
    token: bytes
    """See ``Put.token``."""

    @property
    def key(self) -> Key:
        """The record's key; see ``key_of``."""
        return key_of(self.record_id)

    @property
    def commit_time(self) -> datetime:
        """When the change was committed, by the server's clock."""
        return _EPOCH + timedelta(microseconds=self.commit_time_us)

    def __repr__(self) -> str:
        return f"Delete({self.record_id!r}, revision={self.revision})"


class Remove(msgspec.Struct, frozen=True, kw_only=True):
    """The record does not match the filter (any more); drop it if it is there. It may live on in the dataset."""

    record_id: str
    revision: int
    """The revision that made the change."""
    commit_time_us: int
    """Microseconds since 1970-01-01 UTC."""
    reason: ChangeReason
    token: bytes
    """See ``Put.token``."""

    @property
    def key(self) -> Key:
        """The record's key; see ``key_of``."""
        return key_of(self.record_id)

    @property
    def commit_time(self) -> datetime:
        """When the change was committed, by the server's clock."""
        return _EPOCH + timedelta(microseconds=self.commit_time_us)

    def __repr__(self) -> str:
        return f"Remove({self.record_id!r}, revision={self.revision})"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that has taken in everything up to here equals the dataset at ``revision``."""

    revision: int
    record_count: int
    """-1 where the server keeps no account of a filter; then nothing can be proven."""
    digest: bytes
    """16 bytes; see ``Digest``. Empty where ``record_count`` is -1."""
    commit_time: datetime | None
    """Of ``revision``; None at revision 0."""
    token: bytes
    going_away: bool = False
    """The server is about to stop; an iterator reconnects by itself."""


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """What follows is a complete new copy; the old one is void once the next checkpoint is reached."""

    reason: ResetReason
    message: str
    token: bytes
    """Empty: who has dropped the old copy begins from nothing. Who serves it on keeps the token that it had."""


PUT, DELETE, REMOVE = 1, 2, 3
"""Change kinds, ``syncline.v1.ChangeKind``."""


Change = Put[T] | Delete | Remove
"""What happened to one record."""


class ChangeBatch(Sequence[Change[T]]):
    """Changes that came together, as columns. The events are made when they are looked at.

    Loops that must be fast read the columns: ``zip(batch.record_ids, batch.json)``. ``kinds`` is empty when
    all are puts; ``json`` is empty bytes for deletes and removes.
    """

    __slots__ = (
        "_decode",
        "commit_times_us",
        "folded",
        "from_revision",
        "json",
        "kinds",
        "partial",
        "previous_token",
        "reasons",
        "record_ids",
        "revisions",
        "to_revision",
        "token",
    )

    def __init__(
        self,
        *,
        record_ids: list[str],
        json: list[bytes],
        revisions: list[int],
        commit_times_us: list[int],
        kinds: list[int],
        reasons: list[int],
        from_revision: int,
        to_revision: int,
        partial: bool,
        previous_token: bytes,
        token: bytes,
        decode: Callable[[bytes], T],
        folded: int = 0,
    ) -> None:
        self.record_ids = record_ids
        self.json = json
        self.revisions = revisions
        self.commit_times_us = commit_times_us
        self.kinds = kinds
        self.reasons = reasons
        self.from_revision = from_revision
        self.to_revision = to_revision
        self.partial = partial
        """Revision ``to_revision`` goes on in the next batch."""
        self.previous_token = previous_token
        self.token = token
        """Resumes after this batch; the one before it where only the checkpoint that follows has one."""
        self.folded = folded
        """Changes of this stretch that are not in the batch, because newer ones of the same records came after."""
        self._decode = decode

    @property
    def all_puts(self) -> bool:
        """Whether there is nothing else among the changes."""
        return not self.kinds

    def __len__(self) -> int:
        return len(self.record_ids)

    @overload
    def __getitem__(self, index: int) -> Change[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Change[T]]: ...
    def __getitem__(self, index: int | slice) -> Change[T] | list[Change[T]]:
        if isinstance(index, slice):
            return [self._event(i) for i in range(*index.indices(len(self)))]
        return self._event(range(len(self))[index])

    def __iter__(self) -> Iterator[Change[T]]:
        return map(self._event, range(len(self)))

    def _event(self, i: int) -> Change[T]:
        token = self.token if i == len(self.record_ids) - 1 else self.previous_token
        reason = ChangeReason(self.reasons[i]) if self.reasons else ChangeReason.API
        if self.kinds and self.kinds[i] != PUT:
            return (Delete if self.kinds[i] == DELETE else Remove)(
                record_id=self.record_ids[i],
                revision=self.revisions[i],
                commit_time_us=self.commit_times_us[i],
                reason=reason,
                token=token,
            )
        return Put(
            record_id=self.record_ids[i],
            json=self.json[i],
            revision=self.revisions[i],
            commit_time_us=self.commit_times_us[i],
            reason=reason,
            token=token,
            _decode=self._decode,
        )

    def __repr__(self) -> str:
        return f"<{len(self)} changes, revisions {self.from_revision} to {self.to_revision}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPage(Generic[T]):
    """What changed since a token."""

    changes: ChangeBatch[T]
    token: bytes
    """Resumes after this page."""
    checkpoint: Checkpoint | None
    """Set when the page reached the head: the copy is exact now. None: ask again with ``token``."""
    reset: Reset | None
    """Set when the token could not be continued: drop the old copy once the next checkpoint is reached."""


Event = Change[T] | Checkpoint | Reset
"""What ``changes()`` gives."""

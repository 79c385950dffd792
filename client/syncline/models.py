"""The public values: frozen, comparable, without I/O.

Those that come by the hundred thousand (events, results) are ``msgspec.Struct`` rather than dataclasses,
which makes them in a tenth of the time.
"""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, TypeVar, cast, overload

import msgspec

from syncline.names import KeyValue, parse_record_id

T = TypeVar("T")

Scope = Literal["shared", "per_source"]
"""Whether sources share one key space."""

Role = Literal["admin", "push", "read"]
"""What a key may do."""

SessionMode = Literal["stream", "accrue", "replace"]
"""How a session shows what is written in it."""

Key = KeyValue | tuple[KeyValue, ...]
"""A key: its value, or the tuple of its values when it has several fields."""


class RecordStatus(enum.IntEnum):
    """What became of one record, key or id. The numbers are those of ``syncline.v1.RecordStatus``."""

    UNSPECIFIED = 0
    CREATED = 1
    UPDATED = 2
    UNCHANGED = 3
    """Equal canonical bytes: no revision, no event; counts as received."""
    DELETED = 4
    NOT_FOUND = 5
    """Delete of what is not there: no error."""
    STAGED = 6
    """Waits for the commit of its session."""
    SUPERSEDED = 7
    """A later record of the same call has the same id, and that one counts."""
    INVALID = 8
    CONFLICT = 9

    @classmethod
    def _missing_(cls, value: object) -> "RecordStatus":
        del value  # of a newer server; the report around it is still good
        return cls.UNSPECIFIED


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


# -- settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """How the id of a record is made; use ``by_key``, ``by_content`` or ``append``."""

    kind: Literal["key", "content", "append"]
    key_fields: tuple[str, ...] = ()


def by_key(*fields: str) -> Identity:
    """The values of these fields (1 to 8; a dot descends into an object) are the record's identity.

    A record with an equal key is the same record, and overwrites it whole.
    """
    if not fields:
        raise ValueError("by_key() takes the names of the key fields, as in by_key('isbn')")
    return Identity("key", fields)


def by_content() -> Identity:
    """All values are the identity: pushing the same record twice gives one record."""
    return Identity("content")


def append() -> Identity:
    """Every push is a new record."""
    return Identity("append")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long tombstones are kept, which is how long a token stays good. None: the server's setting."""

    min_age: timedelta | None = None
    min_revisions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """A dataset: its settings, and where its newest commit left it."""

    dataset: str
    uid: str
    """Another one when the dataset is deleted and created again."""
    identity: Identity
    scope: Scope
    schema: Mapping[str, Any] | None
    """JSON Schema 2020-12, None when every object is accepted."""
    display_name: str
    description: str
    retention: Retention
    annotations: Mapping[str, str]
    revision: int
    record_count: int
    digest: bytes
    """16 bytes; see ``Digest``."""
    purge_revision: int
    create_time: datetime
    update_time: datetime
    commit_time: datetime | None
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """A source of a dataset."""

    dataset: str
    source: str
    display_name: str
    disabled: bool
    create_time: datetime
    update_time: datetime
    last_received_time: datetime | None
    """When a record was last accepted from it, changed or not."""
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """A key. ``secret`` is there only in the answer that made it."""

    key_id: str
    role: Role
    dataset: str | None
    """PUSH: the dataset of its source."""
    source: str | None
    datasets: tuple[str, ...]
    """READ: dataset ids, or prefixes that end in ``*``."""
    display_name: str
    expire_time: datetime | None
    create_time: datetime
    last_used_time: datetime | None
    etag: str
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of writes, settings of the server."""

    records_per_call: int
    bytes_per_call: int
    bytes_per_record: int
    depth: int
    bytes_per_record_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What the server says of itself."""

    version: str
    store: str
    server_time: datetime
    start_time: datetime
    limits: Limits
    role: Role
    """Of the key in use."""
    writable: bool
    """False while writes are refused; reads go on."""


# -- writes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IfRevision(Generic[T]):
    """A record to push only if it exists with this revision: ``push([IfRevision(book, 17)])``."""

    record: T
    revision: int


@dataclass(frozen=True, slots=True)
class IfAbsent(Generic[T]):
    """A record to push only if it does not exist: ``push([IfAbsent(book)])``."""

    record: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """What is wrong with one record."""

    index: int
    """Position in what was posted, from 0."""
    pointer: str
    """JSON Pointer (RFC 6901) to the value; empty for the record itself."""
    keyword: str
    """A JSON Schema keyword, or ``json``, ``depth``, ``size``, ``key``, ``if_revision``, ``if_absent``."""
    message: str

    def __str__(self) -> str:
        keyword = f"{self.keyword}: " if self.keyword else ""
        return f"records[{self.index}]{self.pointer}: {keyword}{self.message}"


def key_of(record_id: str) -> Key:
    """The key in a record id: a value, a tuple of several, or the id itself where there is no key."""
    try:
        _, values = parse_record_id(record_id)
    except ValueError:
        return record_id
    return values[0] if len(values) == 1 else values


class RecordResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one posted record, key or id."""

    record_id: str
    """Empty when it is INVALID."""
    status: RecordStatus
    violations: tuple[Violation, ...] = ()

    @property
    def key(self) -> Key:
        """The record's key; see ``key_of``."""
        return key_of(self.record_id)


class Results(Sequence[RecordResult]):
    """The results of a call, in the order posted. Made from columns when they are looked at."""

    __slots__ = ("_by_index", "record_ids", "statuses")

    def __init__(
        self, record_ids: Sequence[str], statuses: Sequence[int], violations: Sequence[Violation] = ()
    ) -> None:
        self.record_ids = record_ids
        self.statuses = statuses
        self._by_index: dict[int, list[Violation]] = {}
        for violation in violations:
            self._by_index.setdefault(violation.index, []).append(violation)

    def __len__(self) -> int:
        return len(self.statuses)

    @overload
    def __getitem__(self, index: int) -> RecordResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[RecordResult]: ...
    def __getitem__(self, index: int | slice) -> RecordResult | list[RecordResult]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return RecordResult(
            record_id=self.record_ids[position],
            status=RecordStatus(self.statuses[position]),
            violations=tuple(self._by_index.get(position, ())),
        )

    def __repr__(self) -> str:
        return f"<{len(self)} results>"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What a push or delete did."""

    revision: int
    """Of the commit, or when nothing changed the dataset's newest. 0 while staged in a session."""
    results: Results
    """One for each posted record. Empty when an iterator was streamed into a session."""
    records: int
    """Number of posted records, keys or ids."""
    violations: tuple[Violation, ...] = ()
    """With ``partial`` or ``validate_only``: what is wrong with the refused ones."""

    def count(self, status: RecordStatus) -> int:
        """How many of the results have this status."""
        return list(self.results.statuses).count(status)

    @property
    def created(self) -> int:
        """Records that did not exist and now do."""
        return self.count(RecordStatus.CREATED)

    @property
    def updated(self) -> int:
        """Records that existed with other content."""
        return self.count(RecordStatus.UPDATED)

    @property
    def unchanged(self) -> int:
        """Records that were as they are already."""
        return self.count(RecordStatus.UNCHANGED)

    @property
    def deleted(self) -> int:
        """Records that existed and are gone."""
        return self.count(RecordStatus.DELETED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """Totals of a load."""

    records: int = 0
    """Accepted by the server."""
    calls: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    superseded: int = 0
    """Had the same id as a later record of the same batch."""
    invalid: int = 0
    """Refused; only with ``partial``."""
    revision: int = 0
    """The newest that the load made."""
    violations: tuple[Violation, ...] = ()
    """The first 1,000 of the refused ones, ``index`` counting from the first row; only with ``partial``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """What closing a session did. The counts are 0 for stream sessions and rollbacks."""

    revision: int
    created: int
    updated: int
    unchanged: int
    deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """An open session, as the server knows it."""

    session_id: str
    mode: SessionMode
    calls: int
    """Accepted calls."""
    records: int
    """Records and keys in them."""
    allow_mass_delete: bool
    create_time: datetime
    expire_time: datetime | None
    """When it will be rolled back if nothing more is written."""


# -- reads and feeds ----------------------------------------------------------------------------------------


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


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that has taken in everything up to here equals the dataset at ``revision``."""

    revision: int
    record_count: int
    digest: bytes
    """16 bytes; see ``Digest``."""
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
    """The one that could not be continued: going on with it gives a reset again."""


PUT, DELETE = 1, 2
"""Change kinds, ``syncline.v1.ChangeKind``."""


class ChangeBatch(Sequence[Put[T] | Delete]):
    """Changes that came together, as columns. The events are made when they are looked at.

    Loops that must be fast read the columns: ``zip(batch.record_ids, batch.json)``. ``kinds`` is empty when
    all are puts; ``json`` is empty bytes for deletes.
    """

    __slots__ = (
        "_decode",
        "commit_times_us",
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
        self._decode = decode

    @property
    def all_puts(self) -> bool:
        """Whether there is no delete among the changes."""
        return not self.kinds

    def __len__(self) -> int:
        return len(self.record_ids)

    @overload
    def __getitem__(self, index: int) -> Put[T] | Delete: ...
    @overload
    def __getitem__(self, index: slice) -> list[Put[T] | Delete]: ...
    def __getitem__(self, index: int | slice) -> Put[T] | Delete | list[Put[T] | Delete]:
        if isinstance(index, slice):
            return [self._event(i) for i in range(*index.indices(len(self)))]
        return self._event(range(len(self))[index])

    def __iter__(self) -> Iterator[Put[T] | Delete]:
        return map(self._event, range(len(self)))

    def _event(self, i: int) -> Put[T] | Delete:
        token = self.token if i == len(self.record_ids) - 1 else self.previous_token
        reason = ChangeReason(self.reasons[i]) if self.reasons else ChangeReason.API
        if self.kinds and self.kinds[i] == DELETE:
            return Delete(
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


Event = Put[T] | Delete | Checkpoint | Reset
"""What ``changes()`` gives."""

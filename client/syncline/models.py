"""The public values of settings and writes: frozen, comparable, without I/O. Those of reads are in ``events``."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypeVar, overload

import msgspec

from syncline.names import KeyValue, parse_record_id

T = TypeVar("T")

Scope = Literal["shared", "per_source"]
"""Whether sources share one key space."""

Role = Literal["admin", "push", "read"]
"""What a key may do."""

SessionMode = Literal["stream", "accrue", "replace"]
"""How a session shows what is written in it."""

ConflictPolicy = Literal["overwrite", "keep_newer", "abort"]
"""What a session's commit does to records that were changed since it was opened."""

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
    expect_every: timedelta | None = None
    """How often each of its producers is expected to be heard from."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A server of those that share a store, as it last told about itself."""

    name: str
    """Given by its operator, or the machine's name and the port."""
    node_id: str
    """Another one each time that it starts."""
    addresses: tuple[str, ...]
    version: str
    start_time: datetime
    report_time: datetime
    """Nodes report every 5 seconds."""
    lag: timedelta
    """Age of the oldest commit that it had not heard of when it last looked; zero: level with the store."""
    silent: bool
    """It has stopped reporting without leaving."""
    this_node: bool
    """The one that answered."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedReading:
    """A reading of a producer that the server does not take."""

    json: bytes
    """As it was sent."""
    sequence: int
    """Its number."""
    violations: tuple[Violation, ...] = ()
    """What is wrong with it; ``index`` is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerStats:
    """What a producer has done since it was entered, and where it stands."""

    sent: int
    """Readings given to ``send``."""
    durable: int
    """Readings that the server has, those of earlier runs in the spool included."""
    refused: int
    """Readings that it does not take."""
    dropped: int
    """Readings that made room for newer ones (``drop_oldest``)."""
    waiting: int
    """Readings that are not durable yet, in memory and in the spool."""
    waiting_bytes: int
    connected: bool
    """Whether a stream is open."""
    epoch: int
    """Of the producer; 0 before it was opened."""
    last_sequence: int
    """Number of the last reading that is durable or refused."""
    revision: int
    """Newest revision that a reading of this run made or met."""
    reconnects: int
    held_by: str
    """Why the server takes no readings for now, as ``SOURCE_DISABLED``; empty: it does."""


# -- where datasets and their replicas stand ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetHead:
    """Where a dataset stands."""

    dataset: str
    uid: str
    """Another one than before means that it was deleted and created again."""
    revision: int
    """0: nothing was ever written."""
    record_count: int
    digest: bytes
    """16 bytes; see ``Digest``."""
    commit_time: datetime | None
    """Of ``revision``; None at revision 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaUptake:
    """How far a replica has come."""

    replica_id: str
    revision: int
    """The newest one that it has applied; 0: none yet."""
    report_time: datetime | None
    behind_since: datetime | None
    """When the first commit that it lacks was made, or the oldest one known after it; None: it has the newest."""
    connected: bool
    holds_purge: bool
    """Deleted records are kept longer for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uptake:
    """Which registered replicas have a revision."""

    revision: int
    """The one that was asked about."""
    head_revision: int
    replica_count: int
    """-1: the server could not be asked."""
    reached_count: int
    """How many of them have it."""
    replicas: tuple[ReplicaUptake, ...]
    """Those furthest behind first; not all of them, where there are many."""

    @property
    def ratio(self) -> float:
        """The part of the replicas that has it; 1.0 where there is none, 0.0 where that is not known."""
        if self.replica_count < 0:
            return 0.0
        return self.reached_count / self.replica_count if self.replica_count else 1.0


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
    uptake: Uptake | None = None
    """With ``wait_uptake``: who had the revision when the waiting ended, also when those were too few."""

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
    kept: int = 0
    """Records left as they are because they were changed since the session was opened (``keep_newer``)."""


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
    conflict_policy: ConflictPolicy = "overwrite"
    base_revision: int = 0
    """The dataset's newest revision when it was opened."""

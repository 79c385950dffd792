"""The values that the rooms of the server hand to each other. Nothing here does I/O or knows of gRPC.

Times are microseconds since 1970-01-01 UTC (``_us``), ids of datasets and sources are the short ones
(``books``, not ``datasets/books``).
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

DIGEST_MODULUS: Final = 1 << 128
EMPTY_DIGEST: Final = 0
REPORT_SECONDS: Final = 5.0
"""How often a node tells that it is there."""
SILENT_SECONDS: Final = 15.0
"""A node that has not reported for three times its turn is taken for gone, until it reports again."""


class IdentityKind(enum.IntEnum):
    """How a record id is made; the numbers are those of ``syncline.v1.Identity.Kind``."""

    KEY = 1
    CONTENT = 2
    APPEND = 3


class RecordScope(enum.IntEnum):
    """Whether sources share a key space; the numbers are those of ``syncline.v1.RecordScope``."""

    SHARED = 1
    PER_SOURCE = 2


class Role(enum.IntEnum):
    """What a key may do; the numbers are those of ``syncline.v1.Key.Role``."""

    ADMIN = 1
    PUSH = 2
    READ = 3


class Status(enum.IntEnum):
    """What became of one record; the numbers are those of ``syncline.v1.RecordStatus``."""

    CREATED = 1
    UPDATED = 2
    UNCHANGED = 3
    DELETED = 4
    NOT_FOUND = 5
    STAGED = 6
    SUPERSEDED = 7
    INVALID = 8
    CONFLICT = 9


class ChangeKind(enum.IntEnum):
    """What a change does; the numbers are those of ``syncline.v1.ChangeKind``."""

    PUT = 1
    DELETE = 2
    REMOVE = 3


class Reason(enum.IntEnum):
    """Why a change was made; the numbers are those of ``syncline.v1.ChangeReason``."""

    API = 1
    SESSION = 2
    REPLACE = 3
    SOURCE = 4
    EXPIRED = 5


class SessionMode(enum.IntEnum):
    """The numbers are those of ``syncline.v1.SessionMode``."""

    STREAM = 1
    ACCRUE = 2
    REPLACE = 3


class ConflictPolicy(enum.IntEnum):
    """What a session's commit does to records changed since it was opened.

    The numbers are those of ``syncline.v1.ConflictPolicy``.
    """

    OVERWRITE = 1
    KEEP_NEWER = 2
    ABORT = 3


class ResetReason(enum.IntEnum):
    """Why a copy cannot be continued; the numbers are those of ``syncline.v1.Reset.Reason``."""

    COMPACTED = 1
    HISTORY_CHANGED = 2
    FILTER_CHANGED = 3
    DATASET_REPLACED = 4
    SCHEMA = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The rule that makes record ids."""

    kind: IdentityKind = IdentityKind.CONTENT
    key_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long tombstones are kept. None: the server's setting."""

    min_age_us: int | None = None
    min_revisions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a dataset stands: the facts of its newest commit, all from one snapshot."""

    revision: int = 0
    commit_id: bytes = b""
    """8 random bytes of that commit; at revision 0 the first 8 of the incarnation."""
    record_count: int = 0
    digest: int = EMPTY_DIGEST
    commit_time_us: int = 0
    purge_revision: int = 0
    last_position: int = 0
    """Position of the newest change; positions grow over the whole dataset, also across commits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset: its settings, and its head when it was read."""

    number: int
    """The store's own number, never used again after a delete."""
    dataset_id: str
    incarnation: bytes
    """The 16 bytes of its uid."""
    generation: int
    """Grows with every change of settings; the etag is made of incarnation and generation."""
    identity: Identity
    record_scope: RecordScope
    schema: str
    display_name: str
    description: str
    retention: Retention
    annotations: Mapping[str, str]
    create_time_us: int
    update_time_us: int
    head: Head

    @property
    def etag(self) -> str:
        """Names this version of the settings."""
        return f'"{self.incarnation.hex()[:8]}-{self.generation}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of a dataset."""

    number: int
    """The store's own number, unique over all datasets."""
    dataset_number: int
    dataset_id: str
    source_id: str
    generation: int
    display_name: str = ""
    disabled: bool = False
    create_time_us: int = 0
    update_time_us: int = 0
    last_received_us: int | None = None
    expect_every_us: int | None = None
    """How often each of its producers is expected to be heard from."""

    @property
    def etag(self) -> str:
        """Names this version of the settings."""
        return f'"{self.number}-{self.generation}"'


class ProducerState(enum.IntEnum):
    """Whether a producer is heard from; the numbers are those of ``syncline.v1.Producer.State``."""

    UNKNOWN = 1
    ALIVE = 2
    LATE = 3
    LOST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """One that numbers its writes into a source: the facts that are stored."""

    number: int
    """The store's own number, never used again after a delete."""
    source_number: int
    dataset_id: str
    source_id: str
    producer_id: str
    epoch: int
    last_sequence: int
    """Of its last durable reading; numbers go on over epochs."""
    create_time_us: int
    open_time_us: int
    last_received_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerWrite:
    """The numbers of the readings that a commit brings, refused ones included."""

    producer_number: int
    epoch: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """How far a replica of a dataset has come, as it last reported."""

    dataset_number: int
    replica_id: str
    key_id: str
    revision: int
    report_time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one holder to do what only one node at a time should do, for a while.

    That time is over does not stop a holder that was suspended, or that hangs. The fence does: it grows each time
    that the lease changes hands, and the store refuses what is done under an older one.
    """

    name: str
    holder: str
    fence: int
    expire_time_us: int
    """Until then nobody else gets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A server that has the store open, as it last told about itself."""

    node_id: str
    """Made anew each time the process starts."""
    name: str
    """For people."""
    addresses: tuple[str, ...]
    version: str
    start_time_us: int
    report_time_us: int = 0
    """When it last reported, by the store's clock."""
    lag_us: int = 0
    """How far the heads that it knew trailed the store when it last looked: age of the oldest commit that it had not
    heard of. 0: level."""

    def is_silent(self, now_us: int) -> bool:
        """Whether it has missed its turns to report."""
        return now_us - self.report_time_us >= SILENT_SECONDS * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is stored: the hash of its secret, never the secret."""

    key_id: str
    secret_hash: bytes = field(repr=False)
    role: Role
    dataset_id: str = ""
    """PUSH: the dataset of its source."""
    source_id: str = ""
    source_number: int = 0
    """PUSH: the source's number, so that a source made again under the name is another one."""
    patterns: tuple[str, ...] = ()
    """READ: dataset ids, or prefixes that end in ``*``."""
    display_name: str = ""
    generation: int = 1
    expire_time_us: int | None = None
    create_time_us: int = 0
    last_used_us: int | None = None

    @property
    def etag(self) -> str:
        """Names this version of the settings."""
        return f'"{self.key_id}-{self.generation}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls, and what they may do."""

    key_id: str
    role: Role
    source: tuple[str, str] | None = None
    source_number: int = 0
    patterns: tuple[str, ...] = ()

    def may_read(self, dataset_id: str) -> bool:
        """Whether reading, syncing and subscribing this dataset is allowed."""
        if self.role is Role.ADMIN:
            return True
        return self.role is Role.READ and any(
            dataset_id.startswith(p[:-1]) if p.endswith("*") else dataset_id == p for p in self.patterns
        )

    def may_push(self, dataset_id: str, source_id: str) -> bool:
        """Whether writing into this source is allowed."""
        return self.role is Role.ADMIN or (self.role is Role.PUSH and self.source == (dataset_id, source_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestIdentity:
    """What makes a retry recognisable."""

    request_id: str
    fingerprint: bytes
    """16 bytes over method, resource and content: the same id must mean the same request."""
    time_us: int
    """The time inside the id. Remembered at least 24 h past both this and the time of receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Exactly one of the two."""

    if_revision: int | None = None
    if_absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """What is wrong with one record of a call."""

    index: int
    pointer: str
    keyword: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upserts:
    """Checked records, as columns. Record ids are unique within one of these, and hold no control characters."""

    record_ids: Sequence[str]
    data: Sequence[bytes]
    hashes: Sequence[bytes]
    """BLAKE2b-128 of each ``data``."""
    conditions: Mapping[int, Condition] = field(default_factory=dict)
    """By position in the columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletes:
    """Record ids to delete, unique within one of these, without control characters."""

    record_ids: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCommit:
    """Apply what a staged session holds."""

    session_id: str
    calls: int
    """The number of accepted calls that the closer knows of."""
    guard: "MassDeleteGuard | None"
    """None: allowed to delete anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MassDeleteGuard:
    """Refuses a commit that deletes all of a source's records, or too great a part of many."""

    max_ratio: float = 0.5
    above_records: int = 100

    def refuses(self, *, deleted: int, before: int) -> bool:
        """Whether deleting ``deleted`` of the ``before`` records that the source had is too much."""
        return deleted > 0 and (
            deleted >= before or (before > self.above_records and deleted > before * self.max_ratio)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One write that is to become one revision, ready for the store."""

    dataset_number: int
    generation: int
    """Of the dataset's settings that the records were checked against; other settings: DatasetChanged."""
    source_number: int
    write: Upserts | Deletes | SessionCommit
    reason: Reason = Reason.API
    partial: bool = False
    dry_run: bool = False
    """Tell the verdict and change nothing; the identity is neither looked up nor kept."""
    identity: RequestIdentity | None = None
    key_id: str = ""
    """Who did it, kept with the commit."""
    session_id: str = ""
    """For a call in a stream session: must be open, inside the same transaction."""
    sequence: int = 0
    """Of the call in the session; 0: the next."""
    size_bytes: int = 0
    """What it weighs in the queue."""
    producer: ProducerWrite | None = None
    """In place of an identity: what makes a retry of numbered readings recognisable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """What became of a Commit."""

    revision: int
    """Of this commit, or the dataset's newest if it changed nothing."""
    changed: bool
    statuses: bytes
    """A ``Status`` per record of the write, one byte each; empty for SessionCommit."""
    record_ids: tuple[str, ...] = ()
    """Only when the answer is the first one of a retried APPEND push."""
    replayed: bool = False
    """The identity had been seen: nothing was done, this is the first answer."""
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    kept: int = 0
    """Records that KEEP_NEWER left as they are; in none of the other counts."""
    calls: int = 0
    """Accepted calls of the stream session, this one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes as columns, in the order (revision, position)."""

    record_ids: Sequence[str]
    data: Sequence[bytes]
    """Empty bytes for a DELETE."""
    revisions: Sequence[int]
    commit_times_us: Sequence[int]
    kinds: Sequence[int] = ()
    """Empty: all PUT."""
    reasons: Sequence[int] = ()
    """Empty: all API."""

    def __len__(self) -> int:
        return len(self.record_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a store read found after a position, everything from one snapshot."""

    changes: Changes
    last_position: int
    """Position of the last change, or the one asked for when there is none."""
    last_revision: int
    """Its revision, or 0 when there is none."""
    complete: bool
    """The page reached the head: after it a copy equals ``head``."""
    head: Head
    seen_commit_id: bytes | None
    """Commit id that the store has for the revision asked about; None: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPage:
    """Ids, revisions and value hashes of live records in a range of ids, from one snapshot."""

    record_ids: Sequence[str]
    revisions: Sequence[int]
    hashes: Sequence[bytes]
    more: bool
    """The range goes on after the last of them."""
    revision: int
    """The dataset's, in that snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What a durable group of commits added to one dataset; at ``head.revision`` a copy is exact."""

    dataset_number: int
    from_revision: int
    head: Head
    changes: Changes | None
    """None: too many to carry, read the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as a point read finds it."""

    record_id: str
    data: bytes
    revision: int
    source_id: str
    create_time_us: int
    update_time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An open session."""

    session_id: str
    dataset_number: int
    source_number: int
    mode: SessionMode
    allow_mass_delete: bool
    idle_timeout_us: int | None
    create_time_us: int
    active_time_us: int
    calls: int = 0
    records: int = 0
    conflict_policy: ConflictPolicy = ConflictPolicy.OVERWRITE
    base_revision: int = 0
    """The dataset's newest revision when it was opened; the store sets it."""

    @property
    def expire_time_us(self) -> int | None:
        """When it is rolled back unless something is written."""
        return None if self.idle_timeout_us is None else self.active_time_us + self.idle_timeout_us

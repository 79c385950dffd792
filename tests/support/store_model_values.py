"""The reference model of a store: what it is made of. See store_model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b

from syncline_server.errors import (
    InvalidArgument,
    PermissionDenied,
)
from syncline_server.model import (
    DIGEST_MODULUS,
    ChangeKind,
    Changes,
    CommitResult,
    Dataset,
    Deletes,
    Head,
    Reason,
    Session,
    Status,
    Upserts,
)

REMEMBER_US = 25 * 3_600 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The newest version of a record, or its tombstone (data None)."""

    position: int
    revision: int
    time_us: int
    reason: int
    source_number: int
    create_time_us: int
    data: bytes | None


@lru_cache(maxsize=1 << 16)
def term(record_id: str, revision: int, data: bytes) -> int:
    """What a record adds to the digest."""
    value_hash = blake2b(data, digest_size=16).digest()
    term = blake2b(record_id.encode() + b"\0" + revision.to_bytes(8, "big") + value_hash, digest_size=16)
    return int.from_bytes(term.digest(), "big")


@dataclass(slots=True, kw_only=True)
class State:
    """A dataset with everything in it."""

    dataset: Dataset
    rows: dict[str, Row] = field(default_factory=dict)
    revisions: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    """Commit id and time."""

    def live(self) -> dict[str, Row]:
        return {record_id: row for record_id, row in self.rows.items() if row.data is not None}

    def head(self) -> Head:
        live = self.live()
        digest = sum(term(record_id, row.revision, row.data) for record_id, row in live.items())
        return replace(self.dataset.head, record_count=len(live), digest=digest % DIGEST_MODULUS)


@dataclass(slots=True, kw_only=True)
class Staged:
    """An open session and its accepted calls."""

    session: Session
    calls: list[tuple[str | None, bytes, Upserts | Deletes | None, int]] = field(default_factory=list)
    """Request id, fingerprint, action, records of all calls up to it."""
    stream_calls: list[Upserts | Deletes] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Remembered:
    """A request that had an effect."""

    fingerprint: bytes
    until_us: int
    answer: CommitResult | None = None
    resource: object = None


def check_content(first: Upserts | Deletes, write: Upserts | Deletes) -> None:
    """A number stands for its content; under APPEND the ids of a repeated call are others."""
    if isinstance(first, Upserts) and isinstance(write, Upserts):
        same = list(first.data) == list(write.data)
    else:
        same = type(first) is type(write) and list(first.record_ids) == list(write.record_ids)
    if not same:
        raise InvalidArgument("REQUEST_ID_REUSED", "the number was used for something else")


def session_invalid() -> PermissionDenied:
    return PermissionDenied("SESSION_INVALID", "not open")


def result_of(revision: int, changed: bool, statuses: bytes) -> CommitResult:
    return CommitResult(
        revision=revision,
        changed=changed,
        statuses=statuses,
        created=statuses.count(Status.CREATED),
        updated=statuses.count(Status.UPDATED),
        unchanged=statuses.count(Status.UNCHANGED),
        deleted=statuses.count(Status.DELETED),
    )


def changes_of(rows: Sequence[tuple[str, Row]]) -> Changes:
    deleted = any(row.data is None for _, row in rows)
    other = any(row.reason != Reason.API for _, row in rows)
    return Changes(
        record_ids=[record_id for record_id, _ in rows],
        data=[row.data or b"" for _, row in rows],
        revisions=[row.revision for _, row in rows],
        commit_times_us=[row.time_us for _, row in rows],
        kinds=[ChangeKind.PUT if row.data else ChangeKind.DELETE for _, row in rows] if deleted else (),
        reasons=[row.reason for _, row in rows] if other else (),
    )

"""Sessions in the store's own tables: which are open, and what their commit does."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from syncline_server import failpoints
from syncline_server.errors import Aborted, FailedPrecondition, SynclineError
from syncline_server.model import (
    Commit,
    CommitResult,
    ConflictPolicy,
    Reason,
    RecordScope,
    RequestIdentity,
    Session,
    SessionCommit,
    SessionMode,
)
from syncline_server.store.carried import Carried
from syncline_server.store.difference import Counts
from syncline_server.store.plan import DatasetState, Plan, check_fingerprint, session_invalid
from syncline_server.store.rows import session_of
from syncline_server.store.sqlite import difference
from syncline_server.store.sqlite.catalog import dataset_by_number, source_by_number
from syncline_server.store.sqlite.group import look_up, mark_received, write_revisions
from syncline_server.store.sqlite.reads import read_head
from syncline_server.store.sqlite.requests import (
    find_answer,
    find_resource,
    remember_answers,
    remember_resource,
)

_SESSION: Final = """
SELECT session_id, dataset_number, source_number, mode, allow_mass_delete, idle_timeout_us, create_time_us,
       active_time_us, calls, records, conflict_policy, base_revision
FROM session
"""
_BY_ID: Final = _SESSION + "WHERE session_id = ?"
_OF_SOURCE: Final = "SELECT session_id FROM session WHERE source_number = ?"
_OF_DATASET: Final = "SELECT session_id FROM session WHERE dataset_number = ?"
_INSERT: Final = """
INSERT INTO session (session_id, dataset_number, source_number, mode, allow_mass_delete, idle_timeout_us,
    create_time_us, active_time_us, calls, records, conflict_policy, base_revision)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?)
"""
_DELETE: Final = "DELETE FROM session WHERE session_id = ?"
_STREAMS_WITH_TIMEOUT: Final = (
    "SELECT EXISTS (SELECT 1 FROM session WHERE mode = 1 AND idle_timeout_us IS NOT NULL)"
)
_EXPIRE_STREAMS: Final = """
DELETE FROM session WHERE mode = 1 AND idle_timeout_us IS NOT NULL AND active_time_us + idle_timeout_us <= ?
"""
_NUMBER_OF_SESSIONS: Final = "SELECT count(*) FROM session"
_OTHER_SOURCES: Final = "SELECT EXISTS (SELECT 1 FROM source WHERE dataset_number = ? AND number <> ?)"
_STAGED_STATE: Final = "SELECT calls, puts FROM staged.state"
_HELD_BY_SOURCE: Final = """
SELECT count(*) FROM entry WHERE dataset_number = ? AND source_number = ? AND hash IS NOT NULL
"""
_TAKE_OVER: Final = """
UPDATE entry SET source_number = ?2
WHERE dataset_number = ?1 AND source_number <> ?2 AND hash IS NOT NULL
  AND EXISTS (SELECT 1 FROM staged.final f WHERE f.record_id = entry.record_id AND f.hash = entry.hash)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session that was opened, or had been by the same request."""

    session: Session
    superseded: Sequence[str]
    replayed: bool


def open_session(
    connection: sqlite3.Connection, session: Session, identity: RequestIdentity | None, *, now_us: int
) -> Opened:
    """Store a session, ending the one that its source has open."""
    if (made := find_resource(connection, identity)) is not None:
        return Opened(session=session_by_id(connection, made), superseded=(), replayed=True)
    dataset = dataset_by_number(connection, session.dataset_number)
    source = source_by_number(connection, session.source_number)
    if source.disabled:
        raise FailedPrecondition(
            "SOURCE_DISABLED", f"source {source.source_id!r} is disabled", source=source.source_id
        )
    superseded = end_sessions(connection, source_number=source.number)
    connection.execute(
        _INSERT,
        (
            session.session_id,
            session.dataset_number,
            session.source_number,
            session.mode,
            session.allow_mass_delete,
            session.idle_timeout_us,
            session.create_time_us,
            session.active_time_us,
            session.conflict_policy,
            dataset.head.revision,
        ),
    )
    remember_resource(connection, identity, session.session_id, now_us=now_us)
    return Opened(
        session=session_by_id(connection, session.session_id), superseded=superseded, replayed=False
    )


def end_sessions(
    connection: sqlite3.Connection, *, source_number: int = 0, dataset_number: int = 0
) -> list[str]:
    """Remove the open sessions of a source or of a dataset; gives their ids."""
    rows = connection.execute(_OF_SOURCE, (source_number,)).fetchall()
    rows += connection.execute(_OF_DATASET, (dataset_number,)).fetchall()
    ended = [row[0] for row in rows]
    for session_id in ended:
        connection.execute(_DELETE, (session_id,))
    return ended


def session_by_id(
    connection: sqlite3.Connection, session_id: str, source_number: int | None = None
) -> Session:
    """Read an open session, of this source if one is given. Raises SESSION_INVALID."""
    row = connection.execute(_BY_ID, (session_id,)).fetchone()
    if row is None or source_number not in (None, row[2]):
        raise session_invalid()
    return session_of(row)


def all_sessions(connection: sqlite3.Connection) -> list[Session]:
    """Every open session."""
    return [session_of(row) for row in connection.execute(_SESSION).fetchall()]


def count_sessions(connection: sqlite3.Connection) -> int:
    """Number of open sessions."""
    return int(connection.execute(_NUMBER_OF_SESSIONS).fetchone()[0])


def discard_session(
    connection: sqlite3.Connection,
    session_id: str,
    source_number: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> int:
    """End a session without a commit; the dataset's revision, to a retry that of the first answer."""
    if identity is not None and (seen := find_answer(connection, identity.request_id)) is not None:
        check_fingerprint(identity, seen[0])
        return seen[1].revision
    session = session_by_id(connection, session_id, source_number)
    connection.execute(_DELETE, (session_id,))
    revision = read_head(connection, session.dataset_number).revision
    if identity is not None:
        answer = CommitResult(revision=revision, changed=False, statuses=b"")
        remember_answers(connection, [(identity, answer)], now_us=now_us)
    return revision


def expires_streams(connection: sqlite3.Connection) -> bool:
    """Whether there is a stream session that can expire."""
    return bool(connection.execute(_STREAMS_WITH_TIMEOUT).fetchone()[0])


def expire(connection: sqlite3.Connection, staged: Sequence[str], now_us: int) -> int:
    """End these sessions, and the stream sessions whose time is over; how many were open."""
    ended = connection.execute(_EXPIRE_STREAMS, (now_us,)).rowcount
    return ended + sum(connection.execute(_DELETE, (session_id,)).rowcount for session_id in staged)


def commit_session(
    connection: sqlite3.Connection,
    commit: Commit,
    carried: Carried,
    carry_changes: int,
    *,
    now_us: int,
    random_bytes: Callable[[int], bytes],
) -> list[CommitResult | SynclineError]:
    """Apply a SessionCommit inside the running transaction, the session's file attached as ``staged``.

    The verdict is complete before the first row is written, so a refusal leaves the session as it was.
    """
    plan = Plan(known=look_up(connection, [commit]), now_us=now_us, random_bytes=random_bytes)
    try:
        return [_commit_session(connection, plan, commit, carried, carry_changes)]
    except SynclineError as error:
        return [error]


def _commit_session(
    connection: sqlite3.Connection, plan: Plan, commit: Commit, carried: Carried, carry_changes: int
) -> CommitResult:
    write = commit.write
    assert isinstance(write, SessionCommit)
    identity = None if commit.dry_run else commit.identity
    if identity is not None and (answer := plan.first_answer(identity)) is not None:
        return answer
    dataset, source = plan.check_target(commit)
    session = session_by_id(connection, write.session_id, source.number)
    staged = session.mode is not SessionMode.STREAM
    calls, puts = connection.execute(_STAGED_STATE).fetchone() if staged else (session.calls, 0)
    if write.calls != calls:
        raise FailedPrecondition(
            "SESSION_INCOMPLETE",
            f"the session has {calls} accepted calls, the close names {write.calls}; it stays open",
            calls=calls,
        )
    difference.clear(connection)
    kept, kept_puts = _fill(connection, commit, dataset, session) if staged else (0, 0)
    counts = difference.count(connection, source_number=source.number)
    if session.mode is SessionMode.REPLACE:
        _check_guard(connection, write, dataset.number, source.number, counts.deleted_of_source)
    result = CommitResult(
        revision=dataset.head.revision,
        changed=counts.changed > 0,
        statuses=b"",
        created=counts.created,
        updated=counts.updated,
        unchanged=puts - counts.created - counts.updated - kept_puts,
        deleted=counts.deleted,
        kept=kept,
        calls=calls,
    )
    if commit.dry_run:
        return result
    if staged:
        _take_over(connection, dataset, source.number)
    if counts.changed:
        result = replace(result, revision=dataset.head.revision + 1)
        _apply(connection, plan, commit, dataset, counts)
        carried.add(
            dataset.number,
            dataset.first_head,
            dataset.head,
            difference.read_applied(
                connection, dataset.number, dataset.first_head, dataset.head, limit=carry_changes
            ),
        )
        difference.clear(connection)
    mark_received(connection, source.number, plan.now_us)
    connection.execute(_DELETE, (write.session_id,))
    if identity is not None:
        remember_answers(connection, [(identity, result)], now_us=plan.now_us)
    failpoints.hit("session.applied")
    return result


def _fill(
    connection: sqlite3.Connection, commit: Commit, dataset: DatasetState, session: Session
) -> tuple[int, int]:
    """Fill the difference as the session's conflict policy wants it.

    Gives the number of records that are left as they are, and how many of them the session would have put.
    Raises Aborted(SESSION_CONFLICT).
    """
    _fill_up_to(connection, commit, dataset, session, up_to=None)
    if session.conflict_policy is ConflictPolicy.OVERWRITE:
        return 0, 0
    newer, puts = difference.count_newer(connection, session.base_revision)
    if newer == 0:
        return 0, 0
    if session.conflict_policy is ConflictPolicy.ABORT:
        raise Aborted(
            "SESSION_CONFLICT",
            f"{newer} of the records that the commit would change were changed since the session was opened; "
            "it stays open",
            conflicts=newer,
        )
    # The numbers in the table must have no gaps, so it is filled anew; conflicts are rare.
    difference.clear(connection)
    _fill_up_to(connection, commit, dataset, session, up_to=session.base_revision)
    return newer, puts


def _fill_up_to(
    connection: sqlite3.Connection,
    commit: Commit,
    dataset: DatasetState,
    session: Session,
    *,
    up_to: int | None,
) -> None:
    number, source_number = dataset.number, session.source_number
    shared = dataset.scope is RecordScope.SHARED
    difference.fill_from_staged(connection, number, source_number, commit.reason, shared=shared, up_to=up_to)
    if session.mode is SessionMode.REPLACE:
        difference.fill_not_staged(connection, number, source_number, Reason.REPLACE, up_to=up_to)


def _check_guard(
    connection: sqlite3.Connection,
    write: SessionCommit,
    dataset_number: int,
    source_number: int,
    deleted: int,
) -> None:
    if write.guard is None or deleted == 0:
        return
    before = connection.execute(_HELD_BY_SOURCE, (dataset_number, source_number)).fetchone()[0]
    if write.guard.refuses(deleted=deleted, before=before):
        raise FailedPrecondition(
            "MASS_DELETE",
            f"the commit would delete {deleted} of the source's {before} records; "
            "open the session with allow_mass_delete if that is meant; it stays open",
            deleted=deleted,
            records=before,
        )


def _take_over(connection: sqlite3.Connection, dataset: DatasetState, source_number: int) -> None:
    """Unchanged records of other sources go over to this one. Changed ones do so by being written."""
    if dataset.scope is not RecordScope.SHARED:
        return
    if connection.execute(_OTHER_SOURCES, (dataset.number, source_number)).fetchone()[0]:
        connection.execute(_TAKE_OVER, (dataset.number, source_number))


def _apply(
    connection: sqlite3.Connection,
    plan: Plan,
    commit: Commit,
    dataset: DatasetState,
    counts: Counts,
) -> None:
    revision, commit_id = plan.next_revision(
        commit, dataset, puts=counts.created + counts.updated, deletes=counts.deleted
    )
    after = replace(
        dataset.head,
        revision=revision,
        commit_id=commit_id,
        commit_time_us=plan.commit_time_us(dataset),
    )
    dataset.head = difference.apply_difference(connection, dataset.number, dataset.head, after, staged=True)
    write_revisions(connection, plan.revisions)

"""Sessions: which are open, what accrue and replace sessions hold, and what their commit does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from syncline_server import failpoints
from syncline_server.errors import Aborted, FailedPrecondition, SynclineError
from syncline_server.model import (
    Commit,
    CommitResult,
    ConflictPolicy,
    Deletes,
    Reason,
    RecordScope,
    RequestIdentity,
    Session,
    SessionCommit,
    SessionMode,
    Upserts,
)
from syncline_server.store.abc import StagedCall
from syncline_server.store.carried import Carried
from syncline_server.store.difference import Counts
from syncline_server.store.plan import (
    DatasetState,
    Plan,
    check_content,
    check_fingerprint,
    content_of,
    sequence_gap,
    session_invalid,
)
from syncline_server.store.postgres import difference
from syncline_server.store.postgres.catalog import (
    dataset_by_number,
    end_sessions,
    lock_datasets,
    next_version,
    read_head,
    source_by_number,
)
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.group import look
from syncline_server.store.postgres.requests import (
    find_answer,
    find_resource,
    remember_answer,
    remember_resource,
)
from syncline_server.store.postgres.text import lines
from syncline_server.store.rows import session_of

_SESSION: Final = """
SELECT session_id, dataset_number, source_number, mode, allow_mass_delete, idle_timeout_us, create_time_us,
       active_time_us, calls, records, conflict_policy, base_revision, number
FROM session
"""
_BY_ID: Final = _SESSION + "WHERE session_id = $1"
_LOCKED: Final = _BY_ID + " FOR UPDATE"
_INSERT: Final = """
INSERT INTO session (session_id, dataset_number, source_number, mode, allow_mass_delete, idle_timeout_us,
    create_time_us, active_time_us, calls, records, conflict_policy, base_revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, $9, $10)
"""
_END: Final = """
WITH ended AS (DELETE FROM session WHERE session_id = $1 RETURNING number)
INSERT INTO ended_session (number) SELECT number FROM ended
"""
_DUE: Final = """
SELECT DISTINCT dataset_number FROM session
WHERE idle_timeout_us IS NOT NULL AND active_time_us + idle_timeout_us <= $1
"""
_IS_ANY_DUE: Final = f"SELECT EXISTS ({_DUE})"
_EXPIRE: Final = """
WITH ended AS (
    DELETE FROM session
    WHERE dataset_number = ANY ($2) AND idle_timeout_us IS NOT NULL AND active_time_us + idle_timeout_us <= $1
    RETURNING number),
noted AS (INSERT INTO ended_session (number) SELECT number FROM ended)
SELECT count(*) FROM ended
"""
_NUMBER_OF_SESSIONS: Final = "SELECT count(*) FROM session"
_STAGE: Final = (
    "SELECT verdict, calls, records, proof FROM stage_1($1, $2, $3, $4, $5, $6, $7, $8, $9,"
    " coalesce($10, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))"
)
_STAGED_PUTS: Final = "SELECT count(hash) FROM staged WHERE session_number = $1"
_OTHER_SOURCES: Final = "SELECT EXISTS (SELECT 1 FROM source WHERE dataset_number = $1 AND number <> $2)"
_HELD_BY_SOURCE: Final = """
SELECT count(*) FROM entry WHERE dataset_number = $1 AND source_number = $2 AND hash IS NOT NULL
"""
_TAKE_OVER: Final = """
UPDATE entry e SET source_number = $2 FROM staged s
WHERE s.session_number = $3 AND e.dataset_number = $1 AND e.record_id = s.record_id AND e.hash = s.hash
  AND e.source_number <> $2
"""
_RECEIVED: Final = "UPDATE source SET last_received_us = $2 WHERE number = $1"


async def open_session(
    connection: Connection, session: Session, identity: RequestIdentity | None, *, now_us: int
) -> Session:
    """Store a session, ending the one that its source has open."""
    await lock_datasets(connection, [session.dataset_number])
    if (made := await find_resource(connection, identity)) is not None:
        return await session_by_id(connection, made)
    dataset = await dataset_by_number(connection, session.dataset_number)
    source = await source_by_number(connection, session.source_number)
    if source.disabled:
        raise FailedPrecondition(
            "SOURCE_DISABLED", f"source {source.source_id!r} is disabled", source=source.source_id
        )
    await end_sessions(connection, source_number=source.number)
    await connection.execute(
        _INSERT,
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
    )
    await next_version(connection, dataset.number)
    await remember_resource(connection, identity, session.session_id, now_us=now_us)
    return await session_by_id(connection, session.session_id)


async def session_by_id(connection: Connection, session_id: str, source_number: int | None = None) -> Session:
    """Read an open session, of this source if one is given. Raises SESSION_INVALID."""
    row = await connection.fetchrow(_BY_ID, session_id) if "\0" not in session_id else None
    if row is None or source_number not in (None, row[2]):
        raise session_invalid()
    return session_of(row)


async def count_sessions(connection: Connection) -> int:
    """Number of open sessions."""
    return int(await connection.fetchval(_NUMBER_OF_SESSIONS))


async def stage(
    connection: Connection,
    session_id: str,
    write: Upserts | Deletes,
    *,
    source_number: int,
    sequence: int,
    identity: RequestIdentity | None,
    held_us: int | None,
) -> StagedCall:
    """Keep one action durably, by one call. Raises SESSION_INVALID, SEQUENCE_GAP, REQUEST_ID_REUSED."""
    name, fingerprint = (identity.request_id, identity.fingerprint) if identity else (None, None)
    verdict, calls, records, proof = await connection.fetchrow(
        _STAGE,
        session_id,
        source_number,
        sequence,
        name,
        fingerprint,
        content_of(write),
        lines(write.record_ids),
        b"".join(write.hashes) if isinstance(write, Upserts) else None,
        b"\n".join(write.data).decode() if isinstance(write, Upserts) else None,
        held_us,
    )
    if verdict == "invalid":
        raise session_invalid()
    if verdict == "gap":
        raise sequence_gap(sequence, calls)
    if verdict == "request" and identity is not None:
        check_fingerprint(identity, proof)
    if verdict == "number":
        check_content(sequence, proof, write)
    return StagedCall(calls=calls, records=records, replayed=verdict != "kept")


async def discard_session(
    connection: Connection,
    session_id: str,
    source_number: int,
    identity: RequestIdentity | None,
    *,
    now_us: int,
) -> int:
    """End a session without a commit; the dataset's revision, to a retry that of the first answer."""
    row = await connection.fetchrow(_BY_ID, session_id)
    if row is not None:
        await lock_datasets(connection, [row["dataset_number"]])
    if identity is not None:
        await find_resource(connection, identity)
        if (seen := await find_answer(connection, identity.request_id)) is not None:
            return seen[1].revision
    session = await session_by_id(connection, session_id, source_number)
    await connection.execute(_END, session_id)
    await next_version(connection, session.dataset_number)
    revision = (await read_head(connection, session.dataset_number)).revision
    if identity is not None:
        answer = CommitResult(revision=revision, changed=False, statuses=b"")
        await remember_answer(connection, identity, answer, now_us=now_us)
    return revision


async def expire(connection: Connection, expired_us: int) -> int:
    """End the sessions whose time was over at ``expired_us``; how many there were."""
    numbers = [row[0] for row in await connection.fetch(_DUE, expired_us)]
    if not numbers:
        return 0
    await lock_datasets(connection, numbers)
    ended = int(await connection.fetchval(_EXPIRE, expired_us, numbers))
    for number in numbers:
        await next_version(connection, number)
    return ended


async def is_any_due(connection: Connection, expired_us: int) -> bool:
    """Whether the time of a session is over."""
    return bool(await connection.fetchval(_IS_ANY_DUE, expired_us))


async def commit_session(
    connection: Connection,
    commit: Commit,
    carried: Carried,
    carry_changes: int,
    *,
    held_us: int | None,
    random_bytes: Callable[[int], bytes],
) -> list[CommitResult | SynclineError]:
    """Apply a SessionCommit inside the running transaction.

    The verdict is complete before the first row is written, so a refusal leaves the session as it was.
    """
    await lock_datasets(connection, [commit.dataset_number])
    known, _, now_us = await look(connection, [commit], {}, held_us=held_us)
    plan = Plan(known=known, now_us=now_us, random_bytes=random_bytes)
    try:
        return [await _commit_session(connection, plan, commit, carried, carry_changes)]
    except SynclineError as error:
        return [error]


async def _commit_session(
    connection: Connection, plan: Plan, commit: Commit, carried: Carried, carry_changes: int
) -> CommitResult:
    write = commit.write
    assert isinstance(write, SessionCommit)
    identity = None if commit.dry_run else commit.identity
    if identity is not None and (answer := plan.first_answer(identity)) is not None:
        return answer
    dataset, source = plan.check_target(commit)
    row = await connection.fetchrow(_LOCKED, write.session_id)
    if row is None or row["source_number"] != source.number:
        raise session_invalid()
    session, session_number = session_of(row), row["number"]
    if write.calls != session.calls:
        raise FailedPrecondition(
            "SESSION_INCOMPLETE",
            f"the session has {session.calls} accepted calls, the close names {write.calls}; it stays open",
            calls=session.calls,
        )
    await difference.begin(connection)
    kept, kept_puts, puts = 0, 0, 0
    staged = session.mode is not SessionMode.STREAM
    if staged:
        puts = await connection.fetchval(_STAGED_PUTS, session_number)
        kept, kept_puts = await _fill(connection, commit, dataset, session, session_number)
    counts = await difference.count(connection, source_number=source.number)
    if session.mode is SessionMode.REPLACE:
        await _check_guard(connection, write, dataset.number, source.number, counts.deleted_of_source)
    result = CommitResult(
        revision=dataset.head.revision,
        changed=counts.changed > 0,
        statuses=b"",
        created=counts.created,
        updated=counts.updated,
        unchanged=puts - counts.created - counts.updated - kept_puts,
        deleted=counts.deleted,
        kept=kept,
        calls=session.calls,
    )
    if commit.dry_run:
        return result
    if staged:
        await _take_over(connection, dataset, source.number, session_number)
    if counts.changed:
        result = replace(result, revision=dataset.head.revision + 1)
        await _apply(connection, plan, commit, dataset, counts, session_number)
        before, after = dataset.first_head, dataset.head
        changes = await difference.read_applied(
            connection, dataset.number, before, after, limit=carry_changes
        )
        carried.add(dataset.number, before, after, changes)
    else:
        await next_version(connection, dataset.number)
    await connection.execute(_RECEIVED, source.number, plan.now_us)
    await connection.execute(_END, write.session_id)
    if identity is not None:
        await remember_answer(connection, identity, result, now_us=plan.now_us)
    failpoints.hit("session.applied")
    return result


async def _fill(
    connection: Connection, commit: Commit, dataset: DatasetState, session: Session, session_number: int
) -> tuple[int, int]:
    """Fill the difference as the session's conflict policy wants it.

    Gives the number of records that are left as they are, and how many of them the session would have put.
    Raises Aborted(SESSION_CONFLICT).
    """
    await _fill_up_to(connection, commit, dataset, session, session_number, up_to=None)
    if session.conflict_policy is ConflictPolicy.OVERWRITE:
        return 0, 0
    newer, puts = await difference.count_newer(connection, session.base_revision)
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
    await difference.clear(connection)
    await _fill_up_to(connection, commit, dataset, session, session_number, up_to=session.base_revision)
    return newer, puts


async def _fill_up_to(
    connection: Connection,
    commit: Commit,
    dataset: DatasetState,
    session: Session,
    session_number: int,
    *,
    up_to: int | None,
) -> None:
    shared = dataset.scope is RecordScope.SHARED
    where = (connection, dataset.number, session_number, session.source_number)
    await difference.fill_from_staged(*where, commit.reason, shared=shared, up_to=up_to)
    if session.mode is SessionMode.REPLACE:
        await difference.fill_not_staged(*where, Reason.REPLACE, up_to=up_to)


async def _check_guard(
    connection: Connection, write: SessionCommit, dataset_number: int, source_number: int, deleted: int
) -> None:
    if write.guard is None or deleted == 0:
        return
    before = await connection.fetchval(_HELD_BY_SOURCE, dataset_number, source_number)
    if write.guard.refuses(deleted=deleted, before=before):
        raise FailedPrecondition(
            "MASS_DELETE",
            f"the commit would delete {deleted} of the source's {before} records; "
            "open the session with allow_mass_delete if that is meant; it stays open",
            deleted=deleted,
            records=before,
        )


async def _take_over(
    connection: Connection, dataset: DatasetState, source_number: int, session_number: int
) -> None:
    """Unchanged records of other sources go over to this one. Changed ones do so by being written."""
    if dataset.scope is not RecordScope.SHARED:
        return
    if await connection.fetchval(_OTHER_SOURCES, dataset.number, source_number):
        await connection.execute(_TAKE_OVER, dataset.number, source_number, session_number)


async def _apply(
    connection: Connection,
    plan: Plan,
    commit: Commit,
    dataset: DatasetState,
    counts: Counts,
    session_number: int,
) -> None:
    revision, commit_id = plan.next_revision(
        commit, dataset, puts=counts.created + counts.updated, deletes=counts.deleted
    )
    after = replace(
        dataset.head, revision=revision, commit_id=commit_id, commit_time_us=plan.commit_time_us(dataset)
    )
    dataset.head = await difference.apply_difference(
        connection, dataset.number, dataset.head, after, counts, session_number=session_number
    )
    await difference.write_revision(connection, plan.revisions[-1])

"""Requests that had an effect, kept with the effect so that a retry gets the first answer."""

from collections.abc import Sequence
from typing import Any, Final

from syncline_server.model import CommitResult, RequestIdentity
from syncline_server.store.answers import REMEMBER_US, pack_statuses, unpack_statuses
from syncline_server.store.plan import check_fingerprint
from syncline_server.store.postgres.connection import Connection

_FIND: Final = """
SELECT fingerprint, revision, changed, statuses, record_ids, created, updated, unchanged, deleted, calls, kept,
       resource
FROM request WHERE request_id = $1
"""
# Whoever has the same request id waits here for the end of this transaction, also the rest of a connection that broke.
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_INSERT: Final = """
INSERT INTO request (request_id, fingerprint, remember_until_us, resource, revision, changed, statuses, record_ids,
    created, updated, unchanged, deleted, calls, kept)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""
_FORGET: Final = """
DELETE FROM request WHERE request_id IN
    (SELECT request_id FROM request WHERE remember_until_us < $1 ORDER BY remember_until_us LIMIT $2)
"""


def answer_of(row: Sequence[Any]) -> CommitResult:
    """First answer from (revision, changed, statuses, record ids, six counts)."""
    return CommitResult(
        revision=row[0],
        changed=row[1],
        statuses=unpack_statuses(row[2]) if row[2] else b"",
        record_ids=tuple(row[3].split("\n")) if row[3] else (),
        replayed=True,
        created=row[4],
        updated=row[5],
        unchanged=row[6],
        deleted=row[7],
        calls=row[8],
        kept=row[9],
    )


def columns_of(
    answers: Sequence[tuple[RequestIdentity, CommitResult]], *, now_us: int
) -> tuple[Sequence[Any], ...]:
    """Columns of the rows that keep these answers, without ``resource``."""
    if not answers:
        return ((),) * 13
    rows = [
        (
            identity.request_id,
            identity.fingerprint,
            max(identity.time_us, now_us) + REMEMBER_US,
            answer.revision,
            answer.changed,
            pack_statuses(answer.statuses),
            "\n".join(answer.record_ids),
            answer.created,
            answer.updated,
            answer.unchanged,
            answer.deleted,
            answer.calls,
            answer.kept,
        )
        for identity, answer in answers
    ]
    return tuple(zip(*rows, strict=True))


async def find_answer(connection: Connection, request_id: str) -> tuple[bytes, CommitResult] | None:
    """Fingerprint and first answer of a request."""
    row = await connection.fetchrow(_FIND, request_id)
    return None if row is None else (row[0], answer_of(row[1:11]))


async def find_resource(connection: Connection, identity: RequestIdentity | None) -> str | None:
    """What a catalog request with this identity made or changed; None when there was none.

    Until the transaction ends nobody else gets further than here with this identity, so "none" is final (hazard F50).
    Raises REQUEST_ID_REUSED.
    """
    if identity is None:
        return None
    await connection.execute(_LOCK, identity.request_id)
    row = await connection.fetchrow(_FIND, identity.request_id)
    if row is None:
        return None
    check_fingerprint(identity, row[0])
    return str(row[11])


async def remember_answer(
    connection: Connection, identity: RequestIdentity, answer: CommitResult, *, now_us: int
) -> None:
    """Keep a first answer."""
    row = [column[0] for column in columns_of([(identity, answer)], now_us=now_us)]
    await connection.execute(_INSERT, *row[:3], "", *row[3:])


async def remember_resource(
    connection: Connection, identity: RequestIdentity | None, resource: str, *, now_us: int
) -> None:
    """Keep what a catalog request made or changed."""
    if identity is None:
        return
    until_us = max(identity.time_us, now_us) + REMEMBER_US
    counts = (0, 0, 0, 0, 0, 0)
    await connection.execute(
        _INSERT, identity.request_id, identity.fingerprint, until_us, resource, 0, False, b"", "", *counts
    )


async def forget(connection: Connection, *, before_us: int, limit: int) -> int:
    """Forget up to ``limit`` requests that were to be remembered until before this time."""
    return rows_of(await connection.execute(_FORGET, before_us, limit))


def rows_of(command_tag: str) -> int:
    """Number of rows in what the server answers to a command: ``DELETE 5``."""
    return int(command_tag.rpartition(" ")[2])

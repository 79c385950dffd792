"""Requests that had an effect, kept with the effect so that a retry gets the first answer."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from syncline_server.model import CommitResult, RequestIdentity
from syncline_server.store.answers import REMEMBER_US, pack_statuses, unpack_statuses
from syncline_server.store.plan import check_fingerprint
from syncline_server.store.sqlite.columns import BulkInsert

_FIND: Final = """
SELECT fingerprint, revision, changed, statuses, record_ids, created, updated, unchanged, deleted, calls, resource,
       kept
FROM request WHERE request_id = ?
"""
_INSERT: Final = BulkInsert(
    "INSERT INTO request (request_id, fingerprint, remember_until_us, resource, revision, changed, statuses,"
    " record_ids, created, updated, unchanged, deleted, calls, kept) "
    "SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL",
    width=14,
    shared=0,
)
_FORGET: Final = """
DELETE FROM request WHERE request_id IN
    (SELECT request_id FROM request WHERE remember_until_us < ? ORDER BY remember_until_us LIMIT ?)
"""


def find_answer(connection: sqlite3.Connection, request_id: str) -> tuple[bytes, CommitResult] | None:
    """Fingerprint and first answer of a request."""
    row = connection.execute(_FIND, (request_id,)).fetchone()
    if row is None:
        return None
    answer = CommitResult(
        revision=row[1],
        changed=bool(row[2]),
        statuses=unpack_statuses(row[3]),
        record_ids=tuple(row[4].split("\n")) if row[4] else (),
        replayed=True,
        created=row[5],
        updated=row[6],
        unchanged=row[7],
        deleted=row[8],
        calls=row[9],
        kept=row[11],
    )
    return row[0], answer


def find_resource(connection: sqlite3.Connection, identity: RequestIdentity | None) -> str | None:
    """What a catalog request with this identity made or changed; None when there was none.

    Raises REQUEST_ID_REUSED.
    """
    if identity is None:
        return None
    row = connection.execute(_FIND, (identity.request_id,)).fetchone()
    if row is None:
        return None
    check_fingerprint(identity, row[0])
    return str(row[10])


def remember_answers(
    connection: sqlite3.Connection, answers: Sequence[tuple[RequestIdentity, CommitResult]], *, now_us: int
) -> None:
    """Keep first answers."""
    flat: list[Any] = []
    for identity, answer in answers:
        flat += (
            identity.request_id,
            identity.fingerprint,
            max(identity.time_us, now_us) + REMEMBER_US,
            "",
            answer.revision,
            int(answer.changed),
            pack_statuses(answer.statuses),
            "\n".join(answer.record_ids),
            answer.created,
            answer.updated,
            answer.unchanged,
            answer.deleted,
            answer.calls,
            answer.kept,
        )
    _INSERT.run(connection, (), flat)


def remember_resource(
    connection: sqlite3.Connection, identity: RequestIdentity | None, resource: str, *, now_us: int
) -> None:
    """Keep what a catalog request made or changed."""
    if identity is None:
        return
    until_us = max(identity.time_us, now_us) + REMEMBER_US
    row = [identity.request_id, identity.fingerprint, until_us, resource, 0, 0, b"", "", 0, 0, 0, 0, 0, 0]
    _INSERT.run(connection, (), row)


def forget(connection: sqlite3.Connection, *, before_us: int, limit: int) -> int:
    """Forget up to ``limit`` requests that were to be remembered until before this time."""
    return connection.execute(_FORGET, (before_us, limit)).rowcount

"""Big commits, by set-based SQL: what a session, a replace, a deleted source or another identity changes.

A commit first fills the temporary table ``difference`` with exactly the records that change, in the order in which
they are to be announced, then ``apply_difference`` brings them into the tables. The dataset is locked all the while.
No Python object is made for a record that stays as it is; for the others only their digests are, some thousand at a
time.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

from syncline_server.digests import digest_sum
from syncline_server.model import DIGEST_MODULUS, Head
from syncline_server.store.difference import Counts
from syncline_server.store.plan import Change, Revision
from syncline_server.store.postgres.connection import Connection

DIGEST_ROWS: Final = 4_096
"""Changed records whose digests are computed at a time: about a megabyte of Python objects."""
CARRIED_BYTES: Final = 8 << 20
ANALYZE_ROWS: Final = 5_000
"""From so many rows on the planner is told how many there are."""
LARGE_TIMEOUT_MS: Final = 30 * 60_000
"""A statement over a million records may take longer than those that serve callers."""

# pg_temp is named, since a connection looks for tables in the schema of the store alone.
_BEGIN: Final = f"""
SET LOCAL statement_timeout = {LARGE_TIMEOUT_MS};
SET LOCAL plan_cache_mode = force_custom_plan;
CREATE TEMPORARY TABLE difference (
    number          bigint PRIMARY KEY,  -- order of the changes, from 1
    record_id       text COLLATE "C" NOT NULL,
    hash            bytea,               -- NULL: deleted
    data_from       bigint,              -- position of the record moved
    source_number   bigint NOT NULL,     -- owner from now on
    reason          smallint NOT NULL,
    create_time_us  bigint,              -- NULL: of the commit
    old_position    bigint,              -- NULL: there is no entry
    old_revision    bigint,
    old_hash        bytea,               -- NULL: absent or a tombstone
    old_source      bigint
) ON COMMIT DROP;
CREATE TEMPORARY TABLE rekeyed (
    position  bigint PRIMARY KEY,
    old_id    text COLLATE "C" NOT NULL,
    new_id    text COLLATE "C" NOT NULL
) ON COMMIT DROP
"""
_CLEAR: Final = "TRUNCATE pg_temp.difference"
_ANALYZE: Final = "ANALYZE pg_temp.difference"

_INSERT: Final = """
INSERT INTO pg_temp.difference (number, record_id, hash, data_from, source_number, reason, create_time_us,
    old_position, old_revision, old_hash, old_source)
SELECT row_number() OVER (ORDER BY place) + (SELECT coalesce(max(number), 0) FROM pg_temp.difference),
       record_id, new_hash, data_from, owner, reason, create_time_us, position, revision, hash, source_number
"""
# LATERAL … LIMIT 1 is a look-up by key, whatever the planner thinks. What it thinks are the statistics of some time
# ago: of a dataset or a session that is younger it believes that it is a single row, joins by reading all of it for
# each row of the other side, and a million records would take a day.
# $1 dataset, $2 source, $3 reason, $4 shared, $5 newest revision that may be touched, $6 number of the session.
_FROM_STAGED: Final = (
    _INSERT
    + """
FROM (SELECT s.ordinal AS place, s.record_id, s.hash AS new_hash, NULL::bigint AS data_from, $2::bigint AS owner,
             $3::smallint AS reason,
             CASE WHEN s.hash IS NOT NULL AND e.hash IS NOT NULL THEN e.create_time_us END AS create_time_us,
             e.position, e.revision, e.hash, e.source_number
      FROM staged s LEFT JOIN LATERAL (
          SELECT * FROM entry WHERE dataset_number = $1 AND record_id = s.record_id LIMIT 1) e ON true
      WHERE s.session_number = $6 AND s.hash IS DISTINCT FROM e.hash
        AND (s.hash IS NOT NULL OR $4 OR e.source_number = $2)
        AND ($5::bigint IS NULL OR e.revision IS NULL OR e.revision <= $5)) changed
"""
)
_GONE_COLUMNS: Final = """
e.position AS place, e.record_id, NULL::bytea AS new_hash, NULL::bigint AS data_from, e.source_number AS owner,
NULL::bigint AS create_time_us, e.position, e.revision, e.hash, e.source_number
"""
# $1 dataset, $2 source, $3 reason, $4 newest revision that may be touched, $5 number of the session.
_NOT_STAGED: Final = (
    _INSERT
    + f"""
FROM (SELECT $3::smallint AS reason, {_GONE_COLUMNS} FROM entry e LEFT JOIN LATERAL (
          SELECT session_number FROM staged WHERE session_number = $5 AND record_id = e.record_id LIMIT 1) s ON true
      WHERE e.dataset_number = $1 AND e.source_number = $2 AND e.hash IS NOT NULL AND s.session_number IS NULL
        AND ($4::bigint IS NULL OR e.revision <= $4)) changed
"""
)
_ALL_OF_SOURCE: Final = (
    _INSERT
    + f"""
FROM (SELECT $3::smallint AS reason, {_GONE_COLUMNS} FROM entry e
      WHERE e.dataset_number = $1 AND e.source_number = $2 AND e.hash IS NOT NULL) changed
"""
)
# A record that meets a live one keeps the time of that; one that moves to a free id brings its own along.
_MOVED: Final = (
    _INSERT
    + """
FROM (SELECT r.position AS place, r.new_id AS record_id, e.hash AS new_hash, r.position AS data_from,
             e.source_number AS owner, $2::smallint AS reason,
             CASE WHEN t.hash IS NULL THEN e.create_time_us ELSE t.create_time_us END AS create_time_us,
             t.position, t.revision, t.hash, t.source_number
      FROM (SELECT max(position) AS position FROM pg_temp.rekeyed GROUP BY new_id) newest
      JOIN pg_temp.rekeyed r ON r.position = newest.position
      CROSS JOIN LATERAL (SELECT * FROM entry WHERE dataset_number = $1 AND record_id = r.old_id LIMIT 1) e
      LEFT JOIN LATERAL (SELECT * FROM entry WHERE dataset_number = $1 AND record_id = r.new_id LIMIT 1) t ON true
      WHERE r.new_id <> r.old_id AND e.hash IS DISTINCT FROM t.hash) changed
"""
)
_LEFT_BEHIND: Final = (
    _INSERT
    + f"""
FROM (SELECT $2::smallint AS reason, {_GONE_COLUMNS}
      FROM pg_temp.rekeyed r
      CROSS JOIN LATERAL (SELECT * FROM entry WHERE dataset_number = $1 AND record_id = r.old_id LIMIT 1) e
      WHERE NOT EXISTS (SELECT 1 FROM pg_temp.rekeyed o WHERE o.new_id = r.old_id)) changed
"""
)
_COUNT: Final = """
SELECT count(*), count(hash), count(*) FILTER (WHERE hash IS NOT NULL AND old_hash IS NULL),
       count(*) FILTER (WHERE hash IS NULL AND old_source = $1)
FROM pg_temp.difference
"""
_COUNT_NEWER: Final = "SELECT count(*), count(hash) FROM pg_temp.difference WHERE old_revision > $1"
_DIGEST_COLUMNS: Final = """
SELECT array_agg(record_id) FILTER (WHERE hash IS NOT NULL), array_agg(hash) FILTER (WHERE hash IS NOT NULL),
       array_agg(record_id) FILTER (WHERE old_hash IS NOT NULL),
       array_agg(old_revision) FILTER (WHERE old_hash IS NOT NULL),
       array_agg(old_hash) FILTER (WHERE old_hash IS NOT NULL)
FROM pg_temp.difference WHERE number > $1 AND number <= $2
"""
# $1 dataset, $2 position of the head, $3 revision, $4 time, $5 number of the session.
_INSERT_STAGED: Final = """
INSERT INTO record (dataset_number, position, revision, commit_time_us, reason, record_id, data)
SELECT $1, $2 + d.number, $3, $4, d.reason, d.record_id, CASE WHEN d.hash IS NOT NULL THEN s.data END
FROM pg_temp.difference d LEFT JOIN LATERAL (
    SELECT data FROM staged WHERE session_number = $5 AND record_id = d.record_id LIMIT 1) s ON true
ORDER BY d.number
"""
_INSERT_MOVED: Final = """
INSERT INTO record (dataset_number, position, revision, commit_time_us, reason, record_id, data)
SELECT $1, $2 + d.number, $3, $4, d.reason, d.record_id, r.data
FROM pg_temp.difference d LEFT JOIN LATERAL (
    SELECT data FROM record WHERE dataset_number = $1 AND position = d.data_from LIMIT 1) r ON true
ORDER BY d.number
"""
# The dataset is locked, so its rows stay where they are found.
_DELETE_REPLACED: Final = """
DELETE FROM record r USING (
    SELECT found.place FROM pg_temp.difference d CROSS JOIN LATERAL (
        SELECT ctid AS place FROM record WHERE dataset_number = $1 AND position = d.old_position LIMIT 1) found) d
WHERE r.ctid = d.place
"""
_UPDATE_ENTRIES: Final = """
UPDATE entry e SET position = $2 + d.number, revision = $3, hash = d.hash, source_number = d.source_number,
    create_time_us = coalesce(d.create_time_us, $4)
FROM (SELECT d.*, found.place FROM pg_temp.difference d CROSS JOIN LATERAL (
          SELECT ctid AS place FROM entry WHERE dataset_number = $1 AND record_id = d.record_id LIMIT 1) found
      WHERE d.old_position IS NOT NULL) d
WHERE e.ctid = d.place
"""
_INSERT_ENTRIES: Final = """
INSERT INTO entry (dataset_number, record_id, position, revision, source_number, create_time_us, hash)
SELECT $1, record_id, $2 + number, $3, source_number, coalesce(create_time_us, $4), hash
FROM pg_temp.difference WHERE old_position IS NULL ORDER BY record_id
"""
_WRITE_HEAD: Final = """
UPDATE head SET version = version + 1, revision = $2, commit_id = $3, record_count = $4, digest = $5,
    commit_time_us = $6, last_position = $7
WHERE dataset_number = $1
"""
_INSERT_REVISION: Final = """
INSERT INTO revision (dataset_number, revision, commit_id, commit_time_us, key_id, source_number, reason, puts, deletes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_CARRIED_SIZE: Final = """
SELECT coalesce(sum(octet_length(data)), 0) FROM record WHERE dataset_number = $1 AND position > $2
"""
_CARRIED: Final = """
SELECT position, record_id, data, reason FROM record WHERE dataset_number = $1 AND position > $2 ORDER BY position
"""


async def begin(connection: Connection) -> None:
    """Make the tables, for this transaction."""
    await connection.execute(_BEGIN)


async def clear(connection: Connection) -> None:
    """Empty the table, to fill it anew."""
    await connection.execute(_CLEAR)


async def fill_from_staged(
    connection: Connection,
    dataset_number: int,
    session_number: int,
    source_number: int,
    reason: int,
    *,
    shared: bool,
    up_to: int | None,
) -> None:
    """Add what the session's actions change, in the order in which they were sent.

    ``up_to``: leave out records whose version or tombstone has a later revision than this.
    """
    await connection.execute(
        _FROM_STAGED, dataset_number, source_number, reason, shared, up_to, session_number
    )


async def fill_not_staged(
    connection: Connection,
    dataset_number: int,
    session_number: int,
    source_number: int,
    reason: int,
    *,
    up_to: int | None,
) -> None:
    """Add the deletion of what the source holds and the session does not name; ``up_to`` as above."""
    await connection.execute(_NOT_STAGED, dataset_number, source_number, reason, up_to, session_number)


async def fill_from_source(
    connection: Connection, dataset_number: int, source_number: int, reason: int
) -> None:
    """Add the deletion of everything that a source holds."""
    await connection.execute(_ALL_OF_SOURCE, dataset_number, source_number, reason)


async def fill_from_rekeyed(connection: Connection, dataset_number: int, reason: int) -> None:
    """Add the moves that the table ``rekeyed`` means."""
    await connection.execute(_MOVED, dataset_number, reason)
    await connection.execute(_LEFT_BEHIND, dataset_number, reason)


async def count(connection: Connection, *, source_number: int = 0) -> Counts:
    """Count the changes."""
    total, puts, created, deleted_of_source = await connection.fetchrow(_COUNT, source_number)
    if total >= ANALYZE_ROWS:
        await connection.execute(_ANALYZE)
    return Counts(
        created=created, updated=puts - created, deleted=total - puts, deleted_of_source=deleted_of_source
    )


async def count_newer(connection: Connection, revision: int) -> tuple[int, int]:
    """Count the changes of records that were changed after this revision, and the puts among them."""
    newer, puts = await connection.fetchrow(_COUNT_NEWER, revision)
    return newer, puts


async def apply_difference(
    connection: Connection,
    dataset_number: int,
    before: Head,
    after: Head,
    counts: Counts,
    *,
    session_number: int | None,
) -> Head:
    """Bring the changes into the tables as one revision and move the head.

    ``after`` has revision, commit id and time of the new commit; the rest is computed here. The data of records that
    are put is in this session, without one in records of the same dataset.
    """
    base = (dataset_number, before.last_position, after.revision, after.commit_time_us)
    if session_number is not None:
        await connection.execute(_INSERT_STAGED, *base, session_number)
    else:
        await connection.execute(_INSERT_MOVED, *base)
    await connection.execute(_DELETE_REPLACED, dataset_number)
    await connection.execute(_UPDATE_ENTRIES, *base)
    await connection.execute(_INSERT_ENTRIES, *base)
    digest = before.digest
    async for term in _digest_terms(connection, after.revision, counts.changed):
        digest += term
    head = replace(
        after,
        record_count=before.record_count + counts.created - counts.deleted,
        digest=digest % DIGEST_MODULUS,
        last_position=before.last_position + counts.changed,
        purge_revision=before.purge_revision,
    )
    await connection.execute(
        _WRITE_HEAD,
        dataset_number,
        head.revision,
        head.commit_id,
        head.record_count,
        head.digest.to_bytes(16, "big"),
        head.commit_time_us,
        head.last_position,
    )
    return head


async def _digest_terms(connection: Connection, revision: int, changed: int) -> AsyncIterator[int]:
    for done in range(0, changed, DIGEST_ROWS):
        columns = await connection.fetchrow(_DIGEST_COLUMNS, done, done + DIGEST_ROWS)
        ids, hashes, old_ids, old_revisions, old_hashes = (column or () for column in columns)
        come = digest_sum((record_id, revision, value) for record_id, value in zip(ids, hashes, strict=True))
        yield come - digest_sum(zip(old_ids, old_revisions, old_hashes, strict=True))


async def write_revision(connection: Connection, row: Revision) -> None:
    """Add a row to the table of revisions."""
    await connection.execute(_INSERT_REVISION, *row)


async def read_applied(
    connection: Connection, dataset_number: int, before: Head, after: Head, *, limit: int
) -> dict[str, Change] | None:
    """Read back the changes between two heads; None when they are too many or too large to carry."""
    if after.last_position - before.last_position > limit:
        return None
    since = (dataset_number, before.last_position)
    if await connection.fetchval(_CARRIED_SIZE, *since) > CARRIED_BYTES:
        return None
    rows = await connection.fetch(_CARRIED, *since)
    return {record_id: (position, after.revision, reason, data) for position, record_id, data, reason in rows}

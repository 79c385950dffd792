"""What runs beside the commits: purge, removal of what deleted datasets and ended sessions left, the probe."""

import os
from typing import Final

import structlog

from syncline_server import failpoints
from syncline_server.store.abc import PurgeResult
from syncline_server.store.postgres.catalog import lock_datasets, read_head
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.requests import rows_of

_log = structlog.get_logger()

RECLAIM_ROWS: Final = 20_000
"""Rows that nobody can reach any more, removed in one transaction."""

_TIME_OF: Final = "SELECT commit_time_us FROM revision WHERE dataset_number = $1 AND revision = $2"
_FIRST_REVISION: Final = "SELECT min(revision) FROM revision WHERE dataset_number = $1"
_TOMBSTONE_AT: Final = """
SELECT revision FROM record WHERE dataset_number = $1 AND data IS NULL ORDER BY position LIMIT 1 OFFSET $2
"""
_PURGE_TOMBSTONES: Final = """
WITH gone AS (
    DELETE FROM record WHERE dataset_number = $1 AND data IS NULL AND revision <= $2 RETURNING record_id),
entries AS (
    DELETE FROM entry e USING (
        SELECT found.place FROM gone CROSS JOIN LATERAL (
            SELECT ctid AS place FROM entry WHERE dataset_number = $1 AND record_id = gone.record_id LIMIT 1) found) g
    WHERE e.ctid = g.place)
SELECT count(*) FROM gone
"""
_PURGE_REVISIONS: Final = "DELETE FROM revision WHERE dataset_number = $1 AND revision < $2"
_SET_WATERMARK: Final = "UPDATE head SET purge_revision = $2, version = version + 1 WHERE dataset_number = $1"

# Of several nodes each takes another one.
_DELETED_DATASET: Final = "SELECT number FROM deleted_dataset ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED"
# By their places, which the planner cannot take for anything else than so many look-ups.
_RECLAIM: Final = (
    """
DELETE FROM record WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM record WHERE dataset_number = $1 ORDER BY position LIMIT $2))
""",
    """
DELETE FROM entry WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM entry WHERE dataset_number = $1 ORDER BY record_id LIMIT $2))
""",
    """
DELETE FROM revision WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM revision WHERE dataset_number = $1 ORDER BY revision LIMIT $2))
""",
)
_RECLAIMED: Final = "DELETE FROM deleted_dataset WHERE number = $1"
_ENDED_SESSION: Final = "SELECT number FROM ended_session ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED"
_UNSTAGE: Final = (
    """
DELETE FROM staged WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM staged WHERE session_number = $1 ORDER BY record_id LIMIT $2))
""",
    """
DELETE FROM staged_call WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM staged_call WHERE session_number = $1 ORDER BY number LIMIT $2))
""",
)
_UNSTAGED: Final = "DELETE FROM ended_session WHERE number = $1"
_HAS_LEFT_OVER: Final = (
    "SELECT EXISTS (SELECT 1 FROM deleted_dataset) OR EXISTS (SELECT 1 FROM ended_session)"
)
# A write that changes nothing: it needs a primary, a lock and room for a record of the WAL.
_PROBE: Final = "UPDATE store SET one = one"
PROBE_BYTES: Final = 256 << 10
"""More than is left over in the pages that a table has."""
_FILL: Final = """
INSERT INTO record (dataset_number, position, revision, commit_time_us, reason, record_id, data)
VALUES (0, 0, 0, 0, 0, '', $1)
"""
OLD_SNAPSHOT_SECONDS: Final = 600.0
_OLDEST_SNAPSHOT: Final = """
SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, pid, state,
       application_name AS application, usename::text AS role
FROM pg_stat_activity
WHERE datname = current_database() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
ORDER BY xact_start LIMIT 1
"""


async def newest_before(
    connection: Connection, dataset_number: int, *, before_us: int, min_revisions: int
) -> tuple[int, int]:
    """Newest revision committed before this time with that many after it; 0 when there is none. And the watermark.

    Times of commits never decrease, so halving finds it; for a reader, ahead of the purge.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        head = await read_head(connection, dataset_number)
        high = head.revision - min_revisions
        low = await connection.fetchval(_FIRST_REVISION, dataset_number)
        if low is None or low > high:
            return 0, head.purge_revision
        found = 0
        while low <= high:
            middle = (low + high) // 2
            if await connection.fetchval(_TIME_OF, dataset_number, middle) < before_us:
                found, low = middle, middle + 1
            else:
                high = middle - 1
        return found, head.purge_revision


async def purge(connection: Connection, dataset_number: int, wanted: int, max_tombstones: int) -> PurgeResult:
    """Move the watermark towards ``wanted`` and drop what lies below, inside the running transaction."""
    await lock_datasets(connection, [dataset_number])
    head = await read_head(connection, dataset_number)
    watermark = min(wanted, head.revision)
    beyond = await connection.fetchval(_TOMBSTONE_AT, dataset_number, max_tombstones)
    if beyond is not None and beyond <= watermark:
        first = await connection.fetchval(_TOMBSTONE_AT, dataset_number, 0)
        watermark = first if first == beyond else beyond - 1
    if watermark <= head.purge_revision:
        return PurgeResult(purge_revision=head.purge_revision, tombstones=0, more=False)
    tombstones = await connection.fetchval(_PURGE_TOMBSTONES, dataset_number, watermark)
    await connection.execute(_PURGE_REVISIONS, dataset_number, watermark)
    await connection.execute(_SET_WATERMARK, dataset_number, watermark)
    failpoints.hit("purge")
    return PurgeResult(
        purge_revision=watermark, tombstones=tombstones, more=watermark < min(wanted, head.revision)
    )


async def has_left_over(connection: Connection) -> bool:
    """Whether a deleted dataset or an ended session has rows left."""
    return bool(await connection.fetchval(_HAS_LEFT_OVER))


async def reclaim(connection: Connection) -> bool:
    """Remove some of these rows; whether there may be more to remove."""
    for of_which, statements, done in (
        (_DELETED_DATASET, _RECLAIM, _RECLAIMED),
        (_ENDED_SESSION, _UNSTAGE, _UNSTAGED),
    ):
        number = await connection.fetchval(of_which)
        if number is None:
            continue
        for statement in statements:
            if rows_of(await connection.execute(statement, number, RECLAIM_ROWS)):
                failpoints.hit("reclaim")
                return True
        await connection.execute(done, number)
        return True
    return False


async def probe(connection: Connection, *, was_full: bool) -> None:
    """Write nothing, durably. After the disk was full, write something larger too, and undo it.

    A row of one page may fit where no table can grow.
    """
    await connection.execute(_PROBE)
    if was_full:
        attempt = connection.transaction()
        await attempt.start()
        await connection.execute(_FILL, os.urandom(PROBE_BYTES))
        await attempt.rollback()


async def warn_of_old_snapshots(connection: Connection) -> None:
    """Log the oldest transaction of anybody's when it keeps vacuum from removing what was overwritten since.

    Commits overwrite the same few rows again and again, so tables and reads grow slower without a bound (hazard F55).
    Of sessions of other roles this shows only to members of ``pg_read_all_stats``.
    """
    oldest = await connection.fetchrow(_OLDEST_SNAPSHOT)
    if oldest is not None and oldest["seconds"] >= OLD_SNAPSHOT_SECONDS:
        _log.warning("store.old_snapshot", **{**oldest, "seconds": round(oldest["seconds"])})

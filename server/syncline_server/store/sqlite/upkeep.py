"""What runs beside the commits: purge, removal of deleted datasets' rows, checkpoints, the probe."""

import sqlite3
from typing import Final

from syncline_server import failpoints
from syncline_server.store.abc import PurgeResult
from syncline_server.store.sqlite.group import SLOT_BITS
from syncline_server.store.sqlite.reads import read_head

RECLAIM_ROWS: Final = 20_000
"""Rows of deleted datasets removed in one transaction: some 50 ms of the writer's time."""

_TIME_OF: Final = "SELECT commit_time_us FROM revision WHERE dataset_number = ? AND revision = ?"
_FIRST_REVISION: Final = "SELECT min(revision) FROM revision WHERE dataset_number = ?"
_TOMBSTONE_AT: Final = """
SELECT revision FROM record INDEXED BY record_tombstone
WHERE data IS NULL AND slot > ?1 AND slot < ?1 + (1 << 40) ORDER BY slot LIMIT 1 OFFSET ?2
"""
_PURGE_ENTRIES: Final = """
DELETE FROM entry WHERE dataset_number = ?1 AND record_id IN (
    SELECT record_id FROM record
    WHERE data IS NULL AND slot > ?2 AND slot < ?2 + (1 << 40) AND revision <= ?3)
"""
_PURGE_RECORDS: Final = """
DELETE FROM record WHERE slot IN (
    SELECT slot FROM record INDEXED BY record_tombstone
    WHERE data IS NULL AND slot > ?1 AND slot < ?1 + (1 << 40) AND revision <= ?2)
"""
_PURGE_REVISIONS: Final = "DELETE FROM revision WHERE dataset_number = ? AND revision < ?"
_SET_WATERMARK: Final = "UPDATE head SET purge_revision = ? WHERE dataset_number = ?"

_DELETED_DATASET: Final = "SELECT number FROM deleted_dataset ORDER BY number LIMIT 1"
_RECLAIM: Final = (
    """
DELETE FROM record WHERE slot IN
    (SELECT slot FROM record WHERE slot >= ?1 << 40 AND slot < (?1 + 1) << 40 LIMIT ?2)
""",
    """
DELETE FROM entry WHERE dataset_number = ?1 AND record_id IN
    (SELECT record_id FROM entry WHERE dataset_number = ?1 LIMIT ?2)
""",
    """
DELETE FROM revision WHERE dataset_number = ?1 AND revision IN
    (SELECT revision FROM revision WHERE dataset_number = ?1 LIMIT ?2)
""",
)
_RECLAIMED: Final = "DELETE FROM deleted_dataset WHERE number = ?"


def newest_before(
    connection: sqlite3.Connection, dataset_number: int, *, before_us: int, min_revisions: int
) -> int:
    """Newest revision committed before this time with that many after it; 0 when there is none.

    Times of commits never decrease, so halving finds it; for a reader, ahead of the purge.
    """
    connection.execute("BEGIN")
    try:
        return _newest_before(connection, dataset_number, before_us, min_revisions)
    finally:
        connection.execute("ROLLBACK")


def _newest_before(
    connection: sqlite3.Connection, dataset_number: int, before_us: int, min_revisions: int
) -> int:
    low = connection.execute(_FIRST_REVISION, (dataset_number,)).fetchone()[0]
    high = read_head(connection, dataset_number).revision - min_revisions
    if low is None or low > high:
        return 0
    found = 0
    while low <= high:
        middle = (low + high) // 2
        if connection.execute(_TIME_OF, (dataset_number, middle)).fetchone()[0] < before_us:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


def purge(
    connection: sqlite3.Connection, dataset_number: int, wanted: int, max_tombstones: int
) -> PurgeResult:
    """Move the watermark towards ``wanted`` and drop what lies below, inside the running transaction."""
    head = read_head(connection, dataset_number)
    first_slot = dataset_number << SLOT_BITS
    watermark = min(wanted, head.revision)
    beyond = connection.execute(_TOMBSTONE_AT, (first_slot, max_tombstones)).fetchone()
    if beyond is not None and beyond[0] <= watermark:
        first = connection.execute(_TOMBSTONE_AT, (first_slot, 0)).fetchone()[0]
        watermark = first if first == beyond[0] else beyond[0] - 1
    if watermark <= head.purge_revision:
        return PurgeResult(purge_revision=head.purge_revision, tombstones=0, more=False)
    connection.execute(_PURGE_ENTRIES, (dataset_number, first_slot, watermark))
    tombstones = connection.execute(_PURGE_RECORDS, (first_slot, watermark)).rowcount
    connection.execute(_PURGE_REVISIONS, (dataset_number, watermark))
    connection.execute(_SET_WATERMARK, (watermark, dataset_number))
    failpoints.hit("purge")
    return PurgeResult(
        purge_revision=watermark, tombstones=tombstones, more=watermark < min(wanted, head.revision)
    )


def has_deleted(connection: sqlite3.Connection) -> bool:
    """Whether a deleted dataset has rows left."""
    return connection.execute(_DELETED_DATASET).fetchone() is not None


def reclaim(connection: sqlite3.Connection) -> bool:
    """Remove some rows of a deleted dataset; whether there may be more to remove."""
    row = connection.execute(_DELETED_DATASET).fetchone()
    if row is None:
        return False
    for statement in _RECLAIM:
        if connection.execute(statement, (row[0], RECLAIM_ROWS)).rowcount:
            failpoints.hit("reclaim")
            return True
    connection.execute(_RECLAIMED, (row[0],))
    return True


def checkpoint(connection: sqlite3.Connection, mode: str) -> bool:
    """Bring the WAL into the database; whether all of it was."""
    failpoints.hit("checkpoint.before")
    busy, pages, moved = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    failpoints.hit("checkpoint.after")
    return not busy and pages == moved


def try_lock(connection: sqlite3.Connection) -> None:
    """Take the write lock and give it back. Raises sqlite3.OperationalError when it cannot be had."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")

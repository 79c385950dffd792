"""Big commits, by set-based SQL: what a session, a replace, a deleted source or another identity changes.

A commit first fills the temporary table ``difference`` with exactly the records that change, in the order in
which they are to be announced, then ``apply_difference`` brings them into the tables. No Python object is made
for a record that stays as it is; for the others only their digests are, some thousand at a time.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from syncline_server.digests import digest_sum
from syncline_server.model import DIGEST_MODULUS, Head
from syncline_server.store.difference import Counts
from syncline_server.store.plan import Change
from syncline_server.store.sqlite.columns import integers
from syncline_server.store.sqlite.group import SLOT_BITS, write_head

DIGEST_ROWS: Final = 4_096
"""Changed records whose digests are computed at a time: about a megabyte of Python objects."""
CARRIED_BYTES: Final = 8 << 20

CREATE_TABLES: Final = (
    """
CREATE TEMP TABLE IF NOT EXISTS difference (
    number          INTEGER PRIMARY KEY,  -- order of the changes, from 1
    record_id       TEXT NOT NULL,
    hash            BLOB,                 -- NULL: deleted
    data_from       INTEGER,              -- number of the staged action, or position of the record moved
    source_number   INTEGER NOT NULL,     -- owner from now on
    reason          INTEGER NOT NULL,
    create_time_us  INTEGER,              -- NULL: of the commit
    old_position    INTEGER,
    old_revision    INTEGER,
    old_hash        BLOB,                 -- NULL: absent or a tombstone
    old_source      INTEGER
) STRICT
""",
    """
CREATE TEMP TABLE IF NOT EXISTS rekeyed (
    position  INTEGER PRIMARY KEY,
    old_id    TEXT NOT NULL,
    new_id    TEXT NOT NULL
) STRICT
""",
    "CREATE INDEX IF NOT EXISTS temp.rekeyed_new ON rekeyed (new_id, position)",
)
_CLEAR: Final = ("DELETE FROM temp.difference", "DELETE FROM temp.rekeyed")

_FROM_STAGED: Final = """
INSERT INTO temp.difference
    (record_id, hash, data_from, source_number, reason, old_position, old_revision, old_hash, old_source)
SELECT f.record_id, f.hash, f.action, ?2, ?3, e.position, e.revision, e.hash, e.source_number
FROM staged.final f LEFT JOIN main.entry e ON e.dataset_number = ?1 AND e.record_id = f.record_id
WHERE f.hash IS NOT e.hash AND (f.hash IS NOT NULL OR ?4 OR e.source_number = ?2)
  AND (?5 IS NULL OR e.revision IS NULL OR e.revision <= ?5)
ORDER BY f.action
"""
_NOT_STAGED: Final = """
INSERT INTO temp.difference
    (record_id, source_number, reason, old_position, old_revision, old_hash, old_source)
SELECT e.record_id, e.source_number, ?3, e.position, e.revision, e.hash, e.source_number
FROM main.entry e
WHERE e.dataset_number = ?1 AND e.source_number = ?2 AND e.hash IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM staged.final f WHERE f.record_id = e.record_id)
  AND (?4 IS NULL OR e.revision <= ?4)
ORDER BY e.position
"""
_ALL_OF_SOURCE: Final = """
INSERT INTO temp.difference
    (record_id, source_number, reason, old_position, old_revision, old_hash, old_source)
SELECT record_id, source_number, ?3, position, revision, hash, source_number
FROM main.entry WHERE dataset_number = ?1 AND source_number = ?2 AND hash IS NOT NULL
ORDER BY position
"""
_MOVED: Final = """
INSERT INTO temp.difference
    (record_id, hash, data_from, source_number, reason, old_position, old_revision, old_hash, old_source)
SELECT r.new_id, e.hash, r.position, e.source_number, ?2, t.position, t.revision, t.hash, t.source_number
FROM (SELECT max(position) AS position FROM temp.rekeyed GROUP BY new_id) newest
JOIN temp.rekeyed r ON r.position = newest.position
JOIN main.entry e ON e.dataset_number = ?1 AND e.record_id = r.old_id
LEFT JOIN main.entry t ON t.dataset_number = ?1 AND t.record_id = r.new_id
WHERE r.new_id <> r.old_id AND e.hash IS NOT t.hash
ORDER BY r.position
"""
_LEFT_BEHIND: Final = """
INSERT INTO temp.difference
    (record_id, source_number, reason, old_position, old_revision, old_hash, old_source)
SELECT e.record_id, e.source_number, ?2, e.position, e.revision, e.hash, e.source_number
FROM temp.rekeyed r JOIN main.entry e ON e.dataset_number = ?1 AND e.record_id = r.old_id
WHERE NOT EXISTS (SELECT 1 FROM temp.rekeyed o WHERE o.new_id = r.old_id)
ORDER BY r.position
"""
_COUNT: Final = """
SELECT count(*), count(hash), ifnull(sum(hash IS NOT NULL AND old_hash IS NULL), 0),
       ifnull(sum(hash IS NULL AND old_source = ?1), 0)
FROM temp.difference
"""
_COUNT_NEWER: Final = "SELECT count(*), count(hash) FROM temp.difference WHERE old_revision > ?"
_DIGEST_COLUMNS: Final = """
SELECT group_concat(record_id, char(10)), group_concat(hex(hash)), group_concat(ifnull(old_revision, 0)),
       group_concat(hex(old_hash))
FROM (SELECT * FROM temp.difference WHERE number > ? ORDER BY number LIMIT ?)
"""
# A record that is there keeps its time; one that moves to a free id brings it along.
_KEEP_TIMES: Final = """
UPDATE temp.difference SET create_time_us = (
    SELECT ifnull(r.create_time_us, r.commit_time_us) FROM main.record r WHERE r.slot = ?1 + old_position)
WHERE hash IS NOT NULL AND old_hash IS NOT NULL
"""
_BRING_TIMES: Final = """
UPDATE temp.difference SET create_time_us = (
    SELECT ifnull(r.create_time_us, r.commit_time_us) FROM main.record r WHERE r.slot = ?1 + data_from)
WHERE hash IS NOT NULL AND old_hash IS NULL
"""
_INSERT_STAGED: Final = """
INSERT INTO main.record (slot, revision, commit_time_us, create_time_us, reason, record_id, data)
SELECT ?1 + d.number, ?2, ?3, d.create_time_us, d.reason, d.record_id, iif(d.hash IS NULL, NULL, a.data)
FROM temp.difference d LEFT JOIN staged.action a ON a.number = d.data_from ORDER BY d.number
"""
_INSERT_MOVED: Final = """
INSERT INTO main.record (slot, revision, commit_time_us, create_time_us, reason, record_id, data)
SELECT ?1 + d.number, ?2, ?3, d.create_time_us, d.reason, d.record_id,
       (SELECT data FROM main.record WHERE slot = ?4 + d.data_from)
FROM temp.difference d ORDER BY d.number
"""
_DELETE_REPLACED: Final = """
DELETE FROM main.record WHERE slot IN
    (SELECT ?1 + old_position FROM temp.difference WHERE old_position IS NOT NULL)
"""
_PUT_ENTRIES: Final = """
INSERT INTO main.entry (dataset_number, record_id, position, revision, hash, source_number)
SELECT ?1, record_id, ?2 + number, ?3, hash, source_number
FROM temp.difference WHERE true ORDER BY record_id
ON CONFLICT (dataset_number, record_id) DO UPDATE SET position = excluded.position,
    revision = excluded.revision, hash = excluded.hash, source_number = excluded.source_number
"""
_CARRIED_SIZE: Final = (
    "SELECT ifnull(sum(length(data)), 0) FROM main.record WHERE slot > ?1 AND slot <= ?1 + ?2"
)
_CARRIED: Final = """
SELECT group_concat(slot - ?1), group_concat(record_id, char(10)),
       CAST(group_concat(ifnull(data, ''), char(10)) AS BLOB), group_concat(reason)
FROM (SELECT * FROM main.record WHERE slot > ?1 AND slot <= ?1 + ?2 ORDER BY slot)
"""


def clear(connection: sqlite3.Connection) -> None:
    """Make the table, or empty it."""
    for statement in (*CREATE_TABLES, *_CLEAR):
        connection.execute(statement)


def fill_from_staged(
    connection: sqlite3.Connection,
    dataset_number: int,
    source_number: int,
    reason: int,
    *,
    shared: bool,
    up_to: int | None,
) -> None:
    """Add what the attached session's actions change, in the order in which they were sent.

    ``up_to``: leave out records whose version or tombstone has a later revision than this.
    """
    connection.execute(_FROM_STAGED, (dataset_number, source_number, reason, shared, up_to))


def fill_not_staged(
    connection: sqlite3.Connection,
    dataset_number: int,
    source_number: int,
    reason: int,
    *,
    up_to: int | None,
) -> None:
    """Add the deletion of what the source holds and the attached session does not name; ``up_to`` as above."""
    connection.execute(_NOT_STAGED, (dataset_number, source_number, reason, up_to))


def fill_from_source(
    connection: sqlite3.Connection, dataset_number: int, source_number: int, reason: int
) -> None:
    """Add the deletion of everything that a source holds."""
    connection.execute(_ALL_OF_SOURCE, (dataset_number, source_number, reason))


def fill_from_rekeyed(connection: sqlite3.Connection, dataset_number: int, reason: int) -> None:
    """Add the moves that the table ``rekeyed`` means."""
    connection.execute(_MOVED, (dataset_number, reason))
    connection.execute(_LEFT_BEHIND, (dataset_number, reason))


def count(connection: sqlite3.Connection, *, source_number: int = 0) -> Counts:
    """Count the changes."""
    total, puts, created, deleted_of_source = connection.execute(_COUNT, (source_number,)).fetchone()
    return Counts(
        created=created,
        updated=puts - created,
        deleted=total - puts,
        deleted_of_source=deleted_of_source,
    )


def count_newer(connection: sqlite3.Connection, revision: int) -> tuple[int, int]:
    """Count the changes of records that were changed after this revision, and the puts among them."""
    newer, puts = connection.execute(_COUNT_NEWER, (revision,)).fetchone()
    return int(newer), int(puts)


def apply_difference(
    connection: sqlite3.Connection, dataset_number: int, before: Head, after: Head, *, staged: bool
) -> Head:
    """Bring the changes into the tables as one revision and move the head.

    ``after`` has revision, commit id and time of the new commit; the rest is computed here. ``staged``: the data
    of records that are put is in the attached session, otherwise in records of the same dataset.
    """
    counts = count(connection)
    first_slot = dataset_number << SLOT_BITS
    base = first_slot + before.last_position
    connection.execute(_KEEP_TIMES, (first_slot,))
    if staged:
        connection.execute(_INSERT_STAGED, (base, after.revision, after.commit_time_us))
    else:
        connection.execute(_BRING_TIMES, (first_slot,))
        connection.execute(_INSERT_MOVED, (base, after.revision, after.commit_time_us, first_slot))
    connection.execute(_DELETE_REPLACED, (first_slot,))
    connection.execute(_PUT_ENTRIES, (dataset_number, before.last_position, after.revision))
    digest = before.digest
    for come, gone in _digest_terms(connection, after.revision):
        digest += digest_sum(come) - digest_sum(gone)
    head = replace(
        after,
        record_count=before.record_count + counts.created - counts.deleted,
        digest=digest % DIGEST_MODULUS,
        last_position=before.last_position + counts.changed,
        purge_revision=before.purge_revision,
    )
    write_head(connection, dataset_number, head)
    return head


_Terms = list[tuple[str, int, bytes]]


def _digest_terms(connection: sqlite3.Connection, revision: int) -> Iterator[tuple[_Terms, _Terms]]:
    done = 0
    while True:
        row = connection.execute(_DIGEST_COLUMNS, (done, DIGEST_ROWS)).fetchone()
        if row[0] is None:
            return
        ids, hashes, old_revisions, old_hashes = (
            row[0].split("\n"),
            row[1].split(","),
            integers(row[2]),
            row[3],
        )
        from_hex = bytes.fromhex
        come = [
            (record_id, revision, from_hex(value))
            for record_id, value in zip(ids, hashes, strict=True)
            if value
        ]
        gone = [
            (record_id, old_revision, from_hex(value))
            for record_id, old_revision, value in zip(ids, old_revisions, old_hashes.split(","), strict=True)
            if value
        ]
        yield come, gone
        done += len(ids)


def read_applied(
    connection: sqlite3.Connection, dataset_number: int, before: Head, after: Head, *, limit: int
) -> dict[str, Change] | None:
    """Read back the changes between two heads; None when they are too many or too large to carry."""
    changed = after.last_position - before.last_position
    if changed > limit:
        return None
    first_slot = dataset_number << SLOT_BITS
    base = first_slot + before.last_position
    if connection.execute(_CARRIED_SIZE, (base, changed)).fetchone()[0] > CARRIED_BYTES:
        return None
    slots, ids, data, reasons = connection.execute(_CARRIED, (base, changed)).fetchone()
    if ids is None:
        return {}
    return {
        record_id: (before.last_position + offset, after.revision, reason, body or None)
        for offset, record_id, body, reason in zip(
            integers(slots), ids.split("\n"), data.split(b"\n"), integers(reasons), strict=True
        )
    }

"""What readers ask: pages of changes, heads, records. Each is one statement, so one snapshot and one step."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from syncline_server.model import ChangeKind, Changes, Head, Page, Reason, Record
from syncline_server.store.rows import dataset_not_found, head_of
from syncline_server.store.sqlite.columns import integers, json_array
from syncline_server.store.sqlite.group import SLOT_BITS

_HEAD: Final = """
SELECT revision, commit_id, record_count, digest, commit_time_us, purge_revision, last_position
FROM head WHERE dataset_number = ?
"""

# ?1 dataset, ?2 first slot of the dataset, ?3 after position, ?4 most changes, ?5 most bytes, ?6 revision asked about,
# ?7 most bytes of one record. A page is read up to ``bound``, which is found in one of two ways.
#
# ``_SMALL_PAGE`` takes as many changes as are allowed and measures what came out, which makes it one pass.
# It only tries when a few records tell that they fit (``tried``; NULL: there are none), and gives a newline
# too much in place of a record that is over ?7, so it never gathers more than ?4 times ?7 bytes.
# ``_PAGE`` finds the end by a running sum, which reads sizes and no data. The first change fits always.
_SMALL_PAGE_BOUND: Final = """
WITH
sample (tried) AS MATERIALIZED (
    SELECT sum(size) * ?4 <= ?5 * count(*) FROM (
        SELECT length(CAST(record_id AS BLOB)) + ifnull(length(data), 0) AS size FROM record
        WHERE slot > ?2 + ?3 AND slot < ?2 + (1 << 40) ORDER BY slot LIMIT 8)),
bound (slot, tried) AS MATERIALIZED (
    SELECT CASE WHEN tried THEN ifnull(
        (SELECT slot FROM record WHERE slot > ?2 + ?3 AND slot < ?2 + (1 << 40) ORDER BY slot LIMIT 1 OFFSET ?4 - 1),
        ?2 + (1 << 40) - 1) END, tried FROM sample),
"""
_PAGE_BOUND: Final = """
WITH
candidate (slot, size) AS MATERIALIZED (
    SELECT slot, length(CAST(record_id AS BLOB)) + ifnull(length(data), 0) FROM record
    WHERE slot > ?2 + ?3 AND slot < ?2 + (1 << 40) ORDER BY slot LIMIT ?4),
bound (slot, tried) AS MATERIALIZED (
    SELECT CASE WHEN sum(size) <= ?5 THEN max(slot) ELSE (
        SELECT max(slot) FROM (SELECT slot, sum(size) OVER (ORDER BY slot) AS total,
                                      row_number() OVER (ORDER BY slot) AS number FROM candidate)
        WHERE total <= ?5 OR number = 1) END, 1
    FROM candidate),
"""
# Every row of a page passes here, so: columns straight off the table, which SQLite walks in the order of slots
# (a subquery with ORDER BY would copy each row first), and newlines written out, not made by char(10) for each
# row. Revisions and times never fall from slot to slot, so first and last tell whether they differ. They are
# listed only then: after a bulk load they do not, and writing them out costs as much as the rest.
_PAGE_COLUMNS: Final = """
page AS MATERIALIZED (
    SELECT count(*) AS changes, max(slot) AS last_slot, max(reason) AS reason, count(data) AS puts,
           group_concat(record_id, '\n') AS record_ids,
           CAST(group_concat(CASE WHEN length(data) <= ?7 THEN data WHEN data IS NULL THEN '' ELSE '\n' END, '\n')
                AS BLOB) AS data
    FROM record NOT INDEXED WHERE slot > ?2 + ?3 AND slot <= (SELECT slot FROM bound)),
ends AS MATERIALIZED (
    SELECT f.revision AS first_revision, l.revision AS last_revision,
           f.commit_time_us AS first_time, l.commit_time_us AS last_time
    FROM page LEFT JOIN record l ON l.slot = last_slot
              LEFT JOIN record f ON f.slot = (SELECT min(slot) FROM record WHERE slot > ?2 + ?3 AND slot <= last_slot))
SELECT h.revision, h.commit_id, h.record_count, h.digest, h.commit_time_us, h.purge_revision, h.last_position,
       CASE WHEN ?6 = 0 THEN (SELECT substr(incarnation, 1, 8) FROM dataset WHERE number = ?1)
            ELSE (SELECT commit_id FROM revision WHERE dataset_number = ?1 AND revision = ?6) END,
       EXISTS (SELECT 1 FROM record WHERE slot > ifnull(last_slot, ?2 + ?3) AND slot < ?2 + (1 << 40)),
       (SELECT tried FROM bound), page.*, ends.*,
       CASE WHEN first_revision < last_revision THEN (SELECT group_concat(revision) FROM (
            SELECT revision FROM record WHERE slot > ?2 + ?3 AND slot <= last_slot ORDER BY slot)) END,
       CASE WHEN first_time < last_time THEN (SELECT group_concat(commit_time_us) FROM (
            SELECT commit_time_us FROM record WHERE slot > ?2 + ?3 AND slot <= last_slot ORDER BY slot)) END,
       CASE WHEN reason > 1 THEN (SELECT group_concat(reason) FROM (
            SELECT reason FROM record WHERE slot > ?2 + ?3 AND slot <= last_slot ORDER BY slot)) END
FROM head h, page, ends WHERE h.dataset_number = ?1
"""
_SMALL_PAGE: Final = _SMALL_PAGE_BOUND + _PAGE_COLUMNS
_PAGE: Final = _PAGE_BOUND + _PAGE_COLUMNS
_TIMES_THE_MEAN: Final = 8
"""A record larger than so many times the mean of a full page is not read on trial, which bounds the trial's size."""
_NO_BOUND: Final = 1 << 62

# Columns come joined by newlines or commas; ids of sources hold neither. Sizes are summed over
# length(data), which SQLite knows without reading the data.
_RECORDS: Final = """
WITH
found AS MATERIALIZED (
    SELECT k.key AS number, e.record_id, e.position, e.source_number
    FROM json_each(?2) k CROSS JOIN entry e ON e.dataset_number = ?1 AND e.record_id = k.value
    WHERE e.hash IS NOT NULL),
sized AS MATERIALIZED (
    SELECT f.number, f.position,
           sum(length(CAST(f.record_id AS BLOB)) + length(r.data)) OVER (ORDER BY f.number) AS total,
           row_number() OVER (ORDER BY f.number) AS place
    FROM found f JOIN record r ON r.slot = (?1 << 40) + f.position),
kept AS MATERIALIZED (SELECT number FROM sized WHERE total <= ?3 OR place = 1)
SELECT h.revision, (SELECT group_concat(f.number) FROM found f WHERE f.number NOT IN (SELECT number FROM kept)), page.*
FROM head h, (SELECT group_concat(record_id, '\n'), CAST(group_concat(data, '\n') AS BLOB),
       group_concat(revision), group_concat(source_id), group_concat(create_time_us), group_concat(commit_time_us) FROM (
    SELECT f.record_id, r.data, r.revision, s.source_id, ifnull(r.create_time_us, r.commit_time_us) AS create_time_us, r.commit_time_us
    FROM kept k JOIN found f ON f.number = k.number JOIN record r ON r.slot = (?1 << 40) + f.position
                JOIN source s ON s.number = f.source_number)) page
WHERE h.dataset_number = ?1
"""
_LIST: Final = """
WITH
found AS MATERIALIZED (
    SELECT record_id, position, source_number FROM entry
    WHERE dataset_number = ?1 AND record_id > ?2 AND hash IS NOT NULL ORDER BY record_id LIMIT ?3 + 1),
sized AS MATERIALIZED (
    SELECT f.*, sum(length(CAST(f.record_id AS BLOB)) + length(r.data)) OVER (ORDER BY f.record_id) AS total,
           row_number() OVER (ORDER BY f.record_id) AS place
    FROM found f JOIN record r ON r.slot = (?1 << 40) + f.position),
kept AS MATERIALIZED (SELECT * FROM sized WHERE (total <= ?4 OR place = 1) AND place <= ?3)
SELECT h.revision, (SELECT count(*) FROM found) > (SELECT count(*) FROM kept), page.*
FROM head h, (SELECT group_concat(record_id, '\n'), CAST(group_concat(data, '\n') AS BLOB),
       group_concat(revision), group_concat(source_id), group_concat(create_time_us), group_concat(commit_time_us) FROM (
    SELECT k.record_id, r.data, r.revision, s.source_id, ifnull(r.create_time_us, r.commit_time_us) AS create_time_us, r.commit_time_us
    FROM kept k JOIN record r ON r.slot = (?1 << 40) + k.position
                JOIN source s ON s.number = k.source_number ORDER BY k.record_id)) page
WHERE h.dataset_number = ?1
"""


def read_head(connection: sqlite3.Connection, dataset_number: int) -> Head:
    """Read the head. Raises NotFound."""
    row = connection.execute(_HEAD, (dataset_number,)).fetchone()
    if row is None:
        raise dataset_not_found()
    return head_of(row)


def read_changes(
    connection: sqlite3.Connection,
    dataset_number: int,
    *,
    after: int,
    max_changes: int,
    max_bytes: int,
    seen_revision: int,
) -> Page:
    """Read a page of changes. Raises NotFound."""
    first_slot = dataset_number << SLOT_BITS
    largest = _TIMES_THE_MEAN * max_bytes // max_changes
    asked = (dataset_number, first_slot, after, max_changes, max_bytes, seen_revision)
    row = connection.execute(_SMALL_PAGE, (*asked, largest)).fetchone()
    if row is None:
        raise dataset_not_found()
    changes = _changes(row[10:]) if row[9] != 0 else None
    if changes is None or _size(row[14:16]) > max_bytes:
        row = connection.execute(_PAGE, (*asked, _NO_BOUND)).fetchone()
        if row is None:
            raise dataset_not_found()
        changes = _changes(row[10:])
        assert changes is not None
    count, last_slot, last_revision = row[10], row[11], row[17]
    return Page(
        changes=changes,
        last_position=last_slot - first_slot if count else after,
        last_revision=last_revision or 0,
        complete=not row[8],
        head=head_of(row[:7]),
        seen_commit_id=row[7],
    )


def _size(columns: tuple[str | None, bytes | None]) -> int:
    """Bytes of ids and data that were joined by newlines, without the newlines."""
    ids, data = columns
    if ids is None or data is None:
        return 0
    return len(ids.encode()) + len(data) - 2 * ids.count("\n")


def _changes(page: Sequence[Any]) -> Changes | None:
    """The changes of a page; None when one of them was left out because of its size."""
    count, _, reason, puts, ids, data, first_revision, last_revision, first_time, last_time, *rest = page
    if not count:
        return Changes(record_ids=[], data=[], revisions=[], commit_times_us=[])
    bodies = data.split(b"\n")
    if len(bodies) != count:
        return None
    revisions, times, reasons = rest
    return Changes(
        record_ids=ids.split("\n"),
        data=bodies,
        revisions=[last_revision] * count if first_revision == last_revision else integers(revisions),
        commit_times_us=[last_time] * count if first_time == last_time else integers(times),
        kinds=() if puts == count else [ChangeKind.PUT if body else ChangeKind.DELETE for body in bodies],
        reasons=() if reason == Reason.API else integers(reasons),
    )


def get_records(
    connection: sqlite3.Connection, dataset_number: int, record_ids: Sequence[str], *, max_bytes: int
) -> tuple[Sequence[Record], Sequence[str], int]:
    """Read the live ones of these records. Raises NotFound."""
    row = connection.execute(_RECORDS, (dataset_number, json_array(record_ids), max_bytes)).fetchone()
    if row is None:
        raise dataset_not_found()
    left_out = [record_ids[index] for index in integers(row[1])] if row[1] else []
    return _records(row[2:]), left_out, row[0]


def list_records(
    connection: sqlite3.Connection, dataset_number: int, *, after: str, limit: int, max_bytes: int
) -> tuple[Sequence[Record], bool, int]:
    """Read live records in the order of their ids. Raises NotFound."""
    row = connection.execute(_LIST, (dataset_number, after, limit, max_bytes)).fetchone()
    if row is None:
        raise dataset_not_found()
    return _records(row[2:]), bool(row[1]), row[0]


def _records(columns: Sequence[Any]) -> Sequence[Record]:
    ids, data, revisions, sources, created, updated = columns
    if ids is None:
        return []
    return [
        Record(
            record_id=record_id,
            data=body,
            revision=revision,
            source_id=source_id,
            create_time_us=created_us,
            update_time_us=updated_us,
        )
        for record_id, body, revision, source_id, created_us, updated_us in zip(
            ids.split("\n"),
            data.split(b"\n"),
            integers(revisions),
            sources.split(","),
            integers(created),
            integers(updated),
            strict=True,
        )
    ]

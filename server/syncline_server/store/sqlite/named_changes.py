"""Changes of records that are named, as a page. One statement, so one snapshot and one step."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from syncline_server.model import Changes, Page, Reason
from syncline_server.store.rows import dataset_not_found, head_of
from syncline_server.store.sqlite.columns import integers, json_array
from syncline_server.store.sqlite.group import SLOT_BITS

# ?1 dataset, ?2 record ids, ?3 after position, ?4 through revision, ?5 most bytes, ?6 revision asked about.
_NAMED: Final = """
WITH
found AS MATERIALIZED (
    SELECT (?1 << 40) + e.position AS slot
    FROM json_each(?2) k CROSS JOIN entry e ON e.dataset_number = ?1 AND e.record_id = k.value
    WHERE e.hash IS NOT NULL AND e.position > ?3 AND e.revision <= ?4),
sized AS MATERIALIZED (
    SELECT r.slot, sum(length(CAST(r.record_id AS BLOB)) + length(r.data)) OVER (ORDER BY r.slot) AS total,
           row_number() OVER (ORDER BY r.slot) AS place
    FROM found f JOIN record r ON r.slot = f.slot),
kept AS MATERIALIZED (SELECT slot FROM sized WHERE total <= ?5 OR place = 1)
SELECT h.revision, h.commit_id, h.record_count, h.digest, h.commit_time_us, h.purge_revision, h.last_position,
       CASE WHEN ?6 = 0 THEN (SELECT substr(incarnation, 1, 8) FROM dataset WHERE number = ?1)
            ELSE (SELECT commit_id FROM revision WHERE dataset_number = ?1 AND revision = ?6) END,
       (SELECT count(*) FROM found) > (SELECT count(*) FROM kept), page.*
FROM head h, (SELECT max(slot), group_concat(record_id, '\n'), CAST(group_concat(data, '\n') AS BLOB),
       group_concat(revision), group_concat(commit_time_us), max(reason), group_concat(reason) FROM (
    SELECT r.* FROM kept k JOIN record r ON r.slot = k.slot ORDER BY r.slot)) page
WHERE h.dataset_number = ?1
"""


def read_named_changes(
    connection: sqlite3.Connection,
    dataset_number: int,
    record_ids: Sequence[str],
    *,
    after: int,
    through_revision: int,
    max_bytes: int,
    seen_revision: int,
) -> Page:
    """Read such a page. Raises NotFound."""
    asked = (dataset_number, json_array(record_ids), after, through_revision, max_bytes, seen_revision)
    row = connection.execute(_NAMED, asked).fetchone()
    if row is None:
        raise dataset_not_found()
    last_slot, ids, data, revisions, times, max_reason, reasons = row[9:]
    changes = Changes(record_ids=[], data=[], revisions=[], commit_times_us=[])
    if last_slot is not None:
        changes = Changes(
            record_ids=ids.split("\n"),
            data=data.split(b"\n"),
            revisions=integers(revisions),
            commit_times_us=integers(times),
            reasons=() if max_reason == Reason.API else integers(reasons),
        )
    return Page(
        changes=changes,
        last_position=after if last_slot is None else last_slot - (dataset_number << SLOT_BITS),
        last_revision=changes.revisions[-1] if changes else 0,
        complete=not row[8],
        head=head_of(row[:7]),
        seen_commit_id=row[7],
    )

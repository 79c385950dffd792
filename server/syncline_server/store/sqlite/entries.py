"""Ranges of record ids without their data, heads, and the times of revisions. Each is one step."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from syncline_server.model import EntryPage, Head
from syncline_server.store.rows import dataset_not_found, head_of
from syncline_server.store.sqlite.columns import integers, json_array

# Ids are compared as bytes, which is how SQLite orders text by default. The upper end is a plain comparison, so that
# the index is left there; no upper end is a blob, which comes after every text.
_NO_END: Final = b""
_ENTRIES: Final = """
SELECT h.revision, group_concat(e.record_id, char(10)), group_concat(e.revision), group_concat(hex(e.hash), ''), count(e.hash)
FROM head h LEFT JOIN (
    SELECT record_id, revision, hash FROM entry
    WHERE dataset_number = ?1 AND record_id > ?2 AND record_id <= ?3 AND hash IS NOT NULL
    ORDER BY record_id LIMIT ?4) e
WHERE h.dataset_number = ?1
"""
_COUNT: Final = """
SELECT (SELECT count(*) FROM entry
        WHERE dataset_number = ?1 AND record_id > ?2 AND record_id <= ?3 AND hash IS NOT NULL)
FROM head WHERE dataset_number = ?1
"""
_HEADS: Final = """
SELECT group_concat(dataset_id), group_concat(hex(incarnation)), group_concat(number), group_concat(revision),
       group_concat(hex(commit_id)), group_concat(record_count), group_concat(hex(digest)),
       group_concat(commit_time_us), group_concat(purge_revision), group_concat(last_position)
FROM (SELECT * FROM dataset d JOIN head h ON h.dataset_number = d.number WHERE d.dataset_id > ?
      ORDER BY d.dataset_id LIMIT ?)
"""
_TIMES: Final = """
SELECT group_concat(ifnull(
    (SELECT commit_time_us FROM revision WHERE dataset_number = ?1 AND revision >= k.value ORDER BY revision LIMIT 1),
    (SELECT commit_time_us FROM head WHERE dataset_number = ?1)))
FROM json_each(?2) k
"""
_HASH_HEX: Final = 32
"""Digits of a value hash."""


def list_entries(
    connection: sqlite3.Connection, dataset_number: int, *, after: str, through: str, limit: int
) -> EntryPage:
    """Read live entries of a range. Raises NotFound."""
    row = connection.execute(_ENTRIES, (dataset_number, after, through or _NO_END, limit + 1)).fetchone()
    revision, ids, revisions, hashes, count = row
    if revision is None:
        raise dataset_not_found()
    if not count:
        return EntryPage(record_ids=[], revisions=[], hashes=[], more=False, revision=revision)
    joined = bytes.fromhex(hashes)
    size = _HASH_HEX // 2
    kept = min(count, limit)
    return EntryPage(
        record_ids=ids.split("\n")[:kept],
        revisions=integers(revisions)[:kept],
        hashes=[joined[start : start + size] for start in range(0, kept * size, size)],
        more=count > limit,
        revision=revision,
    )


def count_entries(connection: sqlite3.Connection, dataset_number: int, *, after: str, through: str) -> int:
    """Count live entries of a range. Raises NotFound."""
    row = connection.execute(_COUNT, (dataset_number, after, through or _NO_END)).fetchone()
    if row is None:
        raise dataset_not_found()
    return int(row[0])


def list_heads(
    connection: sqlite3.Connection, *, after: str, limit: int
) -> Sequence[tuple[str, bytes, int, Head]]:
    """Read the heads of datasets in the order of their ids."""
    ids, incarnations, *columns = connection.execute(_HEADS, (after, limit)).fetchone()
    if ids is None:
        return []
    numbers, revisions, commit_ids, counts, digests, times, purged, positions = columns
    rows = zip(
        integers(revisions),
        _blobs(commit_ids),
        integers(counts),
        _blobs(digests),
        integers(times),
        integers(purged),
        integers(positions),
        strict=True,
    )
    return list(zip(ids.split(","), _blobs(incarnations), integers(numbers), map(head_of, rows), strict=True))


def _blobs(column: str) -> list[bytes]:
    return list(map(bytes.fromhex, column.split(",")))


def revision_times(
    connection: sqlite3.Connection, dataset_number: int, revisions: Sequence[int]
) -> Sequence[int]:
    """Commit times of revisions, or of the first one kept after them."""
    row = connection.execute(_TIMES, (dataset_number, json_array(revisions))).fetchone()
    return integers(row[0]) if row[0] is not None else []

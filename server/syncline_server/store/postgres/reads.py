"""What readers ask: pages of changes, heads, records. Each is one statement, so one snapshot."""

from collections.abc import Sequence
from typing import Any, Final

from syncline_server.model import ChangeKind, Changes, EntryPage, Head, Page, Reason, Record
from syncline_server.store.postgres.connection import Connection
from syncline_server.store.postgres.text import bound
from syncline_server.store.rows import dataset_not_found, head_of

_HEAD_COLUMNS: Final = """
h.revision, h.commit_id, h.record_count, h.digest, h.commit_time_us, h.purge_revision, h.last_position
"""
# The commit id that the store has for the revision $4 of dataset $1.
_SEEN: Final = """
CASE WHEN $4::bigint = 0 THEN (SELECT substr(incarnation, 1, 8) FROM dataset WHERE number = $1)
     ELSE (SELECT commit_id FROM revision WHERE dataset_number = $1 AND revision = $4) END
"""
# Sizes are those of the whole values, which PostgreSQL knows without fetching what is stored out of line.
# The first change fits always.
_CHANGE_COLUMNS: Final = """
SELECT count(*) AS changes, max(position) AS last_position, max(reason) AS max_reason,
       array_agg(record_id) AS record_ids, array_agg(coalesce(data, '')) AS data, count(data) AS puts,
       array_agg(revision) AS revisions, array_agg(commit_time_us) AS times, array_agg(reason) AS reasons
FROM (SELECT * FROM sized WHERE total <= $5 OR place = 1 ORDER BY position) kept
"""
# Every row of a page passes here, so a page of small records is read in one pass and joined to two values: sizes and
# elements of arrays cost the database and the node as much again. Eight records tell whether a full page is likely to
# fit (``small``; NULL: there are none); what came out is measured by the caller, who takes the exact way below if it is
# too much. In place of a record over $6 a newline too much is given, so no more than $3 times $6 bytes are gathered.
# Revisions and times never fall from position to position, so first and last tell whether they differ; they are
# listed only then.
# $2 after position, $3 most changes, $4 revision asked about, $5 most bytes, $6 most bytes of one record.
_LISTED: Final = """
(SELECT array_agg({0}) FROM (SELECT {0} FROM record WHERE dataset_number = $1 AND position > $2
    AND position <= page.last_position ORDER BY position) listed)
"""
_SMALL_PAGE: Final = f"""
WITH sample AS MATERIALIZED (
    SELECT sum(size) * $3 <= $5 * count(*) AS small
    FROM (SELECT octet_length(record_id) + coalesce(octet_length(data), 0) AS size FROM record
          WHERE dataset_number = $1 AND position > $2 ORDER BY position LIMIT 8) first_ones),
page AS MATERIALIZED (
    SELECT count(*) AS changes, max(position) AS last_position, max(reason) AS max_reason, count(data) AS puts,
           string_agg(record_id, E'\\n') AS record_ids,
           string_agg(CASE WHEN octet_length(data) <= $6 THEN data WHEN data IS NULL THEN '' ELSE '\\x0a' END,
                      '\\x0a'::bytea) AS data,
           min(revision) AS first_revision, max(revision) AS last_revision,
           min(commit_time_us) AS first_time, max(commit_time_us) AS last_time
    FROM (SELECT * FROM record WHERE dataset_number = $1 AND position > $2 ORDER BY position
          LIMIT CASE WHEN (SELECT small FROM sample) THEN $3 ELSE 0 END) asked)
SELECT {_HEAD_COLUMNS}, {_SEEN},
       EXISTS (SELECT 1 FROM record WHERE dataset_number = $1 AND position > coalesce(page.last_position, $2)),
       (SELECT small FROM sample), changes, page.last_position, max_reason, puts, record_ids, data, last_revision, last_time,
       CASE WHEN first_revision < last_revision THEN {_LISTED.format("revision")} END,
       CASE WHEN first_time < last_time THEN {_LISTED.format("commit_time_us")} END,
       CASE WHEN max_reason > 1 THEN {_LISTED.format("reason")} END
FROM head h, page WHERE h.dataset_number = $1
"""
_TIMES_THE_MEAN: Final = 8
"""A record larger than so many times the mean of a full page is not read on trial, which bounds the trial's size."""
# $2 after position, $3 most changes, $4 revision asked about, $5 most bytes.
_PAGE: Final = f"""
WITH sized AS MATERIALIZED (
    SELECT *, sum(octet_length(record_id) + coalesce(octet_length(data), 0)) OVER (ORDER BY position) AS total,
           row_number() OVER (ORDER BY position) AS place
    FROM (SELECT position, revision, commit_time_us, reason, record_id, data FROM record
          WHERE dataset_number = $1 AND position > $2 ORDER BY position LIMIT $3) asked)
SELECT {_HEAD_COLUMNS}, {_SEEN},
       EXISTS (SELECT 1 FROM record WHERE dataset_number = $1 AND position > coalesce(page.last_position, $2)), page.*
FROM head h, ({_CHANGE_COLUMNS}) page WHERE h.dataset_number = $1
"""
# $2 after position, $3 record ids, $4 revision asked about, $5 most bytes, $6 through revision.
_NAMED: Final = f"""
WITH sized AS MATERIALIZED (
    SELECT *, sum(octet_length(record_id) + octet_length(data)) OVER (ORDER BY position) AS total,
           row_number() OVER (ORDER BY position) AS place
    FROM (SELECT r.position, r.revision, r.commit_time_us, r.reason, r.record_id, r.data
          FROM unnest($3::text[]) k (record_id)
          CROSS JOIN LATERAL (
              SELECT position FROM entry WHERE dataset_number = $1 AND record_id = k.record_id AND hash IS NOT NULL
                  AND position > $2 AND revision <= $6 LIMIT 1) e
          CROSS JOIN LATERAL (
              SELECT * FROM record WHERE dataset_number = $1 AND position = e.position LIMIT 1) r) asked)
SELECT {_HEAD_COLUMNS}, {_SEEN}, (SELECT count(*) FROM sized) > page.changes, page.*
FROM head h, ({_CHANGE_COLUMNS}) page WHERE h.dataset_number = $1
"""
_RECORD_COLUMNS: Final = """
SELECT array_agg(k.record_id ORDER BY k.place) AS record_ids, array_agg(k.data ORDER BY k.place) AS data,
       array_agg(k.revision ORDER BY k.place) AS revisions, array_agg(s.source_id ORDER BY k.place) AS sources,
       array_agg(k.create_time_us ORDER BY k.place) AS created, array_agg(k.commit_time_us ORDER BY k.place) AS updated
FROM kept k CROSS JOIN LATERAL (SELECT source_id FROM source WHERE number = k.source_number LIMIT 1) s
"""
_BODY: Final = """
CROSS JOIN LATERAL (
    SELECT data, commit_time_us FROM record WHERE dataset_number = $1 AND position = e.position LIMIT 1) r
"""
# $2 record ids, $3 most bytes.
_RECORDS: Final = f"""
WITH sized AS MATERIALIZED (
    SELECT e.*, r.*, k.place, sum(octet_length(e.record_id) + octet_length(r.data)) OVER (ORDER BY k.place) AS total,
           row_number() OVER (ORDER BY k.place) AS found
    FROM unnest($2::text[]) WITH ORDINALITY k (record_id, place)
    CROSS JOIN LATERAL (
        SELECT record_id, position, revision, source_number, create_time_us FROM entry
        WHERE dataset_number = $1 AND record_id = k.record_id AND hash IS NOT NULL LIMIT 1) e
    {_BODY}),
kept AS (SELECT * FROM sized WHERE total <= $3 OR found = 1)
SELECT h.revision, (SELECT array_agg(record_id) FROM sized WHERE total > $3 AND found > 1), page.*
FROM head h, ({_RECORD_COLUMNS}) page WHERE h.dataset_number = $1
"""
# $2 after id, $3 most records, $4 most bytes.
_LIST: Final = f"""
WITH sized AS MATERIALIZED (
    SELECT e.*, r.*, sum(octet_length(e.record_id) + octet_length(r.data)) OVER (ORDER BY e.record_id) AS total,
           row_number() OVER (ORDER BY e.record_id) AS place
    FROM (SELECT record_id, position, revision, source_number, create_time_us FROM entry
          WHERE dataset_number = $1 AND record_id > $2 AND hash IS NOT NULL ORDER BY record_id LIMIT $3 + 1) e
    {_BODY}),
kept AS (SELECT * FROM sized WHERE (total <= $4 OR place = 1) AND place <= $3)
SELECT h.revision, (SELECT count(*) FROM sized) > (SELECT count(*) FROM kept), page.*
FROM head h, ({_RECORD_COLUMNS}) page WHERE h.dataset_number = $1
"""
# $2 after id, $3 most entries, $4 through id. With and without an end, since only a plain comparison ends the scan.
_LIVE: Final = "dataset_number = $1 AND hash IS NOT NULL AND record_id > $2"
_ENTRIES_BEGIN: Final = """
SELECT h.revision, page.* FROM head h, (
    SELECT array_agg(record_id) AS record_ids, array_agg(revision) AS revisions, array_agg(hash) AS hashes
    FROM (SELECT record_id, revision, hash FROM entry
"""
_ENTRIES_END: Final = """
          ORDER BY record_id LIMIT $3) e) page
WHERE h.dataset_number = $1
"""
_ENTRIES: Final = f"{_ENTRIES_BEGIN} WHERE {_LIVE} {_ENTRIES_END}"
_ENTRIES_THROUGH: Final = f"{_ENTRIES_BEGIN} WHERE {_LIVE} AND record_id <= $4 {_ENTRIES_END}"
_COUNT: Final = f"SELECT (SELECT count(*) FROM entry WHERE {_LIVE}) FROM head WHERE dataset_number = $1"
_COUNT_THROUGH: Final = f"SELECT (SELECT count(*) FROM entry WHERE {_LIVE} AND record_id <= $3) FROM head WHERE dataset_number = $1"
_HEADS: Final = f"""
SELECT d.dataset_id, d.incarnation, d.number, {_HEAD_COLUMNS}
FROM dataset d JOIN head h ON h.dataset_number = d.number WHERE d.dataset_id > $1 ORDER BY d.dataset_id LIMIT $2
"""
_TIMES: Final = """
SELECT array_agg(coalesce(
    (SELECT commit_time_us FROM revision WHERE dataset_number = $1 AND revision >= k.revision ORDER BY revision LIMIT 1),
    (SELECT commit_time_us FROM head WHERE dataset_number = $1)) ORDER BY k.place)
FROM unnest($2::bigint[]) WITH ORDINALITY k (revision, place)
"""


_NO_CHANGES: Final = Changes(record_ids=[], data=[], revisions=[], commit_times_us=[])


async def read_changes(
    connection: Connection,
    dataset_number: int,
    *,
    after: int,
    max_changes: int,
    max_bytes: int,
    seen_revision: int,
) -> Page:
    """Read a page of changes. Raises NotFound."""
    asked = (dataset_number, after, max_changes, seen_revision, max_bytes)
    row = await connection.fetchrow(_SMALL_PAGE, *asked, _TIMES_THE_MEAN * max_bytes // max_changes)
    if row is None:
        raise dataset_not_found()
    page = _small_page(row, after, max_bytes)
    return page or _page(await connection.fetchrow(_PAGE, *asked), after)


def _small_page(row: Sequence[Any], after: int, max_bytes: int) -> Page | None:
    """None when it is not a page of small records, and so not of the right size."""
    small, count, last_position, max_reason, puts, ids, data, *rest = row[9:]
    if small is False:
        return None
    if not count:
        return _page_of(row, _NO_CHANGES, after, 0)
    bodies = data.split(b"\n")
    if len(bodies) != count or len(ids.encode()) + len(data) - 2 * (count - 1) > max_bytes:
        return None
    last_revision, last_time, revisions, times, reasons = rest
    changes = Changes(
        record_ids=ids.split("\n"),
        data=bodies,
        revisions=revisions or [last_revision] * count,
        commit_times_us=times or [last_time] * count,
        kinds=_kinds(bodies, puts),
        reasons=() if max_reason == Reason.API else reasons,
    )
    return _page_of(row, changes, last_position, last_revision)


async def read_named_changes(
    connection: Connection,
    dataset_number: int,
    record_ids: Sequence[str],
    *,
    after: int,
    through_revision: int,
    max_bytes: int,
    seen_revision: int,
) -> Page:
    """Read a page of changes of named records. Raises NotFound."""
    row = await connection.fetchrow(
        _NAMED, dataset_number, after, list(record_ids), seen_revision, max_bytes, through_revision
    )
    return _page(row, after)


def _page(row: Sequence[Any] | None, after: int) -> Page:
    if row is None:
        raise dataset_not_found()
    count, last_position, max_reason, ids, data, puts, revisions, times, reasons = row[9:]
    if not count:
        return _page_of(row, _NO_CHANGES, after, 0)
    changes = Changes(
        record_ids=ids,
        data=data,
        revisions=revisions,
        commit_times_us=times,
        kinds=_kinds(data, puts),
        reasons=() if max_reason == Reason.API else reasons,
    )
    return _page_of(row, changes, last_position, revisions[-1])


def _kinds(bodies: Sequence[bytes], puts: int) -> Sequence[ChangeKind]:
    if puts == len(bodies):
        return ()
    return [ChangeKind.PUT if body else ChangeKind.DELETE for body in bodies]


def _page_of(row: Sequence[Any], changes: Changes, last_position: int, last_revision: int) -> Page:
    return Page(
        changes=changes,
        last_position=last_position,
        last_revision=last_revision,
        complete=not row[8],
        head=head_of(row[:7]),
        seen_commit_id=row[7],
    )


async def get_records(
    connection: Connection, dataset_number: int, record_ids: Sequence[str], *, max_bytes: int
) -> tuple[Sequence[Record], Sequence[str], int]:
    """Read the live ones of these records. Raises NotFound."""
    row = await connection.fetchrow(_RECORDS, dataset_number, list(record_ids), max_bytes)
    if row is None:
        raise dataset_not_found()
    return _records(row[2:]), row[1] or [], row[0]


async def list_records(
    connection: Connection, dataset_number: int, *, after: str, limit: int, max_bytes: int
) -> tuple[Sequence[Record], bool, int]:
    """Read live records in the order of their ids. Raises NotFound."""
    row = await connection.fetchrow(_LIST, dataset_number, bound(after), limit, max_bytes)
    if row is None:
        raise dataset_not_found()
    return _records(row[2:]), row[1], row[0]


def _records(columns: Sequence[Any]) -> Sequence[Record]:
    if columns[0] is None:
        return []
    return [
        Record(
            record_id=record_id,
            data=data,
            revision=revision,
            source_id=source_id,
            create_time_us=created_us,
            update_time_us=updated_us,
        )
        for record_id, data, revision, source_id, created_us, updated_us in zip(*columns, strict=True)
    ]


async def list_entries(
    connection: Connection, dataset_number: int, *, after: str, through: str, limit: int
) -> EntryPage:
    """Read live entries of a range. Raises NotFound."""
    asked = (dataset_number, bound(after), limit + 1)
    if through:
        row = await connection.fetchrow(_ENTRIES_THROUGH, *asked, bound(through))
    else:
        row = await connection.fetchrow(_ENTRIES, *asked)
    if row is None:
        raise dataset_not_found()
    revision, ids, revisions, hashes = row
    if ids is None:
        return EntryPage(record_ids=[], revisions=[], hashes=[], more=False, revision=revision)
    return EntryPage(
        record_ids=ids[:limit],
        revisions=revisions[:limit],
        hashes=hashes[:limit],
        more=len(ids) > limit,
        revision=revision,
    )


async def count_entries(connection: Connection, dataset_number: int, *, after: str, through: str) -> int:
    """Count live entries of a range. Raises NotFound."""
    if through:
        count = await connection.fetchval(_COUNT_THROUGH, dataset_number, bound(after), bound(through))
    else:
        count = await connection.fetchval(_COUNT, dataset_number, bound(after))
    if count is None:
        raise dataset_not_found()
    return int(count)


async def list_heads(
    connection: Connection, *, after: str, limit: int
) -> Sequence[tuple[str, bytes, int, Head]]:
    """Read the heads of datasets in the order of their ids."""
    rows = await connection.fetch(_HEADS, after, limit)
    return [(row[0], row[1], row[2], head_of(row[3:])) for row in rows]


async def revision_times(
    connection: Connection, dataset_number: int, revisions: Sequence[int]
) -> Sequence[int]:
    """Commit times of revisions, or of the first one kept after them."""
    return await connection.fetchval(_TIMES, dataset_number, list(revisions)) or []

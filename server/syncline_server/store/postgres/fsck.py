"""Checks that a database is what it promises to be, in one snapshot, without changing it."""

from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Final

import asyncpg

from syncline_server.digests import digest_sum
from syncline_server.model import DIGEST_MODULUS, Dataset
from syncline_server.store.abc import StoreRefused
from syncline_server.store.postgres.catalog import datasets_after
from syncline_server.store.postgres.connection import Connection, single_connection
from syncline_server.store.postgres.schema import expect_schema, missing_migrations
from syncline_server.store.report import DatasetFacts, FsckReport, Progress

CHUNK_ROWS: Final = 2_000
CHUNK_BYTES: Final = 8 << 20

# A check reads whole tables, however long that takes.
_BEGIN: Final = "SET LOCAL statement_timeout = 0; SET LOCAL enable_seqscan = on"
_REVISIONS: Final = """
SELECT count(*), min(revision), max(revision), count(*) FILTER (WHERE commit_time_us < previous)
FROM (SELECT revision, commit_time_us, lag(commit_time_us) OVER (ORDER BY revision) AS previous
      FROM revision WHERE dataset_number = $1) r
"""
_COMMIT_ID: Final = "SELECT commit_id FROM revision WHERE dataset_number = $1 AND revision = $2"
_COUNTS: Final = """
SELECT (SELECT count(*) FROM entry WHERE dataset_number = $1),
       (SELECT count(hash) FROM entry WHERE dataset_number = $1),
       (SELECT count(*) FROM record WHERE dataset_number = $1)
"""
_MISMATCHED: Final = """
SELECT e.record_id FROM entry e
LEFT JOIN LATERAL (
    SELECT position, record_id, revision, data FROM record WHERE dataset_number = $1 AND position = e.position LIMIT 1) r
  ON true
WHERE e.dataset_number = $1 AND (r.position IS NULL OR r.record_id <> e.record_id OR r.revision <> e.revision
    OR (r.data IS NULL) <> (e.hash IS NULL))
LIMIT 1
"""
_DISORDER: Final = """
SELECT position FROM (SELECT position, revision, lag(revision, 1, 0::bigint) OVER (ORDER BY position) AS previous
                      FROM record WHERE dataset_number = $1) r
WHERE revision < previous LIMIT 1
"""
_NEWEST: Final = """
SELECT coalesce(max(position), 0), coalesce(max(revision), 0), min(revision) FILTER (WHERE data IS NULL)
FROM record WHERE dataset_number = $1
"""
_OWNERLESS: Final = """
SELECT record_id FROM entry e WHERE dataset_number = $1 AND hash IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM source s WHERE s.number = e.source_number AND s.dataset_number = $1) LIMIT 1
"""
_KNOWN: Final = "(SELECT number FROM dataset UNION SELECT number FROM deleted_dataset)"
_ORPHANS: Final = (
    ("record", f"SELECT count(DISTINCT dataset_number) FROM record WHERE dataset_number NOT IN {_KNOWN}"),
    ("entry", f"SELECT count(DISTINCT dataset_number) FROM entry WHERE dataset_number NOT IN {_KNOWN}"),
    ("revision", f"SELECT count(DISTINCT dataset_number) FROM revision WHERE dataset_number NOT IN {_KNOWN}"),
    (
        "staged",
        (
            "SELECT count(DISTINCT session_number) FROM staged WHERE session_number NOT IN"
            " (SELECT number FROM session UNION SELECT number FROM ended_session)"
        ),
    ),
    (
        "dataset without head",
        "SELECT count(*) FROM dataset WHERE number NOT IN (SELECT dataset_number FROM head)",
    ),
    (
        "session of another dataset",
        (
            "SELECT count(*) FROM session s JOIN source o ON o.number = s.source_number"
            " WHERE o.dataset_number <> s.dataset_number"
        ),
    ),
    (
        "producer whose newest epoch is not its own",
        (
            "SELECT count(*) FROM producer p WHERE last_sequence >= 0 AND epoch IS DISTINCT FROM"
            " (SELECT max(epoch) FROM producer_epoch e WHERE e.producer_number = p.number)"
        ),
    ),
    (
        "epoch that began beyond the one after it",
        (
            "SELECT count(*) FROM (SELECT base_sequence, lead(base_sequence, 1, p.last_sequence)"
            " OVER (PARTITION BY e.producer_number ORDER BY e.epoch) AS ended"
            " FROM producer_epoch e JOIN producer p ON p.number = e.producer_number) b WHERE base_sequence > ended"
        ),
    ),
)
_CHUNK: Final = """
WITH sized AS MATERIALIZED (
    SELECT *, sum(octet_length(data)) OVER (ORDER BY position) AS total, row_number() OVER (ORDER BY position) AS place
    FROM (SELECT position, record_id, data, revision FROM record
          WHERE dataset_number = $1 AND position > $2 AND data IS NOT NULL ORDER BY position LIMIT $3) live)
SELECT s.position, s.record_id, s.data, s.revision, e.hash
FROM sized s LEFT JOIN LATERAL (
    SELECT hash FROM entry WHERE dataset_number = $1 AND record_id = s.record_id LIMIT 1) e ON true
WHERE total <= $4 OR place = 1 ORDER BY s.position
"""


async def fsck(dsn: str, *, progress: Progress | None = None) -> FsckReport:
    """Check a store, also while servers run.

    Revisions without gaps; the index against the rows; counts and digests computed again from the data; nothing that
    belongs to nothing. PostgreSQL's own structure is the business of ``pg_amcheck``. Raises StoreRefused when it
    cannot be read at all.
    """
    async with single_connection(dsn) as connection:
        try:
            await expect_schema(connection)
            if missing := await missing_migrations(connection):
                raise StoreRefused(f"the store lacks {len(missing)} migrations; migrate it first")
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await connection.execute(_BEGIN)
                return await check_store(connection, progress)
        except asyncpg.PostgresError as error:
            return FsckReport(problems=(f"PostgreSQL: {error}",), datasets=())


async def check_store(connection: Connection, progress: Progress | None) -> FsckReport:
    """Check what this connection's transaction sees."""
    problems = []
    for what, statement in _ORPHANS:
        if number := await connection.fetchval(statement):
            problems.append(f"{number} orphans: {what}")
    facts = []
    after = ""
    while page := await datasets_after(connection, after, 100):
        for dataset in page:
            after = dataset.dataset_id
            found, tombstones = await _check_dataset(connection, dataset, progress)
            problems += [f"dataset {dataset.dataset_id}: {problem}" for problem in found]
            facts.append(
                DatasetFacts(
                    dataset_id=dataset.dataset_id,
                    revision=dataset.head.revision,
                    record_count=dataset.head.record_count,
                    tombstones=tombstones,
                    digest=dataset.head.digest.to_bytes(16, "big"),
                )
            )
    return FsckReport(problems=tuple(problems), datasets=tuple(facts))


async def _check_dataset(
    connection: Connection, dataset: Dataset, progress: Progress | None
) -> tuple[list[str], int]:
    problems = await _check_revisions(connection, dataset)
    entries, live, rows = await connection.fetchrow(_COUNTS, dataset.number)
    if entries != rows:
        problems.append(f"{entries} index entries for {rows} rows")
    if live != dataset.head.record_count:
        problems.append(f"the head counts {dataset.head.record_count} records, there are {live}")
    problems += await _check_rows(connection, dataset)
    digest, damaged, checked = 0, 0, 0
    async for values, wrong in _values(connection, dataset.number):
        digest += digest_sum(values)
        damaged += wrong
        checked += len(values)
        if progress is not None:
            progress(dataset.dataset_id, checked)
    if damaged:
        problems.append(f"the data of {damaged} records does not match their hashes")
    if digest % DIGEST_MODULUS != dataset.head.digest:
        problems.append("the digest of the records is not the head's")
    return problems, entries - live


async def _check_revisions(connection: Connection, dataset: Dataset) -> list[str]:
    head = dataset.head
    problems = []
    rows, first, last, backwards = await connection.fetchrow(_REVISIONS, dataset.number)
    if backwards:
        problems.append("commit times decrease")
    if head.revision == 0:
        return [*problems, f"{rows} revisions, but the head is at 0"] if rows else problems
    expected = max(head.purge_revision, 1)
    if (first, last, rows) != (expected, head.revision, head.revision - expected + 1):
        problems.append(f"revisions {first} to {last} ({rows} rows) are not {expected} to {head.revision}")
    if await connection.fetchval(_COMMIT_ID, dataset.number, head.revision) != head.commit_id:
        problems.append("the head's commit id is not that of its revision")
    if head.purge_revision > head.revision:
        problems.append("the purge watermark is above the head")
    return problems


async def _check_rows(connection: Connection, dataset: Dataset) -> list[str]:
    number, head = dataset.number, dataset.head
    problems = []
    for statement, problem in (
        (_MISMATCHED, "the index entry of {!r} does not match its row"),
        (_DISORDER, "revisions decrease at position {}"),
        (_OWNERLESS, "the source of record {!r} does not exist"),
    ):
        found = await connection.fetchval(statement, number)
        if found is not None:
            problems.append(problem.format(found))
    position, revision, tombstone = await connection.fetchrow(_NEWEST, number)
    if position > head.last_position or revision > head.revision:
        problems.append(f"there are rows beyond the head (position {position}, revision {revision})")
    if tombstone is not None and tombstone <= head.purge_revision:
        problems.append(
            f"a tombstone of revision {tombstone} lies below the purge watermark {head.purge_revision}"
        )
    return problems


async def _values(
    connection: Connection, dataset_number: int
) -> AsyncIterator[tuple[list[tuple[str, int, bytes]], int]]:
    """Chunks of (record id, revision, hash of the data as it is), and how many hashes were stored wrong."""
    after = 0
    while rows := await connection.fetch(_CHUNK, dataset_number, after, CHUNK_ROWS, CHUNK_BYTES):
        hashes = [blake2b(row[2], digest_size=16).digest() for row in rows]
        wrong = sum(row[4] != value for row, value in zip(rows, hashes, strict=True))
        yield [(row[1], row[3], value) for row, value in zip(rows, hashes, strict=True)], wrong
        after = rows[-1][0]

"""Checks that a database file is what it promises to be, without changing it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from syncline_server.digests import digest_sum
from syncline_server.model import DIGEST_MODULUS, Dataset
from syncline_server.store.abc import StoreRefused
from syncline_server.store.report import DatasetFacts, FsckReport, Progress
from syncline_server.store.sqlite.catalog import datasets_after
from syncline_server.store.sqlite.columns import integers
from syncline_server.store.sqlite.connection import READER, open_plain
from syncline_server.store.sqlite.files import StoreFiles, refuse_other_states
from syncline_server.store.sqlite.group import SLOT_BITS
from syncline_server.store.sqlite.schema import missing_migrations

CHUNK_ROWS: Final = 2_000
CHUNK_BYTES: Final = 8 << 20

_REVISIONS: Final = """
SELECT count(*), min(revision), max(revision),
       (SELECT count(*) FROM revision a JOIN revision b
        ON b.dataset_number = a.dataset_number AND b.revision = a.revision + 1
        WHERE a.dataset_number = ?1 AND b.commit_time_us < a.commit_time_us)
FROM revision WHERE dataset_number = ?1
"""
_COMMIT_ID: Final = "SELECT commit_id FROM revision WHERE dataset_number = ? AND revision = ?"
_COUNTS: Final = """
SELECT (SELECT count(*) FROM entry WHERE dataset_number = ?1),
       (SELECT count(hash) FROM entry WHERE dataset_number = ?1),
       (SELECT count(*) FROM record WHERE slot > ?1 << 40 AND slot < (?1 + 1) << 40)
"""
_MISMATCHED: Final = """
SELECT e.record_id FROM entry e LEFT JOIN record r ON r.slot = (?1 << 40) + e.position
WHERE e.dataset_number = ?1 AND (r.slot IS NULL OR r.record_id <> e.record_id OR r.revision <> e.revision
    OR (r.data IS NULL) <> (e.hash IS NULL))
LIMIT 1
"""
_DISORDER: Final = """
SELECT position FROM (SELECT slot - (?1 << 40) AS position, revision,
                             lag(revision, 1, 0) OVER (ORDER BY slot) AS previous
                      FROM record WHERE slot > ?1 << 40 AND slot < (?1 + 1) << 40)
WHERE revision < previous LIMIT 1
"""
_NEWEST: Final = """
SELECT ifnull(max(slot) - (?1 << 40), 0), ifnull(max(revision), 0),
       (SELECT min(revision) FROM record WHERE data IS NULL AND slot > ?1 << 40 AND slot < (?1 + 1) << 40)
FROM record WHERE slot > ?1 << 40 AND slot < (?1 + 1) << 40
"""
_OWNERLESS: Final = """
SELECT record_id FROM entry e WHERE dataset_number = ?1 AND hash IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM source s WHERE s.number = e.source_number AND s.dataset_number = ?1) LIMIT 1
"""
_ORPHANS: Final = (
    (
        "record",
        (
            "SELECT count(*) FROM (SELECT DISTINCT slot >> 40 AS number FROM record) WHERE number NOT IN"
            " (SELECT number FROM dataset UNION SELECT number FROM deleted_dataset)"
        ),
    ),
    (
        "entry",
        (
            "SELECT count(*) FROM (SELECT DISTINCT dataset_number AS number FROM entry) WHERE number NOT IN"
            " (SELECT number FROM dataset UNION SELECT number FROM deleted_dataset)"
        ),
    ),
    (
        "revision",
        (
            "SELECT count(*) FROM (SELECT DISTINCT dataset_number AS number FROM revision) WHERE number NOT IN"
            " (SELECT number FROM dataset UNION SELECT number FROM deleted_dataset)"
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
            "SELECT count(*) FROM producer p WHERE last_sequence >= 0 AND epoch IS NOT"
            " (SELECT max(epoch) FROM producer_epoch e WHERE e.producer_number = p.number)"
        ),
    ),
    (
        "epoch that began beyond the one after it",
        (
            "SELECT count(*) FROM (SELECT base_sequence, lead(base_sequence, 1, p.last_sequence)"
            " OVER (PARTITION BY e.producer_number ORDER BY e.epoch) AS ended"
            " FROM producer_epoch e JOIN producer p ON p.number = e.producer_number) WHERE base_sequence > ended"
        ),
    ),
)
_CHUNK: Final = """
SELECT max(slot) - (?1 << 40), count(*), group_concat(record_id, char(10)),
       CAST(group_concat(data, char(10)) AS BLOB), group_concat(revision), group_concat(hex(hash))
FROM (SELECT r.slot, r.record_id, r.data, r.revision, e.hash,
             sum(length(r.data)) OVER (ORDER BY r.slot) AS total, row_number() OVER (ORDER BY r.slot) AS place
      FROM (SELECT * FROM record WHERE slot > (?1 << 40) + ?2 AND slot < (?1 + 1) << 40 AND data IS NOT NULL
            ORDER BY slot LIMIT ?3) r
      LEFT JOIN entry e ON e.dataset_number = ?1 AND e.record_id = r.record_id)
WHERE total <= ?4 OR place = 1
"""


def fsck(path: Path, *, progress: Progress | None = None) -> FsckReport:
    """Check a store in one snapshot, also while a server runs.

    SQLite's own structure; revisions without gaps; the index against the rows; counts and digests computed
    again from the data; nothing that belongs to nothing. Raises StoreRefused when it cannot be read at all.
    """
    if not path.is_file():
        refuse_other_states(StoreFiles(database=path))
        raise StoreRefused(f"{path} does not exist")
    try:
        with closing(open_plain(path, READER, mode="ro")) as connection:
            connection.execute("BEGIN")
            if missing := missing_migrations(connection):
                raise StoreRefused(f"{path} lacks {len(missing)} migrations; migrate it first")
            return _check(connection, progress)
    except sqlite3.DatabaseError as error:
        return FsckReport(problems=(f"SQLite: {error}",), datasets=())


def _check(connection: sqlite3.Connection, progress: Progress | None) -> FsckReport:
    problems = [
        f"SQLite: {row[0]}" for row in connection.execute("PRAGMA integrity_check(10)") if row[0] != "ok"
    ]
    problems += [
        f"a row of {row[0]} refers to a row of {row[2]} that is not there"
        for row in connection.execute("PRAGMA foreign_key_check").fetchmany(10)
    ]
    for what, statement in _ORPHANS:
        if number := connection.execute(statement).fetchone()[0]:
            problems.append(f"{number} orphans: {what}")
    facts = []
    after = ""
    while page := datasets_after(connection, after, 100):
        for dataset in page:
            after = dataset.dataset_id
            found, tombstones = _check_dataset(connection, dataset, progress)
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


def _check_dataset(
    connection: sqlite3.Connection, dataset: Dataset, progress: Progress | None
) -> tuple[list[str], int]:
    problems = list(_check_revisions(connection, dataset))
    entries, live, rows = connection.execute(_COUNTS, (dataset.number,)).fetchone()
    if entries != rows:
        problems.append(f"{entries} index entries for {rows} rows")
    if live != dataset.head.record_count:
        problems.append(f"the head counts {dataset.head.record_count} records, there are {live}")
    problems += _check_rows(connection, dataset)
    digest, damaged = 0, 0
    checked = 0
    for values, wrong in _values(connection, dataset.number):
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


def _check_revisions(connection: sqlite3.Connection, dataset: Dataset) -> Iterator[str]:
    head = dataset.head
    rows, first, last, backwards = connection.execute(_REVISIONS, (dataset.number,)).fetchone()
    if backwards:
        yield "commit times decrease"
    if head.revision == 0:
        if rows:
            yield f"{rows} revisions, but the head is at 0"
        return
    expected = max(head.purge_revision, 1)
    if (first, last, rows) != (expected, head.revision, head.revision - expected + 1):
        yield f"revisions {first} to {last} ({rows} rows) are not {expected} to {head.revision}"
    row = connection.execute(_COMMIT_ID, (dataset.number, head.revision)).fetchone()
    if row is None or row[0] != head.commit_id:
        yield "the head's commit id is not that of its revision"
    if head.purge_revision > head.revision:
        yield "the purge watermark is above the head"


def _check_rows(connection: sqlite3.Connection, dataset: Dataset) -> Iterator[str]:
    number, head = dataset.number, dataset.head
    for statement, problem in (
        (_MISMATCHED, "the index entry of {!r} does not match its row"),
        (_DISORDER, "revisions decrease at position {}"),
        (_OWNERLESS, "the source of record {!r} does not exist"),
    ):
        row = connection.execute(statement, (number,)).fetchone()
        if row is not None:
            yield problem.format(row[0])
    position, revision, tombstone = connection.execute(_NEWEST, (number,)).fetchone()
    if position > head.last_position or revision > head.revision:
        yield f"there are rows beyond the head (position {position}, revision {revision})"
    if tombstone is not None and tombstone <= head.purge_revision:
        yield f"a tombstone of revision {tombstone} lies below the purge watermark {head.purge_revision}"


def _values(
    connection: sqlite3.Connection, dataset_number: int
) -> Iterator[tuple[list[tuple[str, int, bytes]], int]]:
    """Chunks of (record id, revision, hash of the data as it is), and how many hashes were stored wrong."""
    after = 0
    while True:
        row: tuple[Any, ...] = connection.execute(
            _CHUNK, (dataset_number, after, CHUNK_ROWS, CHUNK_BYTES)
        ).fetchone()
        last, rows, ids, data, revisions, stored = row
        if not rows:
            return
        hashes = [blake2b(body, digest_size=16).digest() for body in data.split(b"\n")]
        wrong = sum(bytes.fromhex(a) != b for a, b in zip(stored.split(","), hashes, strict=True))
        yield list(zip(ids.split("\n"), integers(revisions), hashes, strict=True)), wrong
        after = last


assert SLOT_BITS == 40, "the statements above shift by 40"

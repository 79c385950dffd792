"""The spool of a producer: a SQLite file with the readings that the server may not have.

A row for each reading, in the order of ``send``. Numbers are not stored with them. ``next_sequence`` is the number
that the first row has in ``epoch``; the rows after it follow, as far as they were sent. That stays true because

* a row is written before its reading is sent, and removed, together with a new ``next_sequence``, in one
  transaction when it is settled; when that transaction is lost, the server tells again what it has;
* a row is dropped only if it was never sent, in a transaction that is durable before any later row is sent.

So after a crash, when the producer is opened with a new epoch, the server's answer settles the matter exactly: it
names the last number that became durable in the epoch of the file, the rows up to that number are removed, and the
others, whose numbers will never be applied, get new ones in the new epoch.

Every function runs in the spool's own thread. Each statement does its work in one step, since a step lets go of the
interpreter's lock and may wait long to get it back.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syncline.errors import SpoolUnusable
from syncline.producer._outbox import Reading

APPLICATION_ID: Final = 0x53_59_53_50  # "SYSP"
FORMAT: Final = 1
INSERT_ROWS: Final = (256, 16, 1)
"""Rows in one statement; few sizes, so that their statements stay compiled."""
VACUUM_PAGES: Final = 256
"""A spool that is empty when it is closed, and holds so many free pages, gives them back."""

_TABLES: Final = """
CREATE TABLE spool (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    owner TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    next_sequence INTEGER NOT NULL,
    sent_position INTEGER NOT NULL
) STRICT;
CREATE TABLE reading (position INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a spool holds when it is opened."""

    epoch: int
    """In which the readings were numbered; 0: they never were."""
    records: int
    size_bytes: int
    first_position: int
    next_position: int
    sent_position: int
    """Readings up to here may have been sent."""


class Spool:
    """An open spool file."""

    def __init__(self, database: sqlite3.Connection, holdings: Holdings) -> None:
        self._database = database
        self.holdings = holdings

    @classmethod
    def open(cls, path: Path, owner: str) -> "Spool":
        """Open the file, or make it, and lock it. ``owner`` names the producer. Raises SpoolUnusable."""
        try:
            database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise SpoolUnusable(f"the spool {path} cannot be opened: {error}") from error
        try:
            return cls(database, _prepare(database, path, owner))
        except BaseException as error:
            database.close()
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise SpoolUnusable(f"the spool {path} is in use by another process or producer") from error
            if isinstance(error, sqlite3.Error):
                raise SpoolUnusable(f"the spool {path} cannot be used: {error}") from error
            raise

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(sqlite3.Error):  # what matters was committed
            (free,) = self._database.execute("PRAGMA freelist_count").fetchone()
            if free >= VACUUM_PAGES and not self._count()[0]:
                self._database.execute("VACUUM")
        self._database.close()

    def append(
        self, readings: list[Reading], *, sent: bool, settled: "tuple[int, int] | None" = None
    ) -> None:
        """Keep readings, durably. ``sent``: they are about to be sent. ``settled``: as for ``settle``."""
        with self._transaction():
            rest = readings
            for rows in INSERT_ROWS:
                statement = f"INSERT INTO reading VALUES {','.join(['(?,?)'] * rows)}"  # noqa: S608 - marks only
                while len(rest) >= rows:
                    values = [value for one in rest[:rows] for value in (one.position, one.data)]
                    self._database.execute(statement, values)
                    rest = rest[rows:]
            if sent and readings:
                self._mark_sent(readings[-1].position)
            if settled is not None:
                self._settle(*settled)

    def mark_sent(self, position: int) -> None:
        """Readings up to here are about to be sent."""
        with self._transaction():
            self._mark_sent(position)

    def settle(self, position: int, next_sequence: int) -> None:
        """Remove readings up to here; the first one after them has this number."""
        with self._transaction():
            self._settle(position, next_sequence)

    def adopt(self, epoch: int, next_sequence: int, previous_last_sequence: int) -> tuple[int, int]:
        """Begin an epoch, in which the first reading has ``next_sequence``.

        Those numbered up to ``previous_last_sequence`` in the epoch before are durable, and removed: how many, and
        their bytes.
        """
        with self._transaction():
            before, base, sent = self._database.execute(
                "SELECT epoch, next_sequence, sent_position FROM spool"
            ).fetchone()
            durable = max(previous_last_sequence - base + 1, 0) if before else 0
            records, size, last = self._database.execute(
                "SELECT count(*), ifnull(sum(length(data)), 0), max(position) FROM"
                " (SELECT position, data FROM reading WHERE position <= ? ORDER BY position LIMIT ?)",
                (sent, durable),
            ).fetchone()
            if records:
                self._database.execute("DELETE FROM reading WHERE position <= ?", (last,))
            self._database.execute("UPDATE spool SET epoch = ?, next_sequence = ?", (epoch, next_sequence))
        return records, size

    def drop(self, after: int, *, records: int, size_bytes: int) -> tuple[int, int, int]:
        """Drop the oldest readings after a position: at least so many, and so many bytes, if there are.

        How many it were, their bytes, and the position of the last one.
        """
        with self._transaction():
            count, size, last = self._database.execute(
                "SELECT count(*), ifnull(sum(size), 0), max(position) FROM (SELECT position, length(data) AS size,"
                " row_number() OVER w AS number, sum(length(data)) OVER w AS total FROM reading"
                " WHERE position > ? WINDOW w AS (ORDER BY position)) WHERE number <= ? OR total - size < ?",
                (after, records, size_bytes),
            ).fetchone()
            if count:
                self._database.execute(
                    "DELETE FROM reading WHERE position > ? AND position <= ?", (after, last)
                )
        return count, size, last or after

    def read(self, after: int, *, records: int, size_bytes: int) -> list[Reading]:
        """The readings after a position: at most so many, and about so many bytes, but one at least."""
        positions, sizes, data = self._database.execute(
            "SELECT json_group_array(position), json_group_array(size), CAST(group_concat(data, '') AS BLOB) FROM"
            " (SELECT position, data, length(data) AS size, sum(length(data)) OVER (ORDER BY position) AS total"
            " FROM (SELECT position, data FROM reading WHERE position > ? ORDER BY position LIMIT ?)"
            " ORDER BY position) WHERE total - size < ?",
            (after, records, size_bytes),
        ).fetchone()
        readings: list[Reading] = []
        start = 0
        for position, size in zip(json.loads(positions), json.loads(sizes), strict=True):
            readings.append(Reading(position, data[start : start + size]))
            start += size
        return readings

    def _mark_sent(self, position: int) -> None:
        self._database.execute("UPDATE spool SET sent_position = max(sent_position, ?)", (position,))

    def _settle(self, position: int, next_sequence: int) -> None:
        self._database.execute("DELETE FROM reading WHERE position <= ?", (position,))
        self._database.execute("UPDATE spool SET next_sequence = ?", (next_sequence,))

    def _count(self) -> tuple[int, int, int, int]:
        row: tuple[int, int, int, int] = self._database.execute(
            "SELECT count(*), ifnull(sum(length(data)), 0), ifnull(min(position), 0), ifnull(max(position), 0)"
            " FROM reading"
        ).fetchone()
        return row

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise


def _prepare(database: sqlite3.Connection, path: Path, owner: str) -> Holdings:
    database.execute("PRAGMA locking_mode = EXCLUSIVE")  # before anything else: the lock is held to the end
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA fullfsync = ON")  # where an fsync does not reach the disk otherwise
    database.execute("BEGIN EXCLUSIVE")
    (application_id,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        for statement in _TABLES.strip().split(";\n"):
            database.execute(statement)
        database.execute("INSERT INTO spool VALUES (1, ?, 0, 1, 0)", (owner,))
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {FORMAT}")
    elif (application_id, version) != (APPLICATION_ID, FORMAT):
        raise SpoolUnusable(f"{path} is not the spool of a producer, or of a newer version")
    found, epoch, sent = database.execute("SELECT owner, epoch, sent_position FROM spool").fetchone()
    if found != owner:
        raise SpoolUnusable(f"the spool {path} is that of {found}, not of {owner}")
    records, size, first, last = database.execute(
        "SELECT count(*), ifnull(sum(length(data)), 0), ifnull(min(position), 0), ifnull(max(position), 0)"
        " FROM reading"
    ).fetchone()
    database.execute("COMMIT")
    return Holdings(
        epoch=epoch,
        records=records,
        size_bytes=size,
        first_position=first,
        next_position=max(last, sent) + 1,
        sent_position=sent,
    )

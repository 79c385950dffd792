"""The embedded store, to be made as the copy of another one: a file that gets its name when it is complete."""

import os
import sqlite3
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Final

from syncline_server.clock import SystemClock
from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_sides import (
    BUCKET_BITS,
    SESSION,
    Change,
    Copied,
    Identity,
    Key,
    Phase,
    RevisionRow,
    Row,
    StagedAction,
    StagedCall,
    Table,
    refuse_problems,
)
from syncline_server.store.copy_sides import REQUEST as REQUESTS
from syncline_server.store.sqlite.columns import json_array
from syncline_server.store.sqlite.connection import READER, WRITER, open_plain
from syncline_server.store.sqlite.copy_side import SqliteSide, identity_of
from syncline_server.store.sqlite.files import (
    PRIVATE_DIRECTORY,
    PRIVATE_FILE,
    StoreFiles,
    exclusive_lock,
    refuse_network_file_system,
    sync_directory,
)
from syncline_server.store.sqlite.fsck import fsck
from syncline_server.store.sqlite.group import SLOT_BITS
from syncline_server.store.sqlite.schema import apply_migration, missing_migrations
from syncline_server.store.sqlite.staging import SUFFIX, open_staged, remove_staged

# A crash of the system loses the newest batches of an unfinished copy, never its order.
_TARGET: Final = {
    **WRITER,
    "synchronous": ("NORMAL", 1),
    "wal_autocheckpoint": ("4000", 4000),
    "cache_size": ("-131072", -131072),
}
_DURABLE: Final = "PRAGMA synchronous = FULL"
_NEWEST_REQUEST: Final = "SELECT ifnull(max(remember_until_us), 0) FROM request"
_MAKE_STATE: Final = (
    """
CREATE TABLE copy_state (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    checked  INTEGER NOT NULL,
    equal    INTEGER NOT NULL
) STRICT
""",
    """
CREATE TABLE copy_dataset (
    dataset_number  INTEGER PRIMARY KEY,
    position        INTEGER NOT NULL,
    revision        INTEGER NOT NULL,
    record_count    INTEGER NOT NULL,
    digest          BLOB NOT NULL,
    since           INTEGER NOT NULL
) STRICT
""",
    "INSERT INTO copy_state VALUES (1, 0, 0)",
)
_DROP_STATE: Final = ("DROP TABLE IF EXISTS copy_state", "DROP TABLE IF EXISTS copy_dataset")
_HAS_STATE: Final = "SELECT 1 FROM sqlite_schema WHERE name = 'copy_state'"
_EQUAL: Final = "SELECT equal FROM copy_state"
_CHECKED: Final = "SELECT checked FROM copy_state"
_SET_CHECKED: Final = "UPDATE copy_state SET checked = 1"
_SET_EQUAL: Final = "UPDATE copy_state SET equal = 1"
_NOT_EQUAL: Final = "UPDATE copy_state SET equal = 0"
_CHECKPOINT: Final = "PRAGMA wal_checkpoint(TRUNCATE)"
_INSERT_STORE: Final = "INSERT INTO store (one, store_id, token_secret) VALUES (1, ?, ?)"
_COPIED: Final = "SELECT dataset_number, position, revision, record_count, digest, since FROM copy_dataset"
_SET_COPIED: Final = """
INSERT INTO copy_dataset VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (dataset_number) DO UPDATE SET
    position = excluded.position, record_count = excluded.record_count, digest = excluded.digest
"""
_SET_REVISION: Final = """
INSERT INTO copy_dataset VALUES (?, 0, ?, 0, zeroblob(16), 0) ON CONFLICT (dataset_number) DO UPDATE SET
    revision = excluded.revision
"""
_SETTLED: Final = "UPDATE copy_dataset SET since = ? WHERE dataset_number = ?"
_FORGET_COPIED: Final = "DELETE FROM copy_dataset WHERE dataset_number = ?"
_MARK_DELETED: Final = "INSERT OR IGNORE INTO deleted_dataset (number) VALUES (?)"
_FIND_ENTRIES: Final = """
SELECT e.record_id, e.position, e.revision, e.hash
FROM json_each(?2) k CROSS JOIN entry e ON e.dataset_number = ?1 AND e.record_id = k.value
"""
_DELETE_RECORD: Final = "DELETE FROM record WHERE slot = ?"
_INSERT_RECORD: Final = """
INSERT INTO record (slot, revision, commit_time_us, create_time_us, reason, record_id, data) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_ENTRY: Final = """
INSERT INTO entry (dataset_number, record_id, position, revision, hash, source_number) VALUES (?, ?, ?, ?, ?, ?)
"""
_PUT_ENTRY: Final = (
    _INSERT_ENTRY
    + """
ON CONFLICT (dataset_number, record_id) DO UPDATE SET position = excluded.position, revision = excluded.revision,
    hash = excluded.hash, source_number = excluded.source_number
"""
)
_INSERT_REVISION: Final = """
INSERT INTO revision (dataset_number, revision, commit_id, commit_time_us, key_id, source_number, reason, puts, deletes)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_PURGE: Final = (
    """
DELETE FROM entry WHERE dataset_number = ?1 AND record_id IN (
    SELECT record_id FROM record
    WHERE data IS NULL AND slot > ?1 << 40 AND slot < (?1 + 1) << 40 AND revision <= ?2)
""",
    """
DELETE FROM record WHERE slot IN (
    SELECT slot FROM record INDEXED BY record_tombstone
    WHERE data IS NULL AND slot > ?1 << 40 AND slot < (?1 + 1) << 40 AND revision <= ?2)
""",
    "DELETE FROM revision WHERE dataset_number = ?1 AND revision < ?2",
)
_IN_BUCKET: Final = f"""
SELECT e.record_id, e.position, e.revision, e.hash
FROM record r JOIN entry e ON e.dataset_number = ?1 AND e.record_id = r.record_id
WHERE r.slot >= (?1 << 40) + (?2 << {BUCKET_BITS}) AND r.slot < (?1 << 40) + ((?2 + 1) << {BUCKET_BITS})
"""
_DELETE_ENTRY: Final = "DELETE FROM entry WHERE dataset_number = ? AND record_id = ?"
_OWN: Final = "UPDATE entry SET source_number = ? WHERE dataset_number = ? AND record_id = ?"
_INSERT_REQUEST: Final = (
    f"INSERT INTO request ({', '.join(REQUESTS.columns)}) VALUES ({', '.join('?' * len(REQUESTS.columns))})"
    " ON CONFLICT DO NOTHING"
)
_FORGET_REQUESTS: Final = "DELETE FROM request WHERE remember_until_us < ?"
_SET_SEQUENCE: Final = "UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = ?2"
_ADD_SEQUENCE: Final = "INSERT INTO sqlite_sequence (name, seq) SELECT ?2, ?1 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?2)"
_STAGED: Final = "SELECT calls, records FROM state"
_STAGE: Final = "INSERT OR REPLACE INTO action (number, record_id, hash, data) VALUES (?, ?, ?, ?)"
_ACCEPT: Final = "INSERT INTO call (number, request_id, fingerprint, content, records) VALUES (?, ?, ?, ?, ?)"
_SET_STATE: Final = "UPDATE state SET calls = ?, records = ?, active_time_us = ?"


class SqliteTarget(SqliteSide):
    """The store in a file, to be made."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncGenerator["SqliteTarget", None]:
        """Keep everybody else away from the place. Raises StoreRefused."""
        target = cls(StoreFiles(database=path))
        refuse_network_file_system(path)
        target._connection = sqlite3.connect(":memory:")
        try:
            path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            with exclusive_lock(target.files):
                target.files.staging.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
                yield target
        except sqlite3.Error as error:
            raise StoreRefused(f"SQLite: {error}") from error
        finally:
            target._connection.close()

    async def phase(self) -> tuple[Phase, Identity | None]:
        """See ``CopyTarget``."""
        files = self.files
        if files.database.exists() and files.database.stat().st_size:
            with closing(open_plain(files.database, READER, mode="ro")) as connection:
                return Phase.STORE, identity_of(connection)
        if not files.incoming.exists():
            return Phase.EMPTY, None
        self._reopen()
        if self._connection.execute(_HAS_STATE).fetchone() is None:
            return Phase.EMPTY, None
        equal = self._connection.execute(_EQUAL).fetchone()[0]
        return Phase.EQUAL if equal else Phase.COPYING, identity_of(self._connection)

    def _reopen(self) -> None:
        self._connection.close()
        self._connection = open_plain(self.files.incoming, _TARGET, mode="rw")

    async def begin(self, identity: Identity) -> None:
        """See ``CopyTarget``."""
        phase, _ = await self.phase()
        if phase is Phase.EMPTY:
            self._connection.close()
            _remove(self.files.incoming)
            for staged in self.files.staging.iterdir():  # of a copy that was thrown away
                staged.unlink()
            os.close(os.open(self.files.incoming, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE))
            self._reopen()
            now_us = SystemClock().now_us()
            for migration in missing_migrations(self._connection):
                apply_migration(self._connection, migration, now_us=now_us)
            with self._transaction() as connection:
                connection.execute(_INSERT_STORE, (identity.store_id, identity.token_secret))
                for statement in _MAKE_STATE:
                    connection.execute(statement)
            return
        if missing_migrations(self._connection):
            raise StoreRefused(f"{self.files.incoming} was begun by another version; remove it")
        self._connection.execute(_NOT_EQUAL)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    async def copied(self) -> dict[int, Copied]:
        """See ``CopyTarget``."""
        return {
            number: Copied(
                position=position,
                revision=revision,
                record_count=count,
                digest=int.from_bytes(digest, "big"),
                since=since,
            )
            for number, position, revision, count, digest, since in self._connection.execute(_COPIED)
        }

    async def put(self, dataset_number: int, copied: Copied, changes: Sequence[Change]) -> Copied:
        """See ``CopyTarget``. Mostly no record has come before, and that is found out by trying."""
        try:
            return self._put(dataset_number, copied, changes, replacing=False)
        except sqlite3.IntegrityError:
            return self._put(dataset_number, copied, changes, replacing=True)

    def _put(
        self, dataset_number: int, copied: Copied, changes: Sequence[Change], *, replacing: bool
    ) -> Copied:
        first_slot = dataset_number << SLOT_BITS
        with self._transaction() as connection:
            replaced: list[tuple[str, int, int, bytes | None]] = []
            if replacing:
                ids = json_array([change[4] for change in changes])
                replaced = connection.execute(_FIND_ENTRIES, (dataset_number, ids)).fetchall()
                connection.executemany(_DELETE_RECORD, [(first_slot + row[1],) for row in replaced])
            connection.executemany(
                _INSERT_RECORD,
                [
                    (
                        first_slot + position,
                        revision,
                        time_us,
                        None if made_us == time_us else made_us,
                        reason,
                        record_id,
                        data,
                    )
                    for position, revision, time_us, reason, record_id, data, _, made_us, _ in changes
                ],
            )
            connection.executemany(
                _PUT_ENTRY if replacing else _INSERT_ENTRY,
                sorted((dataset_number, row[4], row[0], row[1], row[8], row[6]) for row in changes),
            )
            after = copied.after(
                changes, [(record_id, revision, value) for record_id, _, revision, value in replaced]
            )
            connection.execute(_SET_COPIED, _state(dataset_number, after))
        return after

    async def put_revisions(self, dataset_number: int, rows: Sequence[RevisionRow]) -> None:
        """See ``CopyTarget``."""
        with self._transaction() as connection:
            connection.executemany(_INSERT_REVISION, [(dataset_number, *row) for row in rows])
            connection.execute(_SET_REVISION, (dataset_number, rows[-1][0]))

    async def purge(self, dataset_number: int, revision: int) -> None:
        """See ``CopyTarget``."""
        with self._transaction() as connection:
            for statement in _PURGE:
                connection.execute(statement, (dataset_number, revision))

    async def drop(self, dataset_number: int) -> None:
        """See ``CopyTarget``. Upkeep removes the rows."""
        with self._transaction() as connection:
            connection.execute(_FORGET_COPIED, (dataset_number,))
            connection.execute(_MARK_DELETED, (dataset_number,))

    async def apply(self, table: Table, gone: Sequence[Key], rows: Sequence[Row]) -> None:
        """See ``CopyTarget``."""
        if table is SESSION:
            for (session_id,) in gone:
                remove_staged(self.files.staging, session_id)
        where = " AND ".join(f"{column} = ?" for column in table.key)
        others = ", ".join(f"{column} = excluded.{column}" for column in table.columns[len(table.key) :])
        insert = (
            f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({', '.join('?' * len(table.columns))})"
            f" ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {others}"
        )
        with self._transaction() as connection:
            connection.executemany(f"DELETE FROM {table.name} WHERE {where}", gone)
            connection.executemany(insert, rows)

    async def correct(
        self, dataset_number: int, copied: Copied, bucket: int, rows: Sequence[tuple[str, int]]
    ) -> Copied:
        """See ``CopyTarget``."""
        wanted = {record_id for record_id, _ in rows}
        with self._transaction() as connection:
            present = connection.execute(_IN_BUCKET, (dataset_number, bucket)).fetchall()
            gone = [row for row in present if row[0] not in wanted]
            connection.executemany(
                _DELETE_RECORD, [((dataset_number << SLOT_BITS) + row[1],) for row in gone]
            )
            connection.executemany(_DELETE_ENTRY, [(dataset_number, row[0]) for row in gone])
            connection.executemany(_OWN, [(source, dataset_number, record_id) for record_id, source in rows])
            after = copied.without([(record_id, revision, value) for record_id, _, revision, value in gone])
            connection.execute(_SET_COPIED, _state(dataset_number, after))
        return after

    async def settled(self, dataset_number: int, revision: int) -> None:
        """See ``CopyTarget``."""
        self._connection.execute(_SETTLED, (revision, dataset_number))

    async def put_requests(self, rows: Sequence[Row]) -> None:
        """See ``CopyTarget``."""
        with self._transaction() as connection:
            connection.executemany(_INSERT_REQUEST, rows)

    async def forget_requests(self, before_us: int) -> None:
        """See ``CopyTarget``."""
        self._connection.execute(_FORGET_REQUESTS, (before_us,))

    async def newest_request_us(self) -> int:
        """See ``CopyTarget``."""
        return int(self._connection.execute(_NEWEST_REQUEST).fetchone()[0])

    async def staged(self, session_id: str) -> tuple[int, int]:
        """See ``CopyTarget``."""
        if not (self.files.staging / (session_id + SUFFIX)).exists():
            return 0, 0
        with closing(open_staged(self.files.staging, session_id)) as file:
            calls, records = file.execute(_STAGED).fetchone()
            return calls, records

    async def stage(self, session_id: str, actions: Sequence[StagedAction]) -> None:
        """See ``CopyTarget``."""
        with closing(open_staged(self.files.staging, session_id)) as file:
            file.execute("BEGIN IMMEDIATE")
            file.executemany(_STAGE, actions)
            file.execute("COMMIT")

    async def accept(self, session_id: str, calls: Sequence[StagedCall], active_time_us: int) -> None:
        """See ``CopyTarget``."""
        with closing(open_staged(self.files.staging, session_id)) as file:
            file.execute("BEGIN IMMEDIATE")
            file.executemany(_ACCEPT, calls)
            file.execute(_SET_STATE, (calls[-1][0], calls[-1][4], active_time_us))
            file.execute("COMMIT")

    async def checked(self) -> bool:
        """See ``CopyTarget``."""
        return bool(self._connection.execute(_CHECKED).fetchone()[0])

    async def check(self) -> None:
        """See ``CopyTarget``."""
        refuse_problems(fsck(self.files.incoming).problems)
        self._connection.execute(_SET_CHECKED)

    async def equal(self, sequences: Mapping[str, int]) -> None:
        """See ``CopyTarget``."""
        self._connection.execute(_DURABLE)
        with self._transaction() as connection:
            for name, number in sequences.items():
                connection.execute(_ADD_SEQUENCE, (number, name))
                connection.execute(_SET_SEQUENCE, (number, name))
            connection.execute(_SET_EQUAL)

    async def finish(self) -> None:
        """See ``CopyTarget``. Its last connection brings the WAL in; then it gets its name."""
        self._connection.execute(_CHECKPOINT).fetchone()
        self._connection.close()
        files = self.files
        descriptor = os.open(files.incoming, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for side_file in files.side_files:
            side_file.unlink(missing_ok=True)
        files.incoming.rename(files.database)
        sync_directory(files.database.parent)
        with closing(open_plain(files.database, WRITER, mode="rw")) as connection:
            for statement in _DROP_STATE:
                connection.execute(statement)


def _state(dataset_number: int, copied: Copied) -> Row:
    digest = copied.digest.to_bytes(16, "big")
    return (
        dataset_number,
        copied.position,
        copied.revision,
        copied.record_count,
        digest,
        copied.since,
    )


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


assert SLOT_BITS == 40, "the statements above shift by 40"

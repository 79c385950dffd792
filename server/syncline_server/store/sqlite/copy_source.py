"""The embedded store, to be copied elsewhere while its server runs.

One process has it, so the last step needs the server to be stopped; what open sessions hold lies in files that only
their server may open, and goes over then.
"""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from syncline_server.model import RecordScope
from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_sides import (
    BUCKET_BITS,
    SEQUENCES,
    SESSION,
    Change,
    Head,
    Identity,
    Key,
    Reporter,
    RevisionRow,
    Row,
    StagedAction,
    StagedCall,
    Table,
)
from syncline_server.store.copy_sides import REQUEST as REQUESTS
from syncline_server.store.rows import session_of
from syncline_server.store.sqlite.connection import READER, WRITER, open_plain
from syncline_server.store.sqlite.copy_side import SqliteSide, identity_of
from syncline_server.store.sqlite.files import (
    StoreFiles,
    exclusive_lock,
    sync_directory,
)
from syncline_server.store.sqlite.schema import missing_migrations
from syncline_server.store.sqlite.staging import open_staged, with_counts

WAIT_SECONDS: Final = 0.5
STAGED_CALLS: Final = 1_000


_HEADS: Final = """
SELECT d.number, d.dataset_id, d.record_scope, h.revision, h.record_count, h.digest, h.purge_revision, h.last_position
FROM dataset d JOIN head h ON h.dataset_number = d.number ORDER BY d.number
"""
_CHANGES: Final = """
SELECT r.slot - (?1 << 40), r.revision, r.commit_time_us, r.reason, r.record_id, r.data, e.source_number,
       ifnull(r.create_time_us, r.commit_time_us), e.hash
FROM record r LEFT JOIN entry e
  ON e.dataset_number = ?1 AND e.record_id = r.record_id AND e.position = r.slot - (?1 << 40)
WHERE r.slot > (?1 << 40) + ?2 AND r.slot < (?1 + 1) << 40 ORDER BY r.slot LIMIT ?3
"""
_REVISIONS: Final = """
SELECT revision, commit_id, commit_time_us, key_id, source_number, reason, puts, deletes
FROM revision WHERE dataset_number = ? AND revision > ? ORDER BY revision LIMIT ?
"""
_OWNED: Final = f"""
SELECT e.record_id, e.source_number FROM record r JOIN entry e ON e.dataset_number = ?1 AND e.record_id = r.record_id
WHERE r.slot >= (?1 << 40) + (?2 << {BUCKET_BITS}) AND r.slot < (?1 << 40) + ((?2 + 1) << {BUCKET_BITS})
"""
_REQUESTS: Final = f"""
SELECT {", ".join(REQUESTS.columns)} FROM request
WHERE (remember_until_us, request_id) > (?, ?) ORDER BY remember_until_us, request_id LIMIT ?
"""
_FIRST_REQUEST: Final = "SELECT min(remember_until_us) FROM request"
_SEQUENCE: Final = "SELECT seq FROM sqlite_sequence WHERE name = ?"
_ACTIONS: Final = "SELECT number, record_id, hash, data FROM action WHERE number > ? ORDER BY number LIMIT ?"
_CALLS: Final = "SELECT number, request_id, fingerprint, content, records FROM call WHERE number > ? ORDER BY number LIMIT ?"


class SqliteSource(SqliteSide):
    """The store in a file, to be copied elsewhere."""

    stages = False

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncGenerator["SqliteSource", None]:
        """Open it to be read. Raises StoreRefused."""
        source = cls(StoreFiles(database=path))
        source._connection = sqlite3.connect(":memory:")
        try:
            source._begin()
            yield source
        except sqlite3.Error as error:
            raise StoreRefused(f"SQLite: {error}") from error
        finally:
            source._connection.close()

    def _begin(self) -> None:
        if self.files.database.is_file():
            self._reopen(READER, mode="ro")
        elif not self.files.moved.exists():
            raise StoreRefused(f"{self.name} does not exist")

    def _reopen(self, pragmas: Mapping[str, Any], *, mode: str) -> None:
        self._connection.close()
        try:
            self._connection = open_plain(self.files.database, pragmas, mode=mode)
        except sqlite3.Error as error:
            raise StoreRefused(f"{self.name} cannot be read as a store: {error}") from error

    async def identity(self) -> Identity:
        """See ``CopySource``."""
        try:
            if missing_migrations(self._connection):
                raise StoreRefused(f"{self.name} has an older schema; run syncline-server migrate first")
            return identity_of(self._connection)
        except sqlite3.Error as error:
            raise StoreRefused(f"{self.name} cannot be read as a store: {error}") from error

    async def moved_identity(self) -> Identity | None:
        """See ``CopySource``."""
        if self.files.database.exists() or not self.files.moved.exists():
            return None
        moved = self.files.moved
        newest = max([moved, *moved.parent.glob(moved.name + ".*")])  # the time follows the name
        with closing(open_plain(newest, READER, mode="ro")) as connection:
            return identity_of(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[None, None]:
        """See ``CopySource``."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    @asynccontextmanager
    async def final(
        self, reporter: Reporter, *, wait: bool, meanwhile: Callable[[], Awaitable[object]]
    ) -> AsyncGenerator[None, None]:
        """See ``CopySource``."""
        waiting = False
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive_lock(self.files))
                    break
                except StoreRefused as refused:
                    if not wait:
                        raise StoreRefused(
                            f"all but the newest changes are copied, but {self.name} is in use: stop the server and "
                            "run this again, which takes moments now; --wait does the last step once it is stopped"
                        ) from refused
                    if not waiting:
                        reporter.say(f"waiting until {self.name} is free: stop its server")
                    waiting = True
                await asyncio.sleep(WAIT_SECONDS)
                await meanwhile()
            self._reopen(WRITER, mode="rw")
            self.stages = True
            yield

    async def set_aside(self, to: str) -> None:  # noqa: ARG002 - a file has no comment
        """See ``CopySource``. A WAL without its database would be lost, so it is brought in and removed before."""
        try:
            mode = self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        except sqlite3.OperationalError:
            mode = "locked"
        self._connection.close()
        if mode != "delete":
            raise StoreRefused(f"{self.name} is read by another process; end it and run this again")
        place = self.files.moved
        if place.exists():
            place = place.with_name(f"{place.name}.{datetime.now(UTC):%Y%m%d%H%M%S}")
        self.files.database.rename(place)
        sync_directory(place.parent)

    async def heads(self) -> Sequence[Head]:
        """See ``CopySource``."""
        return [_head(row) for row in self._connection.execute(_HEADS)]

    async def rows(self, table: Table, after: Key | None) -> Sequence[Row]:
        """See ``Side``. The counts of sessions that stage are in their files."""
        found = await super().rows(table, after)
        if table is not SESSION or not self.stages:
            return found
        counted = [with_counts(self.files.staging, session_of(row)) for row in found]
        return [
            (*row[:7], session.active_time_us, session.calls, session.records, *row[10:])
            for row, session in zip(found, counted, strict=True)
        ]

    async def changes(
        self, dataset_number: int, after: int, *, max_rows: int, max_bytes: int
    ) -> Sequence[Change]:
        """See ``CopySource``."""
        found = self._connection.execute(_CHANGES, (dataset_number, after, max_rows))
        changes: list[Change] = []
        with closing(found):
            for change in found:
                if change[6] is None:
                    raise StoreRefused(f"{self.name} is damaged at {change[4]!r}: run syncline-server fsck")
                changes.append(change)
                max_bytes -= len(change[5] or b"")
                if max_bytes <= 0:
                    break
        return changes

    async def revisions(self, dataset_number: int, after: int, *, limit: int) -> Sequence[RevisionRow]:
        """See ``CopySource``."""
        return self._connection.execute(_REVISIONS, (dataset_number, after, limit)).fetchall()

    async def owned(self, dataset_number: int, bucket: int) -> Sequence[tuple[str, int]]:
        """See ``CopySource``."""
        return self._connection.execute(_OWNED, (dataset_number, bucket)).fetchall()

    async def requests(self, after: tuple[int, str], limit: int) -> Sequence[Row]:
        """See ``CopySource``."""
        return self._connection.execute(_REQUESTS, (*after, limit)).fetchall()

    async def first_request_us(self) -> int | None:
        """See ``CopySource``."""
        first: int | None = self._connection.execute(_FIRST_REQUEST).fetchone()[0]
        return first

    async def sequences(self) -> Mapping[str, int]:
        """See ``CopySource``."""
        found = {name: self._connection.execute(_SEQUENCE, (name,)).fetchone() for name in SEQUENCES}
        return {name: row[0] if row else 0 for name, row in found.items()}

    async def staged_calls(self, session_id: str, after: int) -> Sequence[StagedCall]:
        """See ``CopySource``."""
        with closing(open_staged(self.files.staging, session_id)) as file:
            return file.execute(_CALLS, (after, STAGED_CALLS)).fetchall()

    async def staged_actions(
        self, session_id: str, after: int, *, max_rows: int, max_bytes: int
    ) -> Sequence[StagedAction]:
        """See ``CopySource``."""
        actions: list[StagedAction] = []
        with closing(open_staged(self.files.staging, session_id)) as file:
            for action in file.execute(_ACTIONS, (after, max_rows)):
                actions.append(action)
                max_bytes -= len(action[3] or b"")
                if max_bytes <= 0:
                    break
        return actions


def _head(row: Row) -> Head:
    return Head(
        number=row[0],
        dataset_id=row[1],
        shared=row[2] == RecordScope.SHARED,
        revision=row[3],
        record_count=row[4],
        digest=row[5],
        purge_revision=row[6],
        last_position=row[7],
    )

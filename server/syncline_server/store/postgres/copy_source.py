"""The store in PostgreSQL, to be copied elsewhere while nodes go on writing it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from syncline_server.model import RecordScope
from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_sides import (
    BUCKET_BITS,
    REQUEST,
    SEQUENCES,
    Change,
    Head,
    Identity,
    Reporter,
    RevisionRow,
    Row,
    StagedAction,
    StagedCall,
)
from syncline_server.store.postgres.connection import SCHEMA, Connection, check
from syncline_server.store.postgres.copy_side import PostgresSide, connected
from syncline_server.store.postgres.schema import MOVED, missing_migrations

LOCK_ATTEMPTS: Final = 30
LOCK_PAUSE_SECONDS: Final = 3.0
"""In which those go on who queued behind the attempt."""
STAGED_CALLS: Final = 1_000

_HEADS: Final = """
SELECT d.number, d.dataset_id, d.record_scope, h.revision, h.record_count, h.digest, h.purge_revision, h.last_position
FROM dataset d JOIN head h ON h.dataset_number = d.number ORDER BY d.number
"""
# As many rows as fit, the first one always.
_CHANGES: Final = """
WITH sized AS MATERIALIZED (
    SELECT *, sum(octet_length(data)) OVER (ORDER BY position) AS total, row_number() OVER (ORDER BY position) AS place
    FROM (SELECT * FROM record WHERE dataset_number = $1 AND position > $2 ORDER BY position LIMIT $3) r)
SELECT s.position, s.revision, s.commit_time_us, s.reason, s.record_id, s.data, e.source_number, e.create_time_us,
       e.hash
FROM sized s LEFT JOIN LATERAL (
    SELECT source_number, create_time_us, hash FROM entry
    WHERE dataset_number = $1 AND record_id = s.record_id AND position = s.position LIMIT 1) e ON true
WHERE s.total IS NULL OR s.total <= $4 OR s.place = 1 ORDER BY s.position
"""
_REVISIONS: Final = """
SELECT revision, commit_id, commit_time_us, key_id, source_number, reason, puts, deletes
FROM revision WHERE dataset_number = $1 AND revision > $2 ORDER BY revision LIMIT $3
"""
_OWNED: Final = f"""
SELECT e.record_id, e.source_number
FROM record r CROSS JOIN LATERAL (
    SELECT record_id, source_number FROM entry WHERE dataset_number = $1 AND record_id = r.record_id LIMIT 1) e
WHERE r.dataset_number = $1 AND r.position >= $2::bigint << {BUCKET_BITS}
  AND r.position < ($2::bigint + 1) << {BUCKET_BITS}
"""
_REQUESTS: Final = f"""
SELECT {", ".join(REQUEST.columns)} FROM request
WHERE (remember_until_us, request_id) > ($1, $2) ORDER BY remember_until_us, request_id LIMIT $3
"""
_FIRST_REQUEST: Final = "SELECT min(remember_until_us) FROM request"
_SEQUENCE: Final = (
    "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence($1, 'number')::regclass), 0)"
)
_ACTIONS: Final = """
WITH sized AS MATERIALIZED (
    SELECT *, sum(octet_length(data)) OVER (ORDER BY ordinal) AS total, row_number() OVER (ORDER BY ordinal) AS place
    FROM (SELECT s.* FROM staged s JOIN session o ON o.number = s.session_number
          WHERE o.session_id = $1 AND s.ordinal > $2 ORDER BY s.ordinal LIMIT $3) s)
SELECT ordinal, record_id, hash, data FROM sized WHERE total IS NULL OR total <= $4 OR place = 1 ORDER BY ordinal
"""
_CALLS: Final = """
SELECT c.number, c.request_id, c.fingerprint, c.content, c.records
FROM staged_call c JOIN session o ON o.number = c.session_number
WHERE o.session_id = $1 AND c.number > $2 ORDER BY c.number LIMIT $3
"""
# Commits lock their heads first, and so does this: neither waits for the other while it has what that one needs.
_TABLES: Final = """
SELECT string_agg(quote_ident(relname), ', ' ORDER BY relname <> 'head', relname)
FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind = 'r'
"""
# Held no longer than this by a copy that stands still. Whoever writes queues behind the attempt, so that is short, and
# just long enough for autovacuum to step back.
_LIMITS: Final = "SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL lock_timeout = '1500ms'"
_NO_LIMITS: Final = "SET LOCAL idle_in_transaction_session_timeout = 0"
_MOVED: Final = (
    f"SELECT nspname FROM pg_namespace WHERE starts_with(nspname, '{MOVED}') ORDER BY nspname DESC LIMIT 1"
)
_HAS_SCHEMA: Final = f"SELECT to_regclass('{SCHEMA}.store') IS NOT NULL"
_NEW_NAME: Final = f"SELECT '{MOVED}' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISS')"


class PostgresSource(PostgresSide):
    """Reads the store over one connection, and sets it aside."""

    stages = True

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncIterator["PostgresSource"]:
        """Connect. Raises StoreRefused."""
        async with connected(dsn, SCHEMA) as connection:
            await check(connection)
            yield cls(dsn, connection)

    async def identity(self) -> Identity:
        """See ``CopySource``."""
        if not await self._connection.fetchval(_HAS_SCHEMA):
            raise StoreRefused(f"there is no store in {self.name}")
        if await missing_migrations(self._connection):
            raise StoreRefused(f"{self.name} has an older schema; run syncline-server migrate first")
        return await self._identity()

    async def moved_identity(self) -> Identity | None:
        """See ``CopySource``."""
        moved = await self._connection.fetchval(_MOVED)
        if moved is None or await self._connection.fetchval(_HAS_SCHEMA):
            return None
        row = await self._connection.fetchrow(f"SELECT store_id, token_secret FROM {moved}.store")
        return Identity(store_id=row[0], token_secret=row[1])

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """See ``CopySource``."""
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute(_NO_LIMITS)
            yield

    @asynccontextmanager
    async def final(
        self, reporter: Reporter, *, wait: bool, meanwhile: Callable[[], Awaitable[object]]
    ) -> AsyncIterator[None]:
        """See ``CopySource``. Readers go on; whoever writes waits, and fails when the store is set aside."""
        for attempt in range(LOCK_ATTEMPTS if not wait else 1 << 30):
            transaction = self._connection.transaction()
            await transaction.start()
            try:
                await _lock(self._connection)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                await transaction.rollback()
                if attempt == 0:
                    reporter.say(f"waiting for a long transaction in {self.name} to end")
                await asyncio.sleep(LOCK_PAUSE_SECONDS)
                await meanwhile()
                continue
            except BaseException:
                await transaction.rollback()
                raise
            break
        else:
            raise StoreRefused(
                f"{self.name} could not be locked: a long transaction holds its tables (see pg_stat_activity)"
            )
        try:
            yield
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()

    async def set_aside(self, to: str) -> None:
        """See ``CopySource``. In the transaction that holds the locks, so nobody ever sees it both free and there."""
        name = await self._connection.fetchval(_NEW_NAME)
        comment = await self._connection.fetchval("SELECT quote_literal($1)", f"moved to {to}")
        await self._connection.execute(f"ALTER SCHEMA {SCHEMA} RENAME TO {name}")
        await self._connection.execute(f"COMMENT ON SCHEMA {name} IS {comment}")

    async def heads(self) -> Sequence[Head]:
        """See ``CopySource``."""
        return [
            Head(
                number=row[0],
                dataset_id=row[1],
                shared=row[2] == RecordScope.SHARED,
                revision=row[3],
                record_count=row[4],
                digest=row[5],
                purge_revision=row[6],
                last_position=row[7],
            )
            for row in await self._connection.fetch(_HEADS)
        ]

    async def changes(
        self, dataset_number: int, after: int, *, max_rows: int, max_bytes: int
    ) -> Sequence[Change]:
        """See ``CopySource``."""
        found = await self._connection.fetch(_CHANGES, dataset_number, after, max_rows, max_bytes)
        changes: list[Change] = [tuple(row) for row in found]
        for change in changes:
            if change[6] is None:
                raise StoreRefused(f"{self.name} is damaged at {change[4]!r}: run syncline-server fsck")
        return changes

    async def revisions(self, dataset_number: int, after: int, *, limit: int) -> Sequence[RevisionRow]:
        """See ``CopySource``."""
        return [tuple(row) for row in await self._connection.fetch(_REVISIONS, dataset_number, after, limit)]

    async def owned(self, dataset_number: int, bucket: int) -> Sequence[tuple[str, int]]:
        """See ``CopySource``."""
        return [tuple(row) for row in await self._connection.fetch(_OWNED, dataset_number, bucket)]

    async def requests(self, after: tuple[int, str], limit: int) -> Sequence[Row]:
        """See ``CopySource``."""
        return [tuple(row) for row in await self._connection.fetch(_REQUESTS, *after, limit)]

    async def first_request_us(self) -> int | None:
        """See ``CopySource``."""
        first: int | None = await self._connection.fetchval(_FIRST_REQUEST)
        return first

    async def sequences(self) -> Mapping[str, int]:
        """See ``CopySource``."""
        return {name: await self._connection.fetchval(_SEQUENCE, name) for name in SEQUENCES}

    async def staged_calls(self, session_id: str, after: int) -> Sequence[StagedCall]:
        """See ``CopySource``."""
        found = await self._connection.fetch(_CALLS, session_id, after, STAGED_CALLS)
        return [tuple(row) for row in found]

    async def staged_actions(
        self, session_id: str, after: int, *, max_rows: int, max_bytes: int
    ) -> Sequence[StagedAction]:
        """See ``CopySource``."""
        found = await self._connection.fetch(_ACTIONS, session_id, after, max_rows, max_bytes)
        return [tuple(row) for row in found]


async def _lock(connection: Connection) -> None:
    await connection.execute(_LIMITS)
    tables = await connection.fetchval(_TABLES, SCHEMA)
    await connection.execute(f"LOCK TABLE {tables} IN EXCLUSIVE MODE")

"""The store in PostgreSQL, to be made as the copy of another one: a schema that gets its name when it is complete."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from syncline_server.store.abc import StoreRefused
from syncline_server.store.copy_sides import (
    BOOLEANS,
    BUCKET_BITS,
    DATASET,
    HISTORY,
    REQUEST,
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
from syncline_server.store.postgres.connection import SCHEMA, check
from syncline_server.store.postgres.copy_side import WHOLE_TABLES, PostgresSide, connected
from syncline_server.store.postgres.fsck import check_store
from syncline_server.store.postgres.schema import INCOMING, migrate, missing_migrations

ALONE_SECONDS: Final = 20
"""A copy that was killed holds its lock until the server notices that it is gone."""

# A crash of the server may take the newest batches of an unfinished copy, never one and leave a later one.
_HASTY: Final = "SET synchronous_commit = off"
_DURABLE: Final = "SET LOCAL synchronous_commit TO DEFAULT"
_ALONE: Final = "SELECT pg_try_advisory_lock(hashtextextended('syncline.copy', 0))"
_HAS: Final = "SELECT to_regclass($1) IS NOT NULL"
_HOLDS: Final = (
    f"SELECT EXISTS (SELECT FROM {SCHEMA}.store) OR EXISTS (SELECT FROM {SCHEMA}.dataset)"
    f" OR EXISTS (SELECT FROM {SCHEMA}.access_key)"
)
_STORE: Final = f"SELECT store_id, token_secret FROM {SCHEMA}.store"
_MAKE_STATE: Final = """
CREATE TABLE copy_state (one smallint PRIMARY KEY CHECK (one = 1), checked boolean NOT NULL, equal boolean NOT NULL);
CREATE TABLE copy_dataset (
    dataset_number  bigint PRIMARY KEY,
    position        bigint NOT NULL,
    revision        bigint NOT NULL,
    record_count    bigint NOT NULL,
    digest          bytea NOT NULL,
    since           bigint NOT NULL
);
INSERT INTO copy_state VALUES (1, false, false)
"""
_EQUAL: Final = "SELECT equal FROM copy_state"
_CHECKED: Final = "SELECT checked FROM copy_state"
_SET_CHECKED: Final = "UPDATE copy_state SET checked = true"
_SET_EQUAL: Final = "UPDATE copy_state SET equal = $1"
_INSERT_STORE: Final = "INSERT INTO store (one, store_id, token_secret) VALUES (1, $1, $2)"
_FINISH: Final = f"DROP TABLE copy_state, copy_dataset; ALTER SCHEMA {INCOMING} RENAME TO {SCHEMA}"
_COPIED: Final = "SELECT dataset_number, position, revision, record_count, digest, since FROM copy_dataset"
_SET_COPIED: Final = """
INSERT INTO copy_dataset VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (dataset_number) DO UPDATE SET
    position = excluded.position, record_count = excluded.record_count, digest = excluded.digest
"""
_SET_REVISION: Final = """
INSERT INTO copy_dataset VALUES ($1, 0, $2, 0, decode(repeat('00', 16), 'hex'), 0) ON CONFLICT (dataset_number) DO UPDATE
SET revision = excluded.revision
"""
_SETTLED: Final = "UPDATE copy_dataset SET since = $2 WHERE dataset_number = $1"
_FORGET_COPIED: Final = "DELETE FROM copy_dataset WHERE dataset_number = $1"
_MARK_DELETED: Final = "INSERT INTO deleted_dataset (number) VALUES ($1) ON CONFLICT DO NOTHING"
_RECORD_COLUMNS: Final = (
    "dataset_number",
    "position",
    "revision",
    "commit_time_us",
    "reason",
    "record_id",
    "data",
)
_ENTRY_COLUMNS: Final = (
    "dataset_number",
    "record_id",
    "position",
    "revision",
    "source_number",
    "create_time_us",
    "hash",
)
_REPLACED: Final = """
SELECT e.record_id, e.position, e.revision, e.hash
FROM unnest($2::text[]) k (record_id)
CROSS JOIN LATERAL (SELECT * FROM entry WHERE dataset_number = $1 AND record_id = k.record_id LIMIT 1) e
"""
_DELETE_RECORDS: Final = "DELETE FROM record WHERE dataset_number = $1 AND position = ANY ($2::bigint[])"
_DELETE_ENTRIES: Final = "DELETE FROM entry WHERE dataset_number = $1 AND record_id = ANY ($2::text[])"
_PURGE: Final = (
    """
WITH gone AS (
    DELETE FROM record WHERE dataset_number = $1 AND data IS NULL AND revision <= $2 RETURNING record_id)
DELETE FROM entry e USING (
    SELECT found.place FROM gone CROSS JOIN LATERAL (
        SELECT ctid AS place FROM entry WHERE dataset_number = $1 AND record_id = gone.record_id LIMIT 1) found) g
WHERE e.ctid = g.place
""",
    "DELETE FROM revision WHERE dataset_number = $1 AND revision < $2",
)
_IN_BUCKET: Final = f"""
SELECT e.record_id, e.position, e.revision, e.hash
FROM record r CROSS JOIN LATERAL (
    SELECT * FROM entry WHERE dataset_number = $1 AND record_id = r.record_id LIMIT 1) e
WHERE r.dataset_number = $1 AND r.position >= $2::bigint << {BUCKET_BITS}
  AND r.position < ($2::bigint + 1) << {BUCKET_BITS}
"""
_OWN: Final = """
UPDATE entry e SET source_number = k.source_number
FROM (SELECT k.source_number, found.place FROM unnest($2::text[], $3::bigint[]) k (record_id, source_number)
      CROSS JOIN LATERAL (
          SELECT ctid AS place FROM entry WHERE dataset_number = $1 AND record_id = k.record_id
              AND source_number <> k.source_number LIMIT 1) found) k
WHERE e.ctid = k.place
"""
_NEWEST_REQUEST: Final = "SELECT coalesce(max(remember_until_us), 0) FROM request"
_FORGET_REQUESTS: Final = "DELETE FROM request WHERE remember_until_us < $1"
_SET_SEQUENCE: Final = "SELECT setval(pg_get_serial_sequence($1, 'number'), greatest($2, 1), $2 > 0)"
_HISTORIES: Final = "SELECT coalesce(max(number), 0) FROM history"
_SESSION_NUMBER: Final = "SELECT number FROM session WHERE session_id = $1"
_END_SESSIONS: Final = """
WITH ended AS (DELETE FROM session WHERE session_id = ANY ($1::text[]) RETURNING number)
INSERT INTO ended_session (number) SELECT number FROM ended
"""
_STAGED: Final = """
SELECT c.number, c.records FROM session s JOIN staged_call c ON c.session_number = s.number
WHERE s.session_id = $1 ORDER BY c.number DESC LIMIT 1
"""
_STAGE: Final = """
INSERT INTO staged (session_number, record_id, ordinal, hash, data)
SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::bytea[], $5::bytea[])
ON CONFLICT (session_number, record_id) DO UPDATE SET ordinal = excluded.ordinal, hash = excluded.hash,
    data = excluded.data
"""
_CALL_COLUMNS: Final = ("session_number", "number", "request_id", "fingerprint", "content", "records")
_PLACE: Final = "another store"
"""Where a history began that was copied; a node that opens the copy begins one of its own."""


class PostgresTarget(PostgresSide):
    """Writes the store over one connection."""

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncIterator["PostgresTarget"]:
        """Connect, and keep other copies away. Raises StoreRefused."""
        async with connected(dsn, INCOMING) as connection:
            await check(connection)
            for _ in range(ALONE_SECONDS):
                if await connection.fetchval(_ALONE):
                    break
                await asyncio.sleep(1)
            else:
                raise StoreRefused("another copy to this database is running")
            await connection.execute(_HASTY)
            yield cls(dsn, connection)

    async def phase(self) -> tuple[Phase, Identity | None]:
        """See ``CopyTarget``."""
        connection = self._connection
        if await connection.fetchval(_HAS, f"{SCHEMA}.store") and await connection.fetchval(_HOLDS):
            row = await connection.fetchrow(_STORE)
            return Phase.STORE, Identity(store_id=row[0], token_secret=row[1]) if row else None
        if not await connection.fetchval(_HAS, f"{INCOMING}.copy_state"):
            return Phase.EMPTY, None
        equal = await connection.fetchval(_EQUAL)
        return Phase.EQUAL if equal else Phase.COPYING, await self._identity()

    async def begin(self, identity: Identity) -> None:
        """See ``CopyTarget``."""
        phase, _ = await self.phase()
        connection = self._connection
        if phase is not Phase.EMPTY:
            if await missing_migrations(connection):
                raise StoreRefused(f"schema {INCOMING} was begun by another version; drop it")
            await connection.execute(_SET_EQUAL, False)
            return
        async with connection.transaction():
            if await connection.fetchval(_HAS, f"{SCHEMA}.schema_migration"):
                # Made by ``migrate`` and never opened: whoever made it gave rights on it.
                await connection.execute(f"ALTER SCHEMA {SCHEMA} RENAME TO {INCOMING}")
            await migrate(connection, schema=INCOMING)
            await connection.execute(_MAKE_STATE)
            await connection.execute(_INSERT_STORE, identity.store_id, identity.token_secret)

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
            for number, position, revision, count, digest, since in await self._connection.fetch(_COPIED)
        }

    async def put(self, dataset_number: int, copied: Copied, changes: Sequence[Change]) -> Copied:
        """See ``CopyTarget``. Mostly no record has come before, and that is found out by trying."""
        try:
            return await self._put(dataset_number, copied, changes, replacing=False)
        except asyncpg.UniqueViolationError:
            return await self._put(dataset_number, copied, changes, replacing=True)

    async def _put(
        self, dataset_number: int, copied: Copied, changes: Sequence[Change], *, replacing: bool
    ) -> Copied:
        connection = self._connection
        async with connection.transaction():
            replaced: Sequence[Any] = ()
            if replacing:
                replaced = await connection.fetch(_REPLACED, dataset_number, [row[4] for row in changes])
                await connection.execute(_DELETE_RECORDS, dataset_number, [row[1] for row in replaced])
                await connection.execute(_DELETE_ENTRIES, dataset_number, [row[0] for row in replaced])
            await connection.copy_records_to_table(
                "record", records=[(dataset_number, *row[:6]) for row in changes], columns=_RECORD_COLUMNS
            )
            # In the order of their index: neighbours share pages.
            entries = sorted(
                (dataset_number, record_id, position, revision, source, made_us, value)
                for position, revision, _, _, record_id, _, source, made_us, value in changes
            )
            await connection.copy_records_to_table("entry", records=entries, columns=_ENTRY_COLUMNS)
            after = copied.after(changes, [(row[0], row[2], row[3]) for row in replaced])
            await self._note(dataset_number, after)
        return after

    async def _note(self, dataset_number: int, copied: Copied) -> None:
        await self._connection.execute(
            _SET_COPIED,
            dataset_number,
            copied.position,
            copied.revision,
            copied.record_count,
            copied.digest.to_bytes(16, "big"),
            copied.since,
        )

    async def put_revisions(self, dataset_number: int, rows: Sequence[RevisionRow]) -> None:
        """See ``CopyTarget``."""
        async with self._connection.transaction():
            await self._connection.copy_records_to_table(
                "revision",
                records=[(dataset_number, *row) for row in rows],
                columns=(
                    "dataset_number",
                    "revision",
                    "commit_id",
                    "commit_time_us",
                    "key_id",
                    "source_number",
                    "reason",
                    "puts",
                    "deletes",
                ),
            )
            await self._connection.execute(_SET_REVISION, dataset_number, rows[-1][0])

    async def purge(self, dataset_number: int, revision: int) -> None:
        """See ``CopyTarget``."""
        async with self._connection.transaction():
            for statement in _PURGE:
                await self._connection.execute(statement, dataset_number, revision)

    async def drop(self, dataset_number: int) -> None:
        """See ``CopyTarget``. Upkeep removes the rows."""
        async with self._connection.transaction():
            await self._connection.execute(_FORGET_COPIED, dataset_number)
            await self._connection.execute(_MARK_DELETED, dataset_number)

    async def apply(self, table: Table, gone: Sequence[Key], rows: Sequence[Row]) -> None:
        """See ``CopyTarget``."""
        connection = self._connection
        async with connection.transaction():
            if table is SESSION:
                await connection.execute(_END_SESSIONS, [key[0] for key in gone])
            elif gone:
                where = " AND ".join(f"{column} = ${n}" for n, column in enumerate(table.key, 1))
                await connection.executemany(f"DELETE FROM {table.name} WHERE {where}", gone)
            if rows:
                await self._upsert(table, rows)

    async def _upsert(self, table: Table, rows: Sequence[Row], *, replace: bool = True) -> None:
        """COPY into a table without constraints, then on from there."""
        connection = self._connection
        columns = ", ".join(table.columns)
        others = ", ".join(f"{column} = excluded.{column}" for column in table.columns[len(table.key) :])
        more_columns, more = (", place", ", $1::text") if table is HISTORY else ("", "")
        await connection.execute(
            f"CREATE TEMP TABLE arriving ON COMMIT DROP AS SELECT {columns} FROM {table.name} LIMIT 0"
        )
        booleans = [n for n, column in enumerate(table.columns) if column in BOOLEANS]
        records = [_with_booleans(row, booleans) for row in rows] if booleans else rows
        await connection.copy_records_to_table("arriving", records=records, columns=table.columns)
        await connection.execute(
            f"INSERT INTO {table.name} ({columns}{more_columns}) OVERRIDING SYSTEM VALUE"
            f" SELECT {columns}{more} FROM arriving ON CONFLICT ({', '.join(table.key)})"
            + (f" DO UPDATE SET {others}" if replace else " DO NOTHING"),
            *((_PLACE,) if more else ()),
        )
        await connection.execute("DROP TABLE arriving")

    async def correct(
        self, dataset_number: int, copied: Copied, bucket: int, rows: Sequence[tuple[str, int]]
    ) -> Copied:
        """See ``CopyTarget``."""
        connection = self._connection
        wanted = {record_id for record_id, _ in rows}
        async with connection.transaction():
            present = await connection.fetch(_IN_BUCKET, dataset_number, bucket)
            gone = [row for row in present if row[0] not in wanted]
            await connection.execute(_DELETE_RECORDS, dataset_number, [row[1] for row in gone])
            await connection.execute(_DELETE_ENTRIES, dataset_number, [row[0] for row in gone])
            await connection.execute(_OWN, dataset_number, [row[0] for row in rows], [row[1] for row in rows])
            after = copied.without([(row[0], row[2], row[3]) for row in gone])
            await self._note(dataset_number, after)
        return after

    async def settled(self, dataset_number: int, revision: int) -> None:
        """See ``CopyTarget``."""
        await self._connection.execute(_SETTLED, dataset_number, revision)

    async def put_requests(self, rows: Sequence[Row]) -> None:
        """See ``CopyTarget``."""
        async with self._connection.transaction():
            await self._upsert(REQUEST, rows, replace=False)

    async def forget_requests(self, before_us: int) -> None:
        """See ``CopyTarget``."""
        await self._connection.execute(_FORGET_REQUESTS, before_us)

    async def newest_request_us(self) -> int:
        """See ``CopyTarget``."""
        return int(await self._connection.fetchval(_NEWEST_REQUEST))

    async def staged(self, session_id: str) -> tuple[int, int]:
        """See ``CopyTarget``."""
        row = await self._connection.fetchrow(_STAGED, session_id)
        return (row[0], row[1]) if row else (0, 0)

    async def stage(self, session_id: str, actions: Sequence[StagedAction]) -> None:
        """See ``CopyTarget``."""
        number = await self._connection.fetchval(_SESSION_NUMBER, session_id)
        last = {action[1]: action for action in actions}
        ordinals, ids, hashes, bodies = zip(*last.values(), strict=True)
        await self._connection.execute(_STAGE, number, ids, ordinals, hashes, bodies)

    async def accept(
        self,
        session_id: str,
        calls: Sequence[StagedCall],
        active_time_us: int,  # noqa: ARG002 - in the session's row, which is copied with the others
    ) -> None:
        """See ``CopyTarget``."""
        number = await self._connection.fetchval(_SESSION_NUMBER, session_id)
        await self._connection.copy_records_to_table(
            "staged_call", records=[(number, *call) for call in calls], columns=_CALL_COLUMNS
        )

    async def checked(self) -> bool:
        """See ``CopyTarget``."""
        return bool(await self._connection.fetchval(_CHECKED))

    async def check(self) -> None:
        """See ``CopyTarget``."""
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute(WHOLE_TABLES)
            report = await check_store(self._connection, None)
        refuse_problems(report.problems)
        await self._connection.execute(_SET_CHECKED)

    async def equal(self, sequences: Mapping[str, int]) -> None:
        """See ``CopyTarget``."""
        async with self._connection.transaction():
            await self._connection.execute(_DURABLE)
            numbers = {**sequences, "history": await self._connection.fetchval(_HISTORIES)}
            for name, number in numbers.items():
                await self._connection.fetchval(_SET_SEQUENCE, name, number)
            await self._connection.execute(_SET_EQUAL, True)

    async def finish(self) -> None:
        """See ``CopyTarget``."""
        async with self._connection.transaction():
            await self._connection.execute(_DURABLE)
            await self._connection.execute(_FINISH)


def _with_booleans(row: Row, places: Sequence[int]) -> Row:
    values = list(row)
    for place in places:
        values[place] = bool(values[place])
    return tuple(values)


assert DATASET.key == ("number",), "rows keep their numbers"

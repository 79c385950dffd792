"""Tools for operators: migrate, and the end of a restore. ``fsck`` is in its own module.

Backups are PostgreSQL's own (``pg_basebackup``, ``pg_dump``, archived WAL). A store that comes from one is told so
with ``restored``: another cluster, timeline or database is noticed by itself, but the old contents put back into the
same database look like any other change.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from syncline_server.store.abc import StoreRefused
from syncline_server.store.postgres.clock import NOW_US
from syncline_server.store.postgres.connection import Connection, check, single_connection
from syncline_server.store.postgres.fsck import fsck
from syncline_server.store.postgres.schema import enter_history, expect_schema
from syncline_server.store.postgres.schema import migrate as migrate_schema

_END_SESSIONS: Final = """
WITH ended AS (DELETE FROM session RETURNING number)
INSERT INTO ended_session (number) SELECT number FROM ended
"""
_HEARD: Final = f"SELECT name FROM node WHERE report_time_us > ({NOW_US}) - $1 ORDER BY name"
_HAS_STORE: Final = "SELECT EXISTS (SELECT FROM store)"


async def migrate(dsn: str, *, dry_run: bool = False) -> Sequence[str]:
    """Bring the schema up to date; returns the names of the steps that were (to be) done.

    Opening a store does this as well. Nodes of the version before may go on meanwhile. Raises StoreRefused when the
    schema is newer.
    """
    async with _connected(dsn) as connection:
        await check(connection)
        return await migrate_schema(connection, dry_run=dry_run)


async def expect_store(dsn: str) -> None:
    """Raise StoreRefused when no server has ever opened a store in this database."""
    async with _connected(dsn) as connection:
        await expect_schema(connection)
        if not await connection.fetchval(_HAS_STORE):
            raise StoreRefused("there is no store in this database; start a server to make one")


async def restored(dsn: str) -> Sequence[str]:
    """Begin a new history in a database whose contents were put back; returns the ids of the datasets in it.

    Whoever followed what the backup does not hold is told to start again (guarantee G13). Open sessions end. The
    contents are checked first (fsck). No server may have the store open; those that have are to be restarted.
    Raises StoreRefused when there is no store, or the contents are damaged or of a newer version.
    """
    await expect_store(dsn)
    await migrate(dsn)
    report = await fsck(dsn)
    if not report.ok:
        raise StoreRefused(f"what was restored is damaged: {report.problems[0]}")
    async with _connected(dsn) as connection:
        place = await check(connection)
        await connection.execute(_END_SESSIONS)
        await enter_history(connection, "restore", place, secrets.token_bytes, now_us=None)
    return [dataset.dataset_id for dataset in report.datasets]


async def nodes_heard(dsn: str, *, within_seconds: float) -> Sequence[str]:
    """Names of the servers that reported within that time: they may be running. Raises StoreRefused."""
    async with _connected(dsn) as connection:
        rows = await connection.fetch(_HEARD, round(within_seconds * 1e6))
    return [name for (name,) in rows]


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Connection]:
    """A connection whose trouble is StoreRefused."""
    try:
        async with single_connection(dsn) as connection:
            yield connection
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreRefused(f"the database refused: {error}") from error

"""Connections to the database of a store that are none of ours, and what they see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from support.store_values import PostgresBackend


@asynccontextmanager
async def stranger(backend: PostgresBackend) -> AsyncIterator[Any]:
    """A connection that is none of ours."""
    connection = await asyncpg.connect(backend.dsn, server_settings={"search_path": "syncline"})
    try:
        yield connection
    finally:
        await connection.close()


async def waiting_for_a_lock(connection: Any, number: int) -> None:
    """Wait until so many backends of this database wait for a lock."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(20):
        while await connection.fetchval(asked) < number:  # outside of a transaction, which would look once
            await asyncio.sleep(0.01)

"""Opening a store: look at the server, bring the schema up to date, find the history, connect the pools."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import asyncpg

from syncline_server.clock import Clock
from syncline_server.errors import SynclineError
from syncline_server.store.abc import StoreRefused
from syncline_server.store.postgres.clock import DatabaseClock
from syncline_server.store.postgres.connection import check, single_connection
from syncline_server.store.postgres.database import Database
from syncline_server.store.postgres.schema import enter_history, migrate
from syncline_server.store.postgres.store import PostgresStore

WRITER_CONNECTIONS: Final = 4
READER_CONNECTIONS: Final = 4


@asynccontextmanager
async def open_store(
    dsn: str,
    *,
    clock: Clock | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    writer_connections: int = WRITER_CONNECTIONS,
    reader_connections: int = READER_CONNECTIONS,
) -> AsyncIterator[PostgresStore]:
    """Open the store in the database that ``dsn`` names (``postgresql://…``), made when it is empty.

    Other nodes may have it open too. ``clock``: in place of the database's time, for tests.
    ``monotonic``: by which the database's time is told between two looks at it. Raises StoreRefused when
    it cannot be used: no connection, a standby, settings under which a commit is not durable, a newer schema.
    """
    measured = DatabaseClock(monotonic)
    async with AsyncExitStack() as stack:
        try:
            async with single_connection(dsn) as connection:
                place = await check(connection)
                await measured.measure(connection)
                await migrate(connection)
                info = await enter_history(
                    connection, "open", place, random_bytes, now_us=None if clock is None else clock.now_us()
                )
            database = await stack.enter_async_context(
                Database.open(
                    dsn,
                    place,
                    measured,
                    held=clock,
                    writers=writer_connections,
                    readers=reader_connections,
                )
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise StoreRefused(f"the database cannot be opened as a store: {error}") from error
        except SynclineError as error:
            raise StoreRefused(f"the database cannot be opened as a store: {error.message}") from error
        store = PostgresStore(
            info=info,
            database=database,
            commit_lanes=max(1, writer_connections - 1),  # one is left for what waits for no lock
            random_bytes=random_bytes,
        )
        stack.push_async_callback(store.finish)
        yield store

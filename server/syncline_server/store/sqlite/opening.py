"""Opening a store: check the place, lock it, bring the schema up to date, begin a history, take over sessions."""

import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from syncline_server.clock import Clock
from syncline_server.errors import SynclineError
from syncline_server.store.abc import StoreRefused
from syncline_server.store.sqlite import sessions
from syncline_server.store.sqlite.connection import WRITER, connect, run_on
from syncline_server.store.sqlite.files import (
    StoreFiles,
    exclusive_lock,
    load_ballast,
    refuse_network_file_system,
    refuse_other_states,
)
from syncline_server.store.sqlite.readers import Readers
from syncline_server.store.sqlite.schema import append_history, apply_migration, missing_migrations
from syncline_server.store.sqlite.staging import Staging
from syncline_server.store.sqlite.store import SqliteStore
from syncline_server.store.sqlite.writer import Writer

READER_CONNECTIONS: Final = 2


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    clock: Clock,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    reader_connections: int = READER_CONNECTIONS,
) -> AsyncIterator[SqliteStore]:
    """Open the store in the file ``path``, made when it is not there, and own it until the block ends.

    Raises StoreRefused when it cannot be used: another process has it, its schema is newer, its file system
    is not local, a pragma is not in force.
    """
    async with AsyncExitStack() as stack:
        try:
            store = await _open(stack, StoreFiles(database=path), clock, random_bytes, reader_connections)
        except sqlite3.Error as error:
            raise StoreRefused(f"{path} cannot be opened as a store: {error}") from error
        except SynclineError as error:
            raise StoreRefused(f"{path} cannot be opened as a store: {error.message}") from error
        yield store


async def _open(
    stack: AsyncExitStack,
    files: StoreFiles,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    reader_connections: int,
) -> SqliteStore:
    """Enter everything into the stack, in the order of dependence."""
    path = files.database
    refuse_network_file_system(path)
    refuse_other_states(files)
    files.prepare()
    stack.enter_context(exclusive_lock(files))
    connection = await connect(path, WRITER, mode="rw")
    stack.push_async_callback(connection.close)
    for migration in await run_on(connection, missing_migrations):
        await run_on(connection, apply_migration, migration, now_us=clock.now_us())
    writer = Writer(connection, path, clock)
    opened = await writer.transact(append_history, "open", random_bytes, now_us=clock.now_us())
    load_ballast(files)
    readers = await stack.enter_async_context(Readers.open(path, connections=reader_connections))
    open_sessions = await readers.read(sessions.all_sessions)
    staging = await stack.enter_async_context(Staging.open(files.staging, open_sessions, clock))
    store = SqliteStore(
        info=opened.value,
        files=files,
        writer=writer,
        readers=readers,
        staging=staging,
        clock=clock,
        random_bytes=random_bytes,
    )
    stack.push_async_callback(store.finish)
    return store

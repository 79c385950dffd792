"""The pools of a store, and transactions on them: one that writes, one that can only read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import asyncpg

from syncline_server import failpoints
from syncline_server.clock import Clock
from syncline_server.errors import ResourceExhausted, SynclineError
from syncline_server.store.abc import StoreRefused
from syncline_server.store.postgres.clock import NOW_US, DatabaseClock
from syncline_server.store.postgres.connection import (
    READ_ONLY,
    SETTINGS,
    Connection,
    Place,
    check,
    keep_alive,
)
from syncline_server.store.postgres.trouble import translate
from syncline_server.store.trouble import store_unavailable

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_SECONDS: Final = 10.0
_READ_ONLY: Final = "default_transaction_read_only"
_ATTEMPTS: Final = 3
"""A transaction is tried again when another node was faster with the same request id: then its answer is there."""


class Database:
    """Lends connections that were checked, and turns trouble into our words."""

    def __init__(self, place: Place, clock: DatabaseClock, held: Clock | None) -> None:
        self._place = place
        self._time = clock
        self._held = held
        self._writers: asyncpg.Pool[Any]
        self._readers: asyncpg.Pool[Any]
        self._fatal: str | None = None
        self.was_full = False
        """A write found the disk full, and no probe has found room since."""
        self.failed = asyncio.Event()
        """Set when the process should end and be started again: the database is another one than it was."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str,
        place: Place,
        clock: DatabaseClock,
        *,
        held: Clock | None,
        writers: int,
        readers: int,
    ) -> AsyncIterator["Database"]:
        """Connect, and close the connections at the end. ``held``: a test's clock in place of the database's time."""
        database = cls(place, clock, held)
        async with AsyncExitStack() as stack:
            database._writers = await stack.enter_async_context(database._pool(dsn, dict(SETTINGS), writers))
            database._readers = await stack.enter_async_context(database._pool(dsn, dict(READ_ONLY), readers))
            yield database

    def _pool(self, dsn: str, settings: dict[str, str], size: int) -> "asyncpg.Pool[Any]":
        return asyncpg.create_pool(
            dsn,
            min_size=0,
            max_size=size,
            timeout=CONNECT_SECONDS,
            server_settings=settings,
            # Of several hosts the one that is no standby. To the driver a connection of ours that cannot write would
            # not be one to a server that can (read-write).
            target_session_attrs="primary" if settings.get(_READ_ONLY) == "on" else None,
            init=self._check,
            reset=_leave,
        )

    async def _check(self, connection: Connection) -> None:
        """Look at every new connection: after a fail-over it may lead somewhere else."""
        keep_alive(connection)
        try:
            place = await check(connection)
        except StoreRefused as refused:
            raise store_unavailable(str(refused)) from refused
        if place.identity != self._place.identity:
            self._fatal = (
                f"the database is {place.identity} now, it was {self._place.identity}; the server restarts"
            )
            self.failed.set()
            raise store_unavailable(self._fatal)

    def check(self) -> None:
        """Raise Unavailable(STORE_UNAVAILABLE) once the store has failed."""
        if self._fatal is not None:
            raise store_unavailable(self._fatal)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection that cannot write. Each statement on it is a snapshot of its own."""
        self.check()
        with _translated():
            async with _lent(self._readers) as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """A connection that can write, outside of a transaction.

        Raises Unavailable when the server warned: a commit that was cancelled while it waited for a standby is there,
        but perhaps not on the standby.
        """
        self.check()
        with self._noting_full(), _translated():
            async with _lent(self._writers) as connection:
                warnings: list[str] = []

                def note(_: Connection, message: Any) -> None:
                    warnings.append(str(message))

                connection.add_log_listener(note)
                try:
                    yield connection
                finally:
                    with suppress(asyncpg.InterfaceError):  # it broke, and is not in the pool any more
                        connection.remove_log_listener(note)
                if warnings:
                    raise store_unavailable(warnings[0])

    @contextmanager
    def _noting_full(self) -> Iterator[None]:
        try:
            yield
        except ResourceExhausted:
            self.was_full = True
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction that is committed at the end of the block, or rolled back when that raises."""
        failpoints.hit("commit.before")
        async with self.writing() as connection, connection.transaction():
            yield connection
            failpoints.hit("commit.rows")
        failpoints.hit("commit.after")

    async def read(
        self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work`` on a connection that cannot write."""
        async with self.reading() as connection:
            return await work(connection, *args, **kwargs)

    async def transact(
        self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work`` in a transaction; again when another node had the same request id at the same time."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self.transaction() as connection:
                    return await work(connection, *args, **kwargs)
            except asyncpg.UniqueViolationError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError

    @property
    def clock(self) -> Clock:
        """The time of the database; that of a clock that a test holds."""
        return self._held or self._time

    async def measure_time(self) -> None:
        """Ask the database for its time."""
        await self.read(self._time.measure)

    async def now_us(self, connection: Connection) -> int:
        """The time of the database, asked for in a transaction; that of a clock that a test holds."""
        if self._held is not None:
            return self._held.now_us()
        return int(await connection.fetchval(NOW_US))

    @property
    def held_us(self) -> int | None:
        """The time that a test holds; None: the database's counts."""
        return None if self._held is None else self._held.now_us()


@asynccontextmanager
async def _lent(pool: "asyncpg.Pool[Any]") -> AsyncIterator[Connection]:
    """One of its connections, which goes back only if it can be of use again.

    A session that began while the database was read-only stays so, and one that broke in the middle of the driver's work
    may not notice.
    """
    async with pool.acquire() as connection:
        try:
            yield connection
        except (asyncpg.ReadOnlySQLTransactionError, asyncpg.InternalClientError):
            connection.terminate()
            raise


async def _leave(connection: Connection) -> None:
    """Connections are given back as they were lent: nothing of a session is ever set on them."""


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        ours = None if isinstance(error, SynclineError) else translate(error)
        if ours is None:
            raise
        raise ours from error
